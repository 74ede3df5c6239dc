"""Stop strings drawn from what the model is about to say: cut exactly there, streamed or not, nothing leaks.

At temperature 2 the demo model writes letters, broken characters and emoji alike, so that stop strings begin and end
anywhere in tokens. Each case has a fixed seed.
"""

import random

import pytest
from wire_check import checked, checked_piece

CASES = 40
PROMPT = "<|im_start|>user\nShow me some animals as emoji.<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("seed", range(CASES))
def test_text_is_cut_where_the_stop_string_begins(client, model, seed):
    drawn = random.Random(seed)
    wild = {"model": model, "prompt": PROMPT, "seed": seed, "max_tokens": 60, "extra_body": {"ignore_eos": True}}
    wild |= {"temperature": drawn.choice([0.7, 1.3, 2]), "logprobs": drawn.choice([None, 1])}
    full = client.completions.create(**wild).choices[0].text
    start = drawn.randrange(len(full) - 8)
    stop = full[start : start + drawn.randint(1, 7)]
    expected = full[: full.index(stop)]

    whole = checked(client.completions.create(**wild, stop=stop)).choices[0]
    assert (whole.text, whole.finish_reason) == (expected, "stop"), stop
    pieces = [checked_piece(piece).choices[0] for piece in client.completions.create(**wild, stop=stop, stream=True)]
    assert "".join(piece.text for piece in pieces) == expected, stop
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    if wild["logprobs"] is not None:
        tokens = [token for piece in pieces if piece.logprobs for token in piece.logprobs.tokens]
        assert tokens == whole.logprobs.tokens
