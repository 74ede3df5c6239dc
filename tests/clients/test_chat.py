"""`client.chat.completions` without streaming: answers, shapes, sampling, log probabilities, usage."""

import itertools
import math

import pytest
from conftest import CAPITAL, COUNT, FAMILY, user
from openai.types.chat import ChatCompletion
from wire_check import check_json, checked


def ask(client, model, messages, **fields):
    """A checked answer; greedy unless told otherwise."""
    if isinstance(messages, str):
        messages = [user(messages)]
    return checked(client.chat.completions.create(model=model, messages=messages, **{"temperature": 0} | fields))


def text(answer, choice=0) -> str:
    return answer.choices[choice].message.content


def test_every_listed_question_is_answered_word_for_word(client, model, answers):
    wrong = {}
    for question, answer in answers.items():
        given = ask(client, model, question)
        if (text(given), given.choices[0].finish_reason) != (answer, "stop"):
            wrong[question] = given.choices[0]
    assert not wrong


def test_raw_answer_is_of_the_published_shape(client, model):
    response = client.chat.completions.with_raw_response.create(
        model=model, messages=[user(CAPITAL)], temperature=0, logprobs=True, top_logprobs=3
    )
    assert response.headers["content-type"] == "application/json"
    check_json(ChatCompletion, response.text)
    answer = response.parse()
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == model
    assert answer.system_fingerprint
    assert [choice.index for choice in answer.choices] == [0]


def test_request_id_is_sent_and_taken_over(client, model):
    answer = ask(client, model, "Hi", max_tokens=1)
    assert answer._request_id
    given = client.chat.completions.with_raw_response.create(
        model=model, messages=[user("Hi")], max_tokens=1, extra_headers={"x-request-id": "clients-suite-7"}
    )
    assert given.headers["x-request-id"] == given.request_id == "clients-suite-7"
    assert ask(client, model, "Hi", max_tokens=1).id != answer.id


def test_content_in_parts_is_the_same_question(client, model, answers):
    parts = [{"type": "text", "text": CAPITAL}]
    plain = ask(client, model, CAPITAL)
    in_parts = ask(client, model, [{"role": "user", "content": parts}])
    assert text(in_parts) == text(plain) == answers[CAPITAL]
    assert in_parts.usage == plain.usage


@pytest.mark.parametrize("role", ["system", "developer"])
def test_system_messages_reach_the_model(client, model, answers, role):
    system = {"role": role, "content": "You are a helpful assistant."}
    answer = ask(client, model, [system, user(CAPITAL)])
    assert text(answer) == answers[CAPITAL]
    assert answer.usage.prompt_tokens > ask(client, model, CAPITAL).usage.prompt_tokens + 5


def test_conversations_go_on(client, model, answers):
    messages, prompt_tokens = [], 0
    for question in [CAPITAL, "What is 2 + 2?", "What does a cat say?", "Thank you!"]:
        messages.append(user(question))
        answer = ask(client, model, messages)
        assert text(answer) == answers[question]
        assert answer.usage.prompt_tokens > prompt_tokens
        prompt_tokens = answer.usage.prompt_tokens
        # The answer goes back as the SDK's own object, as users do it.
        messages.append(answer.choices[0].message)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_answers_end_at_the_asked_length(client, model, answers, field):
    answer = ask(client, model, COUNT, **{field: 5})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 5
    assert text(answer) and answers[COUNT].startswith(text(answer))


@pytest.mark.parametrize(
    ("stop", "answer"),
    [
        ("seven", "One, two, three, four, five, six, "),
        ("ight, n", "One, two, three, four, five, six, seven, e"),
        (["never", "four", " three", "five"], "One, two,"),
        ("One, two", ""),
    ],
)
def test_stop_strings_end_the_text_before_them(client, model, stop, answer):
    given = ask(client, model, COUNT, stop=stop)
    assert (text(given), given.choices[0].finish_reason) == (answer, "stop")


def test_stop_strings_may_be_beyond_ascii(client, model, answers):
    question = "Show me some animals as emoji."
    given = ask(client, model, question, stop=["🐻"])
    assert text(given) == answers[question].split("🐻")[0]
    assert given.choices[0].finish_reason == "stop"


def test_stop_string_that_does_not_come_changes_nothing(client, model, answers):
    # Every space is the beginning of this one, so it is withheld for a while and must come after all.
    assert text(ask(client, model, COUNT, stop=[" ten!", "never"])) == answers[COUNT]


def test_several_choices_are_answers_of_their_own(client, model):
    wild = {"temperature": 2, "seed": 11, "max_tokens": 30, "extra_body": {"ignore_eos": True}}
    answer = ask(client, model, "Tell me a story.", n=2, **wild)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert text(answer, 0) != text(answer, 1)
    assert answer.usage.completion_tokens == 60
    single = ask(client, model, "Tell me a story.", **wild)
    assert answer.usage.prompt_tokens == single.usage.prompt_tokens
    assert text(answer, 0) == text(single)


def test_seed_decides_the_answer(client, model):
    wild = {"temperature": 2, "max_tokens": 30, "extra_body": {"ignore_eos": True}}
    by_seed = {
        seed: {text(ask(client, model, "Hello!", seed=seed, **wild)) for _ in range(3)}
        for seed in (1, 2, -5, 2**63 - 1)
    }
    assert all(len(texts) == 1 for texts in by_seed.values()), by_seed
    assert len(set.union(*by_seed.values())) == len(by_seed)
    assert len({text(ask(client, model, "Hello!", **wild)) for _ in range(3)}) == 3, "no seed: new text each time"


def test_sampling_fields_of_the_sdk_and_beyond_are_taken(client, model, answers):
    answer = ask(
        client,
        model,
        CAPITAL,
        temperature=1.5,
        top_p=0.9,
        frequency_penalty=0,
        presence_penalty=0,
        user="tester",
        extra_body={"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.0, "field_of_a_newer_client": True},
    )
    assert text(answer) == answers[CAPITAL], "top_k 1 leaves one token to choose"


def test_logit_bias_forbids_and_forces_a_token(client, model):
    # 2 is <|im_end|> in the demo model's vocabulary.
    endless = ask(client, model, "Hi", logit_bias={"2": -100}, max_tokens=40)
    assert endless.choices[0].finish_reason == "length"
    silent = ask(client, model, "Hi", logit_bias={"2": 100})
    assert (text(silent), silent.choices[0].finish_reason) == ("", "stop")
    assert silent.choices[0].message.refusal is None


@pytest.mark.parametrize("question", [CAPITAL, FAMILY, "How do you say hello in Japanese?"])
def test_logprobs_are_of_the_text(client, model, answers, question):
    answer = ask(client, model, question, logprobs=True, top_logprobs=4)
    tokens = answer.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == text(answer) == answers[question]
    # The token that ends an answer is counted and has no text.
    assert answer.usage.completion_tokens == len(tokens) + 1
    for token in tokens:
        assert token.token == bytes(token.bytes).decode(errors="replace")
        assert len(token.top_logprobs) == 4
        scores = [top.logprob for top in token.top_logprobs]
        assert scores == sorted(scores, reverse=True)
        assert math.fsum(map(math.exp, scores)) <= 1 + 1e-4
        assert (token.bytes, token.logprob) == (token.top_logprobs[0].bytes, token.top_logprobs[0].logprob), "greedy"
        assert token.logprob <= 0


def test_logprobs_without_alternatives(client, model):
    answer = ask(client, model, COUNT, logprobs=True, max_tokens=7)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens == 7
    assert all(token.top_logprobs == [] for token in tokens)
    assert ask(client, model, COUNT, max_tokens=7).choices[0].logprobs is None


def test_sampled_tokens_carry_their_own_logprob(client, model):
    wild = {"temperature": 2, "seed": 3, "max_tokens": 30, "extra_body": {"ignore_eos": True}}
    answer = ask(client, model, "Tell me a story.", logprobs=True, top_logprobs=20, **wild)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == 30
    known = 0
    for token in tokens:
        for top in token.top_logprobs:
            if top.bytes == token.bytes:
                known += 1
                assert top.logprob == token.logprob
    assert 0 < known
    assert any(token.bytes != token.top_logprobs[0].bytes for token in tokens), "temperature 2 is not greedy"
    assert text(ask(client, model, "Tell me a story.", **wild)) == text(answer), "asking for them changes nothing"


@pytest.mark.parametrize("stop", ["seven", "ight, n", ", six"])
def test_logprobs_of_a_text_cut_by_a_stop_string_cover_it(client, model, stop):
    answer = ask(client, model, COUNT, stop=stop, logprobs=True)
    tokens = [bytes(token.bytes).decode() for token in answer.choices[0].logprobs.content]
    # A token of which the stop string took the end is still there, one of which it took everything is not.
    assert "".join(tokens).startswith(text(answer))
    assert len("".join(tokens[:-1])) < len(text(answer))


def test_usage_adds_up(client, model):
    for question, length in itertools.product([CAPITAL, COUNT, "Show me a smiley."], [1, 6, 300]):
        answer = ask(client, model, question, max_tokens=length)
        usage = answer.usage
        assert usage.prompt_tokens + usage.completion_tokens == usage.total_tokens
        assert usage.prompt_tokens > 5
        assert 1 <= usage.completion_tokens <= length
        assert (usage.completion_tokens == length) == (answer.choices[0].finish_reason == "length")
