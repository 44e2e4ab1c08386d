"""NVIDIA devices through NVML, which makes no CUDA context and so costs no device memory."""

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pynvml

from supervisor.core.memory import MemorySample
from supervisor.errors import TelemetryError
from supervisor.telemetry.host import MachineMemory, read_machine_memory
from supervisor.telemetry.port import DeviceInfo, VendorAbsentError
from supervisor.telemetry.visible_devices import select_visible

# NVML has no question for "integrated", so the parts are known by name.
_INTEGRATED_PARTS = re.compile(r"\b(GB10|Thor|Orin|Xavier|Tegra|Jetson|nvgpu)\b", re.IGNORECASE)

_SEE_ALSO = "see `nvidia-smi` and the kernel log (NVRM, Xid)"

_EXPLANATIONS: Mapping[int, str] = {
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (
        "the NVIDIA kernel driver is not loaded; load it (`modprobe nvidia`), or start the "
        "container with access to the GPU"
    ),
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "the driver's library and its kernel module have different versions, as after an update "
        "of the running system; reboot the node, or restart the pod if the node was rebooted"
    ),
    pynvml.NVML_ERROR_UNKNOWN: (
        "the driver gave an unknown error, as it does in a container that lost its devices when "
        "the host's systemd was reloaded; restart the container, and if that does not help "
        f"{_SEE_ALSO}"
    ),
    pynvml.NVML_ERROR_GPU_IS_LOST: (
        "the GPU is lost: it has fallen off the bus; reboot the node or reset the GPU, and "
        f"{_SEE_ALSO}"
    ),
    pynvml.NVML_ERROR_RESET_REQUIRED: (
        "the GPU needs a reset; stop what uses it and run `nvidia-smi --gpu-reset`"
    ),
    pynvml.NVML_ERROR_NO_PERMISSION: (
        "permission denied; give this user access to /dev/nvidiactl and /dev/nvidia*, and on a "
        "GPU in MIG mode name the MIG device in CUDA_VISIBLE_DEVICES"
    ),
}

# A driver older than 510 knows only the first version of the memory question.
_NO_SECOND_VERSION = (
    pynvml.NVMLError_FunctionNotFound,
    pynvml.NVMLError_ArgumentVersionMismatch,
    pynvml.NVMLError_InvalidArgument,
    pynvml.NVMLError_NotSupported,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Device:
    """A GPU or a MIG device. `fault` is set instead of the handle where NVML refuses it."""

    handle: Any
    uuid: str
    name: str
    is_mig: bool = False
    fault: TelemetryError | None = None


class NvidiaMemory:
    """Reads NVIDIA devices; a GPU in MIG mode appears as its MIG devices.

    `environment` says which devices are visible, `root` is where /dev is looked for, and
    `machine_memory` answers for devices that share the host's memory.
    """

    vendor: ClassVar[str] = "NVIDIA"
    answers_at_once: ClassVar[bool] = False

    def __init__(
        self,
        environment: Mapping[str, str] = os.environ,
        *,
        root: Path = Path("/"),
        machine_memory: Callable[[], MachineMemory] = read_machine_memory,
    ) -> None:
        self._environment = environment
        self._control_node = root / "dev/nvidiactl"
        self._machine_memory = machine_memory
        self._is_open = False
        self._devices: dict[str, _Device] = {}

    def devices(self) -> tuple[DeviceInfo, ...]:
        """List the visible devices as `gpu0`, `gpu1`, …, opening NVML where needed."""
        self._open()
        with _explained("list the NVIDIA devices"):
            found = _enumerate()
        visible = select_visible([device.uuid for device in found], self._environment)
        self._devices = {f"gpu{i}": found[position] for i, position in enumerate(visible)}
        return tuple(self._describe(device) for device in self._devices)

    def read(self, device: str, *, taken_at: float, child_pids: Collection[int]) -> MemorySample:
        """Read one device; where it shares the host's memory, MemAvailable is the truth.

        NVML's own figures count the page cache as used on such devices, or are refused. The
        bounds of a memory cgroup do not apply: the driver's allocations are not charged to it.
        """
        found = self._find(device)
        with _explained(f"read the memory of {found.name} ({found.uuid})"):
            answer = _ask_memory(found.handle)
            children = _ask_children(found.handle, child_pids)
        machine = self._machine_memory()
        if answer is None and found.is_mig:
            raise TelemetryError(
                f"cannot read the memory of {found.name} ({found.uuid}): NVML does not support it "
                "for this MIG device; update the driver"
            )
        if answer is None or _is_unified(found, answer[0].total, machine):
            total, free = machine.total_bytes, machine.available_bytes
            used, source = total - free, "MemAvailable (unified memory)"
        else:
            memory, source = answer
            total, used, free = memory.total, memory.used, memory.free
        return MemorySample(
            device=device,
            taken_at=taken_at,
            total_bytes=total,
            used_bytes=used,
            free_bytes=free,
            source=source,
            children_bytes=children,
        )

    def close(self) -> None:
        """Shut NVML down; errors are of no interest any more."""
        if self._is_open:
            self._is_open = False
            self._devices = {}
            with suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()

    def _open(self) -> None:
        if self._is_open:
            return
        try:
            with _explained("open NVML"):
                pynvml.nvmlInit()
        except TelemetryError as exc:
            if isinstance(exc.__cause__, pynvml.NVMLError_LibraryNotFound):
                raise self._explain_missing_library() from exc.__cause__
            raise
        self._is_open = True

    def _explain_missing_library(self) -> TelemetryError:
        if self._control_node.exists():
            return TelemetryError(
                "cannot open NVML: the NVIDIA driver is here, but libnvidia-ml.so.1 is not; in a "
                "container set NVIDIA_DRIVER_CAPABILITIES=compute,utility, else install the "
                "driver's libraries"
            )
        return VendorAbsentError(
            "cannot open NVML: libnvidia-ml.so.1 is not on this machine; if it has an NVIDIA GPU, "
            "install the driver, or start the container with the NVIDIA runtime"
        )

    def _find(self, device: str) -> _Device:
        found = self._devices.get(device)
        if found is None:
            raise TelemetryError(f"{device!r} is not an NVIDIA device that was found")
        if found.fault is not None:
            raise found.fault
        return found

    def _describe(self, device: str) -> DeviceInfo:
        sample = self.read(device, taken_at=0.0, child_pids=())
        found = self._devices[device]
        return DeviceInfo(
            device=device,
            name=found.name,
            vendor=self.vendor,
            total_bytes=sample.total_bytes,
            uuid=found.uuid,
        )


@contextmanager
def _explained(doing: str) -> Iterator[None]:
    """Turn an NVML error into ours, with its reason and what to do about it."""
    try:
        yield
    except pynvml.NVMLError as exc:
        reason = _EXPLANATIONS.get(exc.value, f"{exc} (NVML error {exc.value}); {_SEE_ALSO}")
        raise TelemetryError(f"cannot {doing}: {reason}") from exc


def _enumerate() -> list[_Device]:
    """List every device that NVML counts.

    One that cannot be described keeps its place with its fault, so that the others keep their
    indices and work on unless it is the one wanted.
    """
    found: list[_Device] = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            with _explained(f"use NVIDIA device {index}"):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                found += _mig_devices(handle) if _is_mig_enabled(handle) else [_identify(handle)]
        except TelemetryError as exc:
            found.append(_Device(handle=None, uuid="", name=f"NVIDIA device {index}", fault=exc))
    return found


def _identify(handle: Any, *, is_mig: bool = False) -> _Device:
    return _Device(
        handle=handle,
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=pynvml.nvmlDeviceGetName(handle),
        is_mig=is_mig,
    )


def _is_mig_enabled(handle: Any) -> bool:
    try:
        current, _pending = pynvml.nvmlDeviceGetMigMode(handle)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return False
    return bool(current == pynvml.NVML_DEVICE_MIG_ENABLE)


def _mig_devices(parent: Any) -> list[_Device]:
    """List the MIG devices of a GPU; the GPU itself refuses to tell its memory."""
    devices: list[_Device] = []
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(parent)):
        with suppress(pynvml.NVMLError_NotFound):  # places without a device are left out
            handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(parent, index)
            devices.append(_identify(handle, is_mig=True))
    return devices


def _ask_memory(handle: Any) -> tuple[Any, str] | None:
    """Give NVML's figures and their source, or None where the device has none of its own.

    The second version leaves the driver's reserve out of `used`.
    """
    with suppress(*_NO_SECOND_VERSION):
        return pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2), "nvml v2"
    with suppress(pynvml.NVMLError_NotSupported):
        return pynvml.nvmlDeviceGetMemoryInfo(handle), "nvml v1"
    return None


def _is_unified(device: _Device, nvml_total_bytes: int, machine: MachineMemory) -> bool:
    is_most_of_host = nvml_total_bytes >= 0.9 * machine.total_bytes
    is_integrated = _INTEGRATED_PARTS.search(device.name) is not None
    return nvml_total_bytes == 0 or (is_integrated and is_most_of_host)


def _ask_children(handle: Any, child_pids: Collection[int]) -> int | None:
    """Sum what the children hold on the device, or None where NVML does not tell.

    A child that is not listed proves nothing: in a container NVML may list the host's process
    ids, or none. A process can be listed for compute and for graphics with the same figure.
    """
    if not child_pids:
        return 0
    held: dict[int, int | None] = {}
    try:
        for process in (
            *pynvml.nvmlDeviceGetComputeRunningProcesses(handle),
            *pynvml.nvmlDeviceGetGraphicsRunningProcesses(handle),
        ):
            if process.pid in child_pids and held.get(process.pid) is None:
                held[process.pid] = process.usedGpuMemory
    except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError):
        return None
    amounts = [amount for amount in held.values() if amount is not None]
    return sum(amounts) if amounts and len(amounts) == len(held) else None
