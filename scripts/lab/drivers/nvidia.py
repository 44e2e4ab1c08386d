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
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from lab.drivers.shared import (
    C_FLAGS,
    FAKES,
    GIB,
    NEVER_S,
    FaultState,
    ProcessState,
    SimulatedDriver,
    create_state,
    map_state,
)

__all__ = ["GIB", "NEVER_S", "DeviceState", "SimulatedGpu", "build_library"]

LIBRARY_NAME = "libnvidia-ml.so.1"
STATE_VARIABLE = "SIMULATED_GPU_STATE"
_VISIBILITY = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")


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
    subprocess.run(["cc", *C_FLAGS, *flags, "-o", library, FAKES / "fake_nvml.c"], check=True)
    return library


class SimulatedGpu(SimulatedDriver):
    """The machine. Devices are named by position; without faults they are two idle H200."""

    def __init__(
        self, folder: Path, *, library: Path | None = None, total_bytes: tuple[int, ...] = ()
    ) -> None:
        self._library = library or build_library(folder)
        self.file = folder / "simulated-gpu-state"
        self.state = create_state(self.file, MachineState)
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
        gpu.file = Path(environ[STATE_VARIABLE])
        gpu.state = map_state(gpu.file, MachineState)
        return gpu

    def environment(self) -> dict[str, str]:
        """Give the variables with which a process finds this driver."""
        path = f"{self._library.parent}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":")
        return {"LD_LIBRARY_PATH": path, STATE_VARIABLE: str(self.file)}

    def full_environment(self, **variables: str) -> dict[str, str]:
        """Give this process's environment with this driver, and only `variables` of visibility."""
        inherited = {name: os.environ[name] for name in os.environ if name not in _VISIBILITY}
        return inherited | self.environment() | variables

    def lose(self, device: int) -> None:
        """Let a device fall off the bus."""
        self.fail("*", 15, device)  # NVML_ERROR_GPU_IS_LOST

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
