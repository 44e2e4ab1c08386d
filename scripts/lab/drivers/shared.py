"""What the simulated drivers share: faults, and processes whose memory is given back late.

A driver is a C library that is loaded through the vendor's real bindings. What it answers stands
in a mapped file, so that a change is seen by every process at once.
"""

import ctypes
import fcntl
import mmap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any, TypeVar

FAKES = Path(__file__).parent
ANY_DEVICE = -1
NOT_AVAILABLE = 2**64 - 1
NEVER_S = inf
GIB = 1024**3
C_FLAGS = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{FAKES}")

State = TypeVar("State", bound=ctypes.Structure)


class ProcessState(ctypes.Structure):
    """`struct process` of fake_driver.h."""

    _fields_ = (
        ("used_bytes", ctypes.c_uint64),
        ("release_after_s", ctypes.c_double),
        ("died_at", ctypes.c_double),
        ("pid", ctypes.c_uint32),
        ("release_steps", ctypes.c_uint32),
        ("is_counted", ctypes.c_uint32),
        ("listed_as", ctypes.c_uint32),
    )


class FaultState(ctypes.Structure):
    """`struct fault` of fake_driver.h."""

    _fields_ = (
        ("call", ctypes.c_char * 64),
        ("device", ctypes.c_int32),
        ("result", ctypes.c_int32),
        ("is_hung", ctypes.c_uint32),
    )


class SimulatedDriver:
    """A machine's driver. Devices are named by position; `state` holds what it answers."""

    state: Any
    file: Path

    @property
    def devices(self) -> Any:
        """The devices' raw state, to be changed at will."""
        return self.state.devices

    def set_used(self, used_bytes: int, device: int = 0) -> None:
        """Set what is used by others than those who `allocate`."""
        self.devices[device].used_bytes = used_bytes

    def add_process(self, pid: int, used_bytes: int | None, device: int = 0) -> None:
        """List a process; its memory is part of `set_used`. None: the figure is not available."""
        self._place(pid, NOT_AVAILABLE if used_bytes is None else used_bytes, device)

    def allocate(  # noqa: PLR0913 - what becomes of its memory
        self,
        pid: int,
        used_bytes: int,
        device: int = 0,
        *,
        release_after_s: float = 0.0,
        release_steps: int = 1,
        listed_as: int = 0,
    ) -> None:
        """Let a process hold memory until so long after its death, which it need not announce.

        The time counts from when somebody first asks after the process was reaped. In
        `release_steps` equal steps; NEVER_S keeps it for good. `listed_as` is the process id that
        the driver tells instead of its own.
        """
        self._place(
            pid,
            used_bytes,
            device,
            is_counted=1,
            release_after_s=release_after_s,
            release_steps=release_steps,
            listed_as=listed_as,
        )

    def resize(self, pid: int, used_bytes: int, device: int = 0) -> None:
        """Let a process that called `allocate` hold so much from now on."""
        with self._locked():
            for process in self.devices[device].processes:
                if process.pid == pid:
                    process.used_bytes = used_bytes

    def held_bytes(self, pid: int, device: int = 0) -> int:
        """Look up in the books what a process that called `allocate` holds still, now."""
        with self._locked():
            held = [
                self._still_held(process)
                for process in self.devices[device].processes
                if process.pid == pid
            ]
        return sum(held)

    def used_bytes(self, device: int = 0) -> int:
        """Look up in the books what is really used, whatever the driver's calls say."""
        with self._locked():
            counted = [p for p in self.devices[device].processes if p.pid and p.is_counted]
            held = sum(self._still_held(process) for process in counted)
        return int(self.devices[device].used_bytes) + held

    @staticmethod
    def _still_held(process: Any) -> int:
        if process.died_at == 0 and not Path(f"/proc/{process.pid}").exists():
            process.died_at = time.monotonic()  # as the driver does when it is asked
        if process.died_at == 0:
            return int(process.used_bytes)
        gone_s = time.monotonic() - process.died_at
        if gone_s >= process.release_after_s:
            return 0
        done = int(gone_s / process.release_after_s * process.release_steps)
        return int(process.used_bytes * (1 - done / process.release_steps))

    def remove_process(self, pid: int) -> None:
        """Forget a process on every device, and what it allocated."""
        with self._locked():
            for device in self.devices:
                for process in device.processes:
                    if process.pid == pid:
                        process.pid = 0

    def fail(self, call: str, code: int, device: int = ANY_DEVICE) -> None:
        """Let a call of the library (`*`: every one) return this error code."""
        self._add_fault(call, device, result=code)

    def hang(self, call: str, device: int = ANY_DEVICE) -> None:
        """Let a call of the library return no more, until `heal`."""
        self._add_fault(call, device, is_hung=1)

    def heal(self) -> None:
        """End every fault; calls that hang return."""
        with self._locked():
            for fault in self.state.faults:
                fault.call, fault.is_hung, fault.result = b"", 0, 0

    def _place(self, pid: int, used_bytes: int, device: int, **fields: float) -> None:
        with self._locked():
            place = next(p for p in self.devices[device].processes if p.pid == 0)
            ctypes.memset(ctypes.byref(place), 0, ctypes.sizeof(place))
            place.used_bytes = used_bytes
            for name, value in fields.items():
                setattr(place, name, value)
            place.pid = pid

    def _add_fault(self, call: str, device: int, *, result: int = 0, is_hung: int = 0) -> None:
        with self._locked():
            place = next(fault for fault in self.state.faults if not fault.call)
            place.device, place.result, place.is_hung = device, result, is_hung
            place.call = call.encode()  # last: it is what makes the driver look at the others

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from changing the same places."""
        with self.file.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def create_state(file: Path, kind: type[State]) -> State:
    """Make the file, all zero, and map it."""
    file.write_bytes(bytes(ctypes.sizeof(kind)))
    return map_state(file, kind)


def map_state(file: Path, kind: type[State]) -> State:
    """Map a file that is there."""
    with file.open("r+b") as opened:
        return kind.from_buffer(mmap.mmap(opened.fileno(), 0))
