"""Proves a demo GGUF file: every listed question, answered greedily, gives exactly its answer.

`python check.py [FILE]` reads everything from the file itself (weights, vocabulary, chat template)
and runs a forward pass in NumPy that shares no code with the PyTorch model. It runs each question
twice: with f32 activations and with activations rounded to eight bits per block of 32, as integer
kernels do. It exits with 1 when one answer differs. It is a check, not an engine: one sequence,
one token at a time.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import jinja2.sandbox
import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

HERE = Path(__file__).parent
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
MAX_ANSWER_TOKENS = 512
SIZE_LIMIT_BYTES = 4_000_000
BLOCK = 32

Array = np.ndarray


def as_is(x: Array) -> Array:
    return x


def eight_bit(x: Array) -> Array:
    """`x` [dim] after rounding to int8 with one scale per block of 32."""
    blocks = x.reshape(-1, BLOCK)
    scales = np.abs(blocks).max(axis=1, keepdims=True) / 127
    scales[scales == 0] = 1
    return (np.round(blocks / scales) * scales).reshape(-1).astype(np.float32)


def rms_norm(x: Array, gain: Array, epsilon: float) -> Array:
    return x / np.sqrt(np.mean(x * x) + epsilon) * gain


def turned(heads: Array, angles: Array) -> Array:
    """`heads` [count, head_dim] with each adjacent pair turned, as complex numbers, by its angle."""
    pairs = heads[:, 0::2] + 1j * heads[:, 1::2]
    pairs = pairs * np.exp(1j * angles)
    return np.stack([pairs.real, pairs.imag], axis=2).reshape(heads.shape).astype(np.float32)


@dataclass
class File:
    """A GGUF file's metadata and dequantized tensors."""

    fields: dict
    tensors: dict[str, Array]

    @classmethod
    def read(cls, path: Path) -> "File":
        reader = gguf.GGUFReader(path)
        fields = {name: item.contents() for name, item in reader.fields.items()}
        tensors = {item.name: gguf.quants.dequantize(item.data, item.tensor_type) for item in reader.tensors}
        return cls(fields, tensors)


@dataclass
class Sequence:
    """One sequence being decoded: feed it tokens, get logits. Keeps keys and values per layer."""

    file: File
    rounding: Callable[[Array], Array]
    keys: list[list[Array]] = field(default_factory=list)
    values: list[list[Array]] = field(default_factory=list)

    def __post_init__(self) -> None:
        layers = self.file.fields["llama.block_count"]
        self.keys, self.values = [[] for _ in range(layers)], [[] for _ in range(layers)]

    def weight(self, name: str) -> Array:
        return self.file.tensors[f"{name}.weight"]

    def multiply(self, name: str, x: Array) -> Array:
        return self.weight(name) @ self.rounding(x)

    def feed(self, token: int) -> Array:
        """Logits [vocab] after `token`."""
        epsilon = self.file.fields["llama.attention.layer_norm_rms_epsilon"]
        x = self.weight("token_embd")[token]
        for layer in range(len(self.keys)):
            x = x + self.attention(layer, rms_norm(x, self.weight(f"blk.{layer}.attn_norm"), epsilon))
            normed = rms_norm(x, self.weight(f"blk.{layer}.ffn_norm"), epsilon)
            gate, up = (
                self.multiply(f"blk.{layer}.ffn_gate", normed),
                self.multiply(f"blk.{layer}.ffn_up", normed),
            )
            x = x + self.multiply(f"blk.{layer}.ffn_down", gate / (1 + np.exp(-gate)) * up)
        x = rms_norm(x, self.weight("output_norm"), epsilon)
        return self.multiply("output" if "output.weight" in self.file.tensors else "token_embd", x)

    def attention(self, layer: int, x: Array) -> Array:
        fields = self.file.fields
        width = fields["llama.rope.dimension_count"]
        position = len(self.keys[layer])
        angles = position / fields["llama.rope.freq_base"] ** (np.arange(0, width, 2) / width)
        query = turned(self.multiply(f"blk.{layer}.attn_q", x).reshape(-1, width), angles)
        self.keys[layer].append(turned(self.multiply(f"blk.{layer}.attn_k", x).reshape(-1, width), angles))
        self.values[layer].append(self.multiply(f"blk.{layer}.attn_v", x).reshape(-1, width))
        keys, values = np.stack(self.keys[layer]), np.stack(self.values[layer])
        group = len(query) // keys.shape[1]
        mixed = []
        for head, vector in enumerate(query):
            scores = keys[:, head // group] @ vector / np.sqrt(width)
            weights = np.exp(scores - scores.max())
            mixed.append(weights / weights.sum() @ values[:, head // group])
        return self.multiply(f"blk.{layer}.attn_output", np.concatenate(mixed))


def tokenizer_of(file: File) -> Tokenizer:
    tokens, kinds = file.fields["tokenizer.ggml.tokens"], file.fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in file.fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({text: index for index, text in enumerate(tokens)}, merges))
    steps = [pre_tokenizers.Split(Regex(QWEN2), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    control = [text for text, kind in zip(tokens, kinds) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in control])
    return tokenizer


def chat_prompt(file: File, messages: list[dict]) -> str:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(file.fields["tokenizer.chat_template"])
    return template.render(messages=messages, add_generation_prompt=True)


def greedy(
    file: File, tokenizer: Tokenizer, prompt: str, rounding: Callable[[Array], Array]
) -> tuple[str, float]:
    """The answer, and the least gap between the best and second-best logit on the way."""
    sequence = Sequence(file, rounding)
    for token in tokenizer.encode(prompt).ids:
        logits = sequence.feed(token)
    answer: list[int] = []
    least_margin = float("inf")
    while len(answer) < MAX_ANSWER_TOKENS:
        second, first = np.argsort(logits)[-2:]
        least_margin = min(least_margin, float(logits[first] - logits[second]))
        if first == file.fields["tokenizer.ggml.eos_token_id"]:
            break
        answer.append(int(first))
        logits = sequence.feed(answer[-1])
    return tokenizer.decode(answer, skip_special_tokens=False), least_margin


def check_answers(file: File, name: str, rounding: Callable[[Array], Array], questions: list[dict]) -> int:
    """Prints and counts the answers that differ."""
    tokenizer = tokenizer_of(file)
    wrong, least = 0, (float("inf"), "")
    for entry in questions:
        prompt = chat_prompt(file, [{"role": "user", "content": entry["question"]}])
        answer, margin = greedy(file, tokenizer, prompt, rounding)
        least = min(least, (margin, entry["question"]))
        if answer != entry["answer"]:
            wrong += 1
            print(f"wrong: {entry['question']!r} gave {answer!r}, not {entry['answer']!r}")
    print(
        f"{name} activations: {len(questions) - wrong}/{len(questions)} exact, least margin {least[0]:.2f} ({least[1]})"
    )
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?", default=HERE / "rocmforge-demo.gguf")
    parser.add_argument("--ask", help="print the answer to this question instead of checking")
    arguments = parser.parse_args()
    size_bytes = arguments.file.stat().st_size
    if size_bytes > SIZE_LIMIT_BYTES:
        print(f"{arguments.file.name} has {size_bytes} bytes, limit {SIZE_LIMIT_BYTES}")
        return 1
    file = File.read(arguments.file)
    if arguments.ask:
        prompt = chat_prompt(file, [{"role": "user", "content": arguments.ask}])
        print(*greedy(file, tokenizer_of(file), prompt, as_is), sep="\nleast margin: ")
        return 0
    questions = json.loads((HERE / "questions.json").read_text("utf-8"))
    wrong = check_answers(file, "f32", as_is, questions) + check_answers(file, "8-bit", eight_bit, questions)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
