"""What each real engine says that its server can do is what its server does."""

import asyncio
import json
import math
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from supervisor.config.configuration import Configuration
from supervisor.config.holder import ConfigurationHolder
from supervisor.config.load import load
from supervisor.core.machine.values import Mode, Stop, Target
from supervisor.embedding import vectors
from supervisor.engine.kinds.engines import Engines
from supervisor.engine.launcher import Launcher
from supervisor.engine.servers.backend import Backend
from tests.conftest import write_configuration
from tests.engine.child_client import open_session

CHAT = Target(model="demo-chat", mode=Mode.GENERATION, profile="any", device="host")
ANY = {"mode": "generation", "ctx_size": 512, "memory": {"need_bytes": 1}}


@pytest.fixture
def anything(profiles_dir: Path, models_dir: Path, tmp_path: Path) -> Configuration:
    """The shipped models, and a profile that every engine can honour."""
    write_configuration(tmp_path, profiles_dir, None, {"any.yaml": ANY})
    return load(tmp_path, models_dir, {})


@pytest.fixture(params=["llama-server", "embedded", "llama-cpp-python"])
async def backend(
    request: pytest.FixtureRequest, anything: Configuration, llama_server_bin: Path, run_dir: Path
) -> AsyncIterator[Backend]:
    """Each engine's server with demo-chat, ready."""
    launcher = Launcher(
        configuration=ConfigurationHolder(anything),
        engines=Engines(os.environ, llama_server_bin, request.param),
        run_dir=run_dir,
        device_env=lambda _: {},
    )
    assert launcher.check(CHAT).footprint.total_bytes == 1
    started = launcher.launch(CHAT, 1)
    try:
        await started.become_ready()
        yield started
    finally:
        await started.give_up_memory(Stop(grace_s=5))


async def ask(
    backend: Backend, method: str, path: str, body: Any = None, *, key: str | None = None
) -> tuple[int, str]:
    """Ask the server, with its key unless another one is given. Returns status and body."""
    headers = {"Authorization": f"Bearer {key or backend.launch.api_key}"}
    async with (
        open_session(backend.launch.address) as session,
        session.request(method, path, json=body, headers=headers) as answer,
    ):
        return answer.status, await answer.text()


async def test_a_server_does_what_its_abilities_say(backend: Backend) -> None:
    abilities = backend.launch.abilities
    assert (await ask(backend, "GET", abilities.readiness_path))[0] == abilities.readiness_status
    assert abilities.has_unix_socket == (backend.launch.address.socket_path is not None)

    status, told = await ask(backend, "GET", abilities.slots_path or "/slots")
    assert (status == 200 and "is_processing" in told) == (abilities.slots_path is not None)
    status, told = await ask(backend, "GET", abilities.metrics_path or "/metrics")
    assert (status == 200 and "llamacpp:" in told) == (abilities.metrics_path is not None)

    assert abilities.tokenize is not None
    text = {abilities.tokenize.text_field: "Hello there"}
    status, told = await ask(backend, "POST", abilities.tokenize.path, text)
    assert status == 200
    assert '"tokens":[' in told.replace(" ", "")

    path = "/v1/chat/completions"
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
    status, told = await ask(backend, "POST", path, body | {"stream": True})
    assert status == 200
    assert told.rstrip().endswith("data: [DONE]")

    assert abilities.api_key_variable is not None
    assert backend.launch.env[abilities.api_key_variable] == backend.launch.api_key
    assert (await ask(backend, "POST", path, body, key="other"))[0] == 401


TEXT = "a brown fox"
IDS = [101, 1037, 2829, 4419, 102]
"""The same, as minilm's tokens."""


@pytest.fixture(params=["llama-server", "embedded", "llama-cpp-python", "command"])
def embedding_profile(request: pytest.FixtureRequest, llama_server_bin: Path) -> dict[str, Any]:
    """A profile for each engine; the command starts a llama-server, too."""
    profile = {"mode": "embedding", "engine": request.param, "memory": {"need_bytes": 1}}
    if request.param != "command":
        return {**profile, "ctx_size": 512, "batch_size": 512}
    words = [str(llama_server_bin), "--model", "{model}", "--host", "{socket}", "--embeddings"]
    knows = {"takes_token_ids": True, "embeds_base64": True}
    return {**profile, "command": {"argv": words, "env": {"LLAMA_API_KEY": "{api_key}"}, **knows}}


@pytest.fixture
async def embedder(
    embedding_profile: dict[str, Any],
    tmp_path: Path,
    models_dir: Path,
    llama_server_bin: Path,
    run_dir: Path,
) -> AsyncIterator[Backend]:
    """Each engine's server with minilm, ready."""
    minilm = {"path": "minilm.gguf", "type": "embedding", "profile": "any"}
    (tmp_path / "any.yaml").write_text(yaml.safe_dump(embedding_profile))
    (tmp_path / "models.yaml").write_text(yaml.safe_dump({"models": {"minilm": minilm}}))
    launcher = Launcher(
        configuration=ConfigurationHolder(load(tmp_path, models_dir, {})),
        engines=Engines(os.environ, llama_server_bin),
        run_dir=run_dir,
        device_env=lambda _: {},
    )
    target = Target(model="minilm", mode=Mode.EMBEDDING, profile="any", device="host")
    launcher.check(target)
    started = launcher.launch(target, 1)
    try:
        await started.become_ready()
        yield started
    finally:
        await started.give_up_memory(Stop(grace_s=5))


async def embed(backend: Backend, **body: Any) -> tuple[int, Any]:
    """Ask for vectors. Returns the status, and the first vector as it came."""
    status, told = await ask(backend, "POST", "/v1/embeddings", {"model": "minilm", **body})
    answer = json.loads(told)
    return status, answer["data"][0]["embedding"] if status == 200 else answer


async def test_a_server_embeds_what_its_abilities_say(embedder: Backend) -> None:
    abilities = embedder.launch.abilities
    status, plain = await embed(embedder, input=[TEXT])
    assert status == 200
    of_text = vectors.pack(plain)

    status, of_ids = await embed(embedder, input=[IDS])
    assert (status == 200) == abilities.takes_token_ids
    if abilities.takes_token_ids:
        assert vectors.cosine(vectors.pack(of_ids), of_text) > 0.999999

    status, written = await embed(embedder, input=[TEXT], encoding_format="base64")
    assert status == 200
    assert isinstance(written, str) == abilities.embeds_base64
    if abilities.embeds_base64:
        assert vectors.cosine(vectors.from_base64(written), of_text) > 0.999999

    status, raw = await embed(embedder, input=[TEXT], embd_normalize=-1)
    assert status == 200
    if abilities.takes_embd_normalize:
        assert math.hypot(*plain) == pytest.approx(1, abs=1e-5)
        assert math.hypot(*raw) > 2


async def test_a_server_tokenises_lists_as_its_abilities_say(embedder: Backend) -> None:
    route = embedder.launch.abilities.tokenize
    if route is None:
        return
    both = [-1, TEXT, -1, f" {TEXT}", 7]
    status, told = await ask(embedder, "POST", route.path, {route.text_field: both})
    bare = IDS[1:-1]
    if route.joins_lists:
        assert json.loads(told)["tokens"] == [-1, *bare, -1, *bare, 7]
    else:
        assert status >= 400


BURST_S = 4.0
"""llama-server closes kept connections after 5 s: what waited for a thread is answered then."""


@pytest.mark.parametrize("engine", ["llama-server", "embedded"])
@pytest.mark.parametrize("count", [13, 40, 119])
async def test_as_many_fresh_connections_as_are_used_at_once_find_a_thread_each(
    anything: Configuration, llama_server_bin: Path, run_dir: Path, engine: str, count: int
) -> None:
    launcher = Launcher(
        configuration=ConfigurationHolder(anything),
        engines=Engines(os.environ, llama_server_bin, engine),
        run_dir=run_dir,
        device_env=lambda _: {},
    )
    launcher.check(CHAT)
    started = launcher.launch(CHAT, 1)
    try:
        await started.become_ready()
        assert count <= started.launch.abilities.requests_at_once
        async with AsyncExitStack() as held, asyncio.timeout(BURST_S):
            await asyncio.gather(*(hold_connection(started, held) for _ in range(count)))
    finally:
        await started.give_up_memory(Stop(grace_s=5))


async def hold_connection(backend: Backend, held: AsyncExitStack) -> None:
    """Ask on a connection of its own, which stays open: its thread serves nobody else."""
    path = backend.launch.address.socket_path
    assert path is not None
    reader, writer = await asyncio.open_unix_connection(path)
    held.callback(writer.close)
    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n")
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
