"""Holds what the server sent against the SDK's own types, without the leniency the SDK itself has.

The SDK builds its objects without validating, so a client only notices a wrong type or a missing field when it
reaches for it. `checked` takes such an object back to the JSON it was made from and fails on any wrong type, on any
field that the published schema requires (null or not) and the server left out, and on any field the SDK does not know.
"""

import warnings
from collections.abc import Iterator
from typing import TypeVar

from openai import BaseModel
from openai.types import Completion, CompletionChoice, CompletionUsage, Model
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    ChatCompletionTokenLogprob,
    chat_completion,
    chat_completion_chunk,
    chat_completion_token_logprob,
)
from openai.types.completion_choice import Logprobs

Answer = TypeVar("Answer", bound=BaseModel)

# The `required` lists of the published schema. The SDK's types give nullable fields a default and so let them go
# missing, which breaks clients in other languages.
REQUIRED: dict[type, set[str]] = {
    ChatCompletion: {"id", "object", "created", "model", "choices", "usage"},
    chat_completion.Choice: {"index", "message", "logprobs", "finish_reason"},
    ChatCompletionMessage: {"role", "content", "refusal"},
    chat_completion.ChoiceLogprobs: {"content", "refusal"},
    ChatCompletionTokenLogprob: {"token", "logprob", "bytes", "top_logprobs"},
    chat_completion_token_logprob.TopLogprob: {"token", "logprob", "bytes"},
    ChatCompletionChunk: {"id", "object", "created", "model", "choices"},
    chat_completion_chunk.Choice: {"index", "delta", "logprobs", "finish_reason"},
    chat_completion_chunk.ChoiceLogprobs: {"content", "refusal"},
    Completion: {"id", "object", "created", "model", "choices"},
    CompletionChoice: {"index", "text", "logprobs", "finish_reason"},
    Logprobs: {"text_offset", "token_logprobs", "tokens", "top_logprobs"},
    CompletionUsage: {"prompt_tokens", "completion_tokens", "total_tokens"},
    Model: {"id", "object", "created", "owned_by"},
}


def checked(answer: Answer) -> Answer:
    """Returns `answer` if the JSON behind it is exactly what its type says."""
    with warnings.catch_warnings():
        # A wrong type is reported below with its place, not as the serializer's warning.
        warnings.simplefilter("ignore")
        raw = answer.to_json(exclude_unset=True, warnings=False)
    check_json(type(answer), raw)
    return answer


def check_json(kind: type[BaseModel], raw: str) -> None:
    """Fails unless the text is one JSON value of this type."""
    for part in parts(kind.model_validate_json(raw, strict=True)):
        assert not part.model_extra, f"{type(part).__name__} has unknown fields {part.model_extra}"
        missing = REQUIRED.get(type(part), set()) - part.model_fields_set
        assert not missing, f"{type(part).__name__} lacks {missing}: {raw}"


def checked_piece(chunk: Completion) -> Completion:
    """As `checked`, for a chunk of a completion's stream: the SDK's type has no null for a reason still open."""
    assert all("finish_reason" in choice.model_fields_set for choice in chunk.choices), chunk
    choices = [
        choice if choice.finish_reason else choice.model_copy(update={"finish_reason": "stop"})
        for choice in chunk.choices
    ]
    checked(chunk.model_copy(update={"choices": choices}))
    return chunk


def parts(value: object) -> Iterator[BaseModel]:
    """Every typed object inside, the outermost first."""
    if isinstance(value, BaseModel):
        yield value
        for name in value.model_fields_set:
            yield from parts(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            yield from parts(item)
