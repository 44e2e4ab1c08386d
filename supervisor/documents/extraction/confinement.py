"""What a process that reads strangers' files gives up: the network, most memory, and time."""

import ctypes
import os
import resource
import signal

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h

_libc = ctypes.CDLL(None, use_errno=True)


def leave_network() -> str | None:
    """Have this process and its children reach no network; returns why that could not be done.

    It gets a network namespace of its own, without an interface. A kernel that does not grant one
    to root's processes in a container grants one to a new user namespace, or none (Kubernetes with
    the default seccomp profile does not).
    """
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for flags in (_CLONE_NEWNET, _CLONE_NEWUSER | _CLONE_NEWNET):
        if _libc.unshare(flags) == 0:
            return None
    return os.strerror(ctypes.get_errno())


def bound_process(timeout_s: float, memory_bytes: int) -> None:
    """Have the kernel end this process after a time, and give it no more than so much memory.

    It writes no file and leaves no core. The alarm needs nobody's help: not even code of a library
    that never returns holds it off.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    _bound(resource.RLIMIT_AS, memory_bytes)
    _bound(resource.RLIMIT_FSIZE, 0)
    _bound(resource.RLIMIT_CORE, 0)


def _bound(limit: int, most: int) -> None:
    hard = resource.getrlimit(limit)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(limit, (most, most))
