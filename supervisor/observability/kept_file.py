"""A value that outlives a restart, in a small JSON file of the data folder."""

import threading
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
import structlog

from supervisor.data_folder import write_new
from supervisor.observability.impairments import Impairments

log = structlog.get_logger()

_Content = TypeVar("_Content", bound=msgspec.Struct)


def content_of(path: Path, kind: type[_Content]) -> _Content | None:
    """Return what a file says; None where there is none. Raises OSError and MsgspecError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None


class KeptFile(Generic[_Content]):
    """Reads a value at the start, and writes it whenever it has changed.

    A file that cannot be used is set aside. One that cannot be written is noted as an impairment,
    and written again later.
    """

    def __init__(
        self, path: Path, kind: type[_Content], what: str, impairments: Impairments
    ) -> None:
        """`what`: the name of the value, for people."""
        self._path = path
        self._kind = kind
        self._what = what
        self._impairments = impairments
        self._last: _Content | None = None
        self._writing = threading.Lock()  # a thread may write what could not be written before

    def read(self) -> _Content | None:
        """Return what was written last; None where there is no file of this format."""
        try:
            return content_of(self._path, self._kind)
        except (OSError, msgspec.MsgspecError) as error:
            self._set_aside(error)
            return None

    def write(self, content: _Content) -> None:
        """Write a value in place of the one before."""
        self._last = content
        self._write()

    def _write(self) -> None:
        with self._writing:
            try:
                write_new(self._path, msgspec.json.encode(self._last).decode())
            except OSError as error:
                reason = f"{self._path} cannot be written ({error}); it is lost at a restart"
                if self._impairments.note(self._what, reason, retry=self._write):
                    log.warning("kept_file.not_written", path=str(self._path), reason=str(error))
            else:
                self._impairments.clear(self._what)

    def _set_aside(self, error: Exception) -> None:
        aside = self._path.with_name(f"{self._path.name}.damaged")
        log.warning("kept_file.damaged", kept_as=str(aside), reason=str(error))
        try:
            self._path.replace(aside)
        except OSError as failure:
            log.warning("kept_file.not_set_aside", path=str(self._path), reason=str(failure))
