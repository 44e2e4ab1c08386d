"""Controllers to call, on the event loop of the product, and the ways of calling them."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
import yaml

from supervisor.engine.servers.backend import Backend
from supervisor.engine.servers.framing import Request
from tests.conftest import ROOT, RunningController, StartController
from tests.patience import PATIENCE_S

FAULTY_SERVER = Path(__file__).with_name("faulty_server.py")

both_doors = pytest.mark.parametrize("has_fast_lane", [True, False], ids=["fast lane", "aiohttp"])
"""Marks what must be so through either door."""

ENDLESS: Mapping[str, Any] = {
    "model": "bench-chat",
    "prompt": "on and on",
    "n_predict": 100_000,
    "ignore_eos": True,
}
"""A completion that goes on until its client leaves or its context is full, some seconds later."""


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the tests of this room on the loop that the command line runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def faulty(start_controller: StartController, tmp_path: Path) -> RunningController:
    """A controller whose live backend is `faulty_server.py`."""
    return await start_faulty(start_controller, tmp_path)


@pytest.fixture
def unloadable(tmp_path: Path, models_dir: Path) -> dict[str, Any]:
    """A catalogue with a model whose header reads well, and whose architecture nobody knows."""
    content = (models_dir / "demo-chat.gguf").read_bytes()
    name, value = b"general.architecture", b"\x08\0\0\0\x05\0\0\0\0\0\0\0llama"
    assert content.count(name + value) == 1
    path = tmp_path / "unloadable.gguf"
    renamed = content.replace(name + value, name + value.replace(b"llama", b"lemma"))
    path.write_bytes(renamed.replace(b"llama.", b"lemma."))
    models = shipped("models.yaml")["models"] | {"unloadable": {"path": str(path)}}
    return shipped("models.yaml", default_model=None, models=models)


async def start_faulty(
    start_controller: StartController,
    folder: Path,
    files: Mapping[str, Any] | None = None,
    **server_settings: Any,
) -> RunningController:
    """Start a controller with `faulty_server.py` live.

    `files` are further YAML files; further keyword arguments go under `server:`.
    """
    binary = folder / "llama-server"
    binary.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {FAULTY_SERVER} "$@"\n')
    binary.chmod(0o700)
    settings = {"server": server_settings, "engines": {"llama_server_bin": str(binary)}}
    controller = await start_controller(files={"supervisor.yaml": settings, **(files or {})})
    await controller.switch_to("demo-chat")
    return controller


def shipped(file_name: str, **changes: Any) -> dict[str, Any]:
    """Return a shipped YAML file's content with some of its fields changed."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "profiles" / file_name).read_text())
    return content | changes


def backend_of(controller: RunningController) -> Backend:
    """Return the one running backend, for the child to be asked or killed behind our back."""
    (backend,) = controller.parts.arbiter._performer.backends.values()
    return backend


async def ask_child(
    controller: RunningController, method: str, path: str, body: Any = None
) -> tuple[int, str | None, bytes]:
    """Ask the child directly. Returns status, content type and body."""
    headers = ((b"Content-Type", b"application/json"),) if body is not None else ()
    content = b"" if body is None else json.dumps(body).encode()
    request = Request(method=method, path=path, headers=headers, body=content)
    async with backend_of(controller).exchange(request) as answer:
        content_type = answer.value(b"content-type")
        return answer.status, content_type.decode() if content_type else None, await answer.read()


async def ask(
    controller: RunningController, method: str, path: str, body: Any = None
) -> tuple[int, str | None, bytes]:
    """Ask the controller. Returns status, content type and body."""
    async with controller.client.request(method, controller.url + path, json=body) as answer:
        return answer.status, answer.headers.get("Content-Type"), await answer.read()


async def ask_json(
    controller: RunningController, method: str, path: str, body: Any = None
) -> tuple[int, Any]:
    """Ask the controller. Returns status and JSON."""
    async with controller.client.request(method, controller.url + path, json=body) as answer:
        return answer.status, await answer.json()


async def busy_slots(controller: RunningController) -> int:
    """Return how many slots of the child are at work."""
    _, _, content = await ask_child(controller, "GET", "/slots")
    return sum(slot["is_processing"] for slot in json.loads(content))


async def requests_now(controller: RunningController) -> dict[str, int]:
    """Return the counts of requests in flight and waiting."""
    counts: dict[str, int] = (await controller.json("GET", "/status"))["requests"]
    return counts


async def until(condition: Callable[[], Awaitable[bool]], within_s: float = PATIENCE_S) -> float:
    """Ask again and again until the condition holds. Returns how long it took, in seconds.

    The bound ends a test that fails, also where the question itself gets no answer.
    """
    started_at = time.monotonic()
    async with asyncio.timeout(within_s):
        while not await condition():  # noqa: ASYNC110 - the condition is elsewhere
            await asyncio.sleep(0.002)
    return time.monotonic() - started_at


async def is_draining(controller: RunningController) -> bool:
    """Whether a switch waits for requests in flight."""
    switch = (await controller.json("GET", "/status"))["switch"]
    return switch is not None and switch["phase"] == "draining"


@asynccontextmanager
async def endless_stream(controller: RunningController) -> AsyncIterator[Any]:
    """Open a stream that does not end by itself soon, and yield it after its first bytes."""
    async with controller.client.post(
        f"{controller.url}/completion", json={**ENDLESS, "stream": True}
    ) as answer:
        assert answer.status == 200, await answer.text()
        await answer.content.readany()
        yield answer


@asynccontextmanager
async def raw_request(
    controller: RunningController, request: bytes
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Write bytes to the controller and yield the connection, for what a client library hides."""
    host, port = controller.url.removeprefix("http://").split(":")
    async with asyncio.timeout(PATIENCE_S):  # a connection that stays open has no end to be read
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(request)
            await writer.drain()
            yield reader, writer
        finally:
            writer.close()


def unchunk(body: bytes) -> tuple[bytes, bool]:
    """Take a chunked body apart. Returns its content, and whether the last chunk was there."""
    content = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            return content, True
        content, body = content + rest[:length], rest[length + 2 :]
    return content, False
