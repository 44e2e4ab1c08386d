"""Real processes to take care of: small stubs, and the real engines on the shipped profiles."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop
import yaml

from supervisor.config.configuration import Configuration, ResolvedModel
from supervisor.config.load import load
from supervisor.config.profile import Profile
from supervisor.core.machine.values import Mode
from supervisor.engine.kinds.engines import Engines
from supervisor.engine.port import Abilities, Address, Launch
from supervisor.engine.servers.process import ChildProcess
from tests.patience import PATIENCE_S

STUB_SERVER = Path(__file__).parent / "stub_server.py"

Eventually = Callable[..., Awaitable[None]]
MakeLaunch = Callable[..., Launch]
ResolvedWith = Callable[..., ResolvedModel]
Spawn = Callable[..., ChildProcess]


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the tests of this room on the loop that the command line runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def eventually() -> Eventually:
    """Waits until a condition holds; fails when it does not within `within_s` seconds."""

    async def wait(condition: Callable[[], object], *, within_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true"
            await asyncio.sleep(0.005)

    return wait


@pytest.fixture
def make_launch() -> MakeLaunch:
    """Builds what is needed to spawn a program; nobody listens at its address.

    Further keywords are abilities.
    """

    def make(
        *argv: str,
        env: Mapping[str, str] | None = None,
        address: Address | None = None,
        **abilities: Any,
    ) -> Launch:
        return Launch(
            argv=argv,
            env=os.environ if env is None else env,
            address=address or Address(port=1),
            api_key="the-key",
            model="stub",
            profile="stub",
            epoch=1,
            abilities=Abilities(**abilities),
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


StartStranger = Callable[[Address], Path]


@pytest.fixture
def start_stranger(
    stub_server: Callable[..., tuple[str, ...]], tmp_path: Path
) -> Iterator[StartStranger]:
    """Starts a process that answers 200 at an address of somebody else; returns its log."""
    log = tmp_path / "stranger.log"
    with ExitStack() as stack:

        def start(address: Address) -> Path:
            output = stack.enter_context(log.open("w"))
            argv = stub_server(str(address.socket_path or address.port), "200")
            process = stack.enter_context(subprocess.Popen(argv, stdout=output))
            stack.callback(process.kill)
            return log

        yield start


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
def resolve(profiles_dir: Path, models_dir: Path, tmp_path: Path) -> Resolve:
    """Resolves a shipped model, some fields of its profile overridden."""

    def change(model: str, **fields: Any) -> ResolvedModel:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        for path in profiles_dir.glob("*.yaml"):
            shutil.copy(path, folder)
        catalogue = yaml.safe_load((folder / "models.yaml").read_text())
        catalogue["models"][model].setdefault("overrides", {}).update(fields)
        (folder / "models.yaml").write_text(yaml.safe_dump(catalogue))
        return load(folder, models_dir, {}).resolve(model)

    return change


@pytest.fixture
def resolved_with() -> ResolvedWith:
    """A model that is not there, with a profile of the fields given and nothing else written."""

    def build(
        mode: Mode = Mode.GENERATION, *, path: Path = Path("/models/mine.gguf"), **fields: Any
    ) -> ResolvedModel:
        return ResolvedModel(
            name="mine",
            path=path,
            reference=path.name,
            mode=mode,
            profile_name="test",
            profile=Profile(mode=mode, **fields),
            aliases=("our", "own"),
        )

    return build
