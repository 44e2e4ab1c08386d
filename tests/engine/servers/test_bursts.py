"""Many clients at once: each finds a thread that reads its request, on either engine.

llama-server keeps a thread at each connection, and adds one only where none is counted as idle; N
connections at once on K threads left N - K of them unread until others were closed. Requests that
do not end show it: those that no thread has read are never counted.
"""

import asyncio
import contextlib
import json
import re
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
from tests.gateway.conftest import ENDLESS, backend_of, until
from tests.patience import PATIENCE_S

Resolve = Callable[..., ResolvedModel]
StartServer = Callable[..., Awaitable[Backend]]

BURSTS = (13, 119)
STREAM = {**ENDLESS, "stream": True}
JSON = ((b"Content-Type", b"application/json"),)


@pytest.fixture
async def start_server(
    engines: Engines, resolve: Resolve, run_dir: Path
) -> AsyncIterator[StartServer]:
    """Starts a chat model as a profile of the fields given says, and returns it ready."""
    backends: list[Backend] = []

    async def start(**fields: Any) -> Backend:
        engine = engines.choose("auto")
        model = resolve("bench-chat", **fields)
        address = choose_address(run_dir, len(backends) + 1, has_unix_socket=True)
        start = ServerStart(model=model, address=address, api_key="the-key")
        launch = Launch(
            argv=engine.argv(start),
            env=engine.environment(start, {}),
            address=address,
            api_key="the-key",
            model="bench-chat",
            profile="generation",
            epoch=len(backends) + 1,
            abilities=engine.abilities(model),
        )
        backend = Backend(launch, lambda _line, _is_ready: None)
        backends.append(backend)
        async with asyncio.timeout(PATIENCE_S):
            await backend.become_ready()
        return backend

    yield start
    for backend in backends:
        await backend.give_up_memory(Stop(grace_s=5))


async def ask(backend: Backend, path: str, body: Any) -> None:
    request = Request(method="POST", path=path, headers=JSON, body=json.dumps(body).encode())
    async with backend.exchange(request) as answer:
        assert answer.status == 200
        await answer.read()


async def count_read(backend: Backend) -> int:
    """Ask how many requests the server has read and not answered; that takes a thread, too."""
    _, told = await backend._channel.ask("GET", "/metrics", b"")
    counted = re.findall(
        r"^llamacpp:requests_(?:processing|deferred) (\d+)", told.decode(), re.MULTILINE
    )
    return sum(map(int, counted))


@pytest.mark.parametrize("count", BURSTS)
async def test_a_burst_is_read_by_a_fresh_server_and_by_one_that_has_had_one(
    start_server: StartServer, count: int
) -> None:
    backend = await start_server(ctx_size=16_384)  # or some end before a busy machine has read all
    for _ in range(2):
        asking = asyncio.gather(*(ask(backend, "/completion", STREAM) for _ in range(count)))
        await until(lambda: has_read(backend, count))
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        await until(lambda: has_read(backend, 0))


@pytest.mark.parametrize("count", BURSTS)
async def test_a_server_with_few_threads_gets_no_more_connections_than_it_can_serve(
    start_server: StartServer, count: int
) -> None:
    backend = await start_server(threads_http=12)
    assert backend.launch.abilities.requests_at_once == 4
    seen = 0

    async def tokenize() -> None:
        nonlocal seen
        await ask(backend, "/tokenize", {"content": "hello"})
        seen = max(seen, backend.open_connections)

    await asyncio.gather(*(tokenize() for _ in range(count)))

    assert 1 <= seen <= 4


@pytest.mark.parametrize("count", BURSTS)
async def test_a_burst_that_a_switch_held_is_read_when_it_is_let_go(
    start_controller: StartController, engine: str, count: int
) -> None:
    controller = await start_controller(engine=engine, default_model="minilm")
    await controller.switch_to("minilm")

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        switching = asyncio.create_task(controller.switch_to("bench-chat"))
        while controller.parts.arbiter.snapshot.switch is None:  # noqa: ASYNC110 - its own event
            await asyncio.sleep(0.001)
        asking = asyncio.gather(*(listen(client, controller.url) for _ in range(count)))
        await switching
        await until(lambda: has_read(backend_of(controller), count))
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking


async def listen(client: aiohttp.ClientSession, url: str) -> None:
    async with client.post(f"{url}/completion", json=STREAM) as answer:
        await answer.read()


async def has_read(backend: Backend, count: int) -> bool:
    return await count_read(backend) == count
