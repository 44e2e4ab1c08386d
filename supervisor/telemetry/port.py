"""What the rest of the product asks of telemetry."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Protocol

from supervisor.core.memory import MemorySample
from supervisor.errors import TelemetryError

HOST = "host"
"""The id of host memory, which is a device like any other."""


class VendorAbsentError(TelemetryError):
    """Nothing of this vendor is installed here: a machine without its devices, not a fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """A device that was found: its stable id here (`gpu0`, `host`), name and total memory."""

    device: str
    name: str
    vendor: str
    total_bytes: int
    uuid: str | None = None


class MemoryReader(Protocol):
    """Reads the memory of the devices of one vendor, synchronously and with no event loop.

    Constructing one touches no driver. `answers_at_once` says that a call costs microseconds and
    cannot hang, so that it may run on the event loop; every other reader needs a thread of its
    own and a deadline, because a vendor's library can stop answering.
    """

    vendor: ClassVar[str]
    answers_at_once: ClassVar[bool]

    def devices(self) -> tuple[DeviceInfo, ...]:
        """Open the vendor's library where needed and list the devices, in a stable order.

        May be called again after a failure; call `close` first to open the library afresh. Ids
        are this reader's own (`gpu0`, `gpu1`, …).
        Raises VendorAbsentError where the vendor has nothing here, and TelemetryError with
        reason and remedy where it has, but does not work.
        """
        ...

    def read(self, device: str, *, taken_at: float, child_pids: Collection[int]) -> MemorySample:
        """Read one device now. `child_pids`: our children's processes, to tell their share.

        Raises TelemetryError when the device cannot be read.
        """
        ...

    def close(self) -> None:
        """Give the vendor library back. Safe to call twice."""
        ...
