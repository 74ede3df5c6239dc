"""`client.models`, and that refusals arrive as the SDK's exceptions with field, code and request id."""

import select
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse

import openai
import pytest
from conftest import ANSWER_TIMEOUT_S, CAPITAL, user
from openai import OpenAI, omit
from wire_check import checked


def test_models_are_listed(client, model):
    page = client.models.list()
    assert page.object == "list"
    assert [checked(found).id for found in page] == [model]
    assert page.data[0].owned_by


def test_model_is_retrieved(client, model):
    found = checked(client.models.retrieve(model))
    assert found == client.models.list().data[0]


def test_other_models_are_not_found(client):
    asked = [
        lambda: client.models.retrieve("no-such-model"),
        lambda: client.models.retrieve("org/no-such-model"),
        lambda: client.chat.completions.create(model="no-such-model", messages=[user("Hi")]),
        lambda: client.chat.completions.create(model="no-such-model", messages=[user("Hi")], stream=True),
        lambda: client.completions.create(model="no-such-model", prompt="Hi"),
    ]
    for ask in asked:
        with pytest.raises(openai.NotFoundError) as caught:
            ask()
        error = caught.value
        assert (error.status_code, error.code, error.type) == (404, "model_not_found", "invalid_request_error")
        assert "no-such-model" in error.message
        assert error.request_id


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 2.5),
        ("temperature", -0.1),
        ("temperature", "hot"),
        ("top_p", 1.01),
        ("frequency_penalty", 3),
        ("presence_penalty", -2.1),
        ("n", 0),
        ("n", 100_000),
        ("max_tokens", 0),
        ("max_tokens", "many"),
        ("max_completion_tokens", -1),
        ("seed", "lucky"),
        ("seed", 0.5),
        ("stop", ["a", "b", "c", "d", "e"]),
        ("stop", [1]),
        ("logit_bias", {"word": 1}),
        ("logit_bias", {"5": 101}),
        ("top_logprobs", 21),
        ("logprobs", 3),
        ("messages", []),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "wizard", "content": "Hi"}]),
        ("messages", [{"role": "user", "content": [{"type": "text"}]}]),
        ("messages", [{"role": "user", "content": 5}]),
    ],
)
def test_wrong_chat_fields_are_named(client, model, field, value, stream):
    fields = {"model": model, "messages": [user("Hi")], "stream": stream} | {field: value}
    if field == "top_logprobs":
        fields["logprobs"] = True
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**fields)
    named(caught.value, field)


@pytest.mark.parametrize(
    ("field", "value"),
    [("prompt", []), ("prompt", 7), ("prompt", [1, "a"]), ("logprobs", 6), ("max_tokens", 0), ("temperature", 3)],
)
def test_wrong_completion_fields_are_named(client, model, field, value):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": model, "prompt": "Hi"} | {field: value})
    named(caught.value, field)


def named(error, field):
    assert error.param and error.param.split("[")[0].split(".")[0] == field, error
    assert (error.status_code, error.type) == (400, "invalid_request_error")
    assert field in error.message
    assert error.request_id
    assert set(error.body) == {"message", "type", "param", "code"}


def test_too_long_a_prompt_says_so(client, model):
    asked = [
        lambda: client.chat.completions.create(model=model, messages=[user("word " * 20_000)]),
        lambda: client.completions.create(model=model, prompt="word " * 20_000),
    ]
    for ask in asked:
        with pytest.raises(openai.BadRequestError) as caught:
            ask()
        assert caught.value.code == "context_length_exceeded"


def test_token_ids_beyond_the_vocabulary_are_refused(client, model):
    for ids in ([10_000_000], [-1]):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model=model, prompt=ids)
        named(caught.value, "prompt")


@pytest.mark.parametrize("authorization", [omit, "Bearer sk-wrong", "Bearer", "Basic c2stOg==", "sk-wrong"])
def test_requests_without_a_known_key_are_refused(client, model, authorization):
    headers = {"Authorization": authorization}
    asked = [
        lambda: client.models.list(extra_headers=headers),
        lambda: client.chat.completions.create(model=model, messages=[user("Hi")], extra_headers=headers),
        lambda: client.chat.completions.create(model=model, messages=[user("Hi")], stream=True, extra_headers=headers),
        lambda: client.completions.create(model=model, prompt="Hi", extra_headers=headers),
    ]
    for ask in asked:
        with pytest.raises(openai.AuthenticationError) as caught:
            ask()
        assert caught.value.status_code == 401
        assert caught.value.request_id
        assert client.api_key not in caught.value.message


def test_client_with_another_key_is_refused():
    with OpenAI(api_key="sk-wrong", max_retries=0) as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


@pytest.mark.parametrize(("path", "key"), [("chat/completions", "sk-wrong"), ("no/such/path", None), ("models", None)])
def test_refusal_before_the_body_leaves_the_connection_usable(client, path, key):
    """The SDK sends headers and body apart and keeps its connection: a server that closes it in between, without
    having said so, makes the next request fail with a connection error."""
    body = b'{"model": "m"}'
    head = f"POST {client.base_url.path}{path} HTTP/1.1\r\nHost: clients\r\nContent-Type: application/json\r\n"
    head += f"Authorization: Bearer {key or client.api_key}\r\nContent-Length: {len(body)}\r\n\r\n"
    address = (client.base_url.host, client.base_url.port)
    connection = HTTPConnection(*address, timeout=ANSWER_TIMEOUT_S)
    connection.connect()
    with closing(connection):
        statuses = []
        for _ in range(2):
            connection.sock.sendall(head.encode())
            # Whether the server answers now or waits for the body is its own matter.
            select.select([connection.sock], [], [], 0.05)
            connection.sock.sendall(body)
            response = HTTPResponse(connection.sock, method="POST")
            response.begin()
            response.read()
            statuses.append(response.status)
            if response.getheader("Connection") == "close":
                break
    assert set(statuses) <= {401, 404, 405}, statuses


def test_unknown_paths_are_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.get("/no/such/path", cast_to=object)
    assert set(caught.value.body) == {"message", "type", "param", "code"}


def test_serving_goes_on_after_all_that(client, model, answers):
    answer = checked(client.chat.completions.create(model=model, messages=[user(CAPITAL)], temperature=0))
    assert answer.choices[0].message.content == answers[CAPITAL]
