"""`client.completions`, streamed and not."""

import itertools
import json
import math

import pytest
from conftest import CAPITAL, COUNT, FAMILY
from openai.types import Completion
from wire_check import check_json, checked, checked_piece

PROMPT = "One, two, three,"
# How the demo model's template puts a question, so that the answer is known.
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
WILD = {"temperature": 2, "seed": 9, "max_tokens": 40, "extra_body": {"ignore_eos": True}}


def complete(client, model, prompt, **fields):
    answer = checked(client.completions.create(model=model, prompt=prompt, **{"temperature": 0} | fields))
    usage = answer.usage
    assert usage.prompt_tokens + usage.completion_tokens == usage.total_tokens
    return answer


def stream(client, model, prompt, **fields):
    fields = {"temperature": 0} | fields
    found = [
        checked_piece(piece) for piece in client.completions.create(model=model, prompt=prompt, stream=True, **fields)
    ]
    assert len({(piece.id, piece.created, piece.model, piece.object) for piece in found}) == 1
    return found


def text(found, index=0) -> str:
    return "".join(choice.text for piece in found for choice in piece.choices if choice.index == index)


def reasons(found, index=0) -> list[str]:
    choices = [choice for piece in found for choice in piece.choices if choice.index == index]
    assert all(choice.finish_reason is None for choice in choices[:-1])
    return choices[-1].finish_reason


@pytest.mark.parametrize("question", [COUNT, CAPITAL, FAMILY])
def test_prompt_is_continued(client, model, answers, question):
    prompt = CHAT.format(question)
    answer = complete(client, model, prompt, max_tokens=300)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (answers[question], "stop")
    found = stream(client, model, prompt, max_tokens=300)
    assert (text(found), reasons(found)) == (answers[question], "stop")
    assert len(found) > 2


def test_raw_answer_is_of_the_published_shape(client, model):
    response = client.completions.with_raw_response.create(model=model, prompt=PROMPT, temperature=0, logprobs=2)
    check_json(Completion, response.text)
    assert response.headers["x-request-id"]
    raw = json.loads(response.text)
    assert raw["id"].startswith("cmpl-") and raw["model"] == model


def test_default_length_is_sixteen_tokens(client, model):
    answer = complete(client, model, PROMPT, extra_body={"ignore_eos": True})
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (16, "length")


def test_usage_comes_last_when_asked_for(client, model):
    *others, last = stream(client, model, PROMPT, max_tokens=8, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage == complete(client, model, PROMPT, max_tokens=8).usage
    assert all(piece.usage is None and piece.choices for piece in others)


def test_several_prompts_and_choices_are_numbered(client, model):
    prompts = [PROMPT, "The capital of France"]
    answer = complete(client, model, prompts, n=2, **WILD)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    texts = [choice.text for choice in answer.choices]
    assert len(set(texts)) == 4
    assert answer.usage.completion_tokens == 160
    found = stream(client, model, prompts, n=2, **WILD)
    assert [text(found, index) for index in range(4)] == texts
    alone = [complete(client, model, prompt, **WILD) for prompt in prompts]
    assert [answer.choices[0].text for answer in alone] == texts[::2]
    assert answer.usage.prompt_tokens == sum(single.usage.prompt_tokens for single in alone)


def test_prompts_may_be_token_ids(client, model):
    ids = [70, 71, 72, 73]
    answer = complete(client, model, ids, max_tokens=6)
    assert answer.usage.prompt_tokens == len(ids)
    both = complete(client, model, [ids, ids], max_tokens=6)
    assert [choice.text for choice in both.choices] == [answer.choices[0].text] * 2


@pytest.mark.parametrize(
    ("stop", "answer"),
    [("four", "One, two, three, "), (["twelve", "ight, n"], "One, two, three, four, five, six, seven, e")],
)
def test_stop_strings_end_the_text_before_them(client, model, stop, answer):
    given = complete(client, model, CHAT.format(COUNT), max_tokens=300, stop=stop).choices[0]
    found = stream(client, model, CHAT.format(COUNT), max_tokens=300, stop=stop)
    assert (given.text, given.finish_reason) == (text(found), reasons(found)) == (answer, "stop")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_wild_text_is_the_same_streamed_or_not(client, model, seed):
    wild = WILD | {"seed": seed}
    answer = complete(client, model, PROMPT, **wild).choices[0]
    found = stream(client, model, PROMPT, **wild)
    assert (text(found), reasons(found)) == (answer.text, "length")


def lists(logprobs):
    return [logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset]


@pytest.mark.parametrize("alternatives", [0, 3])
def test_logprobs_are_of_the_text(client, model, alternatives):
    prompt = CHAT.format(COUNT)
    answer = complete(client, model, prompt, max_tokens=20, logprobs=alternatives)
    choice = answer.choices[0]
    tokens, scores, tops, offsets = lists(choice.logprobs)
    assert len(tokens) == len(scores) == len(tops) == len(offsets) == answer.usage.completion_tokens == 20
    assert "".join(tokens) == choice.text
    for at, (token, score, top) in enumerate(zip(tokens, scores, tops, strict=True)):
        assert score <= 0 and top[token] == score
        assert len(top) == max(alternatives, 1), "greedy: the token is among the likeliest"
        assert math.fsum(map(math.exp, top.values())) <= 1 + 1e-4
        assert offsets[at] - offsets[0] == len("".join(tokens[:at]))
    found = stream(client, model, prompt, max_tokens=20, logprobs=alternatives)
    streamed = [lists(choice.logprobs) for piece in found for choice in piece.choices if choice.logprobs]
    joined = [list(itertools.chain(*parts)) for parts in zip(*streamed, strict=True)]
    assert joined == lists(choice.logprobs)


def test_without_asking_there_are_no_logprobs(client, model):
    assert complete(client, model, PROMPT).choices[0].logprobs is None
