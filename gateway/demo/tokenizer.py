"""The demo model's byte-level BPE vocabulary: learning it and using it.

`train.py` learns the merges from corpus text; `export.py` writes them into the GGUF file.
Always holds: ids 0..2 are the control tokens, all 256 bytes have a token, and text is cut by the
`qwen2` pre-tokenizer that GGUF readers know by name (single digits, no Unicode normalization).
"""

import json

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from corpus import END_OF_TEXT, TURN_END, TURN_START, Segment

CONTROL_TOKENS = [END_OF_TEXT, TURN_START, TURN_END]
# The expression GGUF readers apply for `tokenizer.ggml.pre = qwen2`.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level_bpe(model: models.BPE) -> Tokenizer:
    """A tokenizer around `model` with the pre-tokenizer, decoder and control tokens set up."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def learn(texts: list[str], vocab_size: int) -> Tokenizer:
    """Learns merges from `texts` until the vocabulary, control tokens included, is full."""
    tokenizer = byte_level_bpe(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=CONTROL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"learnt {tokenizer.get_vocab_size()} tokens, wanted {vocab_size}")
    return tokenizer


def tokens_and_merges(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """Token texts in id order and merges as `left right`, both in the byte alphabet GGUF uses."""
    tokens = [tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size())]
    merges = [" ".join(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    return tokens, merges


def encode(tokenizer: Tokenizer, segments: list[Segment]) -> tuple[list[int], list[bool]]:
    """Token ids of a document, and for each whether the model learns to produce it."""
    joined: list[Segment] = []
    for text, learnt in segments:
        if joined and joined[-1][1] == learnt:
            joined[-1] = (joined[-1][0] + text, learnt)
        else:
            joined.append((text, learnt))
    ids: list[int] = []
    flags: list[bool] = []
    for text, learnt in joined:
        piece = tokenizer.encode(text).ids
        ids += piece
        flags += [learnt] * len(piece)
    return ids, flags
