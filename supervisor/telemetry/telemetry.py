"""All devices of this machine behind one face: what there is, and what memory it has now."""

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from supervisor.core.memory import MemorySample
from supervisor.errors import TelemetryError
from supervisor.telemetry.port import HOST, DeviceInfo, MemoryReader, VendorAbsentError
from supervisor.telemetry.vendor_thread import VendorThread


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """Where a device is read: its reader, its id there, and the thread that may be hung."""

    reader: MemoryReader
    device: str
    thread: VendorThread | None


class Telemetry:
    """Finds devices once and samples them, each vendor's library in a thread of its own.

    A vendor that does not answer is a sentence in `problems`, never the end of the others. Vendors
    get up to `discovery_s` seconds when this is constructed, because opening a driver can wake the
    hardware, and `deadline_s` for a sample.
    """

    def __init__(
        self,
        readers: Sequence[MemoryReader],
        *,
        clock: Callable[[], float] = time.monotonic,
        deadline_s: float = 2.0,
        discovery_s: float = 10.0,
    ) -> None:
        self._clock = clock
        self._deadline_s = deadline_s
        self._sources: dict[str, _Source] = {}
        self._devices: dict[str, DeviceInfo] = {}
        self._opened: list[tuple[MemoryReader, VendorThread | None]] = []
        self._problems: list[str] = []
        for reader in readers:
            self._discover(reader, discovery_s)

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence with reason and remedy for each vendor that is here and does not work."""
        return tuple(self._problems)

    def devices(self) -> tuple[DeviceInfo, ...]:
        """Give what was found, in the order of the readers; GPUs are numbered across vendors."""
        return tuple(self._devices.values())

    def device_for(self, kind: Literal["gpu", "cpu"]) -> str:
        """Name the device that a backend of this kind uses: without a GPU, the host's memory."""
        gpus = (device for device in self._devices if device != HOST)
        return next(gpus, HOST) if kind == "gpu" else HOST

    async def sample(self, device: str, child_pids: Collection[int] = ()) -> MemorySample:
        """Read one device now; `child_pids` are our children's processes, to tell their share.

        Raises TelemetryError for an unknown device, one that cannot be read, and a driver that
        does not answer in time.
        """
        source = self._sources.get(device)
        if source is None:
            known = ", ".join(self._sources) or "none"
            raise TelemetryError(f"there is no device {device!r} here; found: {known}")
        read = partial(self._read, source, tuple(child_pids))
        if source.thread is None:
            sample = read()
        else:
            sample = await source.thread.run(read, deadline_s=self._deadline_s)
        return replace(sample, device=device)

    def close(self) -> None:
        """Give the vendors' libraries back, waiting no longer than for a sample. Safe twice."""
        for reader, thread in self._opened:
            if thread is None:
                reader.close()
            else:
                with suppress(TelemetryError):  # a hung library is left to the process's exit
                    thread.run_blocking(reader.close, deadline_s=self._deadline_s)
                thread.stop()
        self._opened.clear()
        self._sources.clear()

    def _read(self, source: _Source, child_pids: tuple[int, ...]) -> MemorySample:
        # The clock is read where the reading is done: a call may have waited for its turn.
        return source.reader.read(source.device, taken_at=self._clock(), child_pids=child_pids)

    def _discover(self, reader: MemoryReader, discovery_s: float) -> None:
        thread = None if reader.answers_at_once else VendorThread(reader.vendor)
        self._opened.append((reader, thread))
        try:
            if thread is None:
                found = reader.devices()
            else:
                found = thread.run_blocking(reader.devices, deadline_s=discovery_s)
        except VendorAbsentError:
            return
        except TelemetryError as exc:
            self._problems.append(str(exc))
            return
        for info in found:
            device = info.device if info.device == HOST else f"gpu{self._count_gpus()}"
            self._devices[device] = replace(info, device=device)
            self._sources[device] = _Source(reader=reader, device=info.device, thread=thread)

    def _count_gpus(self) -> int:
        return sum(device != HOST for device in self._devices)


def find_readers() -> tuple[MemoryReader, ...]:
    """Build the reader of every vendor, touching no driver yet: NVIDIA, AMD, host."""
    # Only a server needs them; NVML's bindings alone are 20 ms and 2 to 4 MB.
    from supervisor.telemetry.amd import AmdMemory  # noqa: PLC0415
    from supervisor.telemetry.host import HostMemory  # noqa: PLC0415
    from supervisor.telemetry.nvidia import NvidiaMemory  # noqa: PLC0415

    return (NvidiaMemory(), AmdMemory(), HostMemory())
