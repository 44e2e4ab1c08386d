"""Where the scheduler's estimates are kept over restarts: `estimates.json` in the data folder."""

from pathlib import Path
from typing import Literal

import msgspec
import structlog

from supervisor.core.machine.commands import Command, FinishSwitch
from supervisor.core.machine.events import Event
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.scheduling.estimates import Estimates
from supervisor.data_folder import write_new
from supervisor.observability.impairments import Impairments

log = structlog.get_logger()

FILE_NAME = "estimates.json"
PART = "scheduler's estimates"


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in the file."""

    format: Literal[1] = 1
    estimates: Estimates


def estimates_in(path: Path) -> Estimates:
    """Return what a file says; nothing where there is none. Raises OSError and MsgspecError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Kept).estimates
    except FileNotFoundError:
        return Estimates()


class EstimatesStore:
    """Observer of the arbiter: writes what was learned whenever a switch has ended.

    A file that cannot be used is set aside, and everything is learned anew. One that cannot be
    written is noted as an impairment, and written with the next switch.
    """

    def __init__(self, path: Path, impairments: Impairments | None = None) -> None:
        self._path = path
        self._impairments = impairments or Impairments()
        self._last = Estimates()

    def read(self) -> Estimates:
        """Return what was learned before; nothing where there is no file of this format."""
        try:
            return estimates_in(self._path)
        except (OSError, msgspec.MsgspecError) as error:
            self._set_aside(error)
            return Estimates()

    def observe(
        self, _event: Event, _before: Snapshot, after: Snapshot, commands: tuple[Command, ...]
    ) -> None:
        """Write what was learned when a switch has ended."""
        if any(isinstance(command, FinishSwitch) for command in commands):
            self._last = after.scheduling.estimates
            self._write()

    def _write(self) -> None:
        kept = _Kept(estimates=self._last)
        try:
            write_new(self._path, msgspec.json.encode(kept).decode())
        except OSError as error:
            reason = f"{self._path} cannot be written ({error}); they are lost at a restart"
            if self._impairments.note(PART, reason, retry=self._write):
                log.warning("estimates.not_written", path=str(self._path), reason=str(error))
        else:
            self._impairments.clear(PART)

    def _set_aside(self, error: Exception) -> None:
        aside = self._path.with_name(f"{FILE_NAME}.damaged")
        log.warning("estimates.damaged", kept_as=str(aside), reason=str(error))
        try:
            self._path.replace(aside)
        except OSError as failure:
            log.warning("estimates.not_set_aside", path=str(self._path), reason=str(failure))
