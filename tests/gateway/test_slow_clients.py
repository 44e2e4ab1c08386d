"""Nothing waits for ever for a client, and what clients send takes bounded memory."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunningController, StartController
from tests.gateway.conftest import ask_json, raw_request, requests_now, start_faulty, until

POST = b"POST /echo HTTP/1.1\r\nHost: localhost\r\n"


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

    async with raw_request(controller, b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n") as (r, _):
        r._transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: in_flight(controller, 1))
        await until(lambda: in_flight(controller, 0))


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
        assert answer.headers["Retry-After"] == "1"
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
