"""The processes that come from a server, wherever they have gone.

A server may start others that leave its process group and session (`setsid`, daemons), and they
hold memory as much as it does. Each inherits a mark in its environment, by which it is known; and
when those between it and us have ended it becomes our own child, because the controller is a
sub-reaper (prctl(2)). So nothing that is found to be ours is left running, and none becomes a
zombie that nobody reaps.
"""

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

MARK_VARIABLE = "LLAMA_SUPERVISOR_BACKEND"
"""The environment variable that every process of a server inherits."""

KEEPS_MARK = {"SPT_NOENV": "1"}
"""Has setproctitle leave the environment alone, which a long title would overwrite otherwise."""

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_PF_EXITING = 0x4  # linux/sched.h: it will run no more, and gives its memory back
_PROC = Path("/proc")
_libc = ctypes.CDLL(None, use_errno=True)


def new_mark(folder: str, epoch: int) -> str:
    """Make the mark of a server: whose it is, its epoch, and what no other server has had."""
    return f"{mark_prefix(folder)}{epoch}-{token_hex(8)}"


def mark_prefix(folder: str) -> str:
    """Return how all marks begin that controllers of a data folder make, by its identity."""
    return f"{folder}-"


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends; safe to call again."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class ProcessState(NamedTuple):
    """What /proc tells of a process (proc(5))."""

    letter: str
    session: int
    flags: int

    @property
    def is_ending(self) -> bool:
        """Whether it has ended, or is past its last instruction and gives its memory back."""
        return self.letter in "ZX" or bool(self.flags & _PF_EXITING)


def state_of(pid: int) -> ProcessState | None:
    """Return the state of a process; None where there is none."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # its name may hold blanks and brackets
    return ProcessState(letter=fields[0], session=int(fields[3]), flags=int(fields[6]))


def name_of(pid: int) -> str:
    """Return the name of a process, printable; a question mark where there is none."""
    try:
        name = (_PROC / str(pid) / "comm").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "?"
    return "".join(c if c.isprintable() else "?" for c in name.strip())


def has_mark(pid: int, mark: str) -> bool:
    """Whether a process inherited the mark; not known, and so not, of one of another user."""
    return mark_of(pid) == mark


def mark_of(pid: int) -> str | None:
    """Return the mark that a process inherited; None without one, or where it cannot be seen."""
    try:
        environment = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return None
    variables = (variable.partition(b"=") for variable in environment.split(b"\0"))
    name = MARK_VARIABLE.encode()
    return next(
        (value.decode(errors="replace") for each, _, value in variables if each == name), None
    )


def has_lost_environment(pid: int) -> bool:
    """Whether a process of our user shows no variable at all: its title has overwritten them."""
    folder = _PROC / str(pid)
    try:
        is_ours = folder.stat().st_uid == os.geteuid()
        return is_ours and b"=" not in (folder / "environ").read_bytes()
    except OSError:
        return False


def children_of(pid: int) -> set[int]:
    """Return the processes whose parent is this one."""
    children: set[int] = set()
    threads = f"{_PROC}/{pid}/task"
    with contextlib.suppress(OSError):
        for thread in os.listdir(threads):  # noqa: PTH208 - a hundred: Path takes three times as long
            path = f"{threads}/{thread}/children"
            with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:  # noqa: PTH123
                children.update(map(int, file.read().split()))
    return children


def descendants_of(pid: int) -> set[int]:
    """Return the processes below this one."""
    found: set[int] = set()
    new = children_of(pid)
    while new:
        found |= new
        new = {child for parent in new for child in children_of(parent)} - found
    return found


def orphans_of(session: int, mark: str) -> set[int]:
    """Return our own children that come from a server: by its mark, or by its session if dead.

    Of a zombie the environment cannot be read any more, its session can. The server itself, the
    leader of that session, is not among them.
    """
    found = set()
    for pid in children_of(os.getpid()) - {session}:
        state = state_of(pid)
        if state is not None and (state.session == session or has_mark(pid, mark)):
            found.add(pid)
    return found


def send_signal(pid: int, number: signal.Signals, is_meant: Callable[[int], bool]) -> None:
    """Signal a process if it is still the one that is meant: a pid may be given anew meanwhile."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if is_meant(pid):
            signal.pidfd_send_signal(pidfd, number)
    except OSError:  # it ended, or runs as somebody else
        pass
    finally:
        os.close(pidfd)


def reap(pid: int) -> bool:
    """Reap a child of ours if it has ended. Returns whether it is gone."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
