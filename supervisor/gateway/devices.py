"""What every device is, holds and carries, and its last hour, over HTTP."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from pydantic import field_validator

from supervisor.arbiter.arbiter import Arbiter
from supervisor.core.machine.memory import MemorySample
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.values import Backend
from supervisor.errors import RequestRefused, TelemetryError
from supervisor.gateway.answer import Answer, json_answer
from supervisor.gateway.parameters import NoParameters, Parameters
from supervisor.telemetry.port import (
    HOST,
    DeviceHealth,
    DeviceInfo,
    DeviceReading,
    ProcessUse,
    TelemetryState,
)
from supervisor.telemetry.ring import HOUR_POINTS, Ring, RingPoint
from supervisor.telemetry.telemetry import Telemetry

_SOURCE_WITH_RESERVE = "nvml v2"
_COLUMNS = tuple(field.name for field in fields(RingPoint) if field.name != "taken_at")


class HistoryParameters(Parameters):
    """Which device `GET /gpu/{device}/history` asks for, and how many seconds back from now."""

    device: str
    since: float = HOUR_POINTS

    @field_validator("since")
    @classmethod
    def _goes_back(cls, since: float) -> float:
        if not since >= 0:
            raise ValueError(f"must be seconds back from now, such as 60, not {since:g}")
        return since


class Devices:
    """Handlers of the routes that tell of devices. `rings` holds their last hour, by id."""

    def __init__(
        self,
        *,
        arbiter: Arbiter,
        telemetry: Telemetry,
        rings: Mapping[str, Ring],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._arbiter = arbiter
        self._telemetry = telemetry
        self._rings = rings
        self._clock = clock

    async def list_devices(self, _: NoParameters) -> Answer:
        """Show every device as it is now; one that cannot be read says why in its place."""
        described = [await self._describe(info) for info in self._telemetry.devices()]
        return json_answer({"devices": described, "telemetry_problems": self._telemetry.problems})

    async def device_history(self, asked: HistoryParameters) -> Answer:
        """Show the last `since` seconds of a device (by default the hour), oldest first.

        Raises RequestRefused for an unknown device.
        """
        device = asked.device
        known = [info.device for info in self._telemetry.devices()]
        if device not in known:
            raise RequestRefused(
                "device_not_found", f"there is no device '{device}'; there are: {', '.join(known)}"
            )
        described = describe_history(self._rings.get(device), self._clock(), asked.since)
        return json_answer({"device": device, **described})

    async def _describe(self, info: DeviceInfo) -> dict[str, Any]:
        shown = {"device": info.device, **describe_device(info)}
        backends = backends_on(info.device, self._arbiter.snapshot)
        try:
            reading = await self._telemetry.read(
                info.device, [b.pid for b in backends if b.pid is not None]
            )
            health = self._telemetry.health(info.device)
            now = describe_reading(reading, backends)
        except TelemetryError as error:
            health = DeviceHealth(device=info.device, state=TelemetryState.LOST, reason=str(error))
            now = dict.fromkeys(_WHAT_IS_READ)
        carried = describe_budget(info.device, self._arbiter.snapshot)
        return shown | {"state": health.state.value, "reason": health.reason} | now | carried


_WHAT_IS_READ = ("memory", "utilisation_percent", "temperature_c", "power_w", "processes")


def backends_on(device: str, snapshot: Snapshot) -> tuple[Backend, ...]:
    """Return the backends whose processes may hold memory of a device.

    A GPU is shown only to those that are accounted there; on the host they all hold something.
    """
    return tuple(b for b in snapshot.backends if device in {*b.target.devices, HOST})


def describe_device(info: DeviceInfo) -> dict[str, Any]:
    """Write what a device is as JSON: name, vendor, and how others name it."""
    return {
        "name": info.name,
        "vendor": info.vendor,
        "uuid": info.uuid,
        "pci_id": info.pci_id,
        "index": info.index,
        "driver_version": info.driver_version,
        "mig_profile": info.mig_profile,
        "shares_host_memory": info.shares_host_memory,
    }


def describe_reading(reading: DeviceReading, backends: Sequence[Backend]) -> dict[str, Any]:
    """Write what a device tells now as JSON; null is what its driver does not tell."""
    processes = None
    if reading.processes is not None:
        processes = describe_processes(reading.processes, backends)
    return {
        "memory": describe_use(reading.sample, reading.processes),
        "utilisation_percent": reading.utilisation_percent,
        "temperature_c": reading.temperature_c,
        "power_w": reading.power_w,
        "processes": processes,
    }


def describe_use(sample: MemorySample, processes: Sequence[ProcessUse] | None) -> dict[str, Any]:
    """Write who holds a device's memory as JSON, in bytes; null is unknown.

    `foreign_bytes` is what our children do not hold. `unattributed_bytes` is what no process is
    listed with: the driver's own, and that of processes which it does not show. The figures are
    not read at one instant, so that a difference can be negative, and is shown so.
    """
    children, foreign, unattributed = sample.children_bytes, None, None
    if children is not None:
        foreign = sample.used_bytes - children
    if processes is not None:
        unattributed = sample.used_bytes - sum(use.used_bytes or 0 for use in processes)
    return {
        "total_bytes": sample.total_bytes,
        "used_bytes": sample.used_bytes,
        "free_bytes": sample.free_bytes,
        "reserved_bytes": reserved_bytes(sample),
        "children_bytes": children,
        "foreign_bytes": foreign,
        "unattributed_bytes": unattributed,
        "source": sample.source,
    }


def reserved_bytes(sample: MemorySample) -> int | None:
    """Return what the driver keeps for itself, where it tells that apart.

    nvmlMemory_v2_t alone does: its total is reserved + used + free (NVML API reference).
    """
    if sample.source != _SOURCE_WITH_RESERVE:
        return None
    return sample.total_bytes - sample.used_bytes - sample.free_bytes


def describe_processes(
    processes: Sequence[ProcessUse], backends: Sequence[Backend]
) -> list[dict[str, Any]]:
    """Write a device's processes as JSON, ours with model and epoch.

    `ours` is null where that cannot be said: a child that is not listed shows that the driver
    counts processes otherwise than this container does.
    """
    ours = {b.pid: b for b in backends if b.pid is not None}
    all_are_seen = ours.keys() <= {use.pid for use in processes}
    described = []
    for use in processes:
        backend = ours.get(use.pid)
        is_ours = True if backend is not None else (False if all_are_seen else None)
        described.append(
            {
                **asdict(use),
                "ours": is_ours,
                "model": backend.target.model if backend else None,
                "epoch": backend.epoch if backend else None,
            }
        )
    return described


def describe_budget(device: str, snapshot: Snapshot) -> dict[str, Any]:
    """Write what a device may carry, and what is accounted for on it, as JSON.

    A device that appeared after the start carries nothing, and has no budget.
    """
    bounds = snapshot.devices.get(device)
    accounted = [b for b in snapshot.backends if device in b.footprint.devices]
    return {
        "budget_bytes": bounds.budget_bytes if bounds else None,
        "exclusive": bounds.is_exclusive if bounds else None,
        "accounted_bytes": sum(b.footprint.on(device) for b in accounted),
        "backends": [
            {
                "model": b.target.model,
                "epoch": b.epoch,
                "state": b.state.value,
                "pid": b.pid,
                "need_bytes": b.footprint.on(device),
            }
            for b in accounted
        ],
    }


def describe_history(ring: Ring | None, now: float, since_s: float) -> dict[str, list[Any]]:
    """Write the points of the last `since_s` seconds as JSON; none where nothing was read yet.

    A list for each figure, so that a page can draw it as it is; `age_s` counts back from `now`,
    on the ring's clock.
    """
    points = tuple(ring.points(now - since_s)) if ring is not None else ()
    ages = [round(now - point.taken_at, 2) for point in points]
    return {"age_s": ages} | {c: [getattr(point, c) for point in points] for c in _COLUMNS}
