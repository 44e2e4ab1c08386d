"""Asking over HTTP: patience where the server asks for it, and words for what goes wrong."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from supervisor.client import connection as client
from supervisor.client.connection import Connection, NoController, Refused, connect

Answering = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
ERROR = {"error": {"code": "queue_full", "message": "too many wait"}}


@asynccontextmanager
async def connection_to(answering: Answering) -> AsyncIterator[Connection]:
    """Yield a connection to a server that answers so."""
    async with RawTestServer(answering) as server, connect(str(server.make_url(""))) as connection:
        yield connection


def busy_once(should_retry: str, seen: list[str], retry_after: str = "0") -> Answering:
    """Answers 429 the first time; `seen` gets the path of each request."""

    async def answer(request: web.BaseRequest) -> web.Response:
        seen.append(request.path)
        headers = {"x-should-retry": should_retry, "Retry-After": retry_after}
        if len(seen) == 1:
            return web.json_response(ERROR, status=429, headers=headers)
        return web.json_response({"state": "well"})

    return answer


async def test_it_comes_back_where_waiting_helps() -> None:
    seen: list[str] = []
    async with connection_to(busy_once("true", seen)) as connection:
        assert await connection.ask("GET", "jobs", shape=dict) == {"state": "well"}

    assert seen == ["/jobs", "/jobs"]


async def test_date_of_a_proxy_is_waited_for() -> None:
    seen: list[str] = []
    passed = "Thu, 01 Jan 1970 00:00:00 GMT"
    async with connection_to(busy_once("true", seen, passed)) as connection:
        assert await connection.ask("GET", "jobs", shape=dict) == {"state": "well"}

    assert seen == ["/jobs", "/jobs"]


async def test_it_does_not_come_back_where_waiting_does_not_help() -> None:
    seen: list[str] = []
    async with connection_to(busy_once("false", seen)) as connection:
        with pytest.raises(Refused, match="too many wait") as refused:
            await connection.ask("GET", "jobs", shape=dict)

    assert (refused.value.status, refused.value.code, len(seen)) == (429, "queue_full", 1)


@pytest.mark.parametrize(
    ("retry_after", "pause_s"),
    [
        ("7", 7),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 10),
        ("Thursday, 01-Jan-70 00:01:40 GMT", 10),
        ("Thu Jan  1 00:01:40 1970", 10),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("soon", 1),
        ("inf", 1),
        ("", 1),
    ],
)
def test_pause_is_a_number_or_a_date(
    monkeypatch: pytest.MonkeyPatch, retry_after: str, pause_s: float
) -> None:
    """In each of the three forms of RFC 9110, where the time is 1970-01-01 00:01:30."""
    monkeypatch.setattr(time, "time", lambda: 90.0)

    assert client._pause_s(retry_after) == pause_s


async def test_segments_of_a_path_stay_what_they_are() -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        return web.json_response(request.raw_path)

    async with connection_to(answer) as connection:
        asked = await connection.ask(
            "GET", "documents", "/a b/100%/한글", query={"collection": "c"}, shape=str
        )

    assert asked == "/documents/%2Fa%20b%2F100%25%2F%ED%95%9C%EA%B8%80?collection=c"


async def test_answer_that_is_not_ours_is_shown() -> None:
    async def answer(_: web.BaseRequest) -> web.Response:
        return web.Response(status=502, text="<h1>Bad gateway</h1>")

    async with connection_to(answer) as connection:
        with pytest.raises(Refused, match="Bad gateway") as refused:
            await connection.ask("GET", "jobs", shape=dict)
    assert refused.value.code == "502"


async def test_controller_that_goes_in_the_middle_is_told() -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with connection_to(answer) as connection:
        with pytest.raises(NoController, match="broke off"):
            await connection.ask("POST", "documents", shape=dict)


async def test_answer_of_something_else_is_no_answer() -> None:
    async def answer(_: web.BaseRequest) -> web.Response:
        return web.Response(text="<h1>Log in</h1>", content_type="text/html")

    async with connection_to(answer) as connection:
        with pytest.raises(NoController, match=r"is no controller.*status 200.*Log in.*--url"):
            await connection.ask("GET", "jobs", shape=dict)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:99999", "Port out of range"),
        ("http://127.0.0.1:port", "port can't be converted"),
        ("http://[::1", "Invalid IPv6 URL"),
        ("http://", "it names no host"),
        ("http://two words", "it names no host"),
        ("http://a..b:8000", "label"),
        ("ftp://127.0.0.1", "it must begin with http"),
        ("http://127.0.0.1:8000?x=1", "it has a query"),
    ],
)
async def test_url_that_is_none_is_told(url: str, reason: str) -> None:
    with pytest.raises(NoController, match="is no controller's URL") as raised:
        async with connect(url):
            pass

    assert reason in str(raised.value)
    assert "--url" in str(raised.value)


async def test_name_of_a_host_may_have_letters_of_any_language() -> None:
    async with connect("http://없는이름.invalid:1/") as connection:
        with pytest.raises(NoController, match="no controller answers at http://xn--"):
            await connection.ask("GET", "jobs", shape=dict)


async def test_wait_is_the_controllers_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers a day later, as the clock of the event loop has it."""
    loop = asyncio.get_running_loop()
    now = loop.time

    async def answer(_: web.BaseRequest) -> web.Response:
        monkeypatch.setattr(loop, "time", lambda: now() + 86_400)
        for _turn in range(10):  # what is due by then is done by then
            await asyncio.sleep(0)
        return web.json_response(ERROR, status=503)

    async with connection_to(answer) as connection:
        with pytest.raises(Refused, match="too many wait"):
            await connection.ask("POST", "search", body={}, shape=dict)


async def test_machine_that_is_gone_is_found_while_it_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[socket.socket] = []

    def new_socket(address: aiohttp.AddrInfoType) -> socket.socket:
        made.append(make(address))
        return made[-1]

    make = client._new_socket
    monkeypatch.setattr(client, "_new_socket", new_socket)
    async with connection_to(busy_once("true", [])) as connection:
        await connection.ask("GET", "jobs", shape=dict)

        assert made[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
