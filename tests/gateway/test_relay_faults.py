"""The relay's promises where servers misbehave, and where what was sent has to be seen."""

import asyncio
import base64
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from tests.conftest import RunningController, StartController
from tests.gateway.conftest import (
    ask,
    ask_json,
    both_doors,
    raw_request,
    start_faulty,
    unchunk,
    until,
)
from tests.gateway.faulty_server import FLOOD_BYTES, GZIPPED

pytestmark = both_doors


ODD_TARGET = "/v1/a%2Fb//c%20d?x=1&x=%20+2&&empty="


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_method_target_and_body_pass_unchanged(
    faulty: RunningController, method: str
) -> None:
    url = URL(faulty.url + ODD_TARGET, encoded=True)

    async with faulty.client.request(method, url, data=b"\x00\xff\r\n") as answer:
        echo = await answer.json()

    assert (echo["method"], echo["target"]) == (method, ODD_TARGET)
    assert base64.b64decode(echo["body"]) == b"\x00\xff\r\n"


async def test_upstream_passes_the_rest_of_the_target_unchanged(faulty: RunningController) -> None:
    url = URL(f"{faulty.url}/upstream/demo-chat{ODD_TARGET}", encoded=True)

    async with faulty.client.get(url) as answer:
        assert (await answer.json())["target"] == ODD_TARGET


async def test_headers_pass_except_those_of_one_hop_and_the_clients_key(
    faulty: RunningController,
) -> None:
    sent = {
        "User-Agent": "a client",
        "Accept-Encoding": "br",
        "X-Two": "1, 2",
        "Authorization": "Bearer of-the-client",
        "X-Api-Key": "of-the-client",
        "TE": "trailers",
        "X-Named": "for one hop",
        "Connection": "keep-alive, X-Named",
    }

    async with faulty.client.get(f"{faulty.url}/echo", headers=sent) as answer:
        arrived = {name.lower(): value for name, value in (await answer.json())["headers"]}

    assert {name: arrived[name] for name in ("user-agent", "accept-encoding", "x-two")} == {
        "user-agent": "a client",
        "accept-encoding": "br",
        "x-two": "1, 2",
    }
    assert not {"te", "x-named", "connection", "x-api-key", "transfer-encoding"} & arrived.keys()
    assert "of-the-client" not in arrived["authorization"]
    assert arrived["x-request-id"] == answer.headers["X-Request-ID"]


async def test_given_request_id_is_kept(faulty: RunningController) -> None:
    headers = {"X-Request-ID": "mine-7"}

    async with faulty.client.get(f"{faulty.url}/echo", headers=headers) as answer:
        arrived = {name.lower(): value for name, value in (await answer.json())["headers"]}

    assert (arrived["x-request-id"], answer.headers["X-Request-ID"]) == ("mine-7", "mine-7")


async def test_chunked_body_arrives_whole(faulty: RunningController) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"first "
        yield b"second"

    async with faulty.client.post(f"{faulty.url}/echo", data=parts()) as answer:
        assert base64.b64decode((await answer.json())["body"]) == b"first second"


async def test_status_and_headers_of_the_answer_pass_except_those_of_one_hop(
    faulty: RunningController,
) -> None:
    async with faulty.client.get(f"{faulty.url}/peculiar") as answer:
        assert (answer.status, answer.reason) == (207, "Quite Peculiar")
        assert answer.headers.getall("Set-Cookie") == ["a=1", "b=2"]
        assert answer.headers["X-Kept"] == "yes"
        assert not {"X-Named", "Keep-Alive", "Connection"} & set(answer.headers)
        [date] = answer.headers.getall("Date")
        assert "1970" not in date
        assert await answer.read() == b"\x00\xff\n"


@pytest.mark.parametrize("encoding", ["gzip", "br"])
async def test_compressed_request_body_stays_as_it_is(
    faulty: RunningController, encoding: str
) -> None:
    body = gzip.compress(json.dumps({"model": "demo-chat", "prompt": "a"}).encode())
    headers = {"Content-Encoding": encoding, "Content-Type": "application/json"}

    async with faulty.client.post(f"{faulty.url}/echo", data=body, headers=headers) as answer:
        echo = await answer.json()

    assert base64.b64decode(echo["body"]) == body
    assert ["Content-Encoding", encoding] in echo["headers"]


async def test_model_is_read_out_of_a_compressed_body(faulty: RunningController) -> None:
    body = gzip.compress(json.dumps({"prompt": "a", "model": "minilm"}).encode())
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}

    async with faulty.client.post(f"{faulty.url}/echo", data=body, headers=headers) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (409, "model_not_live")


@pytest.mark.parametrize("path", ["/gzipped", "/gzipped-in-chunks"])
async def test_compressed_answer_stays_as_it_is(faulty: RunningController, path: str) -> None:
    async with (
        aiohttp.ClientSession(auto_decompress=False) as client,
        client.get(faulty.url + path) as answer,
    ):
        assert answer.headers["Content-Encoding"] == "gzip"
        assert await answer.read() == GZIPPED


async def test_request_on_a_stale_connection_is_sent_again(faulty: RunningController) -> None:
    _, first = await ask_json(faulty, "POST", "/silent-when-reused")

    status, second = await ask_json(faulty, "POST", "/silent-when-reused")

    assert (first["number"], status, second["number"]) == (1, 200, 1)
    assert await times_asked(faulty, "/silent-when-reused") == 3


async def test_request_on_a_fresh_connection_is_not_sent_again(faulty: RunningController) -> None:
    status, answer = await ask_json(faulty, "POST", "/silent")

    assert (status, answer["error"]["code"]) == (502, "backend_unreachable")
    assert "its process runs on" in answer["error"]["message"]
    assert await times_asked(faulty, "/silent") == 1


async def test_request_whose_answer_began_is_not_sent_again(faulty: RunningController) -> None:
    await ask_json(faulty, "POST", "/cut-head-when-reused")

    status, answer = await ask_json(faulty, "POST", "/cut-head-when-reused")

    assert (status, answer["error"]["code"]) == (502, "backend_unreachable")
    assert await times_asked(faulty, "/cut-head-when-reused") == 2


async def test_client_that_leaves_before_the_answer_cuts_the_way_to_the_server(
    faulty: RunningController,
) -> None:
    asking = asyncio.create_task(ask(faulty, "POST", "/endless"))
    await until(lambda: is_count(faulty, "in_flight", 1))

    asking.cancel()

    await until(lambda: is_count(faulty, "in_flight", 0))
    await until(lambda: has_left(faulty))


async def test_slow_reader_holds_the_server_back(faulty: RunningController) -> None:
    async with raw_request(faulty, b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n") as (
        reader,
        _,
    ):
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        sent_bytes = await steady_flood(faulty)
        assert 0 < sent_bytes < FLOOD_BYTES // 2

        reader._transport.resume_reading()  # type: ignore[attr-defined]
        await reader.readuntil(b"\r\n\r\n")
        assert len(await reader.readexactly(FLOOD_BYTES)) == FLOOD_BYTES


async def test_stream_that_breaks_between_events_gets_one_error_event(
    faulty: RunningController,
) -> None:
    content, is_complete = await broken_stream(faulty, "/die-after-event")

    *events, rest = content.split(b"\n\n")
    assert (events[0], rest, is_complete) == (b'data: {"whole": true}', b"", False)
    (error_event,) = events[1:]
    error = json.loads(error_event.removeprefix(b"data: "))["error"]
    assert (error["code"], error["type"]) == ("backend_unreachable", "server_error")


async def test_stream_that_breaks_inside_an_event_gets_no_error_event(
    faulty: RunningController,
) -> None:
    content, is_complete = await broken_stream(faulty, "/die-in-event")

    assert content == b'data: {"whole": true}\n\ndata: {"whole": fal'
    assert not is_complete


async def test_long_body_that_breaks_ends_short_of_its_length(faulty: RunningController) -> None:
    async with faulty.client.get(f"{faulty.url}/die-in-long-body") as answer:
        assert answer.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()


async def test_short_body_that_breaks_becomes_502(faulty: RunningController) -> None:
    status, answer = await ask_json(faulty, "GET", "/die-in-short-body")

    assert (status, answer["error"]["code"]) == (502, "backend_unreachable")


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_body_above_the_limit_is_refused(
    start_controller: StartController, tmp_path: Path, is_chunked: bool
) -> None:
    controller = await start_faulty(start_controller, tmp_path, max_body_bytes=1000)

    at_limit = await post_bytes(controller, 1000, is_chunked=is_chunked)
    above = await post_bytes(controller, 1001, is_chunked=is_chunked)

    assert at_limit[0] == 200
    assert (above[0], above[1]["error"]["code"]) == (413, "body_too_large")
    assert "1000 bytes" in above[1]["error"]["message"]
    assert await times_asked(controller, "/echo") == 1


async def post_bytes(
    controller: RunningController, length: int, *, is_chunked: bool
) -> tuple[int, Any]:
    async def parts() -> AsyncIterator[bytes]:
        yield b"x" * length

    data = parts() if is_chunked else b"x" * length
    async with controller.client.post(f"{controller.url}/echo", data=data) as answer:
        return answer.status, await answer.json()


async def broken_stream(controller: RunningController, path: str) -> tuple[bytes, bool]:
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    async with raw_request(controller, request) as (reader, _):
        received = await reader.read()
    return unchunk(received.partition(b"\r\n\r\n")[2])


async def counts(controller: RunningController) -> dict[str, Any]:
    """Return what the server counted."""
    return dict(await controller.json("GET", "/counts"))


async def times_asked(controller: RunningController, target: str) -> int:
    return int((await counts(controller))["times_asked"].get(target, 0))


async def has_left(controller: RunningController) -> bool:
    return bool((await counts(controller))["clients_left"])


async def is_count(controller: RunningController, name: str, wanted: int) -> bool:
    requests = (await controller.json("GET", "/status"))["requests"]
    return bool(requests[name] == wanted)


async def steady_flood(controller: RunningController) -> int:
    """Return how many bytes the server has got rid of, once that has not grown for 0.3 s."""
    loop = asyncio.get_running_loop()
    sent_bytes, changed_at = 0, loop.time()
    while sent_bytes == 0 or loop.time() - changed_at < 0.3:
        await asyncio.sleep(0.01)
        now_bytes = (await counts(controller))["flood_sent_bytes"]
        if now_bytes != sent_bytes:
            sent_bytes, changed_at = now_bytes, loop.time()
    return sent_bytes
