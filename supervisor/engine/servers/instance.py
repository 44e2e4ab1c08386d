"""Never a double, never an orphan: one controller per data folder, and nobody's children left.

The lock on `controller.lock` belongs to the living controller and goes with its process, however
that ends. `children.json` names the servers that run; a controller that finds one of them still
alive ends it before it starts anything.
"""

import contextlib
import fcntl
import json
import os
import signal
import threading
from pathlib import Path
from typing import IO, Any

import psutil
import structlog

from supervisor.core.machine.events import BackendExited, BackendSpawned, Event
from supervisor.errors import SupervisorError
from supervisor.observability.impairments import Impairments

log = structlog.get_logger()

_WAIT_FOR_DEATH_S = 5.0


class Instance:
    """A controller's claim on a data folder, from construction until `release()`."""

    def __init__(self, data_dir: Path, impairments: Impairments | None = None) -> None:
        """Claim the folder. Raises SupervisorError, with the other's pid, when it is taken."""
        self._lock_path = data_dir / "controller.lock"
        self._lock = _claim(self._lock_path)
        self._impairments = impairments or Impairments()
        self._writing = threading.Lock()
        self._children_path = data_dir / "children.json"
        self._children: dict[int, dict[str, Any]] = {}
        _end_orphans(data_dir)
        self._write()

    def observe(self, event: Event, *_: object) -> None:
        """Keep `children.json` true: called after each event of the arbiter."""
        match event:
            case BackendSpawned():
                self.note_child(event.epoch, event.pid)
            case BackendExited():
                self.forget_child(event.epoch)
            case _:
                pass

    def note_child(self, epoch: int, pid: int) -> None:
        """Remember a spawned server."""
        started_at = _started_at(pid)
        if started_at is not None:
            self._children[epoch] = {"pid": pid, "started_at": started_at}
            self._write()

    def forget_child(self, epoch: int) -> None:
        """Forget a server whose group is reaped."""
        if self._children.pop(epoch, None) is not None:
            self._write()

    def release(self) -> None:
        """Give the folder back."""
        if self._is_claimed():  # else it is another controller's by now
            with contextlib.suppress(OSError):  # what it names has ended: no harm if it stays
                self._children_path.unlink(missing_ok=True)
        self._lock.close()

    def _write(self) -> None:
        """Write `children.json`; a disk that is full or gone is noted, and it is tried again."""
        try:
            with self._writing:
                self._keep_claim()
                temporary = self._children_path.with_suffix(".tmp")
                temporary.write_text(json.dumps(list(self._children.values())), encoding="utf-8")
                temporary.replace(self._children_path)
        except (OSError, SupervisorError) as error:
            reason = (
                f"{self._children_path} cannot be written ({error}); were this controller killed "
                "now, the next one would not find its servers"
            )
            if self._impairments.note("children.json", reason, retry=self._write):
                log.warning("instance.not_written", reason=str(error))
        else:
            self._impairments.clear("children.json")

    def _keep_claim(self) -> None:
        """Claim the folder anew where it was deleted. Raises OSError, SupervisorError as at first.

        Without that a second controller could claim it, and would end our servers as orphans.
        """
        if self._is_claimed():
            return
        self._lock_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock, lost = _claim(self._lock_path), self._lock
        lost.close()

    def _is_claimed(self) -> bool:
        """Whether the file that we locked is still the one that stands there."""
        try:
            return os.path.samestat(self._lock_path.stat(), os.fstat(self._lock.fileno()))
        except FileNotFoundError:
            return False


def _claim(path: Path) -> IO[str]:
    lock = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        pid = lock.read().strip() or "unknown"
        lock.close()
        raise SupervisorError(
            f"{path.parent} is in use by the controller with pid {pid}; stop it, or choose "
            "another folder with --data"
        ) from error
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def running_children(data_dir: Path) -> tuple[int, ...]:
    """Return the process ids of the servers that a folder's controller runs; those that live.

    A pid that was given anew is left out.
    """
    path = data_dir / "children.json"
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        children = [(int(c["pid"]), float(c["started_at"])) for c in noted]
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("instance.unreadable", path=str(path), reason=str(error))
        return ()
    return tuple(pid for pid, started_at in children if _started_at(pid) == started_at)


def _end_orphans(data_dir: Path) -> None:
    """End the servers that a killed controller left."""
    for pid in running_children(data_dir):
        log.warning("instance.orphan_ended", pid=pid)
        _end_group(pid)


def _end_group(pid: int) -> None:
    """Kill a process group that is not our child's, and wait until its leader is gone."""
    try:
        leader = psutil.Process(pid)
        os.killpg(pid, signal.SIGKILL)
        leader.wait(timeout=_WAIT_FOR_DEATH_S)
    except (ProcessLookupError, psutil.NoSuchProcess):
        return
    except psutil.TimeoutExpired as error:
        raise SupervisorError(
            f"a server that a killed controller left (pid {pid}) cannot be ended; end it by hand"
        ) from error


def _started_at(pid: int) -> float | None:
    try:
        created: float = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None
    return created
