"""A machine with a simulated NVIDIA driver, whose state tests and test children change.

The driver is a shared library (fake_nvml.c) that is loaded through the real `pynvml`. What it
answers stands in a mapped file, so that a change is seen by every process at once:

    gpu = SimulatedGpu(tmp_path)                  # builds the library and two idle GPUs
    start_something(env=os.environ | gpu.environment())
    gpu.allocate(child.pid, 8 * GIB, release_after_s=1.5)   # given back 1.5 s after its death
    gpu.hang("nvmlDeviceGetMemoryInfo_v2")
    gpu.heal()

A child that was started with `environment()` reaches the same machine with
`SimulatedGpu.attached()`.
"""

import ctypes
import fcntl
import mmap
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any, Self

SOURCE = Path(__file__).with_name("fake_nvml.c")
LIBRARY_NAME = "libnvidia-ml.so.1"
STATE_VARIABLE = "SIMULATED_GPU_STATE"
ANY_DEVICE = -1
NOT_AVAILABLE = 2**64 - 1
NEVER_S = inf
GIB = 1024**3
_VISIBILITY = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")


class ProcessState(ctypes.Structure):
    """`struct process` of fake_nvml.c."""

    _fields_ = (
        ("used_bytes", ctypes.c_uint64),
        ("release_after_s", ctypes.c_double),
        ("died_at", ctypes.c_double),
        ("pid", ctypes.c_uint32),
        ("release_steps", ctypes.c_uint32),
        ("is_counted", ctypes.c_uint32),
    )


class DeviceState(ctypes.Structure):
    """`struct device` of fake_nvml.c."""

    _fields_ = (
        ("uuid", ctypes.c_char * 96),
        ("name", ctypes.c_char * 96),
        ("total_bytes", ctypes.c_uint64),
        ("reserved_bytes", ctypes.c_uint64),
        ("used_bytes", ctypes.c_uint64),
        ("is_mig_enabled", ctypes.c_uint32),
        ("mig_parent", ctypes.c_int32),
        ("utilisation_percent", ctypes.c_uint32),
        ("temperature_c", ctypes.c_uint32),
        ("power_mw", ctypes.c_uint32),
        ("processes", ProcessState * 16),
    )


class FaultState(ctypes.Structure):
    """`struct fault` of fake_nvml.c."""

    _fields_ = (
        ("call", ctypes.c_char * 64),
        ("device", ctypes.c_int32),
        ("result", ctypes.c_int32),
        ("is_hung", ctypes.c_uint32),
    )


class MachineState(ctypes.Structure):
    """`struct state` of fake_nvml.c."""

    _fields_ = (
        ("device_count", ctypes.c_uint32),
        ("shutdown_count", ctypes.c_uint32),
        ("faults", FaultState * 16),
        ("devices", DeviceState * 4),
    )


def build_library(folder: Path, *flags: str) -> Path:
    """Compile the driver into the folder; -DWITHOUT_MEMORY_V2 makes one from before 2022."""
    library = folder / LIBRARY_NAME
    common = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror")
    subprocess.run(["cc", *common, *flags, "-o", library, SOURCE], check=True)
    return library


class SimulatedGpu:
    """The machine. Devices are named by position; without faults they are two idle H200."""

    def __init__(
        self, folder: Path, *, library: Path | None = None, total_bytes: tuple[int, ...] = ()
    ) -> None:
        self._library = library or build_library(folder)
        self._file = folder / "simulated-gpu-state"
        self._file.write_bytes(bytes(ctypes.sizeof(MachineState)))
        self.state = _map(self._file)
        totals = total_bytes or (100 * GIB, 200 * GIB)
        for device in self.devices:
            device.mig_parent = -1
        for index, total in enumerate(totals):
            device = self.devices[index]
            device.uuid = f"GPU-{index}000aaaa-0000".encode()
            device.name = b"NVIDIA H200"
            device.total_bytes = total
            device.temperature_c = 30
            device.power_mw = 75_000
        self.state.device_count = len(totals)

    @classmethod
    def attached(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Reach the machine that this process was started with."""
        gpu = cls.__new__(cls)
        gpu._file = Path(environ[STATE_VARIABLE])
        gpu.state = _map(gpu._file)
        return gpu

    @property
    def devices(self) -> Any:
        """The devices' raw state, to be changed at will."""
        return self.state.devices

    def environment(self) -> dict[str, str]:
        """Give the variables with which a process finds this driver."""
        path = f"{self._library.parent}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":")
        return {"LD_LIBRARY_PATH": path, STATE_VARIABLE: str(self._file)}

    def full_environment(self, **variables: str) -> dict[str, str]:
        """Give this process's environment with this driver, and only `variables` of visibility."""
        inherited = {name: os.environ[name] for name in os.environ if name not in _VISIBILITY}
        return inherited | self.environment() | variables

    def set_used(self, used_bytes: int, device: int = 0) -> None:
        """Set what is used by others than those who `allocate`."""
        self.devices[device].used_bytes = used_bytes

    def add_process(self, pid: int, used_bytes: int | None, device: int = 0) -> None:
        """List a process; its memory is part of `set_used`. None: the figure is not available."""
        self._place(pid, NOT_AVAILABLE if used_bytes is None else used_bytes, device)

    def allocate(
        self,
        pid: int,
        used_bytes: int,
        device: int = 0,
        *,
        release_after_s: float = 0.0,
        release_steps: int = 1,
    ) -> None:
        """Let a process hold memory until so long after its death, which it need not announce.

        The time counts from when the driver is first asked after the process was reaped. In
        `release_steps` equal steps; NEVER_S keeps it for good.
        """
        self._place(
            pid,
            used_bytes,
            device,
            is_counted=1,
            release_after_s=release_after_s,
            release_steps=release_steps,
        )

    def remove_process(self, pid: int) -> None:
        """Forget a process on every device, and what it allocated."""
        with self._locked():
            for device in self.devices:
                for process in device.processes:
                    if process.pid == pid:
                        process.pid = 0

    def fail(self, call: str, code: int, device: int = ANY_DEVICE) -> None:
        """Let an NVML call (`*`: every one) return this error code."""
        self._add_fault(call, device, result=code)

    def hang(self, call: str, device: int = ANY_DEVICE) -> None:
        """Let an NVML call return no more, until `heal`."""
        self._add_fault(call, device, is_hung=1)

    def lose(self, device: int) -> None:
        """Let a device fall off the bus."""
        self.fail("*", 15, device)  # NVML_ERROR_GPU_IS_LOST

    def heal(self) -> None:
        """End every fault; calls that hang return."""
        with self._locked():
            for fault in self.state.faults:
                fault.call, fault.is_hung, fault.result = b"", 0, 0

    def split(self, device: int, *total_bytes: int, profile: str = "3g.71gb") -> None:
        """Put a GPU into MIG mode with devices of these sizes; its own memory is refused then."""
        self.devices[device].is_mig_enabled = 1
        for call in ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMemoryInfo_v2"):
            self.fail(call, 4, device)  # NVML_ERROR_NO_PERMISSION
        first = self.state.device_count
        for index, total in enumerate(total_bytes):
            part = self.devices[first + index]
            part.uuid = f"MIG-{index}000bbbb-0000".encode()
            part.name = f"NVIDIA H200 MIG {profile}".encode()
            part.total_bytes = total
            part.mig_parent = device

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
        with self._file.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _map(file: Path) -> MachineState:
    with file.open("r+b") as opened:
        return MachineState.from_buffer(mmap.mmap(opened.fileno(), 0))
