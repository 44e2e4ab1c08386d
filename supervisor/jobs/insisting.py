"""Has the queue do what must be done, however long its store is full or away."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from supervisor.core.pauses import doubled_pause_s
from supervisor.errors import SupervisorError
from supervisor.observability.impairments import Impairments

log = structlog.get_logger()

PART = "jobs"
"""What an impairment of the queue is called."""

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0

_Returned = TypeVar("_Returned")


class Insisting:
    """Tries again until something is done; meanwhile the controller is impaired, and says so."""

    def __init__(self, impairments: Impairments) -> None:
        self._impairments = impairments

    async def __call__(self, act: Callable[[], Awaitable[_Returned]]) -> _Returned:
        """Return what `act` returns in the end."""
        failures = 0
        while True:
            try:
                returned = await act()
            except Exception as error:  # noqa: BLE001 - whatever it is, the lines must not be lost
                failures += 1
                self._note(error)
                await asyncio.sleep(doubled_pause_s(failures, _FIRST_PAUSE_S, _LONGEST_PAUSE_S))
            else:
                if failures:
                    self._impairments.clear(PART)
                return returned

    def _note(self, error: Exception) -> None:
        reason = (
            f"work on jobs waits, and goes on by itself when it can ({type(error).__name__}: "
            f"{error})"
        )
        if self._impairments.note(PART, reason):
            is_known = isinstance(error, SupervisorError)  # its sentence says it all
            log.warning(
                "jobs.queue_failed", reason=str(error), exc_info=None if is_known else error
            )
