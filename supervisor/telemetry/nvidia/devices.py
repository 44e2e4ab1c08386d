"""The devices that NVML knows: GPUs, and in their place the MIG devices of those in MIG mode."""

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pynvml

from supervisor.errors import TelemetryError
from supervisor.telemetry.nvidia.faults import explained

# NVML has no question for "integrated", so the parts are known by name.
_INTEGRATED_PARTS = re.compile(r"\b(GB10|Thor|Orin|Xavier|Tegra|Jetson|nvgpu)\b", re.IGNORECASE)

_MIG_PROFILE = re.compile(r"\bMIG (\S+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaDevice:
    """A GPU or a MIG device. `fault` is set instead of the handle where NVML refuses it.

    `index` is that of the GPU in NVML's order, which is the order of the PCI bus. `mig_profile`
    is like `3g.71gb`.
    """

    handle: Any
    index: int
    uuid: str
    name: str
    pci_id: str | None = None
    mig_profile: str | None = None
    is_mig: bool = False
    is_integrated: bool = False
    fault: TelemetryError | None = None


def enumerate_devices() -> list[NvidiaDevice]:
    """List every device that NVML counts.

    One that cannot be described keeps its place with its fault, so that the others keep their
    indices and work on.
    """
    found: list[NvidiaDevice] = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        name = f"NVIDIA device {index}"
        try:
            with explained(f"use {name}"):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                if _is_mig_enabled(handle):
                    found += _mig_devices(handle, index)
                else:
                    found.append(_identify(handle, index, _read_pci_id(handle)))
        except TelemetryError as exc:
            found.append(NvidiaDevice(handle=None, index=index, uuid="", name=name, fault=exc))
    return found


def _identify(handle: Any, index: int, pci_id: str | None, *, is_mig: bool = False) -> NvidiaDevice:
    name = pynvml.nvmlDeviceGetName(handle)
    profile = _MIG_PROFILE.search(name) if is_mig else None
    return NvidiaDevice(
        handle=handle,
        index=index,
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=name,
        pci_id=pci_id,
        mig_profile=profile[1] if profile else None,
        is_mig=is_mig,
        is_integrated=_INTEGRATED_PARTS.search(name) is not None,
    )


def _read_pci_id(handle: Any) -> str | None:
    with suppress(pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        place = pynvml.nvmlDeviceGetPciInfo(handle)
        return f"{place.domain:04x}:{place.bus:02x}:{place.device:02x}.0"
    return None  # a GPU that is part of the processor, on no bus


def _is_mig_enabled(handle: Any) -> bool:
    try:
        current, _pending = pynvml.nvmlDeviceGetMigMode(handle)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return False
    return bool(current == pynvml.NVML_DEVICE_MIG_ENABLE)


def _mig_devices(parent: Any, parent_index: int) -> list[NvidiaDevice]:
    """List the MIG devices of a GPU; the GPU itself refuses to report its memory."""
    pci_id = _read_pci_id(parent)
    devices: list[NvidiaDevice] = []
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(parent)):
        with suppress(pynvml.NVMLError_NotFound):  # places without a device are left out
            handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(parent, index)
            devices.append(_identify(handle, parent_index, pci_id, is_mig=True))
    return devices
