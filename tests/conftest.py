"""Fixtures that every room's tests may use: the real engines, the real models, the shipped YAML."""

import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import hypothesis
import pytest
import yaml
from aiohttp import web

from supervisor.app import Controller, build
from supervisor.calendar.wall_clock import WallClock
from supervisor.config.configuration import Configuration
from supervisor.config.load import load
from supervisor.engine.kinds.cached_build import cached_llama_server
from supervisor.wiring.ground import Options
from tests.models.long_reader import write_long_reader
from tests.models.reranker import write_reranker

ROOT = Path(__file__).parent.parent

# A machine that does other things at the same time is no reason to fail.
hypothesis.settings.register_profile(
    "any-machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any-machine")


@pytest.fixture(scope="session")
def llama_server_bin() -> Path:
    """The native llama-server: LLAMA_SERVER_BIN, else the build that scripts/test makes."""
    named = os.environ.get("LLAMA_SERVER_BIN")
    binary = Path(named) if named else cached_llama_server()
    assert binary is not None, "no llama-server: run scripts/build_llama_server.py"
    return binary


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """The demo models, made by scripts/test before the tests run."""
    folder = ROOT / "models"
    assert (folder / "minilm.gguf").exists(), "no models: run scripts/make_demo_models.py"
    return folder


@pytest.fixture(scope="session")
def reranker(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with pooling by rank, whose scores rise with the words that two texts share."""
    path = tmp_path_factory.mktemp("models") / "reranker.gguf"
    write_reranker(path, vocabulary_of=models_dir / "minilm.gguf")
    return path


@pytest.fixture(scope="session")
def long_reader(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedding model that takes inputs of 32,768 tokens where its context is 33,024."""
    path = tmp_path_factory.mktemp("models") / "long-reader.gguf"
    write_long_reader(path, vocabulary_of=models_dir / "bench-chat.gguf")
    return path


@pytest.fixture(scope="session")
def profiles_dir() -> Path:
    """The shipped configuration folder."""
    return ROOT / "profiles"


@pytest.fixture(params=["llama-server", "embedded"])
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine in turn; both are real."""
    name: str = request.param
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningController:
    """A controller in this process, on a port of its own, and a client to call it with."""

    url: str
    client: aiohttp.ClientSession
    parts: Controller
    stop: Callable[[], Awaitable[None]]
    server: web.Server
    """aiohttp's: it counts the requests that come through its own door."""

    async def json(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """Call a route and return its JSON, whatever the status."""
        async with self.client.request(method, self.url + path, json=body, **options) as answer:
            return await answer.json()

    async def switch_to(self, model: str) -> dict[str, Any]:
        """Switch, and insist that it succeeds."""
        report = await self.json("POST", "/switch-backend", {"model_name": model})
        assert report.get("outcome") in {"switched", "unchanged"}, report
        return dict(report)


def write_configuration(
    folder: Path, shipped: Path, default_model: str | None, files: Mapping[str, Any]
) -> None:
    """Write the shipped YAML files to a folder, some of them replaced by the values given.

    Servers compute on one thread: several of them share a few cores, and threads of llama.cpp that
    wait for each other keep a core busy.
    """
    written = {path.name: yaml.safe_load(path.read_text()) for path in shipped.glob("*.yaml")}
    written["models.yaml"]["default_model"] = default_model
    for name, content in (written | dict(files)).items():
        takes_threads = "mode" in content and not content.keys() & {"extends", "command"}
        one_thread = {"threads": 1} if takes_threads else {}
        (folder / name).write_text(yaml.safe_dump(one_thread | dict(content)))


def through_door(
    configuration: Configuration, has_fast_lane: bool, *, auto_switch: bool
) -> Configuration:
    """Return the configuration with that door, unless it closes the fast lane itself."""
    server = configuration.settings.server
    server = server.model_copy(update={"fast_lane": server.fast_lane and has_fast_lane})
    scheduler = configuration.settings.scheduler.model_copy(update={"auto_switch": auto_switch})
    settings = configuration.settings.model_copy(update={"server": server, "scheduler": scheduler})
    return replace(configuration, settings=settings)


StartController = Callable[..., Awaitable[RunningController]]


@pytest.fixture
def has_fast_lane() -> bool:
    """Whether plain requests cross the fast lane; modules that hold both doors say both."""
    return True


@pytest.fixture
async def start_controller(
    tmp_path: Path,
    profiles_dir: Path,
    models_dir: Path,
    llama_server_bin: Path,
    has_fast_lane: bool,
) -> AsyncIterator[StartController]:
    """Starts controllers on the shipped profiles; keyword arguments change what is shipped.

    `engine`: what auto means. `default_model`: loaded at start (none by default). `files`: further
    or replaced YAML files of the folder, by name, as values. `data_dir`: one that outlives it.
    `auto_switch`: requests may switch (by default the tests do so by hand). `wall_clock`: what the
    schedule goes by.
    Host memory is exclusive, as shipped.
    """
    async with AsyncExitStack() as stack:

        async def start(
            *,
            engine: str = "llama-server",
            default_model: str | None = None,
            files: Mapping[str, Any] | None = None,
            data_dir: Path | None = None,
            auto_switch: bool = False,
            wall_clock: WallClock | None = None,
        ) -> RunningController:
            own = await stack.enter_async_context(AsyncExitStack())
            folder = Path(tempfile.mkdtemp(dir=tmp_path))
            write_configuration(folder, profiles_dir, default_model, files or {})
            configuration = load(folder, models_dir, {})
            configuration = through_door(configuration, has_fast_lane, auto_switch=auto_switch)
            options = Options(data_dir=data_dir or folder / "data", engine=engine)
            parts = await own.enter_async_context(build(configuration, options, wall_clock))
            runner = parts.door.runner()
            await runner.setup()
            server = runner.server
            assert server is not None
            own.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            client = await own.enter_async_context(aiohttp.ClientSession())
            port = runner.addresses[0][1]
            return RunningController(
                url=f"http://127.0.0.1:{port}",
                client=client,
                parts=parts,
                stop=own.aclose,
                server=server,
            )

        yield start
