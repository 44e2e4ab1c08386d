"""A controller without a door, and a batcher over it whose model's server does as it is told."""

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import uvloop
import yaml

from supervisor.app import Controller, build
from supervisor.config.load import load
from supervisor.core.scheduling.values import Priority
from supervisor.embedding.batching.batcher import Batcher
from supervisor.embedding.batching.workers import Workers
from supervisor.embedding.values import ComputedPieces, Piece
from supervisor.engine.servers.backend import Backend
from supervisor.engine.servers.framing import Request
from supervisor.wiring.ground import Options
from tests.conftest import ROOT, write_configuration
from tests.patience import PATIENCE_S

OBEDIENT_SERVER = Path(__file__).with_name("obedient_server.py")

OBEDIENT = {
    "mode": "embedding",
    "engine": "command",
    "command": {
        "argv": [sys.executable, "-I", "-S", str(OBEDIENT_SERVER), "{socket}"],
        "embeds_base64": True,
    },
    "memory": {"need_bytes": 1},
}
"""A profile for `obedient_server.py`."""


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the tests of this room on the loop that the command line runs on."""
    return {"uvloop": uvloop.new_event_loop}


@dataclass(frozen=True, slots=True)
class Bench:
    """What is under test, and what it stands on."""

    parts: Controller
    batcher: Batcher
    folder: Path
    models_dir: Path

    def workers(self, model: str) -> Workers:
        """The workers of a model that was asked for."""
        return self.batcher.workers[model]

    async def compute(
        self,
        *texts: str,
        model: str = "obedient",
        priority: Priority = Priority.INTERACTIVE,
        normalize: bool = False,
        tokens: int = 3,
        waits_since: float | None = None,
    ) -> ComputedPieces:
        """Have texts embedded, each of so many tokens."""
        pieces = [Piece(content=text, tokens=tokens) for text in texts]
        target = self.parts.targets.target(model)
        return await self.batcher.compute(
            target, pieces, normalize=normalize, priority=priority, waits_since=waits_since
        )

    def begin(self, *texts: str, **how: Any) -> "asyncio.Task[ComputedPieces]":
        """Begin to have texts embedded."""
        return asyncio.create_task(self.compute(*texts, **how))

    @property
    def backend(self) -> Backend:
        """The one running backend."""
        (backend,) = self.parts.arbiter._performer.backends.values()
        return backend

    async def ask(self, path: str) -> Any:
        """Ask the obedient server something that is not an embedding."""
        async with self.backend.exchange(Request(method="POST", path=path)) as answer:
            return json.loads(await answer.read())

    async def batches(self) -> list[list[str]]:
        """What the server was sent, in the order in which it came."""
        sent: list[list[str]] = (await self.ask("/told"))["batches"]
        return sent

    async def let_go(self) -> None:
        """Have held batches answered."""
        await self.ask("/let_go")

    async def hold(self, text: str = "held") -> "asyncio.Task[ComputedPieces]":
        """Occupy a worker. Returns once the server has the text."""
        before = len(await self.batches()) if self.is_live else 0
        held = self.begin(text)
        await until(lambda: self.is_live)
        await self.sent(before + 1)
        return held

    async def sent(self, count: int) -> None:
        """Wait until the server has been sent so many batches."""
        async with asyncio.timeout(PATIENCE_S):
            while len(await self.batches()) < count:  # noqa: ASYNC110 - the same
                await asyncio.sleep(0.002)

    async def queued(self, inputs: int, model: str = "obedient") -> None:
        """Wait until so many inputs wait for a worker."""

        def waiting() -> int:
            workers = self.batcher.workers.get(model)
            return workers.queue.amount().inputs if workers else 0

        await until(lambda: waiting() == inputs)

    @property
    def is_live(self) -> bool:
        """Whether a server is ready."""
        return bool(self.parts.arbiter.snapshot.ready_backends())

    def write(self, name: str, profile: Mapping[str, Any]) -> None:
        """Write a profile, and put all that is written in force."""
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(dict(profile)))
        self.parts.configuration.apply(load(self.folder, self.models_dir, {}))

    def configure(self, section: str, **changes: Any) -> None:
        """Put other settings of a section of supervisor.yaml in force."""
        configuration = self.parts.configuration.current
        settings = configuration.settings
        changed = getattr(settings, section).model_copy(update=changes)
        settings = settings.model_copy(update={section: changed})
        self.parts.configuration.apply(replace(configuration, settings=settings))


async def until(condition: Callable[[], bool], within_s: float = PATIENCE_S) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - the product signals nothing to tests
            await asyncio.sleep(0.002)


@asynccontextmanager
async def running(models_dir: Path, **batching: Any) -> AsyncIterator[Bench]:
    """Run a controller with the shipped models and `obedient`, which is not live yet."""
    models = yaml.safe_load((ROOT / "profiles" / "models.yaml").read_text())["models"]
    models["obedient"] = {"path": str(OBEDIENT_SERVER), "type": "embedding", "profile": "obedient"}
    models["minilm"]["overrides"] |= {"batching": batching}
    files = {
        "obedient.yaml": OBEDIENT | {"batching": batching},
        "models.yaml": {"models": models},
    }
    with tempfile.TemporaryDirectory(prefix="batching-") as name:
        folder = Path(name)
        write_configuration(folder, ROOT / "profiles", None, files)
        options = Options(data_dir=folder / "data")
        async with build(load(folder, models_dir, {}), options) as parts:
            batcher = Batcher(
                arbiter=parts.arbiter, configuration=parts.configuration, targets=parts.targets
            )
            yield Bench(parts, batcher, folder, models_dir)


@pytest.fixture
def batching() -> dict[str, Any]:
    """The section `batching` of the profile: one worker, so that what comes meanwhile waits."""
    return {"max_concurrent": 1, "max_batch_size": 4}


@pytest.fixture
async def bench(models_dir: Path, batching: dict[str, Any]) -> AsyncIterator[Bench]:
    """A batcher whose model is not live."""
    async with running(models_dir, **batching) as each:
        yield each


def errors_of(results: Sequence[object]) -> list[BaseException]:
    """Return those results that are errors."""
    return [each for each in results if isinstance(each, BaseException)]
