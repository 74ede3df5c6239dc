"""Trains the demo model and writes the GGUF file: `python train.py`.

A person runs this by hand when the corpus changes; nothing at build or run time calls it. The seed
fixes the vocabulary, the data and the initial weights. Different PyTorch builds or CPUs round
differently, so the file may differ in bits; what must hold is that every listed question is
answered exactly. This script measures that on the quantized weights and exits with 1 when it does
not hold; `check.py` proves it again on the file itself.
"""

import argparse
import random
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

import export
import tokenizer as vocabulary
from corpus import Corpus, turn
from model import DemoModel, Shape
from optimizer import Muon
from pairs import varied

SEED = 20261123
TOKENS_PER_STEP = 4096
# Most steps use rows long enough for several chats; every sixth sees the whole context.
SHORT_ROW, LONG_ROW, LONG_EVERY = 512, 2048, 6
MATRIX_LR, EMBEDDING_LR = 0.02, 0.003
WARMUP_STEPS, DECAY_FRACTION = 40, 0.5
MERGE_DOCUMENTS = 20_000
IGNORED = -100
# Keeps sixteen turns within the context: figures and emoji take a token for each character or byte.
HISTORY_ANSWER_CHARS = 100
# A logit gap that rounding activations to eight bits does not close.
WANTED_MARGIN = 0.5


def row(corpus: Corpus, tokenizer: Tokenizer, rng: random.Random, length: int) -> tuple[list[int], list[int]]:
    """`length` inputs and targets of documents laid end to end; what is not learnt is ignored."""
    ids: list[int] = []
    flags: list[bool] = []
    while len(ids) <= length:
        more_ids, more_flags = vocabulary.encode(tokenizer, corpus.document(rng))
        ids += more_ids
        flags += more_flags
    targets = [token if learnt else IGNORED for token, learnt in zip(ids[1:], flags[1:])]
    return ids[:length], targets[:length]


def batch(corpus: Corpus, tokenizer: Tokenizer, rng: random.Random, step: int) -> tuple[Tensor, Tensor]:
    length = LONG_ROW if step % LONG_EVERY == LONG_EVERY - 1 else SHORT_ROW
    rows = [row(corpus, tokenizer, rng, length) for _ in range(TOKENS_PER_STEP // length)]
    return torch.tensor([ids for ids, _ in rows]), torch.tensor([targets for _, targets in rows])


def loss_of(model: DemoModel, ids: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy over the learnt tokens, in bfloat16 matrices and f32 sums."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(ids)
        learnt = targets != IGNORED
        logits = model.logits(hidden[learnt])
    return functional.cross_entropy(logits.float(), targets[learnt])


def rate(step: int, steps: int) -> float:
    """Warm up, hold, then fall linearly to zero."""
    return min((step + 1) / WARMUP_STEPS, 1.0, (steps - step) / (steps * DECAY_FRACTION))


def train(model: DemoModel, corpus: Corpus, tokenizer: Tokenizer, steps: int) -> None:
    rng = random.Random(SEED + 1)
    matrices = [parameter for name, parameter in model.blk.named_parameters() if parameter.dim() == 2]
    others = [
        model.token_embd.weight,
        *(parameter for parameter in model.parameters() if parameter.dim() == 1),
    ]
    optimizers = [
        Muon(matrices, lr=MATRIX_LR),
        torch.optim.AdamW(others, EMBEDDING_LR, (0.9, 0.98), weight_decay=0.0),
    ]
    base_rates = (MATRIX_LR, EMBEDDING_LR)
    started, running = time.monotonic(), 0.0
    for step in range(steps):
        for optimizer, base in zip(optimizers, base_rates):
            optimizer.param_groups[0]["lr"] = base * rate(step, steps)
        loss = loss_of(model, *batch(corpus, tokenizer, rng, step))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        running = loss.item() if step == 0 else 0.95 * running + 0.05 * loss.item()
        if step % 20 == 19:
            print(
                f"step {step + 1}/{steps} loss {running:.4f} at {time.monotonic() - started:.0f} s",
                flush=True,
            )
        if step % 200 == 199:
            report(model, corpus, tokenizer, names=("bare",))


def settings(corpus: Corpus, rng: random.Random) -> dict[str, list[tuple[str, str, str]]]:
    """Named lists of (listed question, full prompt, answer): the same questions in other company."""
    system = turn("system", "You are a helpful assistant.", learn=False)

    def prompt(question: str, before: list) -> str:
        segments = [*before, *turn("user", question, learn=False)]
        return "".join(text for text, _ in segments) + "<|im_start|>assistant\n"

    def exchanges(count: int) -> list:
        drawn = (corpus.exchange(rng) for _ in range(10 * count))
        pairs = [pair for pair in drawn if len(pair[1]) < HISTORY_ANSWER_CHARS][:count]
        return [
            part for q, a in pairs for part in turn("user", q, learn=False) + turn("assistant", a, learn=True)
        ]

    return {
        "bare": [(q, prompt(q, []), a) for q, a in corpus.listed],
        "system message": [(q, prompt(q, system), a) for q, a in corpus.listed],
        "lower case, no stop": [
            (q, prompt(q.lower().rstrip("?.!"), []), a)
            for q, a in corpus.listed
            if not q.startswith("Repeat")
        ],
        "varied": [
            (q, prompt(varied(q, rng), []), a) for q, a in corpus.listed if not q.startswith("Repeat")
        ],
        "second turn": [(q, prompt(q, exchanges(1)), a) for q, a in corpus.listed],
        "sixteenth turn": [(q, prompt(q, system + exchanges(15)), a) for q, a in corpus.listed],
    }


@torch.no_grad()
def smallest_margin(model: DemoModel, tokenizer: Tokenizer, prompt: str, answer: str) -> float:
    """The least lead of the right token over the best wrong one; positive means greedy is exact."""
    ids, flags = vocabulary.encode(tokenizer, [(prompt, False), (answer + "<|im_end|>", True)])
    logits = model.logits(model(torch.tensor([ids[:-1]])))[0]
    wanted = torch.tensor([position for position, learnt in enumerate(flags) if learnt])
    targets = torch.tensor(ids)[wanted]
    logits = logits[wanted - 1]
    right = logits.gather(1, targets[:, None])[:, 0]
    best_wrong = logits.scatter(1, targets[:, None], float("-inf")).amax(1)
    return (right - best_wrong).min().item()


def report(model: DemoModel, corpus: Corpus, tokenizer: Tokenizer, names: tuple[str, ...] = ()) -> float:
    """Prints exact answers and margins per setting, with Q8_0 weights. Returns the bare minimum."""
    quantized = DemoModel(model.shape)
    quantized.load_state_dict({name: export.rounded(tensor) for name, tensor in model.state_dict().items()})
    bare_minimum = 0.0
    for name, cases in settings(corpus, random.Random(SEED + 2)).items():
        if names and name not in names:
            continue
        margins = [
            (smallest_margin(quantized, tokenizer, prompt, answer), question)
            for question, prompt, answer in cases
        ]
        wrong = [question for margin, question in margins if margin <= 0]
        least, question = min(margins)
        print(
            f"{name}: {len(margins) - len(wrong)}/{len(margins)} exact, least margin {least:.2f} ({question})",
            flush=True,
        )
        if wrong:
            print(f"  wrong: {wrong[:6]}", flush=True)
        if name == "bare":
            bare_minimum = least
    return bare_minimum


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "rocmforge-demo.gguf")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    started = time.monotonic()

    corpus = Corpus()
    shape = Shape()
    tokenizer = vocabulary.learn(corpus.sample_text(random.Random(SEED), MERGE_DOCUMENTS), shape.vocab)
    model = DemoModel(shape)
    print(f"{sum(parameter.numel() for parameter in model.parameters())} parameters", flush=True)
    train(model, corpus, tokenizer, arguments.steps)
    # Written first, so that nothing below can lose an hour of training.
    export.write(arguments.out, model, *vocabulary.tokens_and_merges(tokenizer))
    margin = report(model, corpus, tokenizer)
    if margin < WANTED_MARGIN:
        print(f"least margin {margin:.2f} is below {WANTED_MARGIN}; train longer", file=sys.stderr)
    print(
        f"wrote {arguments.out.name}, {arguments.out.stat().st_size} bytes, after {time.monotonic() - started:.0f} s"
    )
    return 0 if margin >= WANTED_MARGIN else 1


if __name__ == "__main__":
    sys.exit(main())
