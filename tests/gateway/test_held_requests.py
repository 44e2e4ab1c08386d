"""Requests beside a switch: those in flight finish, those that arrive wait, and none fails."""

import asyncio
from typing import Any

import aiohttp
import pytest

from tests.conftest import RunningController, StartController
from tests.gateway.conftest import (
    ENDLESS,
    ask_json,
    endless_stream,
    is_draining,
    requests_now,
    shipped,
    until,
)

CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


async def test_requests_for_the_new_model_wait_and_are_served_by_it(
    start_controller: StartController, engine: str
) -> None:
    """Generation → embedding → generation, with requests arriving during each switch."""
    controller = await start_controller(engine=engine)
    await controller.switch_to("bench-chat")

    async with endless_stream(controller) as stream:
        _, accepted = await switch(controller, model_name="minilm", wait=False)
        embeddings = [
            asyncio.create_task(embed(controller, f"text {number}")) for number in range(6)
        ]
        await until(lambda: is_somebody_waiting(controller))  # the service sends them in batches
        stream.close()
        answers = await asyncio.gather(*embeddings)
    assert [(status, len(vector)) for status, vector in answers] == [(200, 384)] * 6
    assert (await controller.json("GET", accepted["location"]))["outcome"] == "switched"

    switching = asyncio.create_task(switch(controller, model_name="bench-chat"))
    await until(lambda: is_switching(controller))
    body = {**CHAT, "model": "bench-chat"}
    chats = [ask_json(controller, "POST", "/v1/chat/completions", body) for _ in range(6)]
    assert [status for status, _ in await asyncio.gather(*chats)] == [200] * 6
    assert (await switching)[0] == 200


async def test_request_that_names_no_model_waits_for_whatever_will_be_live(
    start_controller: StartController,
) -> None:
    controller = await start_controller()
    switching = asyncio.create_task(switch(controller, model_name="demo-chat"))
    await until(lambda: is_switching(controller))

    status, _ = await ask_json(controller, "POST", "/v1/chat/completions", CHAT)

    assert (status, (await switching)[0]) == (200, 200)


async def test_request_for_the_model_that_leaves_learns_which_is_live(
    start_controller: StartController,
) -> None:
    controller = await start_controller()
    await controller.switch_to("bench-chat")

    async with endless_stream(controller) as stream:
        await switch(controller, model_name="minilm", wait=False)
        await until(lambda: is_draining(controller))
        body = {**CHAT, "model": "bench-chat"}
        asking = asyncio.create_task(ask_json(controller, "POST", "/v1/chat/completions", body))
        await until(lambda: are_waiting(controller, 1))
        stream.close()
        status, answer = await asking

    assert (status, answer["error"]["code"]) == (409, "model_not_live")
    assert answer["error"]["live_models"] == ["minilm"]


async def test_request_for_a_model_that_is_not_live_learns_which_is(
    start_controller: StartController,
) -> None:
    controller = await start_controller()
    await controller.switch_to("demo-chat")

    for name in ("minilm", "all-MiniLM-L6-v2"):
        body = {"input": "a", "model": name}
        status, answer = await ask_json(controller, "POST", "/v1/embeddings", body)
        assert (status, answer["error"]["code"]) == (409, "model_not_live")
        assert "'demo-chat' is" in answer["error"]["message"]


async def test_client_that_leaves_while_it_waits_gives_its_place_up(
    start_controller: StartController,
) -> None:
    controller = await start_controller()
    await controller.switch_to("bench-chat")

    async with endless_stream(controller):
        await switch(controller, model_name="minilm", wait=False)
        waiting = asyncio.create_task(embed(controller, "a"))
        await until(lambda: are_waiting(controller, 1))
        waiting.cancel()
        await until(lambda: are_waiting(controller, 0))


async def test_stream_in_flight_finishes_before_its_server_is_stopped(
    start_controller: StartController, engine: str
) -> None:
    patient = shipped("generation.yaml", drain_timeout_s=600)
    controller = await start_controller(engine=engine, files={"generation.yaml": patient})
    await controller.switch_to("bench-chat")
    body = {**ENDLESS, "n_predict": 400, "stream": True}

    async with controller.client.post(f"{controller.url}/completion", json=body) as answer:
        first = await answer.content.readany()
        switching = asyncio.create_task(switch(controller, model_name="minilm"))
        await until(lambda: is_switching(controller))
        events = (first + await answer.read()).decode().strip().split("\n\n")

    assert '"tokens_predicted":400' in events[-1]
    status, report = await switching
    assert (status, report["model"]) == (200, "minilm")


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_drain_deadline_cuts_what_is_still_in_flight(
    start_controller: StartController, engine: str, is_streamed: bool
) -> None:
    impatient = shipped("generation.yaml", drain_timeout_s=0.1)
    controller = await start_controller(engine=engine, files={"generation.yaml": impatient})
    await controller.switch_to("bench-chat")
    answering = asyncio.create_task(read_endless(controller, is_streamed=is_streamed))
    await until(lambda: is_one_in_flight(controller))

    status, report = await switch(controller, model_name="minilm")

    assert (status, report["outcome"]) == (200, "switched")
    assert 0.1 <= report["seconds"]["draining"] < 1
    assert report["seconds"]["stopping"] < 5
    if is_streamed:
        with pytest.raises(aiohttp.ClientPayloadError):
            await answering
    else:
        assert await answering == 502


async def read_endless(controller: RunningController, *, is_streamed: bool) -> int:
    """Ask for what does not end, read it to its end, and return the status."""
    body = {**ENDLESS, "stream": is_streamed}
    async with controller.client.post(f"{controller.url}/completion", json=body) as answer:
        await answer.read()
        return answer.status


async def embed(controller: RunningController, text: str) -> tuple[int, list[float]]:
    body = {"model": "minilm", "input": text}
    status, answer = await ask_json(controller, "POST", "/v1/embeddings", body)
    return status, answer["data"][0]["embedding"]


async def switch(controller: RunningController, **order: Any) -> tuple[int, Any]:
    return await ask_json(controller, "POST", "/switch-backend", order)


async def is_switching(controller: RunningController) -> bool:
    # Looked at from inside: a switch may be over before an HTTP answer tells of it.
    return controller.parts.arbiter.snapshot.switch is not None


async def is_somebody_waiting(controller: RunningController) -> bool:
    return (await requests_now(controller))["waiting"] > 0


async def are_waiting(controller: RunningController, count: int) -> bool:
    return (await requests_now(controller))["waiting"] == count


async def is_one_in_flight(controller: RunningController) -> bool:
    return (await requests_now(controller))["in_flight"] == 1
