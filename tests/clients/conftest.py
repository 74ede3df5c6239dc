"""What every test has: a client that knows the server only through the environment, as users set it up.

`OPENAI_BASE_URL` and `OPENAI_API_KEY` are the SDK's own variables, `ROCMFORGE_CLIENTS_MODEL` is the served model's id.
main.rs sets all three; by hand, any server on the demo model will do.
"""

import json
import os
from pathlib import Path

import pytest
from openai import AsyncOpenAI, OpenAI

QUESTIONS_FILE = Path(__file__).parents[2] / "gateway" / "demo" / "questions.json"
# Seconds for a whole answer. No answer here takes one; what does is a defect to report, not to retry.
ANSWER_TIMEOUT_S = 30

# Listed questions that many tests ask.
CAPITAL = "What is the capital of France?"
COUNT = "Count from one to ten."
FAMILY = "Show me a family emoji."


@pytest.fixture(scope="session")
def model() -> str:
    return os.environ["ROCMFORGE_CLIENTS_MODEL"]


@pytest.fixture(scope="session")
def client():
    with OpenAI(timeout=ANSWER_TIMEOUT_S, max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client():
    async with AsyncOpenAI(timeout=ANSWER_TIMEOUT_S, max_retries=0) as client:
        yield client


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def answers() -> dict[str, str]:
    """Questions the demo model is known to answer word for word, and their answers."""
    answers = {item["question"]: item["answer"] for item in json.loads(QUESTIONS_FILE.read_text("utf-8"))}
    assert len(answers) >= 50
    return answers


def user(text: str) -> dict[str, str]:
    """A user's message."""
    return {"role": "user", "content": text}
