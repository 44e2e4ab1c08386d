"""Asking over HTTP: patience where the server asks for it, and words for what goes wrong."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from supervisor.client.connection import Connection, NoController, Refused, connect

Answering = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
ERROR = {"error": {"code": "queue_full", "message": "too many wait"}}


@asynccontextmanager
async def connection_to(answering: Answering) -> AsyncIterator[Connection]:
    """Yield a connection to a server that answers so."""
    async with RawTestServer(answering) as server, connect(str(server.make_url(""))) as connection:
        yield connection


def busy_once(should_retry: str, seen: list[str]) -> Answering:
    """Answers 429 the first time; `seen` gets the path of each request."""

    async def answer(request: web.BaseRequest) -> web.Response:
        seen.append(request.path)
        headers = {"x-should-retry": should_retry, "Retry-After": "0"}
        if len(seen) == 1:
            return web.json_response(ERROR, status=429, headers=headers)
        return web.json_response({"state": "well"})

    return answer


async def test_it_comes_back_where_waiting_helps() -> None:
    seen: list[str] = []
    async with connection_to(busy_once("true", seen)) as connection:
        assert await connection.ask("GET", "jobs") == {"state": "well"}

    assert seen == ["/jobs", "/jobs"]


async def test_it_does_not_come_back_where_waiting_does_not_help() -> None:
    seen: list[str] = []
    async with connection_to(busy_once("false", seen)) as connection:
        with pytest.raises(Refused, match="too many wait") as refused:
            await connection.ask("GET", "jobs")

    assert (refused.value.status, refused.value.code, len(seen)) == (429, "queue_full", 1)


async def test_segments_of_a_path_stay_what_they_are() -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        return web.json_response(request.raw_path)

    async with connection_to(answer) as connection:
        asked = await connection.ask(
            "GET", "documents", "/a b/100%/한글", query={"collection": "c"}
        )

    assert asked == "/documents/%2Fa%20b%2F100%25%2F%ED%95%9C%EA%B8%80?collection=c"


async def test_answer_that_is_not_ours_is_shown() -> None:
    async def answer(_: web.BaseRequest) -> web.Response:
        return web.Response(status=502, text="<h1>Bad gateway</h1>")

    async with connection_to(answer) as connection:
        with pytest.raises(Refused, match="Bad gateway") as refused:
            await connection.ask("GET", "jobs")
    assert refused.value.code == "502"


async def test_controller_that_goes_in_the_middle_is_told() -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with connection_to(answer) as connection:
        with pytest.raises(NoController, match="broke off"):
            await connection.ask("POST", "documents")
