"""How an answer ends, through either door: for clients that half-close, and without content."""

import gc
import json
from pathlib import Path
from typing import Any

import pytest

from supervisor.gateway import connections
from supervisor.gateway.call import Call
from supervisor.gateway.connections import ARE_YOU_THERE
from supervisor.gateway.lane import lane
from tests.conftest import RunningController, StartController
from tests.gateway.conftest import ask_json, both_doors, raw_request, start_faulty, until

HOST = b" HTTP/1.1\r\nHost: localhost\r\n"
HELD = b"GET /held" + HOST + b"\r\n"


@pytest.fixture
async def controller(
    start_controller: StartController,
    tmp_path: Path,
    has_fast_lane: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> RunningController:
    """A controller with that door, which soon asks whether a client is there."""
    for module in (connections, lane):
        monkeypatch.setattr(module, "HALF_CLOSED_S", 0.05)
    monkeypatch.setattr(connections, "_LONGEST_PAUSE_S", 0.05)
    return await start_faulty(start_controller, tmp_path, fast_lane=has_fast_lane)


async def is_in_flight(controller: RunningController, count: int) -> bool:
    return controller.parts.arbiter.snapshot.backends[0].in_flight == count


@both_doors
async def test_client_that_half_closes_gets_its_answer_and_then_the_end(
    controller: RunningController,
) -> None:
    for _ in range(10):
        sent = b"POST /echo" + HOST + b"Content-Length: 5\r\n\r\nwhole"
        async with raw_request(controller, sent) as (reader, writer):
            writer.write_eof()
            answer = await reader.read()

        assert answer.replace(ARE_YOU_THERE, b"").startswith(b"HTTP/1.1 200 ")


@both_doors
async def test_client_that_half_closes_waits_as_long_as_any_other(
    controller: RunningController,
) -> None:
    async with raw_request(controller, HELD) as (reader, writer):
        writer.write_eof()
        for _ in range(3):
            assert await reader.readexactly(len(ARE_YOU_THERE)) == ARE_YOU_THERE

        await ask_json(controller, "GET", "/let-go")

        answer = (await reader.read()).rpartition(ARE_YOU_THERE)[2] or b"HTTP"
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b'"let go"')


@both_doors
async def test_client_that_closes_is_found_to_have_left(controller: RunningController) -> None:
    async with raw_request(controller, HELD):
        await until(lambda: is_in_flight(controller, 1))

    await until(lambda: is_in_flight(controller, 0))


@both_doors
async def test_client_that_asks_on_and_closes_is_found_to_have_left(
    controller: RunningController,
) -> None:
    async with raw_request(controller, HELD * 3):
        await until(lambda: is_in_flight(controller, 1))

    await until(lambda: is_in_flight(controller, 0))


@both_doors
@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /held HTT",
        b"POST /held" + HOST + b"Content-Length: 9\r\n\r\nhalf",
        b"POST /held" + HOST + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"GET /held HTTP/1.0\r\n\r\n",
    ],
    ids=["nothing", "half a head", "half a body", "half the chunks", "waits by HTTP/1.0"],
)
async def test_client_that_half_closes_and_cannot_be_answered_is_cut(
    controller: RunningController, sent: bytes
) -> None:
    async with raw_request(controller, sent) as (reader, writer):
        writer.write_eof()

        assert await reader.read() == b""

    await until(lambda: is_in_flight(controller, 0))


@both_doors
async def test_answer_without_content_has_no_framing_of_one(controller: RunningController) -> None:
    sent = b"GET /nothing-in-chunks" + HOST + b"\r\nGET /echo" + HOST + b"\r\n"
    async with raw_request(controller, sent) as (reader, writer):
        writer.write_eof()
        head, _, rest = (await reader.read()).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 204 ")
    assert b"transfer-encoding" not in head.lower()
    assert b"HTTP/1.1 200 " in rest


@both_doors
async def test_requests_in_a_row_before_a_half_close_are_all_answered(
    controller: RunningController,
) -> None:
    async with raw_request(controller, (b"GET /echo" + HOST + b"\r\n") * 3) as (reader, writer):
        writer.write_eof()
        answer = await reader.read()

    assert answer.count(b"HTTP/1.1 200 ") == 3


@both_doors
@pytest.mark.parametrize("path", ["/echo", "/silent", "/v1/embeddings", "/upstream/nobody/x"])
async def test_what_was_asked_leaves_memory_without_a_collection(
    controller: RunningController, path: str
) -> None:
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            body: dict[str, Any] = {"model": "demo-chat", "input": "x"}
            content = json.dumps(body).encode()
            sent = b"POST " + path.encode() + HOST + b"Content-Length: %d\r\n" % len(content)
            async with raw_request(controller, sent + b"\r\n" + content) as (reader, _):
                await reader.readuntil(b"\r\n\r\n")
        await until(no_call_is_kept)
    finally:
        gc.enable()


async def no_call_is_kept() -> bool:
    return not any(isinstance(each, Call) for each in gc.get_objects())
