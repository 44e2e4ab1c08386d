"""Where the scheduler's estimates are kept over restarts: `estimates.json` in the data folder."""

from pathlib import Path
from typing import Literal

import msgspec

from supervisor.core.machine.commands import Command, FinishSwitch
from supervisor.core.machine.events import Event
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.scheduling.estimates import Estimates
from supervisor.observability.impairments import Impairments
from supervisor.observability.kept_file import KeptFile, content_of

FILE_NAME = "estimates.json"
PART = "scheduler's estimates"


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in the file."""

    format: Literal[1] = 1
    estimates: Estimates


def estimates_in(path: Path) -> Estimates:
    """Return what a file says; nothing where there is none. Raises OSError and MsgspecError."""
    kept = content_of(path, _Kept)
    return Estimates() if kept is None else kept.estimates


class EstimatesStore:
    """Observer of the arbiter: writes what was learned whenever a switch has ended."""

    def __init__(self, path: Path, impairments: Impairments) -> None:
        self._file = KeptFile(path, _Kept, PART, impairments)

    def read(self) -> Estimates:
        """Return what was learned before; nothing where there is no file of this format."""
        kept = self._file.read()
        return Estimates() if kept is None else kept.estimates

    def observe(
        self, _event: Event, _before: Snapshot, after: Snapshot, commands: tuple[Command, ...]
    ) -> None:
        """Write what was learned when a switch has ended."""
        if any(isinstance(command, FinishSwitch) for command in commands):
            self._file.write(_Kept(estimates=after.scheduling.estimates))
