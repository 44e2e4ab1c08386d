"""What the rest of the product asks of telemetry, and what a vendor's reader must answer."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Protocol

from supervisor.core.machine.memory import MemorySample
from supervisor.errors import TelemetryError

HOST = "host"
"""The id of host memory, which is a device like any other."""


class VendorAbsentError(TelemetryError):
    """Nothing of this vendor is installed here: a machine without its devices, not a fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """A device that was found: its stable id here (`gpu0`, `host`), name and total memory.

    `index` counts as the vendor's own tools do, before any *_VISIBLE_DEVICES; `pci_id` is written
    as `0000:3b:00.0`. `visible_as` holds the variables, with their values, that show a program
    this device alone of its vendor's. `shares_host_memory` says that its memory is the host's
    own, so that both have one budget between them. `fault` says why a device that is there cannot
    be used; its total is then 0.
    """

    device: str
    name: str
    vendor: str
    total_bytes: int
    uuid: str | None = None
    index: int | None = None
    pci_id: str | None = None
    mig_profile: str | None = None
    driver_version: str | None = None
    shares_host_memory: bool = False
    visible_as: tuple[tuple[str, str], ...] = ()
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessUse:
    """A process on a device; `used_bytes` is None where the driver does not report it.

    In a container the driver may give the host's process ids. `name` is what a process of that
    id is called here, and so a hint only.
    """

    pid: int
    used_bytes: int | None
    name: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReading:
    """All that a device reports of itself now. What its driver cannot report is None, never 0."""

    sample: MemorySample
    utilisation_percent: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    processes: tuple[ProcessUse, ...] | None = None


class TelemetryState(StrEnum):
    """Whether a device can be read."""

    OK = "ok"
    LOST = "telemetry_lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceHealth:
    """Whether a device could be read when it was last tried, and the reason where not."""

    device: str
    state: TelemetryState
    reason: str | None = None


class DeviceReader(Protocol):
    """Reads the devices of one vendor, synchronously. Constructing one touches no driver.

    A vendor's library can stop answering for good, so such a reader runs in a sampler process
    only (sampler.py). `taken_at` of what is read is CLOCK_MONOTONIC right after the reading,
    which is the same clock in every process of the machine.
    """

    vendor: ClassVar[str]

    def devices(self) -> tuple[DeviceInfo, ...]:
        """Open the vendor's library where needed and list the devices, in a stable order.

        Ids are this reader's own (`gpu0`, `gpu1`, …). A device that is there and cannot be used
        is listed with its `fault`.
        Raises VendorAbsentError where the vendor has nothing here, and TelemetryError with
        reason and remedy where it has, but does not work.
        """
        ...

    def sample(
        self, device: str, child_pids: Collection[int] = (), former_pids: Collection[int] = ()
    ) -> MemorySample:
        """Read the device's memory now. `child_pids`: our processes, to report their share.

        `former_pids`: leaders of our sessions that are reaped, to find what is left of them.
        Raises TelemetryError when the device cannot be read.
        """
        ...

    def read(self, device: str, child_pids: Collection[int] = ()) -> DeviceReading:
        """Read everything that the device reports now, its memory as `sample` does.

        Raises TelemetryError when the device's memory cannot be read.
        """
        ...

    def close(self) -> None:
        """Give the vendor library back. Safe to call twice."""
        ...
