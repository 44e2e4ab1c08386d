"""Host memory as a device: what the machine has, bounded by what this container may use."""

import re
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import psutil

from supervisor.core.machine.memory import MemorySample
from supervisor.errors import TelemetryError
from supervisor.telemetry.cgroup import MemoryCgroup
from supervisor.telemetry.port import HOST, DeviceInfo, DeviceReading


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineMemory:
    """The whole machine's memory in bytes: MemTotal, and what programs can still be given."""

    total_bytes: int
    available_bytes: int


def read_machine_memory() -> MachineMemory:
    """Read MemTotal and MemAvailable, whatever limits a container sets."""
    memory = psutil.virtual_memory()
    return MachineMemory(total_bytes=memory.total, available_bytes=memory.available)


class HostMemory:
    """Reads host memory. `root` is where /proc and /sys are looked for.

    A reading costs well under a millisecond and cannot hang, so that it needs no process of its
    own.
    """

    vendor: ClassVar[str] = "host"

    def __init__(
        self, root: Path = Path("/"), *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._proc = root / "proc"
        self._cgroup = MemoryCgroup(root)

    def devices(self) -> tuple[DeviceInfo, ...]:
        """List the one device, with the total this process may use."""
        total = self.sample(HOST).total_bytes
        return (DeviceInfo(device=HOST, name="host memory", vendor=self.vendor, total_bytes=total),)

    def read(self, device: str, child_pids: Collection[int] = ()) -> DeviceReading:
        """Read host memory now; a host reports nothing else."""
        return DeviceReading(sample=self.sample(device, child_pids))

    def sample(
        self, device: str, child_pids: Collection[int] = (), former_pids: Collection[int] = ()
    ) -> MemorySample:
        """Read host memory now; who holds it is not reported.

        The smallest cgroup limit below the machine's total gives `total_bytes` and `used_bytes`;
        `free_bytes` is the minimum that the machine or any of the limits leaves.
        """
        _ = former_pids
        if device != HOST:
            raise TelemetryError(f"{device!r} is not host memory; ask for {HOST!r}")
        machine = read_machine_memory()
        total, free = machine.total_bytes, machine.available_bytes
        used, source = total - free, "psutil"
        for limit in self._cgroup.limits(below_bytes=machine.total_bytes):
            free = min(free, limit.limit_bytes - limit.used_bytes)
            if limit.limit_bytes < total:
                total, used, source = limit.limit_bytes, limit.used_bytes, limit.source
        taken_at = self._clock()
        return MemorySample(
            device=HOST,
            taken_at=taken_at,
            total_bytes=total,
            used_bytes=used,
            free_bytes=max(0, free),
            source=source,
            children_bytes=_read_children_bytes(self._proc, child_pids),
        )

    def close(self) -> None:
        """Do nothing: there is no library to give back."""


def _read_children_bytes(proc: Path, pids: Collection[int]) -> int | None:
    """Sum what the processes hold that only their end gives back: RssAnon and RssShmem.

    Read from /proc/PID/status, which the kernel answers from counters in about 30 µs. PSS
    (smaps_rollup) would share out what several processes map, but walks every page table, which
    takes longer the more is resident. /proc/PID/statm is as cheap, but has shared memory
    and mapped files in one figure; mapped weights are page cache, which is not held.
    """
    total = 0
    for pid in pids:
        try:
            status = (proc / str(pid) / "status").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue  # the process is gone, and its memory with it
        except OSError:
            return None
        held = _HELD.findall(status)
        if not held and b"\nVmRSS:" in status:
            return None  # a kernel that does not separate the kinds; a zombie has neither
        total += sum(1024 * int(kib) for kib in held)
    return total


_HELD = re.compile(rb"^Rss(?:Anon|Shmem):\s*(\d+) kB$", re.MULTILINE)
