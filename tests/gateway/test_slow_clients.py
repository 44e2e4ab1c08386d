"""Nothing waits for ever for a client, and what clients send takes bounded memory."""

import asyncio
import contextlib
import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from supervisor.engine.kinds.flag_table import SPARE_THREADS
from supervisor.engine.servers import slow_readers
from tests.conftest import RunningController, StartController
from tests.gateway.conftest import (
    ask_json,
    backend_of,
    both_doors,
    raw_request,
    requests_now,
    shipped,
    start_faulty,
    until,
)

POST = b"POST /echo HTTP/1.1\r\nHost: localhost\r\n"
FLOOD = b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "limit", "status"),
    [
        pytest.param(b"GET /echo HTTP/1.1\r\nHost: lo", "head_timeout_s", b"408", id="head"),
        pytest.param(POST + b"Content-Length: 9\r\n\r\nhalf", "body_timeout_s", b"408", id="body"),
        pytest.param(b"", "idle_timeout_s", None, id="idle"),
    ],
)
async def test_client_that_stops_in_the_middle_is_cut(
    start_controller: StartController,
    tmp_path: Path,
    sent: bytes,
    limit: str,
    status: bytes | None,
) -> None:
    settings: dict[str, Any] = {limit: 0.3}
    controller = await start_faulty(start_controller, tmp_path, **settings)

    async with raw_request(controller, sent) as (reader, _):
        answer = await reader.read()  # to the end of the connection

    assert answer.split(b" ")[1:2] == ([status] if status else [])


@both_doors
@pytest.mark.parametrize(
    ("request_line", "fields"),
    [
        (b"POST /echo", b"Expect: 100-continue\r\nContent-Length: 99999999"),
        (b"POST /echo", b"Expect: 200-ok\r\nContent-Length: 10"),
        (b"POST /health", b"Content-Length: 10"),
        (b"GET /health", b"Transfer-Encoding: chunked"),
    ],
)
async def test_client_that_is_answered_before_its_body_is_told_that_the_connection_ends(
    start_controller: StartController, request_line: bytes, fields: bytes, *, has_fast_lane: bool
) -> None:
    """Its next request would be taken for the body."""
    controller = await start_controller()
    sent = b"%b HTTP/1.1\r\nHost: localhost\r\n%b\r\n\r\n" % (request_line, fields)

    async with raw_request(controller, sent) as (reader, _):
        head = await reader.readuntil(b"\r\n\r\n")

    assert b"\r\nConnection: close\r\n" in head


@both_doors
async def test_body_that_comes_byte_by_byte_is_cut(
    start_controller: StartController, tmp_path: Path, *, has_fast_lane: bool
) -> None:
    controller = await start_faulty(
        start_controller, tmp_path, body_timeout_s=0.5, fast_lane=has_fast_lane
    )
    sent = POST + b"Content-Length: 1000000\r\n\r\n"
    async with raw_request(controller, sent) as (reader, writer), asyncio.TaskGroup() as tasks:
        trickling = tasks.create_task(send_byte_by_byte(writer))
        assert b" 408 " in await reader.readline()
        trickling.cancel()


async def send_byte_by_byte(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)


async def test_malformed_chunk_is_refused_and_ends_the_connection(
    faulty: RunningController,
) -> None:
    sent = POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\nnot a size\r\n"
    async with raw_request(faulty, sent) as (reader, _):
        answer = await reader.read()

    assert b" 400 " in answer.partition(b"\r\n")[0]


async def test_reader_that_takes_nothing_gives_its_permit_up(
    start_controller: StartController, tmp_path: Path
) -> None:
    controller = await start_faulty(start_controller, tmp_path, write_timeout_s=0.5)

    async with raw_request(controller, FLOOD) as (r, _):
        r._transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: in_flight(controller, 1))
        await until(lambda: in_flight(controller, 0))


@both_doors
async def test_reader_that_takes_a_little_all_the_time_gives_way_to_who_waits(
    start_controller: StartController,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    has_fast_lane: bool,
) -> None:
    monkeypatch.setattr(slow_readers, "CROWDED_PATIENCE_S", 0.2)
    one_permit = shipped("generation.yaml", threads_http=SPARE_THREADS + 1)
    controller = await start_faulty(
        start_controller, tmp_path, {"generation.yaml": one_permit}, fast_lane=has_fast_lane
    )
    assert backend_of(controller).launch.abilities.requests_at_once == 1
    async with raw_request(controller, FLOOD) as (reader, _), asyncio.TaskGroup() as tasks:
        trickling = tasks.create_task(take_little_by_little(reader))
        await until(lambda: in_flight(controller, 1))
        async with controller.client.get(f"{controller.url}/echo") as answer:
            assert answer.status == 200
        trickling.cancel()


async def take_little_by_little(reader: asyncio.StreamReader) -> None:
    while True:
        if not await reader.read(1000):
            return
        await asyncio.sleep(0.01)


@both_doors
async def test_client_that_does_not_read_a_short_answer_keeps_no_switch_waiting(
    start_controller: StartController, tmp_path: Path, *, has_fast_lane: bool
) -> None:
    controller = await start_faulty(start_controller, tmp_path, fast_lane=has_fast_lane)
    body = b"x" * 700_000
    async with raw_request(controller, b"") as (reader, writer):
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: has_little_room_in_the_kernel(controller))
        writer.write(POST + b"Content-Length: 700000\r\n\r\n" + body)
        await until(lambda: is_unread(controller))
        await until(lambda: echoed(controller, 1))
        assert await is_unread(controller)


@both_doors
async def test_client_that_asks_on_without_reading_has_little_buffered(
    start_controller: StartController, tmp_path: Path, *, has_fast_lane: bool
) -> None:
    """Each answer is one that is buffered whole; the first ones are not taken yet."""
    controller = await start_faulty(start_controller, tmp_path, fast_lane=has_fast_lane)
    asked = POST + b"Content-Length: 600000\r\n\r\n" + b"x" * 600_000
    async with raw_request(controller, b"") as (reader, writer):
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        for number in range(1, 41):
            writer.write(asked)
            await until(partial(is_answered_or_held, controller, number))
        assert 0 < unread_bytes(controller) < 4 * 1024 * 1024
        writer.transport.abort()  # else it waits for its last request to be taken


async def is_answered_or_held(controller: RunningController, count: int) -> bool:
    """Whether so many echoes were answered, or nothing more is read of who does not read."""
    readings = [transport.is_reading() for transport in transports(controller)]
    is_held = unread_bytes(controller) > 0 and not all(readings)
    return is_held or await echoed(controller, count)


async def echoed(controller: RunningController, count: int) -> bool:
    """Whether so many echoes were asked for, and answered."""
    counts = await controller.json("GET", "/counts")
    return counts["times_asked"].get("/echo", 0) == count and await in_flight(controller, 0)


async def has_little_room_in_the_kernel(controller: RunningController) -> bool:
    """Have the system buffer little of what is written on each connection, once there is one."""
    for transport in transports(controller):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return bool(transports(controller))


async def is_unread(controller: RunningController) -> bool:
    return unread_bytes(controller) > 0


def unread_bytes(controller: RunningController) -> int:
    """What all connections hold that their clients have not taken."""
    return sum(transport.get_write_buffer_size() for transport in transports(controller))


def transports(controller: RunningController) -> list[asyncio.Transport]:
    """Those of all clients."""
    door = controller.server
    lanes = [lane._transport for lane in getattr(door, "_lanes", ())]
    others = [connection.transport for connection in door.connections]
    return [each for each in (*lanes, *others) if each is not None]


async def test_bodies_beyond_their_memory_are_refused_until_some_is_given_back(
    start_controller: StartController, tmp_path: Path
) -> None:
    controller = await start_faulty(start_controller, tmp_path, bodies_max_bytes=1000)
    body = b"Content-Length: 600\r\n\r\n" + b"x" * 600
    endless = b"POST /endless HTTP/1.1\r\nHost: localhost\r\n" + body

    async with raw_request(controller, endless):
        await until(lambda: in_flight(controller, 1))
        async with controller.client.post(f"{controller.url}/echo", data=b"y" * 600) as answer:
            error = (await answer.json())["error"]
        assert (answer.status, error["code"]) == (503, "bodies_full")
        assert "server.bodies_max_bytes" in error["message"]
        assert answer.headers["Retry-After"] == "5"  # nothing is known of the rate yet
        async with controller.client.post(f"{controller.url}/echo", data=b"y" * 400) as answer:
            assert answer.status == 200
    await until(lambda: in_flight(controller, 0))

    async with controller.client.post(f"{controller.url}/echo", data=b"y" * 600) as answer:
        assert answer.status == 200


async def test_memory_of_bodies_is_given_back(faulty: RunningController) -> None:
    bodies = faulty.parts.door._bodies

    async def post() -> None:
        status, _ = await ask_json(faulty, "POST", "/counts", {"a": "x" * 1_000_000})
        assert status == 200

    await asyncio.gather(*(post() for _ in range(20)))

    assert bodies.taken_bytes == 0


async def in_flight(controller: RunningController, count: int) -> bool:
    return (await requests_now(controller))["in_flight"] == count
