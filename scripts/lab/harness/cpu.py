"""Who used the processors in a turn, so that a slow one can be told from a disturbed one."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuUse:
    """Processor seconds: of each process watched, and of everything else on the machine."""

    by_role_s: Mapping[str, float]
    others_s: float
    others_share: float


class CpuMeter:
    """Measures from its making to `stop()`."""

    def __init__(self, pids: Mapping[str, int], *, with_descendants: bool = False) -> None:
        """Watch the processes, given by their role, and where asked all that descend from them.

        A process may have more than one role.
        """
        self._used_by = _tree_used_s if with_descendants else _used_s
        self._watched = {role: psutil.Process(pid) for role, pid in pids.items()}
        self._used_before = self._used_s()
        self._machine_before = psutil.cpu_times()

    def stop(self) -> CpuUse:
        """Return what was used since this meter was made.

        `others_share` is the part of all processor time, 0 to 1, that went to other processes.
        """
        now, before = psutil.cpu_times(), self._machine_before
        total_s = sum(now) - sum(before)
        busy_s = total_s - (now.idle + now.iowait - before.idle - before.iowait)
        used = self._used_s()
        by_role_s = {role: used[role] - self._used_before[role] for role in used}
        by_process_s = {self._watched[role].pid: used_s for role, used_s in by_role_s.items()}
        # Both are counted in ticks of 10 ms, so that a short quiet turn may come out below zero.
        others_s = max(0.0, busy_s - sum(by_process_s.values()))
        return CpuUse(
            by_role_s=by_role_s,
            others_s=others_s,
            others_share=others_s / total_s if total_s > 0 else 0.0,
        )

    def _used_s(self) -> dict[str, float]:
        return {role: self._used_by(process) for role, process in self._watched.items()}


def _used_s(process: psutil.Process) -> float:
    used = process.cpu_times()
    return float(used.user + used.system)


def _tree_used_s(root: psutil.Process) -> float:
    """Sum over all that lives of a tree, and over what each of them has reaped (getrusage(2))."""
    total_s = 0.0
    for process in (root, *root.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total_s += sum(process.cpu_times()[:4])  # user, system, and those of reaped children
    return total_s
