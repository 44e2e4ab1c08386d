"""Whose the processes on a device are: our children, what they left, others, or not to be seen."""

import os
from collections.abc import Collection, Mapping

from supervisor.core.machine.memory import Holder, HolderRole
from supervisor.telemetry.port import ProcessUse
from supervisor.telemetry.process_name import read_process_name


def classify_holders(
    held: Mapping[int, int | None] | None,
    child_pids: Collection[int],
    former_pids: Collection[int],
) -> tuple[Holder, ...] | None:
    """Classify the processes on a device; `held` gives bytes by process id, or None: unknown.

    Servers lead sessions of their own, so that what one has started is known by its session. In a
    container the driver may list the process ids of the host: those do not exist here, and are
    UNSEEN, never foreign.
    """
    if held is None:
        return None
    return tuple(
        Holder(
            pid=pid,
            used_bytes=used_bytes,
            role=_role(pid, child_pids, former_pids),
            name=read_process_name(pid),
        )
        for pid, used_bytes in held.items()
    )


def sum_children(held: Mapping[int, int | None] | None, child_pids: Collection[int]) -> int | None:
    """Sum what our children hold, or None where that is not known.

    A child that is not listed proves nothing: in a container the driver may list the host's
    process ids, or none.
    """
    if not child_pids:
        return 0
    amounts = [used_bytes for pid, used_bytes in (held or {}).items() if pid in child_pids]
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if known and len(known) == len(amounts) else None


def name_processes(held: Mapping[int, int | None] | None) -> tuple[ProcessUse, ...] | None:
    """Give the processes on a device their names; None where the driver lists none to us."""
    if held is None:
        return None
    return tuple(
        ProcessUse(pid=pid, used_bytes=used_bytes, name=read_process_name(pid))
        for pid, used_bytes in held.items()
    )


def _role(pid: int, child_pids: Collection[int], former_pids: Collection[int]) -> HolderRole:
    try:
        session = os.getsid(pid)
    except ProcessLookupError:
        return HolderRole.UNSEEN
    if pid in child_pids or session in child_pids:
        return HolderRole.CHILD
    return HolderRole.SURVIVOR if session in former_pids else HolderRole.FOREIGN
