"""What does not work at present though the controller goes on: said once, shown, and healed.

A full disk or a deleted folder must never stop a request or a switch. Whoever cannot write notes
an impairment with a way of trying again; while there is one, the controller is `degraded`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from supervisor.observability.guarded_task import start_guarded

log = structlog.get_logger()

RETRY_PERIOD_S = 5.0
"""Seconds between two attempts to do what failed: soon after room is made on a disk, and cheap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Impairment:
    """A part that does not work, why, and what may mend it (blocks for the disk; never raises)."""

    part: str
    reason: str
    retry: Callable[[], None] | None = None


class Impairments:
    """The impairments of now, by part. May be used from any thread."""

    def __init__(self) -> None:
        self._current: dict[str, Impairment] = {}

    def note(self, part: str, reason: str, retry: Callable[[], None] | None = None) -> bool:
        """Note that a part does not work. Returns whether that is new, and so worth a log line."""
        is_new = part not in self._current
        self._current[part] = Impairment(part=part, reason=reason, retry=retry)
        return is_new

    def clear(self, part: str) -> None:
        """Note that a part works again; one that did all the time is passed over."""
        if self._current.pop(part, None) is not None:
            log.info("controller.recovered", part=part)

    def describe(self) -> list[str]:
        """One sentence for each impairment, as /status shows it."""
        return [f"{each.part}: {each.reason}" for each in list(self._current.values())]

    @asynccontextmanager
    async def retried(self, period_s: float = RETRY_PERIOD_S) -> AsyncIterator[None]:
        """Try again what failed each `period_s` seconds while the context lasts."""

        async def keep_retrying() -> None:
            while True:
                await asyncio.sleep(period_s)
                for each in list(self._current.values()):
                    if each.retry is not None:
                        await asyncio.to_thread(each.retry)

        task = start_guarded(keep_retrying, name="retry-impaired")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
