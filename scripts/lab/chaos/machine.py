"""The simulated GPUs of a run: what is done to them, and whether a start ever found no room.

The servers are the real ones, on the processor; each takes memory of the simulated driver before it
loads its model (`lab.drivers.gpu_server`), and the driver gives it back some time after its death.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import psutil

from lab.chaos.facts import SwitchRun
from lab.chaos.ledger import OF_GPUS, Fault, Weapon
from lab.chaos.setting import RELEASE_TIMEOUT_S, Setting
from lab.drivers.gpu_server import write_gpu_server
from lab.drivers.holding import Taken, read_book
from lab.drivers.nvidia import GIB, SimulatedGpu
from lab.harness.processes import become_subreaper, die_with_runner

TOTAL_BYTES = 24 * GIB
TENANT_BYTES = 16 * GIB
"""What the tenant takes: the largest shares have no room beside it."""

LATE_RELEASE_S = 6.0
"""Longer than the gate waits."""

JUST_NOW_S = 1.0
"""A tenant that comes after the gate has read a device cannot be known to a start."""

_OF_MEMORY = ("not confirmed within", "GiB free", "cannot be read", "beside what others hold")
_HINDERED_S = LATE_RELEASE_S + RELEASE_TIMEOUT_S + 4.0
"""For so long after a fault of the GPUs a switch may fail by it."""

_MEMORY_CALL = "nvmlDeviceGetMemoryInfo_v2"


class Machine:
    """A simulated driver with its GPUs, a foreign tenant, and the book of what was taken."""

    def __init__(self, setting: Setting) -> None:
        self._book = setting.work_dir / "taken.jsonl"
        self._came: list[tuple[float, int]] = []
        self.count = setting.devices
        folder = setting.work_dir / "gpus"
        folder.mkdir()
        self._gpu = SimulatedGpu(folder, total_bytes=(TOTAL_BYTES,) * self.count)
        self.llama_server = folder / "llama-server"
        write_gpu_server(self.llama_server, setting.llama_server)
        become_subreaper()
        self._tenant = subprocess.Popen(
            ("sleep", "infinity"),
            preexec_fn=die_with_runner,  # noqa: PLW1509 - nothing else runs yet
        )

    @property
    def environment(self) -> dict[str, str]:
        """What the controller and its servers are given to find the driver."""
        return {
            **self._gpu.environment(),
            "VRAM_BOOK": str(self._book),
            "VRAM_FLOOR_BYTES": str(1 << 20),
            "LLAMA_SERVER_BIN": str(self.llama_server),
        }

    async def strike(self, weapon: Weapon, device: int, for_s: float, pids: Sequence[int]) -> None:
        """Do what a weapon does to the driver or a device. `pids`: the controller, its servers."""
        match weapon:
            case Weapon.DRIVER_HANGS:
                self._gpu.hang(_MEMORY_CALL)
            case Weapon.GPU_LOST:
                self._gpu.lose(device)
            case Weapon.SAMPLER_KILL:
                _kill_sampler(pids[0])
            case Weapon.TENANT:
                self._came.append((time.time(), device))
                self._gpu.allocate(self._tenant.pid, self._room(device), device)
            case Weapon.LATE_RELEASE:
                self._hold_back(pids[1:])
        await asyncio.sleep(for_s)
        if weapon is Weapon.TENANT:
            self._gpu.remove_process(self._tenant.pid)
        elif weapon in {Weapon.DRIVER_HANGS, Weapon.GPU_LOST}:
            self._gpu.heal()

    def holders(self, device: int) -> set[int]:
        """Return the processes that hold memory of a device, dead or alive.

        Those that a killed controller left are reaped, as a machine's first process would at once.
        """
        found = {process.pid for process in self._gpu.devices[device].processes if process.pid}
        for pid in found - {self._tenant.pid}:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        return found

    def starved(self) -> list[Fault]:
        """Return the servers that a tenant which came just before left no room; they ended."""
        return [
            Fault(at=taken.at, weapon=Weapon.TENANT, pid=taken.pid, aimed_at="a start")
            for taken in read_book(self._book)
            if not taken.had_room and self._is_excused(taken)
        ]

    def overcommitted(self) -> Iterator[tuple[float, str]]:
        """Yield the starts for which a device had no room, though nobody came just before."""
        for taken in read_book(self._book):
            if not taken.had_room and not self._is_excused(taken):
                yield taken.at, f"a server was started without room: {taken}"

    def starts(self) -> int:
        """How many shares were taken."""
        return len(read_book(self._book))

    def close(self) -> None:
        """End the tenant."""
        with self._tenant:
            self._tenant.kill()

    def _is_excused(self, taken: Taken) -> bool:
        return any(
            device == taken.device and at <= taken.at <= at + JUST_NOW_S
            for at, device in self._came
        )

    def _room(self, device: int) -> int:
        """What the tenant can take: a driver gives nobody more than there is."""
        return max(0, min(TENANT_BYTES, TOTAL_BYTES - self._gpu.used_bytes(device)))

    def _hold_back(self, pids: Sequence[int]) -> None:
        """Let what these hold be given back late, when they end."""
        for device in range(self.count):
            for process in self._gpu.devices[device].processes:
                if process.pid in pids:
                    process.release_after_s = LATE_RELEASE_S


def _kill_sampler(controller_pid: int) -> None:
    """Kill what reads the driver for the controller."""
    with contextlib.suppress(psutil.Error, OSError):
        for child in psutil.Process(controller_pid).children():
            if "supervisor.telemetry.sampler" in child.cmdline():
                os.kill(child.pid, signal.SIGKILL)


def refused_for_nothing(
    runs: Iterable[SwitchRun], faults: Sequence[Fault]
) -> Iterator[tuple[float, str]]:
    """Yield the switches that failed for want of memory, though nothing of ours had taken it."""
    hindered = [fault.at for fault in faults if fault.weapon in OF_GPUS]
    for run in runs:
        is_of_memory = any(words in run.reason for words in _OF_MEMORY)
        if is_of_memory and not any(at <= run.ended_at <= at + _HINDERED_S for at in hindered):
            yield run.ended_at, f"{run.model} was refused for nothing: {run.reason}"


def environment_of(machine: Machine | None, llama_server: Path) -> dict[str, str]:
    """Return what a controller is given: with GPUs, the servers that take their memory."""
    return machine.environment if machine else {"LLAMA_SERVER_BIN": str(llama_server)}
