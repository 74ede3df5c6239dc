"""LangChain: `ChatOpenAI` and `OpenAI` with nothing changed but base URL and key, which come from the environment."""

import pytest
from conftest import ANSWER_TIMEOUT_S, CAPITAL, COUNT
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI


@pytest.fixture(scope="module")
def chat(model):
    return ChatOpenAI(model=model, temperature=0, timeout=ANSWER_TIMEOUT_S, max_retries=0)


def test_invoke(chat, model, answers):
    answer = chat.invoke(CAPITAL)
    assert isinstance(answer, AIMessage)
    assert answer.content == answers[CAPITAL]
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.response_metadata["model_name"] == model
    usage = answer.usage_metadata
    assert usage["input_tokens"] + usage["output_tokens"] == usage["total_tokens"]
    assert usage["output_tokens"] > 3


def test_stream_adds_up_to_the_invoked_answer(model, answers):
    chat = ChatOpenAI(model=model, temperature=0, timeout=ANSWER_TIMEOUT_S, max_retries=0, stream_usage=True)
    chunks = list(chat.stream(COUNT))
    assert len(chunks) > 15
    total = sum(chunks[1:], chunks[0])
    assert total.content == answers[COUNT]
    assert total.response_metadata["finish_reason"] == "stop"
    assert total.usage_metadata == chat.invoke(COUNT).usage_metadata


def test_stream_as_it_is_set_up_by_default(model, answers):
    chat = ChatOpenAI(model=model, temperature=0)
    assert "".join(chunk.content for chunk in chat.stream(CAPITAL)) == answers[CAPITAL]


def test_batch(chat, answers):
    questions = list(answers)[:24]
    given = chat.batch(questions, config={"max_concurrency": 8})
    assert [answer.content for answer in given] == [answers[question] for question in questions]


@pytest.mark.anyio
async def test_async_invoke_stream_and_batch(chat, answers):
    assert (await chat.ainvoke(CAPITAL)).content == answers[CAPITAL]
    assert "".join([chunk.content async for chunk in chat.astream(COUNT)]) == answers[COUNT]
    questions = list(answers)[:8]
    assert [answer.content for answer in await chat.abatch(questions)] == [answers[question] for question in questions]


def test_conversation_with_a_system_message(chat, answers):
    messages = [SystemMessage("You are a helpful assistant."), HumanMessage("Hello!")]
    messages.append(chat.invoke(messages))
    messages.append(HumanMessage(CAPITAL))
    assert chat.invoke(messages).content == answers[CAPITAL]


def test_chain_of_prompt_model_and_parser(chat, answers):
    chain = ChatPromptTemplate.from_messages([("human", "What is the capital of {land}?")]) | chat | StrOutputParser()
    assert chain.invoke({"land": "Japan"}) == answers["What is the capital of Japan?"]
    assert "".join(chain.stream({"land": "Italy"})) == answers["What is the capital of Italy?"]


def test_stop_and_length(chat, model):
    assert chat.invoke(COUNT, stop=["seven"]).content == "One, two, three, four, five, six, "
    short = ChatOpenAI(model=model, temperature=0, max_tokens=5).invoke(COUNT)
    assert short.response_metadata["finish_reason"] == "length"
    assert short.usage_metadata["output_tokens"] == 5


def test_logprobs(chat, answers):
    answer = chat.bind(logprobs=True, top_logprobs=2).invoke(CAPITAL)
    tokens = answer.response_metadata["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == answers[CAPITAL]


def test_seed(model):
    def wild(seed):
        fields = {"temperature": 2, "seed": seed, "max_tokens": 40}
        return ChatOpenAI(model=model, **fields, extra_body={"ignore_eos": True}).invoke("Hello!").content

    assert wild(1) == wild(1) != wild(2)


def test_text_completion_class(model, answers):
    llm = OpenAI(model=model, temperature=0, max_tokens=300, timeout=ANSWER_TIMEOUT_S, max_retries=0)
    prompt = f"<|im_start|>user\n{CAPITAL}<|im_end|>\n<|im_start|>assistant\n"
    assert llm.invoke(prompt) == answers[CAPITAL]
    assert "".join(llm.stream(prompt)) == answers[CAPITAL]
    assert llm.batch([prompt, prompt]) == [answers[CAPITAL]] * 2
