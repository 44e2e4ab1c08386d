"""What libraries log goes through the log: one line each, and nothing of what a client sent."""

import asyncio
import gc
import json
import logging
import warnings

import pytest
from aiohttp import web

from supervisor.gateway.connections import make_runner
from tests.observability.conftest import Log, LogFormat

SECRET = "sk-secret-4711"
TOO_LARGE = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"{secret}" * 2000 + b"\r\n\r\n"
MALFORMED = (
    b"GET / HTTP/1.1\r\nHost: a\r\nBad Header: {secret}\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {secret}\x00\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {secret}\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: gzip\r\n\r\n{secret}",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{secret}\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx{secret}\r\n",
    b"GET /{secret} HTTP/9\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n {secret}\r\n\r\n",
    b"GET {secret} HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://[{secret}/ HTTP/1.1\r\nHost: a\r\n\r\n",
    TOO_LARGE,
    b"\x16\x03\x01\x02\x00\x01\x00{secret}",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{secret}",
)


async def read_body(request: web.BaseRequest) -> web.Response:
    await request.read()
    return web.Response()


async def answers_to(malformed: tuple[bytes, ...], *, is_all: bool = True) -> list[bytes]:
    """Send each to a controller's server, on a connection that has answered a request before.

    With `is_all` the client says that nothing will follow. Returns what came: the head of that
    answer, and all that followed.
    """
    runner = make_runner(read_body)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    answers = []
    for message in malformed:
        reader, writer = await asyncio.open_connection(*runner.addresses[0][:2])
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(message.replace(b"{secret}", SECRET.encode()))
        if is_all:
            writer.write_eof()
        answers.append(head + await reader.read())
        writer.close()
    await runner.cleanup()
    return answers


async def test_malformed_requests_are_one_line_each_without_what_they_hold(log: Log) -> None:
    log.set_up("json")
    await answers_to(MALFORMED)
    text = log.text()
    assert SECRET not in text
    assert "Traceback" not in text
    assert len(text.splitlines()) <= len(MALFORMED)


async def test_malformed_request_is_refused_as_any_other_with_its_closing_line(log: Log) -> None:
    log.set_up("json")
    answers = await answers_to(MALFORMED)
    closing = [each for each in log.events() if each["event"] == "request.done"]
    for sent, event, answer in zip(MALFORMED, closing, answers, strict=True):
        assert f"\r\nX-Request-ID: {event['request_id']}\r\n".encode() in answer
        error = json.loads(answer.rpartition(b"\r\n\r\n")[2])["error"]
        expected = (431, "header_fields_too_large") if sent is TOO_LARGE else (400, "bad_request")
        assert (event["status"], error["code"]) == expected
        assert (event["client"], error["type"]) == ("127.0.0.1", "invalid_request_error")
        assert SECRET not in error["message"]


async def test_no_answer_names_versions(log: Log) -> None:
    log.set_up("json")
    [answers] = await answers_to(MALFORMED[:1], is_all=False)
    assert answers.count(b"\r\nServer: llama-supervisor\r\n") == 2
    assert b"aiohttp" not in answers


@pytest.mark.parametrize("log_format", ["console", "json"])
async def test_lost_task_is_one_line_without_its_exceptions_text(
    log: Log, log_format: LogFormat
) -> None:
    log.set_up(log_format)

    async def fail() -> None:
        raise ValueError(SECRET)

    task = asyncio.create_task(fail())
    await asyncio.wait([task])
    del task
    gc.collect()
    [line] = log.lines()
    assert "Task exception was never retrieved" in line
    assert "ValueError" in line
    assert "test_library_logs.py" in line
    assert SECRET not in line


def test_warning_is_one_line(log: Log) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        log.set_up("json")
        warnings.warn("this is old", DeprecationWarning, stacklevel=1)
    [event] = log.events()
    assert (event["level"], event["logger"]) == ("warning", "py.warnings")
    assert "DeprecationWarning: this is old" in event["message"]


def test_message_of_a_library_cannot_forge_or_colour_lines(log: Log) -> None:
    log.set_up("console")
    logging.getLogger("somebody").warning("a\x1b[31m%s", "\nforged")
    [line] = log.lines()
    assert "\x1b" not in line
    assert "forged" not in line


def test_debug_messages_of_libraries_are_left_out(log: Log) -> None:
    log.set_up("json")
    logging.getLogger("asyncio").debug("Using selector")
    assert not log.text()
