"""The data folder: one controller at a time, and nothing touched in it that is not ours.

It is ours when our marker is in it. A folder from before there were markers, which has our lock and
our history, is adopted once. In any other folder we keep beside what is there: what we did not make
is never deleted, and no link is followed. Where something else stands under a name that we need, it
is set aside, which means renamed and named in the log.

    llama-supervisor.json    the marker: format, the folder's identity, which folders we made
    controller.lock          locked while a controller lives; the kernel unlocks it at its death
    run-IDENTITY-…/          our sockets, while we run
    estimates.json           what the scheduler has learned of models
    schedule.json            which period of the schedule is over as its work is done
    children.json            the servers that run, for whoever finds them after a crash
    history.sqlite, jobs.sqlite, learned-needs.sqlite, prompt-cache/, uploads/

Marker and stores carry a format. A newer one is refused, for whoever wrote it knows more than we
do; an older one is brought to ours.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import sqlite3
import stat
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import chain, count
from pathlib import Path

import structlog
import tenacity

from supervisor.errors import ConfigError, RequestRefused, SupervisorError

log = structlog.get_logger()

MARKER = "llama-supervisor.json"
LOCK = "controller.lock"
HISTORY = "history.sqlite"
JOBS = "jobs.sqlite"
"""The queue of jobs: where it is not there, nothing was left unfinished."""
FORMAT = 1
"""The format of the marker and of all that it speaks for: the run folder, children, prompts."""
STORE_FORMAT = 1
"""The format of our SQLite files, kept in each as its `user_version`; 0: before there was one."""

_MAX_SOCKET_PATH_BYTES = 107  # sun_path holds 108 bytes with the last NUL (unix(7))
_SOCKET_NAME_BYTES = len("/backend-123456.sock")
_RANDOM_BYTES = 8  # what mkdtemp appends
_LOCK_POLL_S = 0.2


class FolderInUse(SupervisorError):
    """Another controller has the folder; `pid` is what its lock says of it."""

    def __init__(self, path: Path, pid: str, waited: str) -> None:
        super().__init__(
            f"{path} is in use by the controller with pid {pid}{waited}; stop it, or choose "
            "another folder with --data"
        )
        self.pid = pid


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """What the marker says.

    `inode` is the folder's: a copy of it has another one, and so another identity. `made`: the
    folders in it that we made, and may therefore empty.
    """

    format: int
    identity: str
    inode: int
    made: tuple[str, ...] = ()


class DataFolder:
    """A claimed data folder; `claim()` makes it, `release()` gives it back."""

    def __init__(self, path: Path, lock: int, marker: Marker) -> None:
        self.path = path
        self._lock = lock
        self._marker = marker

    @classmethod
    async def claim(cls, path: Path, wait_s: float = 0.0) -> "DataFolder":
        """Claim a folder, and make it where it is missing.

        Another controller that uses it gets `wait_s` seconds to end. Raises SupervisorError with
        its pid when it goes on, or where the folder's format is newer than ours, and ConfigError
        when the folder cannot be made or written.
        """
        is_empty = _make(path)
        adopts = _is_from_before_markers(path)
        lock = await _lock_of(path, wait_s)
        try:
            return cls._claimed(path, lock, is_empty=is_empty, adopts=adopts)
        except OSError as error:
            os.close(lock)
            raise _not_writable(path, error) from error
        except BaseException:
            os.close(lock)
            raise

    @classmethod
    def _claimed(cls, path: Path, lock: int, *, is_empty: bool, adopts: bool) -> "DataFolder":
        marker = _read_marker(path)
        if marker is not None and marker.format > FORMAT:
            raise SupervisorError(
                f"--data {path} was written by a newer version (format {marker.format}; this one "
                f"knows {FORMAT}); use that version, or choose another folder"
            )
        if is_empty or adopts or marker is not None:
            with contextlib.suppress(PermissionError):  # a volume's root is not ours to change
                path.chmod(0o700)
        _sign(lock)
        folder = cls(path, lock, marker or _new_marker(path))
        folder._settle(adopts=adopts and marker is None)
        return folder

    @property
    def identity(self) -> str:
        """A random word that no other data folder has."""
        return self._marker.identity

    @property
    def is_claimed(self) -> bool:
        """Whether the file that we locked is still the one that stands there."""
        try:
            return os.path.samestat((self.path / LOCK).lstat(), os.fstat(self._lock))
        except FileNotFoundError:
            return False

    def keep_claim(self) -> None:
        """Claim the folder anew where it was deleted. Raises OSError, SupervisorError as at first.

        Without that a second controller could claim it, and would end our servers as orphans.
        """
        if self.is_claimed:
            return
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        lost, self._lock = self._lock, _lock(self.path)
        os.close(lost)
        _sign(self._lock)
        self._write(replace(self._marker, inode=self.path.stat().st_ino))

    def release(self) -> None:
        """Give the folder back."""
        os.close(self._lock)

    def store(self, name: str) -> Path:
        """Return the path of one of our SQLite files, brought to the format of today.

        Raises SupervisorError for a newer format. A file that is damaged is left to its reader.
        """
        path = self.path / name
        if path.is_symlink() or (path.exists() and not path.is_file()):
            set_aside(path, "it is not a file")
        with contextlib.suppress(sqlite3.Error):
            with contextlib.closing(sqlite3.connect(path)) as database:
                [(version,)] = database.execute("PRAGMA user_version").fetchall()
                if version < STORE_FORMAT:
                    database.execute(f"PRAGMA user_version = {STORE_FORMAT}")
                    database.commit()
            if version > STORE_FORMAT:
                raise SupervisorError(
                    f"{path} was written by a newer version (format {version}; this one knows "
                    f"{STORE_FORMAT}); use that version, or move the file away"
                )
        return path

    def subfolder(self, name: str) -> Path:
        """Return a folder of ours; what stands there and is not is set aside.

        Raises RequestRefused `storage_full` when it cannot be made.
        """
        path = self.path.resolve() / name
        try:
            if path.is_symlink() or (path.exists() and not path.is_dir()):
                set_aside(path, "it is not a folder")
            elif name not in self._marker.made and path.is_dir() and any(path.iterdir()):
                set_aside(path, "it was not made by the controller")
            path.mkdir(mode=0o700, exist_ok=True)
            if name not in self._marker.made:
                self._write(replace(self._marker, made=(*self._marker.made, name)))
        except OSError as error:
            raise RequestRefused(
                "storage_full",
                f"{path} cannot be used: {error.strerror}; make room on its disk, move it away, or "
                "choose another folder with --data",
            ) from error
        return path

    def make_run_dir(self) -> Path:
        """Make our private folder for sockets, in here where its path is short enough.

        What a killed controller left of such folders is removed. Raises ConfigError where no path
        is short enough, or none can be made.
        """
        home, prefix = self.path.resolve(), f"run-{self.identity[:4]}-"
        if not _has_room(home, prefix):
            owner = hashlib.sha256(os.fsencode(home)).hexdigest()[:12]
            home, prefix = Path(tempfile.gettempdir()), f"llama-supervisor-{owner}-"
        if not _has_room(home, prefix):
            problem = (
                f"--data {self.path} and the temporary folder {home} are both too long for the "
                f"path of a socket ({_MAX_SOCKET_PATH_BYTES} bytes); set TMPDIR to a shorter one"
            )
            raise ConfigError((problem,))
        for stale in home.glob(f"{prefix}*"):
            remove_run_dir(stale)
        return Path(tempfile.mkdtemp(prefix=prefix, dir=home))

    def _settle(self, *, adopts: bool) -> None:
        """Write the marker where it is new, or the folder is a copy of another one."""
        marker = self._marker
        if adopts:
            log.info("data.adopted", path=str(self.path))
            for stale in self.path.glob("run-*"):
                remove_run_dir(stale)
            marker = replace(marker, made=("prompt-cache",))
        if marker.inode != (inode := self.path.stat().st_ino):
            log.info("data.copied", path=str(self.path))
            marker = replace(marker, inode=inode, identity=secrets.token_hex(8))
        self._write(replace(marker, format=FORMAT))

    def _write(self, marker: Marker) -> None:
        write_new(self.path / MARKER, json.dumps(asdict(marker)))
        self._marker = marker  # not before: what it does not name is set aside after a restart


def remove_run_dir(path: Path) -> None:
    """Remove a folder of sockets. One that is not ours, or holds anything else, is left alone."""
    with contextlib.suppress(OSError):
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return
        entries = list(path.iterdir())
        if all(stat.S_ISSOCK(entry.lstat().st_mode) for entry in entries):
            for entry in entries:
                entry.unlink()
            path.rmdir()


def set_aside(path: Path, reason: str) -> None:
    """Rename what stands in our way, and say so. Raises OSError."""
    endings = chain([""], (f"-{number}" for number in count(2)))
    names = (path.with_name(f"{path.name}.set-aside{end}") for end in endings)
    kept_as = next(name for name in names if not os.path.lexists(name))
    path.rename(kept_as)
    log.warning("data.set_aside", path=str(path), kept_as=str(kept_as), reason=reason)


def open_database(path: Path, prepare: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
    """Open one of our SQLite files, for any thread; a damaged one is set aside, and one begun anew.

    `prepare` makes the tables and looks whether they are ours. Raises sqlite3.Error where the file
    is locked or cannot be written, and OSError.
    """
    try:
        return _prepared(path, prepare)
    except sqlite3.OperationalError:
        raise  # no reason to set it aside
    except sqlite3.DatabaseError as error:
        set_aside(path, f"it is damaged: {error}")
        return _prepared(path, prepare)


def _prepared(path: Path, prepare: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
    database = sqlite3.connect(path, check_same_thread=False)
    try:
        prepare(database)
    except sqlite3.Error:
        database.close()
        raise
    return database


def write_new(path: Path, text: str) -> None:
    """Write a file in one step, through no link. Raises OSError."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with open(os.open(temporary, flags, 0o600), "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(text)
    temporary.replace(path)


def _make(path: Path) -> bool:
    """Make the folder where it is missing; return whether it is empty. Raises ConfigError."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        is_empty = not any(path.iterdir())
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise _not_writable(path, error) from error
    return is_empty


def _not_writable(path: Path, error: OSError) -> ConfigError:
    return ConfigError((f"--data {path}: cannot be written: {error.strerror}",))


def _is_from_before_markers(path: Path) -> bool:
    files = (path / LOCK, path / HISTORY)
    return all(file.is_file() and not file.is_symlink() for file in files)


def _read_marker(path: Path) -> Marker | None:
    """Return what the marker says; None without one. A damaged one is set aside."""
    file = path / MARKER
    if file.is_symlink():
        set_aside(file, "it is a link")
        return None
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        return Marker(
            format=int(said["format"]),
            identity=str(said["identity"]),
            inode=int(said["inode"]),
            made=tuple(map(str, said["made"])),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        set_aside(file, f"it cannot be read: {error!r}")
        return None


def _new_marker(path: Path) -> Marker:
    return Marker(format=FORMAT, identity=secrets.token_hex(8), inode=path.stat().st_ino)


async def _lock_of(path: Path, wait_s: float) -> int:
    """Return the lock, locked. Raises SupervisorError when another controller keeps it."""
    attempts = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(FolderInUse),
        wait=tenacity.wait_fixed(_LOCK_POLL_S),
        stop=tenacity.stop_after_delay(wait_s),
        before_sleep=lambda state: _say_who_is_waited_for(state, path, wait_s),
        reraise=True,
    )
    async for attempt in attempts:
        with attempt:
            return _lock(path, f" after {wait_s:g} s" if wait_s else "")
    raise AssertionError("an attempt returns or raises")


def _say_who_is_waited_for(state: tenacity.RetryCallState, path: Path, wait_s: float) -> None:
    error = state.outcome.exception() if state.outcome is not None else None
    if state.attempt_number == 1 and isinstance(error, FolderInUse):
        log.info("controller.waiting_for_data", path=str(path), pid=error.pid, wait_s=wait_s)


def _lock(path: Path, waited: str = "") -> int:
    """Return the locked lock. Raises FolderInUse."""
    lock = _open_lock(path / LOCK)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        pid = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        if isinstance(error, BlockingIOError):
            raise FolderInUse(path, pid, waited) from error
        raise ConfigError((f"--data {path}: cannot be locked: {error.strerror}",)) from error
    return lock


def _sign(lock: int) -> None:
    """Write our pid into the lock."""
    os.truncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)


def _open_lock(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        if os.path.lexists(path) and not _may_be_our_lock(path):
            set_aside(path, "it is not a lock of the controller")
        return os.open(path, flags, 0o600)
    except OSError as error:
        raise ConfigError((f"{path}: cannot be used: {error.strerror}",)) from error


def _may_be_our_lock(path: Path) -> bool:
    """Whether it is a file that holds a process id, or nothing."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return False
    return path.stat().st_size <= 32 and not path.read_bytes().strip(b"0123456789 \n")


def _has_room(home: Path, prefix: str) -> bool:
    needed = len(os.fsencode(home)) + 1 + len(prefix) + _RANDOM_BYTES + _SOCKET_NAME_BYTES
    return needed <= _MAX_SOCKET_PATH_BYTES
