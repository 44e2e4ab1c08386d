"""What cannot be read as a request is refused in the same form as all else, and ends the way."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunningController, StartController
from tests.gateway.conftest import both_doors, raw_request, start_faulty

HOST = b" HTTP/1.1\r\nHost: localhost\r\n"
ECHO = b"POST /echo" + HOST + b"Content-Length: 5\r\n\r\nwhole"
IN_CHUNKS = b"POST %b" + HOST + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"
GARBAGE = b"?\r\n\r\n"


@pytest.fixture
async def controller(
    start_controller: StartController, tmp_path: Path, has_fast_lane: bool
) -> RunningController:
    """A controller with that door, which waits half a second for a head, and long for a body."""
    return await start_faulty(
        start_controller, tmp_path, fast_lane=has_fast_lane, head_timeout_s=0.5
    )


async def answer_to(controller: RunningController, *sent: bytes) -> bytes:
    """Send one piece behind the other, and return all that is answered until the connection ends.

    A further piece is sent when nothing is answered to the one before it.
    """
    async with raw_request(controller, sent[0]) as (reader, writer):
        for piece in sent[1:]:
            await is_read(controller)
            writer.write(piece)
        return await reader.read()


async def is_read(controller: RunningController) -> None:
    """Return when all that was sent before was read: what is asked now was sent behind it."""
    await controller.json("GET", "/status")


def refusal(answer: bytes) -> tuple[int, Any]:
    """Return status and error of an answer that is whole, and the last one."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nConnection: close" in head
    assert b"\r\nX-Request-ID: " in head
    return int(head.split()[1]), json.loads(body)["error"]


@both_doors
@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        pytest.param(
            b"GET /echo?" + b"x" * 9000 + HOST + b"\r\n", 414, "uri_too_long", id="target"
        ),
        pytest.param(
            b"GET /echo" + HOST + b"X-Path: /" + b"x" * 9000 + b"\r\n\r\n",
            431,
            "header_fields_too_large",
            id="value",
        ),
        pytest.param(
            b"GET /echo" + HOST + b"X" * 9000 + b": x\r\n\r\n",
            431,
            "header_fields_too_large",
            id="name",
        ),
        pytest.param(
            b"GET /echo" + HOST + b"X: x\r\n" * 129 + b"\r\n",
            431,
            "header_fields_too_large",
            id="number",
        ),
        pytest.param(b"GET /echo HTTP/1.1\r\nHost: lo", 408, "head_timeout", id="no end"),
        pytest.param(GARBAGE, 400, "bad_request", id="garbage"),
    ],
)
async def test_head_that_is_not_taken_is_refused_in_our_form(
    controller: RunningController, sent: bytes, status: int, code: str
) -> None:
    answered, error = refusal(await answer_to(controller, sent))

    assert (answered, error["code"]) == (status, code)


@both_doors
@pytest.mark.parametrize(
    ("path", "status"),
    [(b"/echo", 400), (b"/unload", 400), (b"/v1/files?purpose=batch", 400), (b"/health", 405)],
)
async def test_body_that_cannot_be_read_on_is_not_waited_for(
    controller: RunningController, path: bytes, status: int
) -> None:
    answer = await answer_to(controller, IN_CHUNKS % path, b"not a size\r\n")

    assert refusal(answer)[0] == status
