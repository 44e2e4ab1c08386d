"""Where it is kept over restarts that a period is over: `schedule.json` in the data folder.

A period that lasts until its work is done is over for good: work that comes behind its end waits
for the next one, also where the controller was restarted in between.
"""

from pathlib import Path
from typing import Literal

import msgspec

from supervisor.core.machine.agenda import Period
from supervisor.core.machine.commands import Command
from supervisor.core.machine.events import Event
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.values import Mode
from supervisor.observability.impairments import Impairments
from supervisor.observability.kept_file import KeptFile

FILE_NAME = "schedule.json"
PART = "schedule's periods"


class _Ended(msgspec.Struct, frozen=True, kw_only=True):
    """By what a period is known again."""

    began: float
    mode: Mode | None
    model: str | None


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in the file."""

    format: Literal[1] = 1
    ended: _Ended | None


class ScheduleStore:
    """Observer of the arbiter: writes which period is over as its work is done."""

    def __init__(self, path: Path, impairments: Impairments) -> None:
        self._file = KeptFile(path, _Kept, PART, impairments)

    def read(self) -> Period | None:
        """Return the period that was over last; None where none was, or it is not known."""
        kept = self._file.read()
        if kept is None or kept.ended is None:
            return None
        ended = kept.ended
        return Period(
            starts_at=0.0, began=ended.began, local="", mode=ended.mode, model=ended.model
        )

    def observe(
        self, _event: Event, before: Snapshot, after: Snapshot, _commands: tuple[Command, ...]
    ) -> None:
        """Write the period that has ended."""
        if before.agenda is after.agenda:
            return
        was, ended = _known(before.agenda.ended), _known(after.agenda.ended)
        if was != ended:
            self._file.write(_Kept(ended=ended))


def _known(period: Period | None) -> _Ended | None:
    if period is None:
        return None
    return _Ended(began=period.began, mode=period.mode, model=period.model)
