"""Streaming requests that are answered while they wait: comments first, then the whole stream."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from tests.conftest import RunningController, StartController
from tests.gateway.conftest import (
    endless_stream,
    is_draining,
    raw_request,
    requests_now,
    shipped,
    unchunk,
    until,
)
from tests.patience import PATIENCE_S

STREAM = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "stream": True}


def early(after_s: float | None) -> dict[str, Any]:
    """Return settings with which streams that wait are answered after so long."""
    queue = {"early_answer_after_s": after_s}
    return {"supervisor.yaml": shipped("supervisor.yaml", queue=queue)}


EARLY = early(0.05)
CHAT_PATH = "/v1/chat/completions"


async def test_comments_arrive_while_a_switch_runs_and_the_whole_stream_follows(
    start_controller: StartController, engine: str
) -> None:
    controller = await start_controller(engine=engine, files=EARLY)
    awaited = ": loading generation model demo-chat (in flight before it: 1)"
    async with draining(controller, to="demo-chat") as draining_stream, chat(controller) as answer:
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        assert answer.headers["X-Request-ID"]
        assert await next_event(answer) == f"{awaited}, 0 s"
        assert await next_event(answer) == f"{awaited}, 1 s"
        draining_stream.close()
        events = (await answer.text()).split("\n\n")

    told = [json.loads(e.removeprefix("data: ")) for e in events if e.startswith("data: {")]
    assert told[-1]["choices"][0]["finish_reason"]
    assert events[-2:] == ["data: [DONE]", ""]


async def test_stream_that_the_choice_of_a_hand_holds_up_is_told_of_it(
    start_controller: StartController,
) -> None:
    controller = await start_controller(auto_switch=True, files=EARLY)
    await controller.switch_to("bench-chat")
    async with chat(controller) as answer:
        event = await next_event(answer)
    assert event.startswith(": position 1, somebody has chosen what is live by hand, for ")


async def test_nothing_is_sent_early_where_the_operator_wants_each_status(
    start_controller: StartController,
) -> None:
    controller = await start_controller(files=early(None))
    async with draining(controller, to="minilm") as draining_stream:
        asking = asyncio.create_task(read_chat(controller))
        await until(lambda: is_waiting(controller))
        draining_stream.close()
        status, answer = await asking

    assert (status, json.loads(answer)["error"]["code"]) == (409, "model_not_live")


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        pytest.param(CHAT_PATH, {"stream": False}, id="not to be streamed"),
        pytest.param("/tokenize", {"content": "a"}, id="a route that has no streams"),
    ],
)
async def test_requests_that_want_no_stream_wait_for_their_status(
    start_controller: StartController, path: str, changes: Mapping[str, Any]
) -> None:
    controller = await start_controller(files=early(0))
    async with draining(controller, to="minilm") as draining_stream:
        asking = asyncio.create_task(read_chat(controller, path, **changes))
        await until(lambda: is_waiting(controller))
        draining_stream.close()
        status, answer = await asking

    assert (status, json.loads(answer)["error"]["code"]) == (409, "model_not_live")


async def test_client_of_http_1_0_waits_for_its_status(start_controller: StartController) -> None:
    controller = await start_controller(files=EARLY)
    body = json.dumps({**STREAM, "model": "demo-chat"})
    head = f"POST {CHAT_PATH} HTTP/1.0\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
    async with (
        draining(controller, to="minilm") as draining_stream,
        raw_request(controller, request) as (reader, _),
    ):
        await until(lambda: is_waiting(controller))
        draining_stream.close()
        received = await reader.read()

    assert b" 409 " in received.partition(b"\r\n")[0]


async def test_request_that_need_not_wait_is_answered_as_ever(
    start_controller: StartController,
) -> None:
    controller = await start_controller(files=early(0))
    await controller.switch_to("demo-chat")

    status, content = await read_chat(controller)
    refused, _ = await read_chat(controller, messages="no list")

    assert (status, content.startswith("data: {"), refused) == (200, True, 400)


async def test_refusal_after_an_early_answer_is_one_error_event_and_a_broken_end(
    start_controller: StartController,
) -> None:
    controller = await start_controller(files=EARLY)
    content = await broken_chat(controller, switch_to="minilm")

    error = error_in(content)
    assert (error["code"], error["type"]) == ("model_not_live", "invalid_request_error")
    assert error["live_models"] == ["minilm"]


async def test_failed_switch_after_an_early_answer_is_one_error_event_and_a_broken_end(
    start_controller: StartController, unloadable: dict[str, Any]
) -> None:
    controller = await start_controller(files={**EARLY, "models.yaml": unloadable})

    told = await broken_chat(controller, switch_to="unloadable", model="unloadable")

    assert error_in(told)["code"] == "switch_failed"


async def test_error_of_the_server_after_an_early_answer_is_told_in_the_event(
    start_controller: StartController,
) -> None:
    controller = await start_controller(files=EARLY)

    told = await broken_chat(controller, switch_to="demo-chat", messages="no list")

    error = error_in(told)
    assert (error["code"], error["status"]) == ("no_event_stream", 400)
    assert error["answer"]["error"]["message"] in error["message"]


async def test_client_that_leaves_after_its_early_answer_gives_its_place_up(
    start_controller: StartController,
) -> None:
    controller = await start_controller(files=EARLY)
    async with draining(controller, to="demo-chat"):
        async with chat(controller) as answer:
            await next_event(answer)
            assert await is_waiting(controller)
            answer.close()
        await until(lambda: is_none_waiting(controller))
        assert controller.parts.arbiter.snapshot.switch is not None  # it would have served it


@asynccontextmanager
async def draining(controller: RunningController, to: str) -> AsyncIterator[aiohttp.ClientResponse]:
    """Begin a switch that waits for a stream, and yield the stream, to be closed."""
    await controller.switch_to("bench-chat")
    async with endless_stream(controller) as stream:
        await controller.json("POST", "/switch-backend", {"model_name": to, "wait": False})
        await until(lambda: is_draining(controller))
        yield stream


@asynccontextmanager
async def chat(
    controller: RunningController, path: str = CHAT_PATH, **changes: Any
) -> AsyncIterator[aiohttp.ClientResponse]:
    body = {"model": "demo-chat", **STREAM, **changes}
    async with controller.client.post(controller.url + path, json=body) as answer:
        yield answer


async def read_chat(
    controller: RunningController, path: str = CHAT_PATH, **changes: Any
) -> tuple[int, str]:
    async with chat(controller, path, **changes) as answer:
        return answer.status, await answer.text()


async def broken_chat(controller: RunningController, *, switch_to: str, **changes: Any) -> str:
    """Chat during a switch until the stream breaks off; return what came after the comments."""
    body = json.dumps({"model": "demo-chat", **STREAM, **changes})
    head = f"POST {CHAT_PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
    async with (
        draining(controller, to=switch_to) as draining_stream,
        raw_request(controller, request) as (reader, _),
    ):
        first = await reader.readuntil(b" s\n\n")
        assert first.startswith(b"HTTP/1.1 200 "), first
        draining_stream.close()
        received = first + await reader.read()
    content, is_complete = unchunk(received.partition(b"\r\n\r\n")[2])
    assert not is_complete
    return content.decode()


def error_in(content: str) -> dict[str, Any]:
    """Return the error of the one event that follows the comments."""
    *comments, event, rest = content.split("\n\n")
    assert all(comment.startswith(": ") for comment in comments)
    assert rest == ""
    return dict(json.loads(event.removeprefix("data: "))["error"])


async def next_event(answer: aiohttp.ClientResponse) -> str:
    async with asyncio.timeout(PATIENCE_S):
        return (await answer.content.readuntil(b"\n\n")).decode().removesuffix("\n\n")


async def is_waiting(controller: RunningController) -> bool:
    return (await requests_now(controller))["waiting"] == 1


async def is_none_waiting(controller: RunningController) -> bool:
    return (await requests_now(controller))["waiting"] == 0
