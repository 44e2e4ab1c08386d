"""All devices of this machine behind one face: what there is, and what memory it has now."""

import asyncio
import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Self

from msgspec.structs import replace

from supervisor.core.machine.memory import MemorySample
from supervisor.errors import TelemetryError
from supervisor.telemetry.host import HostMemory
from supervisor.telemetry.port import (
    HOST,
    DeviceHealth,
    DeviceInfo,
    DeviceReading,
    TelemetryState,
)
from supervisor.telemetry.vendor_sampler import SamplerPolicy, VendorSampler
from supervisor.telemetry.vendors import find_vendors


class Telemetry:
    """Finds devices and samples them: GPUs in a process for each vendor, the host's memory here.

    An async context: entering it finds the devices, leaving it ends the processes. A vendor that
    does not work is a sentence in `problems`, never the end of the others, and is tried again for
    as long as the context lasts. No vendor's library is ever loaded into this process. `environ`
    is what a vendor's process is given, `vendors` whose processes are started (None: those that
    may be here).
    """

    def __init__(
        self,
        *,
        environ: Mapping[str, str] = os.environ,
        vendors: Sequence[str] | None = None,
        policy: SamplerPolicy | None = None,
    ) -> None:
        policy = policy or SamplerPolicy()
        vendors = find_vendors() if vendors is None else vendors
        self._samplers = [VendorSampler(vendor, environ, policy) for vendor in vendors]
        self._host = HostMemory()
        self._host_info: DeviceInfo | None = None
        self._host_problem: str | None = None
        self._places: dict[str, tuple[VendorSampler, int]] = {}
        self._gpus: tuple[str, ...] = ()
        self._count = 0  # of the devices when they were chosen from
        self._is_open = False

    async def __aenter__(self) -> Self:
        try:
            async with asyncio.TaskGroup() as group:
                for sampler in self._samplers:
                    group.create_task(sampler.open(), name=f"open-{sampler.vendor}")
        except BaseException:  # cancelled: no process is left
            await self.close()
            raise
        try:
            (self._host_info,) = self._host.devices()
        except TelemetryError as exc:
            self._host_problem = str(exc)
        self._number_devices()
        self._is_open = True
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the vendors' processes, waiting no longer than for their death. Safe twice."""
        self._is_open = False
        await asyncio.gather(*(sampler.close() for sampler in self._samplers))

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence with reason and remedy for each vendor or device that cannot be read."""
        vendors = [s.lost_reason for s in self._samplers if s.lost_reason is not None]
        devices = [
            f"{device}: {fault}"
            for device, (sampler, position) in self._places.items()
            if sampler.lost_reason is None and (fault := sampler.fault(position)) is not None
        ]
        host = [self._host_problem] if self._host_problem is not None else []
        return (*vendors, *devices, *host)

    def devices(self) -> tuple[DeviceInfo, ...]:
        """Give what was found, the host last; GPUs are numbered across vendors, and keep it.

        A device whose driver comes to life later is added.
        """
        self._number_devices()
        gpus = [
            dataclasses.replace(sampler.devices[position], device=device)
            for device, (sampler, position) in self._places.items()
        ]
        return (*gpus, *([self._host_info] if self._host_info is not None else []))

    def gpus(self) -> tuple[str, ...]:
        """Name the GPUs of which any may be chosen for a model; none where there is none.

        The first is one that works when it is asked for, and from then on stays the first. The
        others are its like: of its vendor, since an engine's build computes on one vendor's, and
        with memory of their own, if it has. Cheap enough for every request.
        """
        count = sum(len(sampler.devices) for sampler in self._samplers)
        if count != self._count:
            self._count, self._gpus = count, self._choose_gpus()
        return self._gpus

    def _choose_gpus(self) -> tuple[str, ...]:
        gpus = {info.device: info for info in self.devices() if info.device != HOST}
        working = (device for device, info in gpus.items() if info.fault is None)
        first = next((device for device in (*self._gpus, *working, *gpus)), None)
        if first is None:
            return ()
        like = [
            device
            for device, info in gpus.items()
            if info.vendor == gpus[first].vendor
            and info.shares_host_memory == gpus[first].shares_host_memory
        ]
        return (first, *(device for device in like if device != first))

    def health(self, device: str) -> DeviceHealth:
        """Say whether a device could be read when last tried. Raises TelemetryError: unknown."""
        if device == HOST and self._host_info is not None:
            return DeviceHealth(device=HOST, state=TelemetryState.OK)
        sampler, position = self._find(device)
        fault = sampler.fault(position)
        state = TelemetryState.OK if fault is None else TelemetryState.LOST
        return DeviceHealth(device=device, state=state, reason=fault)

    async def sample(
        self, device: str, child_pids: Collection[int] = (), former_pids: Collection[int] = ()
    ) -> MemorySample:
        """Read a device's memory now; `child_pids` are our processes, to report their share.

        `former_pids` led sessions of ours that are reaped: what is left of them is a survivor.
        Raises TelemetryError for an unknown device, one that cannot be read, and a driver that
        does not answer in time.
        """
        if device == HOST and self._is_open:
            return self._host.sample(HOST, child_pids)
        sampler, position = self._find(device)
        sample = await sampler.sample(position, tuple(child_pids), tuple(former_pids))
        return sample if sample.device == device else replace(sample, device=device)

    async def read(self, device: str, child_pids: Collection[int] = ()) -> DeviceReading:
        """Read all that a device reports now: memory, load, and who uses it. Raises as `sample`."""
        if device == HOST and self._is_open:
            return self._host.read(HOST, child_pids)
        sampler, position = self._find(device)
        reading = await sampler.read(position, tuple(child_pids))
        return dataclasses.replace(reading, sample=replace(reading.sample, device=device))

    def _find(self, device: str) -> tuple[VendorSampler, int]:
        place = self._places.get(device) if self._is_open else None
        if place is None:
            known = ", ".join(info.device for info in self.devices()) if self._is_open else ""
            raise TelemetryError(f"there is no device {device!r} here; found: {known or 'none'}")
        return place

    def _number_devices(self) -> None:
        numbered = set(self._places.values())
        for sampler in self._samplers:
            for position in range(len(sampler.devices)):
                if (sampler, position) not in numbered:
                    self._places[f"gpu{len(self._places)}"] = (sampler, position)
