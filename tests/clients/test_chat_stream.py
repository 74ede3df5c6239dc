"""`client.chat.completions` streamed: the same text as unstreamed, in chunks of the published shape."""

import json

import pytest
from conftest import CAPITAL, COUNT, FAMILY, user
from openai.types.chat import ChatCompletionChunk
from wire_check import check_json, checked

EMOJI = [FAMILY, "Show me some animals as emoji.", "Show me the weather as emoji.", "Show me a smiley."]
SCRIPTS = ["How do you say hello in Chinese?", "How do you say hello in Russian?", "Write the word café."]
WILD = {"temperature": 2, "seed": 5, "max_tokens": 60, "extra_body": {"ignore_eos": True}}


def whole(client, model, question, **fields):
    fields = {"temperature": 0} | fields
    return checked(client.chat.completions.create(model=model, messages=[user(question)], **fields))


def chunks(client, model, question, **fields):
    """All chunks, each checked by itself, and together as one answer."""
    fields = {"temperature": 0} | fields
    stream = client.chat.completions.create(model=model, messages=[user(question)], stream=True, **fields)
    found = [checked(chunk) for chunk in stream]
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in found}) == 1
    pieces = [choice for chunk in found for choice in chunk.choices]
    for index in {piece.index for piece in pieces}:
        own = [piece for piece in pieces if piece.index == index]
        assert own[0].delta.role == "assistant"
        assert all(piece.delta.role is None for piece in own[1:])
        assert [piece.finish_reason for piece in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1].finish_reason in ("stop", "length")
        assert not own[-1].delta.content
    return found


def text(found, index=0) -> str:
    pieces = (choice for chunk in found for choice in chunk.choices)
    return "".join(piece.delta.content or "" for piece in pieces if piece.index == index)


def test_every_listed_question_is_answered_word_for_word(client, model, answers):
    given = {question: text(chunks(client, model, question)) for question in answers}
    assert given == answers


def test_text_comes_in_pieces(client, model, answers):
    found = chunks(client, model, COUNT)
    assert len(found) > 15
    assert text(found) == answers[COUNT]


def test_raw_events_are_of_the_published_shape(client, model):
    fields = {"model": model, "messages": [user(COUNT)], "temperature": 0, "stream": True}
    with client.chat.completions.with_streaming_response.create(
        **fields, stream_options={"include_usage": True}, logprobs=True, top_logprobs=2
    ) as response:
        assert response.headers["content-type"].split(";")[0] == "text/event-stream"
        assert response.headers["x-request-id"]
        lines = [line for line in response.iter_lines() if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    *events, done = (line.removeprefix("data: ") for line in lines)
    assert done == "[DONE]"
    for event in events:
        check_json(ChatCompletionChunk, event)
    assert all("usage" in json.loads(event) for event in events), "asked for: null until the last chunk"


def test_usage_comes_last_when_asked_for(client, model):
    found = chunks(client, model, COUNT, stream_options={"include_usage": True})
    *others, last = found
    assert last.choices == []
    assert last.usage == whole(client, model, COUNT).usage
    assert all(chunk.usage is None and chunk.choices for chunk in others)
    for options in ({}, {"stream_options": {"include_usage": False}}):
        assert all(chunk.usage is None and chunk.choices for chunk in chunks(client, model, COUNT, **options))


@pytest.mark.parametrize("question", EMOJI + SCRIPTS)
def test_characters_are_never_split(client, model, answers, question):
    found = chunks(client, model, question)
    assert not any("\ufffd" in (choice.delta.content or "") for chunk in found for choice in chunk.choices)
    assert text(found) == answers[question]


def test_cut_inside_a_character_is_the_same_streamed_or_not(client, model, answers):
    question = FAMILY
    for length in range(1, 9):
        answer = whole(client, model, question, max_tokens=length).choices[0]
        found = chunks(client, model, question, max_tokens=length)
        assert (text(found), answer.finish_reason) == (answer.message.content, "length")
        assert answers[question].startswith(answer.message.content.rstrip("\ufffd"))


@pytest.mark.parametrize("stop", ["seven", "ight, n", ["never", "four", " three"], "One, two", [" ten!"]])
def test_stop_strings_never_leak(client, model, stop):
    answer = whole(client, model, COUNT, stop=stop).choices[0]
    found = chunks(client, model, COUNT, stop=stop)
    assert text(found) == answer.message.content
    assert found[-1].choices[0].finish_reason == answer.finish_reason == "stop"


@pytest.mark.parametrize("seed", [5, 6, 7, 8])
def test_wild_text_is_the_same_streamed_or_not(client, model, seed):
    wild = WILD | {"seed": seed}
    found = chunks(client, model, "Tell me a story.", **wild)
    answer = whole(client, model, "Tell me a story.", **wild).choices[0]
    assert text(found) == answer.message.content
    assert found[-1].choices[0].finish_reason == answer.finish_reason == "length"


def test_choices_are_told_apart(client, model):
    found = chunks(client, model, "Tell me a story.", n=3, **WILD)
    answer = whole(client, model, "Tell me a story.", n=3, **WILD)
    texts = [choice.message.content for choice in answer.choices]
    assert [text(found, index) for index in range(3)] == texts
    assert len(set(texts)) == 3


@pytest.mark.parametrize("question", [CAPITAL, FAMILY])
def test_logprobs_are_the_same_streamed_or_not(client, model, question):
    fields = {"logprobs": True, "top_logprobs": 2}
    found = chunks(client, model, question, **fields)
    streamed = [
        token.to_dict()
        for chunk in found
        for choice in chunk.choices
        if choice.logprobs
        for token in choice.logprobs.content or []
    ]
    answer = whole(client, model, question, **fields).choices[0]
    assert streamed == [token.to_dict() for token in answer.logprobs.content]


def test_sdk_accumulates_the_stream(client, model, answers):
    request = {"model": model, "messages": [user(COUNT)], "temperature": 0}
    with client.chat.completions.stream(**request, stream_options={"include_usage": True}, logprobs=True) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content == answers[COUNT]
    assert final.choices[0].finish_reason == "stop"
    assert final.usage == whole(client, model, COUNT).usage
    assert len(final.choices[0].logprobs.content) == final.usage.completion_tokens - 1


def test_leaving_in_the_middle_disturbs_nobody(client, model, answers):
    for _ in range(3):
        long = {"max_tokens": 1500, "extra_body": {"ignore_eos": True}}
        stream = client.chat.completions.create(model=model, messages=[user(COUNT)], stream=True, **long)
        with stream:
            assert next(stream).choices[0].delta.role == "assistant"
            assert next(stream).choices[0].delta.content
        assert whole(client, model, COUNT).choices[0].message.content == answers[COUNT]
