"""Real processes to take care of: small stubs, and the real engines on the shipped profiles."""

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from supervisor.config.load import load
from supervisor.config.settings import Configuration, ModelEntry, ResolvedModel
from supervisor.engine.engines import Engines
from supervisor.engine.port import Address, Launch
from supervisor.engine.process import ChildProcess

STUB_SERVER = Path(__file__).parent / "stub_server.py"

Eventually = Callable[..., Awaitable[None]]
MakeLaunch = Callable[..., Launch]
Spawn = Callable[..., ChildProcess]


@pytest.fixture
def eventually() -> Eventually:
    """Waits until a condition holds; fails when it does not within `within_s` seconds."""

    async def wait(condition: Callable[[], object], *, within_s: float = 5.0) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true"
            await asyncio.sleep(0.005)

    return wait


@pytest.fixture
def make_launch() -> MakeLaunch:
    """Builds what is needed to spawn a program; nobody listens at its address."""

    def make(
        *argv: str, env: Mapping[str, str] | None = None, address: Address | None = None
    ) -> Launch:
        return Launch(
            argv=argv,
            env=os.environ if env is None else env,
            address=address or Address(port=1),
            api_key="the-key",
            model="stub",
            epoch=1,
        )

    return make


@pytest.fixture
async def spawn(make_launch: MakeLaunch) -> AsyncIterator[Spawn]:
    """Spawns programs, and sees to it that none is left behind. `sh=` runs a shell script."""
    children: list[ChildProcess] = []

    def start(
        *argv: str, sh: str = "", env: Mapping[str, str] | None = None, lines: Any = None
    ) -> ChildProcess:
        words = ("/bin/sh", "-c", sh) if sh else argv
        heard = [] if lines is None else lines
        child = ChildProcess.spawn(make_launch(*words, env=env), heard.append)
        children.append(child)
        return child

    yield start
    for child in children:
        await child.stop(0)


@pytest.fixture
def kill_later() -> Iterator[list[int]]:
    """Process ids that a test leaves behind on purpose; they are killed when it is over."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def is_alive() -> Callable[[int], bool]:
    """Tells whether a process is there and not a zombie."""

    def look(pid: int) -> bool:
        try:
            return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    return look


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A private folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="run-") as folder:
        yield Path(folder)


@pytest.fixture
def stub_server() -> Callable[..., tuple[str, ...]]:
    """The command line of a stub HTTP server; its file tells what the words mean."""

    def argv(*words: str) -> tuple[str, ...]:
        return (sys.executable, "-S", str(STUB_SERVER), *words)

    return argv


@pytest.fixture
def configuration(profiles_dir: Path, models_dir: Path) -> Configuration:
    """The shipped configuration, with the demo models."""
    return load(profiles_dir, models_dir, {})


@pytest.fixture
def engines(llama_server_bin: Path, engine: str) -> Engines:
    """Both real engines; `auto` means each in turn."""
    return Engines(os.environ, llama_server_bin, engine)


Resolve = Callable[..., ResolvedModel]


@pytest.fixture
def resolve(configuration: Configuration) -> Resolve:
    """Resolves a shipped model, some fields of its profile changed."""

    def change(model: str, **fields: Any) -> ResolvedModel:
        entry = configuration.catalogue.models[model]
        changed = ModelEntry.model_validate(
            entry.model_dump() | {"overrides": {**entry.overrides, **fields}}
        )
        catalogue = configuration.catalogue.model_copy(update={"models": {model: changed}})
        return Configuration(
            settings=configuration.settings,
            catalogue=catalogue,
            profiles=configuration.profiles,
            models_dir=configuration.models_dir,
        ).resolve(model)

    return change
