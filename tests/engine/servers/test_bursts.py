"""Many clients at once after a quiet spell: nobody waits for want of a thread, on either engine.

llama-server keeps a thread at each connection, and adds one only where none is counted as idle; N
connections at once on K threads left N - K of them waiting until idle ones were closed: by us after
four seconds, by the server after five. A loaded machine is quicker than that.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from supervisor.config.configuration import ResolvedModel
from supervisor.core.machine.values import Stop
from supervisor.engine.kinds.engines import Engines
from supervisor.engine.port import Launch, ServerStart
from supervisor.engine.servers.addresses import choose_address
from supervisor.engine.servers.backend import Backend
from supervisor.engine.servers.framing import Request
from tests.conftest import StartController

Eventually = Callable[..., Awaitable[None]]
MakeLaunch = Callable[..., Launch]
Resolve = Callable[..., ResolvedModel]
StartServer = Callable[..., Awaitable[Backend]]

BURSTS = (13, 40, 119)
TOO_LATE_S = 3.9


@pytest.fixture
async def start_server(
    engines: Engines, resolve: Resolve, run_dir: Path
) -> AsyncIterator[StartServer]:
    """Starts the embedding model as a profile of the fields given says, and returns it ready."""
    backends: list[Backend] = []

    async def start(**fields: Any) -> Backend:
        engine = engines.choose("auto")
        model = resolve("minilm", **fields)
        address = choose_address(run_dir, len(backends) + 1, has_unix_socket=True)
        start = ServerStart(model=model, address=address, api_key="the-key")
        launch = Launch(
            argv=engine.argv(start),
            env=engine.environment(start, {}),
            address=address,
            api_key="the-key",
            model="minilm",
            epoch=len(backends) + 1,
            abilities=engine.abilities(model),
        )
        backend = Backend(launch, lambda _line, _is_ready: None)
        backends.append(backend)
        async with asyncio.timeout(30):
            await backend.become_ready()
        return backend

    yield start
    for backend in backends:
        await backend.give_up_memory(Stop(grace_s=5))


async def tokenize(backend: Backend) -> float:
    """Ask once; returns how long the answer took, in seconds."""
    started_at = time.monotonic()
    request = Request(
        method="POST",
        path="/tokenize",
        headers=((b"Content-Type", b"application/json"),),
        body=b'{"content": "hello"}',
    )
    async with backend.exchange(request) as answer:
        assert answer.status == 200
        assert json.loads(await answer.read())["tokens"]
    return time.monotonic() - started_at


async def latest(backend: Backend, count: int) -> float:
    return max(await asyncio.gather(*(tokenize(backend) for _ in range(count))))


async def be_quiet(backend: Backend, eventually: Eventually) -> None:
    """Wait until every connection was idle for so long that it is closed."""
    await eventually(lambda: backend.open_connections == 0, within_s=10)


@pytest.mark.parametrize("count", BURSTS)
async def test_a_burst_on_a_fresh_server_and_after_a_quiet_spell_waits_for_no_thread(
    start_server: StartServer, eventually: Eventually, count: int
) -> None:
    backend = await start_server()
    assert await latest(backend, count) < TOO_LATE_S
    await be_quiet(backend, eventually)
    assert await latest(backend, count) < TOO_LATE_S


@pytest.mark.parametrize("count", BURSTS)
async def test_a_server_with_few_threads_gets_no_more_connections_than_it_can_serve(
    start_server: StartServer, eventually: Eventually, count: int
) -> None:
    backend = await start_server(threads_http=12)
    assert backend.launch.abilities.requests_at_once == 4
    seen = 0

    async def watch() -> None:
        nonlocal seen
        while True:
            seen = max(seen, backend.open_connections)
            await asyncio.sleep(0.001)

    watching = asyncio.create_task(watch())
    assert await latest(backend, count) < TOO_LATE_S
    await be_quiet(backend, eventually)
    assert await latest(backend, count) < TOO_LATE_S
    watching.cancel()
    assert 1 <= seen <= 4


@pytest.mark.parametrize("count", BURSTS)
async def test_a_burst_that_a_switch_held_waits_for_no_thread_when_it_is_let_go(
    start_controller: StartController, engine: str, count: int
) -> None:
    controller = await start_controller(engine=engine, default_model="demo-chat")
    await controller.switch_to("demo-chat")
    url = f"{controller.url}/upstream/minilm/tokenize"  # computes nothing: a thread is all it takes

    async def ask(client: aiohttp.ClientSession) -> float:
        async with client.post(url, json={"content": "hello"}) as answer:
            assert answer.status == 200, await answer.text()
            await answer.read()
        return time.monotonic()

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        switching = asyncio.create_task(controller.switch_to("minilm"))
        while controller.parts.arbiter.snapshot.switch is None:  # noqa: ASYNC110 - its own event
            await asyncio.sleep(0.001)
        asking = [asyncio.create_task(ask(client)) for _ in range(count)]
        await switching
        ready_at = time.monotonic()
        answered_at = await asyncio.gather(*asking)
    assert max(answered_at) - ready_at < TOO_LATE_S
