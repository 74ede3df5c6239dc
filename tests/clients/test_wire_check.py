"""The check itself: it must fail on what the SDK would let pass."""

import json
from copy import deepcopy

import pytest
from openai.types.chat import ChatCompletion
from wire_check import check_json

GOOD = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hi", "refusal": None},
            "logprobs": {
                "content": [{"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": []}],
                "refusal": None,
            },
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}
ABSENT = object()


def changed(path, value):
    answer = deepcopy(GOOD)
    *parents, last = path
    place = answer
    for step in parents:
        place = place[step]
    if value is ABSENT:
        del place[last]
    else:
        place[last] = value
    return json.dumps(answer)


def test_good_answer_passes():
    check_json(ChatCompletion, json.dumps(GOOD))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["created"], 1.5),
        (["created"], "1"),
        (["object"], "chat.completion.chunk"),
        (["usage"], ABSENT),
        (["usage", "total_tokens"], None),
        (["extra"], 1),
        (["choices", 0, "index"], "0"),
        (["choices", 0, "logprobs"], ABSENT),
        (["choices", 0, "finish_reason"], "eos"),
        (["choices", 0, "finish_reason"], None),
        (["choices", 0, "message", "content"], ABSENT),
        (["choices", 0, "message", "refusal"], ABSENT),
        (["choices", 0, "message", "refusal"], False),
        (["choices", 0, "message", "thoughts"], "hm"),
        (["choices", 0, "logprobs", "content", 0, "bytes"], "Hi"),
        (["choices", 0, "logprobs", "content", 0, "top_logprobs"], ABSENT),
    ],
)
def test_changed_answer_fails(path, value):
    with pytest.raises((AssertionError, ValueError)):
        check_json(ChatCompletion, changed(path, value))
