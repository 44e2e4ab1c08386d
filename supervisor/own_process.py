"""Programs of this package that run beside the controller, in processes of their own.

They are modules, given the controller's pid as their last argument. They import little, because
most start where something else waits for them.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PACKAGE_FOLDER = Path(__file__).parents[1]


def command_of(module: str, *arguments: str) -> tuple[str, ...]:
    """Return the command that runs a module, whose parent the calling process will be.

    It is started without `site`, which takes half of an interpreter's start and would only find the
    packages: it needs `python_path()`.
    """
    return (sys.executable, "-P", "-S", "-m", module, *arguments, str(os.getpid()))


def python_path() -> str:
    """Return the PYTHONPATH with which such a process finds what this one does."""
    folders = (str(_PACKAGE_FOLDER), *filter(None, sys.path))
    return os.pathsep.join(dict.fromkeys(folders))


def end_with_parent(parent_pid: int) -> None:
    """Have the kernel end this process with its parent, which may be gone already.

    The kernel goes by the thread that started it: that must live as long.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        raise SystemExit  # it ended before the signal was armed
