"""NVIDIA devices through NVML, which makes no CUDA context and so costs no device memory."""

import os
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pynvml

from supervisor.core.machine.memory import Holder, MemorySample
from supervisor.errors import TelemetryError
from supervisor.telemetry.holders import classify_holders, name_processes, sum_children
from supervisor.telemetry.host import MachineMemory, read_machine_memory
from supervisor.telemetry.nvidia.devices import NvidiaDevice, enumerate_devices
from supervisor.telemetry.nvidia.faults import explain, explained
from supervisor.telemetry.nvidia.visible import CHILD_VARIABLE, select_visible
from supervisor.telemetry.port import DeviceInfo, DeviceReading, VendorAbsentError

UNIFIED_SOURCE = "MemAvailable (unified memory)"
"""What a sample's `source` is where the device's memory is the host's."""

# A driver older than 510 knows only the first version of the memory question.
_NO_SECOND_VERSION = (
    pynvml.NVMLError_FunctionNotFound,
    pynvml.NVMLError_ArgumentVersionMismatch,
    pynvml.NVMLError_InvalidArgument,
    pynvml.NVMLError_NotSupported,
)


class NvidiaReader:
    """Reads NVIDIA devices; a GPU in MIG mode appears as its MIG devices.

    `environment` says which devices are visible, `root` is where /dev is looked for,
    and `machine_memory` answers for devices that share the host's memory.
    """

    vendor: ClassVar[str] = "NVIDIA"

    def __init__(
        self,
        environment: Mapping[str, str] = os.environ,
        *,
        root: Path = Path("/"),
        machine_memory: Callable[[], MachineMemory] = read_machine_memory,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._environment = environment
        self._root = root
        self._machine_memory = machine_memory
        self._clock = clock
        self._is_open = False
        self._devices: dict[str, NvidiaDevice] = {}

    def devices(self) -> tuple[DeviceInfo, ...]:
        """List the visible devices as `gpu0`, `gpu1`, …, opening NVML where needed."""
        self._open()
        with explained("list the NVIDIA devices"):
            found = enumerate_devices()
        visible = select_visible([device.uuid for device in found], self._environment)
        self._devices = {f"gpu{i}": found[position] for i, position in enumerate(visible)}
        driver_version = _ask(pynvml.nvmlSystemGetDriverVersion)
        return tuple(self._describe(device, driver_version) for device in self._devices)

    def sample(
        self, device: str, child_pids: Collection[int] = (), former_pids: Collection[int] = ()
    ) -> MemorySample:
        """Read one device's memory; where it is the host's memory, MemAvailable is the truth.

        NVML's own figures count the page cache as used on such devices, or are refused. The
        bounds of a memory cgroup do not apply: the driver's allocations are not charged to it.
        """
        found = self._find(device)
        processes = _ask(_list_processes, found.handle)
        holders = classify_holders(processes, child_pids, former_pids)
        return self._sample(device, found, sum_children(processes, child_pids), holders)

    def read(self, device: str, child_pids: Collection[int] = ()) -> DeviceReading:
        """Read everything: memory as `sample` does, load, and what every process holds."""
        found = self._find(device)
        handle = found.handle
        processes = _ask(_list_processes, handle)
        load = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
        power_mw = _ask(pynvml.nvmlDeviceGetPowerUsage, handle)
        return DeviceReading(
            sample=self._sample(device, found, sum_children(processes, child_pids)),
            utilisation_percent=None if load is None else load.gpu,
            temperature_c=_ask(
                pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU
            ),
            power_w=None if power_mw is None else power_mw / 1000,
            processes=name_processes(processes),
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
            with explained("open NVML"):
                pynvml.nvmlInit()
        except TelemetryError as exc:
            if isinstance(exc.__cause__, pynvml.NVMLError_LibraryNotFound):
                raise self._explain_missing_library() from exc.__cause__
            raise
        self._is_open = True

    def _explain_missing_library(self) -> TelemetryError:
        if (self._root / "dev/nvidiactl").exists():
            return TelemetryError(
                "cannot open NVML: the NVIDIA driver is here, but libnvidia-ml.so.1 is not; in a "
                "container set NVIDIA_DRIVER_CAPABILITIES=compute,utility, else install the "
                "driver's libraries"
            )
        return VendorAbsentError(
            "cannot open NVML: libnvidia-ml.so.1 is not on this machine; if it has an NVIDIA GPU, "
            "install the driver, or start the container with the NVIDIA runtime"
        )

    def _find(self, device: str) -> NvidiaDevice:
        found = self._devices.get(device)
        if found is None:
            raise TelemetryError(f"{device!r} is not an NVIDIA device that was found")
        if found.fault is not None:
            raise TelemetryError(str(found.fault))
        return found

    def _describe(self, device: str, driver_version: str | None) -> DeviceInfo:
        found = self._devices[device]
        total_bytes, source, fault = 0, "", None
        try:
            sample = self.sample(device)
            total_bytes, source = sample.total_bytes, sample.source
        except TelemetryError as exc:
            fault = str(exc)
        return DeviceInfo(
            device=device,
            name=found.name,
            vendor=self.vendor,
            total_bytes=total_bytes,
            uuid=found.uuid or None,
            index=found.index,
            pci_id=found.pci_id,
            mig_profile=found.mig_profile,
            driver_version=driver_version,
            shares_host_memory=source == UNIFIED_SOURCE,
            visible_as=((CHILD_VARIABLE, found.uuid),) if found.uuid else (),
            fault=fault,
        )

    def _sample(
        self,
        device: str,
        found: NvidiaDevice,
        children_bytes: int | None,
        holders: tuple[Holder, ...] | None = None,
    ) -> MemorySample:
        try:
            memory, source = _ask_memory(found.handle)
        except pynvml.NVMLError as exc:
            raise explain(f"read the memory of {found.name} ({found.uuid})", exc) from exc
        taken_at = self._clock()
        if memory is None and found.is_mig:
            raise TelemetryError(
                f"cannot read the memory of {found.name} ({found.uuid}): NVML does not support it "
                "for this MIG device; update the driver"
            )
        machine = self._read_shared(found, 0 if memory is None else memory.total)
        if machine is None:
            total, used, free = memory.total, memory.used, memory.free
        else:
            total, free = machine.total_bytes, machine.available_bytes
            used, source = total - free, UNIFIED_SOURCE
        return MemorySample(
            device=device,
            taken_at=taken_at,
            total_bytes=total,
            used_bytes=used,
            free_bytes=free,
            source=source,
            children_bytes=children_bytes,
            holders=holders,
        )

    def _read_shared(self, found: NvidiaDevice, nvml_total_bytes: int) -> MachineMemory | None:
        """Read the host's memory where it is the device's, too; it costs as much as all NVML."""
        if nvml_total_bytes > 0 and not found.is_integrated:
            return None
        machine = self._machine_memory()
        is_most_of_host = nvml_total_bytes >= 0.9 * machine.total_bytes
        return machine if nvml_total_bytes == 0 or is_most_of_host else None


def _ask(question: Callable[..., Any], *arguments: Any) -> Any:
    """Ask what is good to know; None where the driver does not report it."""
    try:
        return question(*arguments)
    except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError):
        return None


def _ask_memory(handle: Any) -> tuple[Any, str]:
    """Give NVML's figures, None where the device has none of its own, and their source.

    The second version leaves the driver's reserve out of `used`. Plain `try`, here and above: at 20
    Hz each line of Python is cold, and context managers were a third of a sample's cost.
    """
    try:
        return pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2), "nvml v2"
    except _NO_SECOND_VERSION:
        pass
    try:
        return pynvml.nvmlDeviceGetMemoryInfo(handle), "nvml v1"
    except pynvml.NVMLError_NotSupported:
        return None, ""


def _list_processes(handle: Any) -> dict[int, int | None]:
    """List what each process holds on the device; None where NVML knows it but not its figure.

    A process can be listed for compute and for graphics with the same figure.
    """
    held: dict[int, int | None] = {}
    for process in (
        *pynvml.nvmlDeviceGetComputeRunningProcesses(handle),
        *pynvml.nvmlDeviceGetGraphicsRunningProcesses(handle),
    ):
        if held.get(process.pid) is None:
            held[process.pid] = process.usedGpuMemory
    return held
