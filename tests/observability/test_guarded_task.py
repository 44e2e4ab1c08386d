"""A task that must not end starts again, says why, and ends when it is told to."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from supervisor.observability.guarded_task import start_guarded
from tests.patience import PATIENCE_S


class Work:
    """Fails, or returns, so many times before it runs for ever."""

    def __init__(self, times: int, *, fails: bool) -> None:
        self._left = times
        self._fails = fails
        self.runs = asyncio.Event()

    async def run(self) -> None:
        if self._left:
            self._left -= 1
            if self._fails:
                raise OSError("no space left")
            return
        self.runs.set()
        await asyncio.Event().wait()


@asynccontextmanager
async def guarded(work: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    task = start_guarded(work, "eternal", first_pause_s=0.001)
    assert task.get_name() == "eternal"
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


@pytest.mark.parametrize("fails", [True, False])
async def test_task_that_ends_starts_again_and_each_end_is_logged(*, fails: bool) -> None:
    work = Work(3, fails=fails)
    with capture_logs() as lines:
        async with guarded(work.run), asyncio.timeout(PATIENCE_S):
            await work.runs.wait()
    assert [line["event"] for line in lines] == ["task.ended"] * 3
    assert {line["task"] for line in lines} == {"eternal"}
    assert all(isinstance(line["exc_info"], OSError) is fails for line in lines)


async def test_pauses_grow() -> None:
    work = Work(4, fails=True)
    with capture_logs() as lines:
        async with guarded(work.run), asyncio.timeout(PATIENCE_S):
            await work.runs.wait()
    assert [line["again_in_s"] for line in lines] == [0.001, 0.002, 0.004, 0.008]
