"""Servers and tenants that only hold memory of two simulated GPUs, each in a process of its own.

Each is a `sleep` that the driver lists, so that thousands of switches take a minute. A server that
is parked is that still, of which the driver lists less.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lab.drivers.amd import SimulatedAmd
from lab.drivers.nvidia import GIB, SimulatedGpu

from supervisor.core.byte_size import MIB
from supervisor.core.machine.values import Park, Stop, Target
from supervisor.engine.servers.parking import NotParked
from supervisor.engine.servers.process import ProcessExit
from tests.launches import launch_of

GPUS = ("gpu0", "gpu1")
TOTAL_BYTES = 100 * GIB  # of each
KEPT_BYTES = 512 * MIB  # of each GPU, by a server that is parked
PARKED_HOST_BYTES = 64 * MIB

Driver = SimulatedGpu | SimulatedAmd


class Holder:
    """A process that does nothing but be there; with `leaves` another one of its session."""

    def __init__(self, *, leaves: bool = False) -> None:
        both = ("sh", "-c", "sleep 600 >&- 2>&- & echo $!; exec sleep 600")
        self._popen = subprocess.Popen(
            both if leaves else ("sleep", "600"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._popen.stdout is not None
        self.left_pid = int(self._popen.stdout.readline()) if leaves else None
        self.pid = self._popen.pid
        self.last_lines: list[str] = []

    @property
    def is_alive(self) -> bool:
        return self._popen.returncode is None

    def end(self) -> None:
        with self._popen:
            self._popen.kill()

    def end_what_it_left(self) -> int | None:
        """Give the process id of what it was, if there was any."""
        left_pid, self.left_pid = self.left_pid, None
        if left_pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(left_pid, signal.SIGKILL)
        return left_pid


@dataclass(slots=True, kw_only=True)
class NextStart:
    """What the servers that are started next will be like."""

    share: float = 1.0
    """Of its need that a server really takes."""
    left_bytes: int = 0
    failing: str | None = None
    """The model that cannot be started."""


@dataclass(slots=True, kw_only=True)
class Sleep:
    """How servers are parked and unparked now."""

    after_s: float = 0.0
    """From when one is told to until its memory is free, which it does not wait for."""
    fault: str | None = None
    """`cannot sleep`, `keeps all` or `cannot wake`."""


class HoldingBackend:
    """What the arbiter reads of a backend, over a process that holds memory."""

    host_bytes = PARKED_HOST_BYTES

    def __init__(
        self,
        target: Target,
        epoch: int,
        process: Holder,
        gpu: Driver,
        *,
        on_waking: Callable[["HoldingBackend"], None],
    ) -> None:
        self.launch = launch_of(target, epoch)
        self.target, self.model, self.epoch, self.process = target, target.model, epoch, process
        self.is_gone = asyncio.Event()
        self.prompts_saved = self.prompts_restored = None
        self.sleep = Sleep()
        self._gpu, self._held, self._on_waking = gpu, dict[int, int](), on_waking
        self._falling_asleep: asyncio.TimerHandle | None = None
        self._ended: asyncio.Future[ProcessExit] = asyncio.get_running_loop().create_future()

    def held_bytes(self, device: int) -> int:
        """What the driver's books say."""
        return self._gpu.held_bytes(self.process.pid, device)

    async def become_ready(self, timeout_s: float) -> None:
        _ = timeout_s

    async def wait(self) -> ProcessExit:
        return await asyncio.shield(self._ended)

    async def give_up_memory(self, how: Stop | Park, on_begun: Callable[[], None]) -> None:
        on_begun()
        if isinstance(how, Stop):
            self.end()
            await self.wait()
        elif self.sleep.fault == "cannot sleep":
            raise NotParked("it was to fail")
        else:
            self._held = {device: self.held_bytes(device) for device in range(len(GPUS))}
            if self.sleep.fault != "keeps all":
                loop = asyncio.get_running_loop()
                self._falling_asleep = loop.call_later(self.sleep.after_s, self._fall_asleep)

    def _fall_asleep(self) -> None:
        for device, held_bytes in self._held.items():
            self._gpu.resize(self.process.pid, min(KEPT_BYTES, held_bytes), device)

    async def take_memory_back(self) -> None:
        if self.sleep.fault == "cannot wake":
            self.end()
            await self.is_gone.wait()
        if self._falling_asleep is not None:
            self._falling_asleep.cancel()
        self._on_waking(self)
        for device, held_bytes in self._held.items():
            others_bytes = self._gpu.used_bytes(device) - self.held_bytes(device)
            room_bytes = max(0, TOTAL_BYTES - others_bytes)
            self._gpu.resize(self.process.pid, min(held_bytes, room_bytes), device)

    def end(self) -> None:
        if not self._ended.done():
            if self._falling_asleep is not None:
                self._falling_asleep.cancel()
            self.process.end()
            self._ended.set_result(ProcessExit(exit_code=None, signal=9))


class Tenant:
    """A foreign process that holds memory of one GPU, more or less of it."""

    def __init__(self, gpu: Driver, device: int) -> None:
        self._gpu, self._device = gpu, device
        self._process = Holder()
        self.pid = self._process.pid
        gpu.allocate(self.pid, 0, device)
        self._held_from: list[tuple[float, int]] = [(0.0, 0)]
        self.most_bytes = 0
        """The most that it has held since that was set to what it holds."""
        self.most_ever_bytes = 0

    @property
    def held_bytes(self) -> int:
        return self._gpu.held_bytes(self.pid, self._device)

    def hold(self, wanted_bytes: int) -> None:
        """Hold so much, or as much as there is room for."""
        held_bytes = self.held_bytes
        room_bytes = TOTAL_BYTES - self._gpu.used_bytes(self._device) + held_bytes
        entry_of(self._gpu, self.pid, self._device).used_bytes = max(
            0, min(wanted_bytes, room_bytes)
        )
        self._held_from.append((time.monotonic(), self.held_bytes))
        self.most_bytes = max(self.most_bytes, self.held_bytes)
        self.most_ever_bytes = max(self.most_ever_bytes, self.held_bytes)

    def taken_since(self, at: float) -> int:
        """What it holds that nobody knows of who has read the device then, and not since."""
        before = [held_bytes for since, held_bytes in self._held_from if since <= at]
        return max(0, self.held_bytes - before[-1])

    def end(self) -> None:
        self._process.end()


def entry_of(gpu: Driver, pid: int, device: int) -> Any:
    """The driver's own line on a process that holds memory of a device."""
    return next(p for p in gpu.devices[device].processes if p.pid == pid)
