"""`AsyncOpenAI`: many requests of one client at once, each with its own right answer."""

import asyncio

import openai
import pytest
from conftest import CAPITAL, COUNT, user
from openai.types.chat import ChatCompletion
from wire_check import checked, checked_piece

# The SDK's own pool would take a thousand; these are enough to overlap on two cores.
AT_ONCE = 16

pytestmark = pytest.mark.anyio


async def gather(jobs):
    """Runs all jobs, some at once; their results in order."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def take_turn(job):
        async with turn:
            return await job

    return await asyncio.gather(*map(take_turn, jobs))


async def whole(client, model, question, **fields) -> ChatCompletion:
    fields = {"temperature": 0} | fields
    return checked(await client.chat.completions.create(model=model, messages=[user(question)], **fields))


async def streamed(client, model, question, **fields) -> str:
    fields = {"temperature": 0, "stream": True} | fields
    stream = await client.chat.completions.create(model=model, messages=[user(question)], **fields)
    return "".join([checked(chunk).choices[0].delta.content or "" async for chunk in stream])


async def test_every_listed_question_at_once(async_client, model, answers):
    given = await gather([whole(async_client, model, question) for question in answers])
    texts = [answer.choices[0].message.content for answer in given]
    assert dict(zip(answers, texts)) == answers
    assert len({answer.id for answer in given}) == len(answers)


async def test_every_listed_question_streamed_at_once(async_client, model, answers):
    given = await gather([streamed(async_client, model, question) for question in answers])
    assert dict(zip(answers, given)) == answers


async def test_wild_text_is_the_same_alone_or_in_company(async_client, model):
    wild = {"temperature": 2, "max_tokens": 50, "extra_body": {"ignore_eos": True}}
    seeds = range(20)
    alone = [await streamed(async_client, model, "Tell me a story.", seed=seed, **wild) for seed in seeds[:4]]
    jobs = [streamed(async_client, model, "Tell me a story.", seed=seed, **wild) for seed in seeds]
    together = await gather(jobs)
    assert together[:4] == alone
    assert len(set(together)) == len(seeds)


async def test_short_answer_overtakes_a_long_one(async_client, model, answers):
    long = {"max_tokens": 1500, "stream": True, "extra_body": {"ignore_eos": True}}
    stream = await async_client.chat.completions.create(model=model, messages=[user(COUNT)], **long)
    async with stream:
        await anext(stream)
        assert (await whole(async_client, model, CAPITAL)).choices[0].message.content == answers[CAPITAL]
        assert (await anext(stream)).choices[0].finish_reason is None


async def test_cancelled_tasks_leave_the_server_serving(async_client, model, answers):
    long = {"max_tokens": 1500, "extra_body": {"ignore_eos": True}}
    tasks = [asyncio.create_task(whole(async_client, model, COUNT, **long)) for _ in range(4)]
    done, _ = await asyncio.wait(tasks, timeout=0.1)
    assert not done
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends)
    assert (await whole(async_client, model, CAPITAL)).choices[0].message.content == answers[CAPITAL]


async def test_completions_and_models(async_client, model):
    fields = {"model": model, "prompt": "One, two, three,", "temperature": 0, "max_tokens": 12}
    answer = checked(await async_client.completions.create(**fields))
    stream = await async_client.completions.create(**fields, stream=True)
    assert "".join([checked_piece(piece).choices[0].text async for piece in stream]) == answer.choices[0].text
    assert [found.id async for found in async_client.models.list()] == [model]
    assert checked(await async_client.models.retrieve(model)).id == model


async def test_raw_headers(async_client, model):
    response = await async_client.chat.completions.with_raw_response.create(model=model, messages=[user("Hi")])
    assert response.request_id
    assert checked(response.parse()).choices


async def test_refusals_are_the_sdk_exceptions(async_client, model):
    with pytest.raises(openai.BadRequestError) as caught:
        await whole(async_client, model, "Hi", temperature=9)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        await whole(async_client, "no-such-model", "Hi")
    with pytest.raises(openai.AuthenticationError):
        await whole(async_client.with_options(api_key="sk-wrong"), model, "Hi")
