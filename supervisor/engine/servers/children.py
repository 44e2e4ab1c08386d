"""Never an orphan: which servers run is noted in `children.json`, for whoever comes after a crash.

A controller that finds processes of theirs still alive ends them before it starts anything. It ends
only what is proven to be ours, by the mark that each server and all that it starts have in their
environment: neither a process that was given the same pid later has it, nor one that somebody wrote
into the file. Where a title has overwritten the environment (setproctitle, as vLLM's workers have
it), the session says it: its id, the server's pid, is not given anew while a process has it. Start
times are in clock ticks since boot, which no change of the clock moves.
"""

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import psutil
import structlog

from supervisor.core.machine.events import BackendExited, BackendSpawned, Event
from supervisor.data_folder import DataFolder, set_aside, write_new
from supervisor.engine.servers.descendants import (
    has_lost_environment,
    has_mark,
    mark_of,
    mark_prefix,
    send_signal,
    state_of,
)
from supervisor.errors import SupervisorError
from supervisor.observability.impairments import Impairments

log = structlog.get_logger()

FILE_NAME = "children.json"

_WAIT_FOR_DEATH_S = 5.0
_DEATH_POLL_S = 0.01
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_START_FIELD = 22 - 4  # starttime is field 22 of proc(5)'s stat; we split from field 4 on


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A server that was started: its process, when that began, and the mark that it carries.

    `started_ticks`: clock ticks since the machine's boot `boot_id`. `folder`: the identity of the
    data folder whose controller started it; the file may be a copy.
    """

    pid: int
    started_ticks: int
    boot_id: str
    mark: str
    folder: str

    @property
    def is_alive(self) -> bool:
        """Whether the process is there: this very one, not a later one with its pid."""
        return self.boot_id == _boot_id() and _started_ticks(self.pid) == self.started_ticks


class Children:
    """The servers of this controller, kept in `children.json` until `release()`."""

    def __init__(self, data: DataFolder, impairments: Impairments | None = None) -> None:
        """End what a killed controller left. Raises SupervisorError when that does not end."""
        self._data = data
        self._path = data.path / FILE_NAME
        self._impairments = impairments or Impairments()
        self._writing = threading.Lock()
        self._children: dict[int, Child] = {}
        left = _end_noted(self._path, data.identity)
        left = _end_unnoted(data.identity) or left
        self.orphans_at = time.monotonic() if left else None
        """When what a killed controller left was found gone; None where it left nothing."""
        self._write()

    def observe(self, event: Event, *_: object) -> None:
        """Keep the file true: called after each event of the arbiter."""
        match event:
            case BackendSpawned():
                self.note_child(event.epoch, event.pid)
            case BackendExited():
                self.forget_child(event.epoch)
            case _:
                pass

    def note_child(self, epoch: int, pid: int) -> None:
        """Remember a spawned server."""
        started_ticks = _started_ticks(pid)
        if started_ticks is not None:
            self._children[epoch] = Child(
                pid=pid,
                started_ticks=started_ticks,
                boot_id=_boot_id(),
                mark=mark_of(pid) or "",
                folder=self._data.identity,
            )
            self._write()

    def forget_child(self, epoch: int) -> None:
        """Forget a server whose group is reaped."""
        if self._children.pop(epoch, None) is not None:
            self._write()

    def release(self) -> None:
        """Remove the file: nothing runs any more."""
        if self._data.is_claimed:  # else it is another controller's by now
            with contextlib.suppress(OSError):  # what it names has ended: no harm if it stays
                self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        """Write the file; a disk that is full or gone is noted, and it is tried again."""
        try:
            with self._writing:
                self._data.keep_claim()
                children = [asdict(child) for child in self._children.values()]
                write_new(self._path, json.dumps(children))
        except (OSError, SupervisorError) as error:
            reason = (
                f"{self._path} cannot be written ({error}); were this controller killed now, the "
                "next one would not find its servers"
            )
            if self._impairments.note(FILE_NAME, reason, retry=self._write):
                log.warning("children.not_written", reason=str(error))
        else:
            self._impairments.clear(FILE_NAME)


def running_children(data_dir: Path) -> tuple[int, ...]:
    """Return the process ids of the servers that a folder's controller runs; those that live.

    A pid that was given anew is left out.
    """
    try:
        children = tuple(_read(data_dir / FILE_NAME))
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return tuple(c.pid for c in children if c.is_alive and _is_of(c, c.pid))


def _read(path: Path) -> Iterator[Child]:
    """Yield what is noted. Raises OSError, ValueError, KeyError or TypeError where it is not so."""
    for noted in json.loads(path.read_text(encoding="utf-8")):
        child = Child(
            pid=int(noted["pid"]),
            started_ticks=int(noted["started_ticks"]),
            boot_id=str(noted["boot_id"]),
            mark=str(noted["mark"]),
            folder=str(noted["folder"]),
        )
        if child.pid <= 1:
            raise ValueError(f"{child.pid} is not the pid of a server")
        yield child


def _end_noted(path: Path, folder: str) -> bool:
    """End what a killed controller had noted, and tell whether there was any.

    A file that cannot be read is set aside.
    """
    was_any = False
    try:
        children = tuple(_read(path))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError) as error:
        set_aside(path, f"it cannot be read: {error!r}")
        return False
    for child in children:
        if child.is_alive and not _is_of(child, child.pid):
            log.warning("instance.left_alone", pid=child.pid, reason="it does not carry our mark")
        if child.mark and child.folder == folder and child.boot_id == _boot_id():
            _end_all(partial(_is_of, child))
            was_any = True
    return was_any


def _end_unnoted(folder: str) -> bool:
    """End what a controller of this folder started as it was killed; tell whether there was any.

    For a millisecond a server is neither noted nor tied to the life of its controller.
    """
    return _end_all(lambda pid: (mark_of(pid) or "").startswith(mark_prefix(folder)))


def _is_of(child: Child, pid: int) -> bool:
    """Whether a process is a server's: by its mark, or without an environment by its session."""
    if has_mark(pid, child.mark):
        return True
    state = state_of(pid)
    is_in_session = state is not None and state.session == child.pid and not state.is_ending
    is_reused = _started_ticks(child.pid) not in {None, child.started_ticks}
    return is_in_session and not is_reused and has_lost_environment(pid)


def _end_all(is_meant: Callable[[int], bool]) -> bool:
    """Kill all processes that are meant, wait until they are gone; tell whether there was any."""
    deadline = time.monotonic() + _WAIT_FOR_DEATH_S
    said: set[int] = set()
    while left := {pid for pid in psutil.pids() if is_meant(pid)}:
        for pid in left:
            if pid not in said:
                log.warning("instance.orphan_ended", pid=pid)
            send_signal(pid, signal.SIGKILL, is_meant)
        said |= left
        if time.monotonic() > deadline:
            listed = ", ".join(map(str, sorted(left)))
            raise SupervisorError(
                f"a server that a killed controller left (pid {listed}) cannot be ended; end it "
                "by hand"
            )
        time.sleep(_DEATH_POLL_S)
    return bool(said)


def _started_ticks(pid: int) -> int | None:
    """Return when a process began, in clock ticks since boot; None when it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()
    return None if state == "Z" else int(fields[_START_FIELD])


def _boot_id() -> str:
    return _BOOT_ID.read_text(encoding="ascii").strip()
