"""More requests at once than a server takes: they wait for a permit, and none is lost."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp

from tests.conftest import RunningController, StartController
from tests.gateway.conftest import (
    backend_of,
    both_doors,
    requests_now,
    shipped,
    start_faulty,
    until,
)

pytestmark = both_doors


AT_ONCE = 120
"""What llama-server is sent at a time; the stub's queue of connections holds fewer, 100."""

REQUESTS = 300


async def test_requests_beyond_what_the_server_takes_wait_for_a_permit(
    faulty: RunningController,
) -> None:
    """The server takes no connection until all have come: its queue is full, which refuses some."""
    with suspended(faulty):
        async with crowd(faulty) as statuses:
            os.kill(backend_of(faulty).process.pid, signal.SIGCONT)
            assert await statuses == [200] * REQUESTS

    most = (await faulty.json("GET", "/counts"))["most_connections"]
    assert 100 < most <= AT_ONCE


async def test_requests_that_wait_for_a_permit_are_told_when_their_server_stops(
    start_controller: StartController, tmp_path: Path
) -> None:
    hasty = shipped("generation.yaml", drain_timeout_s=0.1, stop_grace_s=0.1)
    controller = await start_faulty(start_controller, tmp_path, files={"generation.yaml": hasty})
    with suspended(controller):
        async with crowd(controller) as statuses:
            await controller.json("POST", "/unload")
            assert await statuses == [502] * REQUESTS


async def test_clients_that_leave_while_they_wait_for_a_permit_give_it_up(
    faulty: RunningController,
) -> None:
    with suspended(faulty):
        async with crowd(faulty) as statuses:
            statuses.cancel()
            await until(lambda: is_in_flight(faulty, 0))
    assert (await faulty.json("GET", "/echo"))["target"] == "/echo"


@asynccontextmanager
async def crowd(controller: RunningController) -> AsyncIterator["asyncio.Future[list[int]]"]:
    """Send all requests, a connection each, and yield their statuses to come once all are sent."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

        async def ask() -> int:
            async with client.get(f"{controller.url}/echo") as answer:
                await answer.read()
                return answer.status

        statuses = asyncio.gather(*(ask() for _ in range(REQUESTS)))
        await until(lambda: is_in_flight(controller, REQUESTS))
        yield statuses


async def is_in_flight(controller: RunningController, count: int) -> bool:
    return (await requests_now(controller))["in_flight"] == count


@contextmanager
def suspended(controller: RunningController) -> Iterator[None]:
    """Suspend the live server; it goes on at the end, unless it has ended."""
    process = backend_of(controller).process
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if process.is_running:
            os.kill(process.pid, signal.SIGCONT)
