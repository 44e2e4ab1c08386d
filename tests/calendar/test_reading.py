"""What is read of the schedule where nobody tells whether there is work left."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from supervisor.calendar.reading import ScheduleReader
from supervisor.calendar.wall_clock import WallClock
from supervisor.config.holder import ConfigurationHolder
from supervisor.config.load import load
from supervisor.core.machine.events import ScheduleRead
from supervisor.core.machine.values import Mode
from supervisor.engine.targets import Targets
from supervisor.errors import RequestRefused
from supervisor.observability.impairments import Impairments
from supervisor.wiring import job_room
from supervisor.wiring.jobs import LazyJobs
from tests.conftest import write_configuration
from tests.host_alone import HostAlone
from tests.patience import PATIENCE_S

ALWAYS = {"cron": "* * * * *", "mode": "embedding", "until_done": True}


class Work:
    """Tells what is left, where it tells anything."""

    left: frozenset[Mode] | None = None

    async def modes_left(self) -> frozenset[Mode]:
        if self.left is None:
            raise RequestRefused("queue_unreachable", "the queue does not answer")
        return self.left

    async def optimize_vectors(self) -> None:
        """Nothing is stored."""


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def reader(tmp_path: Path, profiles_dir: Path, work: Work) -> ScheduleReader:
    schedule = {"time_zone": "UTC", "baseline": {"mode": "generation"}, "entries": [ALWAYS]}
    files: dict[str, Any] = {"supervisor.yaml": {"schedule": schedule}}
    write_configuration(tmp_path, profiles_dir, None, files)
    holder = ConfigurationHolder(load(tmp_path, Path("/models"), {}))
    return ScheduleReader(
        configuration=holder,
        targets=Targets(holder, HostAlone()),
        work=lambda: work,
        clock=WallClock(),
        impairments=Impairments(),
    )


async def test_no_period_is_given_up_for_want_of_an_answer(
    reader: ScheduleReader, work: Work
) -> None:
    def holds(read: ScheduleRead) -> tuple[Mode | None, bool]:
        return read.periods[0].mode, read.ended is not None

    assert holds(await reader.read(None)) == (Mode.EMBEDDING, False)
    work.left = frozenset({Mode.EMBEDDING})
    await reader.read(None)
    work.left = None
    assert holds(await reader.read(None)) == (Mode.EMBEDDING, False)
    work.left = frozenset()
    assert holds(await reader.read(None)) == (Mode.GENERATION, True)


async def test_jobs_that_are_closed_are_not_taken_for_done() -> None:
    nothing: Any = None
    jobs = LazyJobs(nothing, nothing, nothing, nothing)
    assert await jobs.modes_left() == frozenset()
    await jobs.close()
    with pytest.raises(RequestRefused) as refused:
        await jobs.modes_left()
    assert refused.value.code == "shutting_down"


async def test_jobs_are_closed_though_their_queue_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Silent:
        service: "Silent"
        was_asked = asyncio.Event()

        async def modes_left(self) -> frozenset[Mode]:
            self.was_asked.set()
            await asyncio.Event().wait()
            return frozenset()

        async def close(self) -> None:
            """Nothing is open."""

    async def opened(*_: Any) -> Silent:
        return room

    room = Silent()
    room.service = room
    monkeypatch.setattr(job_room, "open_job_room", opened)
    nothing: Any = None
    jobs = LazyJobs(nothing, nothing, nothing, nothing)
    await jobs.open()
    asking = asyncio.create_task(jobs.modes_left())
    await room.was_asked.wait()
    async with asyncio.timeout(PATIENCE_S):
        await jobs.close()
    asking.cancel()
