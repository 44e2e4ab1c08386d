"""Which processes are ours: those that carry the run's mark in their environment."""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

MARK = "CHAOS_RUN"
"""The variable whose value every process of a run inherits from the controller."""

_WORKERS = ("edge_worker", "fork_server")

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_libc = ctypes.CDLL(None)


def die_with_runner() -> None:
    """Let the kernel kill this process when the run is killed; for use before exec."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def become_subreaper() -> None:
    """Take what a process of ours leaves behind for a child of this one, to be reaped here."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def marked(mark: str) -> list[psutil.Process]:
    """Return the living processes of a run. A zombie holds nothing, and is not living."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            is_ours = process.environ().get(MARK) == mark
            if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def servers_of(controller_pid: int) -> list[int]:
    """Return the llama-servers that a controller has and has not reaped (proc(5): children).

    Those that only list their flags serve no model and do not count.
    """
    try:
        children = Path(f"/proc/{controller_pid}/task/{controller_pid}/children").read_text("ascii")
    except OSError:
        return []
    return [pid for pid in map(int, children.split()) if _runs_a_model(pid)]


def _runs_a_model(pid: int) -> bool:
    try:
        return b"\0--model\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def workers_of(controller_pid: int) -> list[int]:
    """Return the processes in which a controller keeps vectors and reads documents."""
    found = []
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(controller_pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any(word.endswith(_WORKERS) for word in process.cmdline()):
                    found.append(process.pid)
    return found


def send(pid: int, number: signal.Signals) -> bool:
    """Signal a process. Returns whether it was there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def survivors(mark: str, controller_pid: Callable[[], int], within_s: float) -> set[psutil.Process]:
    """Wait until what lives of the run apart from its controller is gone; return what is not.

    `controller_pid` returns that of the controller that runs now: what descends from it is not an
    orphan. Blocks.
    """
    deadline = time.monotonic() + within_s
    left = _outside(mark, controller_pid())
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left &= _outside(mark, controller_pid())
    return left


def _outside(mark: str, controller_pid: int) -> set[psutil.Process]:
    found = set()
    for process in marked(mark):
        with contextlib.suppress(psutil.Error):
            lineage = {process.pid, *(parent.pid for parent in process.parents())}
            if controller_pid not in lineage:
                found.add(process)
    return found


def describe(process: psutil.Process) -> str:
    """Write a process as its pid and command line."""
    try:
        return f"{process.pid} ({' '.join(process.cmdline())[:160]})"
    except psutil.Error:
        return str(process.pid)
