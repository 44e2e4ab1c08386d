"""When a server counts as hanging: only for what waits for it, never for who reads slowly."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from supervisor.engine.servers.channel import Activity
from supervisor.engine.servers.stall import watch_for_stalls

Eventually = Callable[..., Awaitable[None]]

TIMEOUT_S = 0.05


class Server:
    """What is watched of a server, and what was told of it."""

    def __init__(self) -> None:
        self.activity = Activity()
        self.slots: bytes | None = b"slot 0: 7 tokens"
        self.looks = 0
        self.told: list[str] = []

    async def ask_slots(self, patience_s: float) -> bytes | None:
        assert patience_s > 0
        return self.slots

    def clock(self) -> float:
        self.looks += 1
        return time.monotonic()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A server with one request that hangs, and its watch."""
    server = Server()
    server.activity.begin()
    watching = asyncio.create_task(
        watch_for_stalls(
            server,
            TIMEOUT_S,
            on_stalled=lambda _: server.told.append("stalled"),
            on_moved=lambda: server.told.append("moved"),
            clock=server.clock,
        )
    )
    yield server
    watching.cancel()


async def test_a_request_in_which_nothing_moves_is_told_once_and_its_end_too(
    server: Server, eventually: Eventually
) -> None:
    await eventually(lambda: server.told)
    seen = server.looks
    await eventually(lambda: server.looks > seen + 10)
    assert server.told == ["stalled"]
    server.activity.end()
    await eventually(lambda: server.told == ["stalled", "moved"])


async def test_a_client_that_reads_slowly_is_not_a_server_that_hangs(
    server: Server, eventually: Eventually
) -> None:
    server.activity.held += 1
    seen = server.looks
    await eventually(lambda: server.looks > seen + 30)
    assert server.told == []
    server.activity.held -= 1
    await eventually(lambda: server.told == ["stalled"])


async def test_a_server_without_a_request_never_hangs(
    server: Server, eventually: Eventually
) -> None:
    server.activity.end()
    seen = server.looks
    await eventually(lambda: server.looks > seen + 30)
    assert server.told == []


async def test_a_slot_that_moves_is_a_sign_of_life(server: Server, eventually: Eventually) -> None:
    async def compute() -> None:
        while True:
            server.slots = b"slot 0: %d tokens" % server.looks
            await asyncio.sleep(TIMEOUT_S / 20)

    computing = asyncio.create_task(compute())
    seen = server.looks
    await eventually(lambda: server.looks > seen + 30)
    assert server.told == []
    computing.cancel()
    await eventually(lambda: server.told == ["stalled"])
