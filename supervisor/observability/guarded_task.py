"""Tasks that must not end: one that does says so in the log, and starts again."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from supervisor.core.pauses import doubled_pause_s

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0

CALM_S = 300.0
"""Seconds without an end after which the pauses begin anew."""

log = structlog.get_logger()


def start_guarded(
    work: Callable[[], Awaitable[object]], name: str, *, first_pause_s: float = FIRST_PAUSE_S
) -> asyncio.Task[None]:
    """Run `work()` in a task of this name for as long as it is not cancelled.

    `work` is meant to run for ever. Where it raises or returns nevertheless, `task.ended` says
    why, and it is called again after a pause, which doubles from end to end up to a minute. The
    caller owns the task: cancel it, and wait for it.
    """
    return asyncio.create_task(_guard(work, name, first_pause_s), name=name)


async def _guard(work: Callable[[], Awaitable[object]], name: str, first_pause_s: float) -> None:
    loop = asyncio.get_running_loop()
    ends = 0
    while True:
        started_at = loop.time()
        error: Exception | None = None
        try:
            await work()
        except Exception as raised:  # noqa: BLE001 - whatever it is, the work goes on
            error = raised
        ends = 1 if loop.time() - started_at > CALM_S else ends + 1
        pause_s = doubled_pause_s(ends, first_pause_s, LONGEST_PAUSE_S)
        log.error("task.ended", task=name, again_in_s=pause_s, exc_info=error)
        await asyncio.sleep(pause_s)
