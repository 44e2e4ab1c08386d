"""A machine with a simulated AMD driver, whose state tests and test children change.

The driver is a shared library (fake_amdsmi.c) that is loaded through the real `amdsmi`. That
package looks up about 180 symbols when it is imported; those that we do not call are stubs,
generated from its source, which answer that the call is not supported:

    amd = SimulatedAmd(tmp_path)                  # builds the library and two idle cards
    start_something(env=os.environ | amd.environment())
    amd.allocate(child.pid, 8 * GIB, release_after_s=1.5)   # given back 1.5 s after its death
    amd.make_apu(0, carve_out_bytes=2 * GIB, gtt_bytes=32 * GIB)
    amd.hang("amdsmi_get_gpu_memory_usage")
    amd.heal()

A child that was started with `environment()` reaches the same machine with
`SimulatedAmd.attached()`.
"""

import ctypes
import importlib.util
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from lab.drivers.shared import (
    C_FLAGS,
    FAKES,
    GIB,
    FaultState,
    ProcessState,
    SimulatedDriver,
    create_state,
    map_state,
)

MEMORY_CALL = "amdsmi_get_gpu_memory_usage"
LIBRARY_NAME = "libamd_smi.so"
STATE_VARIABLE = "SIMULATED_AMD_STATE"
NOT_TOLD_16 = 2**16 - 1
NOT_TOLD_32 = 2**32 - 1

# amdsmi_status_t of amdsmi.h
NOT_SUPPORTED = 2
NO_PERM = 10
UNKNOWN_ERROR = -1

_OURS = ("ROCM_HOME", "ROCM_PATH", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_SHARED = ("CUDA_VISIBLE_DEVICES",)
_BOUND = re.compile(r"_libraries\['libamd_smi\.so'\]\.(\w+)")


class DeviceState(ctypes.Structure):
    """`struct device` of fake_amdsmi.c."""

    _fields_ = (
        ("name", ctypes.c_char * 96),
        ("uuid", ctypes.c_char * 96),
        ("serial", ctypes.c_uint64),
        ("total_bytes", ctypes.c_uint64),
        ("used_bytes", ctypes.c_uint64),
        ("gtt_total_bytes", ctypes.c_uint64),
        ("gtt_used_bytes", ctypes.c_uint64),
        ("metrics_format", ctypes.c_uint32),
        ("hip_id", ctypes.c_uint32),
        ("render_minor", ctypes.c_uint32),
        ("utilisation_percent", ctypes.c_uint32),
        ("edge_c", ctypes.c_uint32),
        ("hotspot_c", ctypes.c_uint32),
        ("current_power_w", ctypes.c_uint32),
        ("average_power_w", ctypes.c_uint32),
        ("processes", ProcessState * 16),
    )


class MachineState(ctypes.Structure):
    """`struct state` of fake_amdsmi.c."""

    _fields_ = (
        ("device_count", ctypes.c_uint32),
        ("shutdown_count", ctypes.c_uint32),
        ("faults", FaultState * 16),
        ("devices", DeviceState * 4),
    )


def bound_symbols() -> list[str]:
    """Name the symbols that the installed bindings look up in the library."""
    package = importlib.util.find_spec("amdsmi")
    assert package is not None
    assert package.origin is not None
    wrapper = Path(package.origin).with_name("amdsmi_wrapper.py")
    return sorted(set(_BOUND.findall(wrapper.read_text())))


def build_library(folder: Path, *, without: tuple[str, ...] = ()) -> Path:
    """Compile the driver into the folder's `lib`; one `without` some stubs is of another release.

    The stubs are weak, so that what fake_amdsmi.c defines takes their place.
    """
    library = folder / "lib" / LIBRARY_NAME
    library.parent.mkdir(parents=True)
    stub = f"__attribute__((weak)) int %s(void) {{ return {NOT_SUPPORTED}; }}\n"
    stubs = folder / "stubs.c"
    stubs.write_text("".join(stub % name for name in bound_symbols() if name not in without))
    sources = (FAKES / "fake_amdsmi.c", stubs)
    subprocess.run(["cc", *C_FLAGS, "-o", library, *sources], check=True)
    return library


class SimulatedAmd(SimulatedDriver):
    """The machine. Devices are named by position; without faults they are two idle MI210."""

    def __init__(
        self, folder: Path, *, library: Path | None = None, total_bytes: tuple[int, ...] = ()
    ) -> None:
        self._library = library or build_library(folder / "rocm")
        self.file = folder / "simulated-amd-state"
        self.state = create_state(self.file, MachineState)
        totals = total_bytes or (64 * GIB, 48 * GIB)
        for index, total in enumerate(totals):
            device = self.devices[index]
            device.name = b"AMD Instinct MI210"
            device.uuid = f"{index}0ff740f-0000-1000-80a8-c54d00000000".encode()
            device.serial = 0xA1 + index
            device.total_bytes = total
            device.gtt_total_bytes = 2 * total  # as on a host with much memory
            device.metrics_format = 1
            device.hip_id = index
            device.render_minor = NOT_TOLD_32
            device.edge_c, device.hotspot_c = 30, 35
            device.current_power_w, device.average_power_w = NOT_TOLD_16, 41
        self.state.device_count = len(totals)

    @classmethod
    def attached(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Reach the machine that this process was started with."""
        amd = cls.__new__(cls)
        amd.file = Path(environ[STATE_VARIABLE])
        amd.state = map_state(amd.file, MachineState)
        return amd

    def environment(self) -> dict[str, str]:
        """Give the variables with which a process finds this driver."""
        return {"ROCM_PATH": str(self._library.parents[1]), STATE_VARIABLE: str(self.file)}

    def full_environment(self, **variables: str) -> dict[str, str]:
        """Give this process's environment with this driver, and only `variables` of visibility."""
        dropped = (*_OURS, *_SHARED)
        inherited = {name: os.environ[name] for name in os.environ if name not in dropped}
        return inherited | self.environment() | variables

    def lose(self, device: int) -> None:
        """Let a device fall off the bus."""
        self.fail("*", UNKNOWN_ERROR, device)

    def make_apu(self, device: int, *, carve_out_bytes: int, gtt_bytes: int) -> None:
        """Turn a card into an APU, whose processes hold GTT."""
        apu = self.devices[device]
        apu.name = b"AMD Radeon 8060S"
        apu.metrics_format = 3
        apu.total_bytes, apu.gtt_total_bytes = carve_out_bytes, gtt_bytes
        apu.hotspot_c = 0
