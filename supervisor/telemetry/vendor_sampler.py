"""One vendor's devices, read by a sampler process that is replaced whenever it fails."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf

import structlog

from supervisor.core.machine.memory import MemorySample
from supervisor.core.pauses import doubled_pause_s
from supervisor.errors import TelemetryError
from supervisor.observability.guarded_task import start_guarded
from supervisor.telemetry.messages import (
    Answer,
    DeviceRead,
    DevicesFound,
    ListDevices,
    MemoryRead,
    ReadDevice,
    SampleDevice,
)
from supervisor.telemetry.port import DeviceInfo, DeviceReading, VendorAbsentError
from supervisor.telemetry.sampler_process import SamplerProcess
from supervisor.telemetry.vendors import VENDORS
from supervisor.telemetry.visible_devices import find_repeated

log = structlog.get_logger()

_GRACE_S = 1.0  # for a sampler to give its library back


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerPolicy:
    """How long drivers may take, and how a sampler process that failed is replaced. In seconds.

    `deadline_s` for one reading; `discovery_s` for a start, since opening a driver can wake the
    hardware; `reap_s` for a killed process to be gone: one in an uninterruptible call is left
    behind then, at most `max_abandoned` of them. The pauses before attempts double from
    `first_pause_s` to `longest_pause_s`, and begin anew after `calm_s` without a failure, which
    must be more than the longest pause.
    """

    deadline_s: float = 2.0
    discovery_s: float = 10.0
    reap_s: float = 1.0
    max_abandoned: int = 4
    first_pause_s: float = 0.25
    longest_pause_s: float = 60.0
    calm_s: float = 120.0


class Backoff:
    """The pauses before attempts to put things right: they grow while failures go on."""

    def __init__(self, policy: SamplerPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._clock = clock
        self._failures = 0
        self._last_failure_at = -inf

    def next_pause_s(self) -> float:
        """Count a failure, and say how long to wait before the attempt that follows it."""
        now = self._clock()
        if now - self._last_failure_at > self._policy.calm_s:
            self._failures = 0
        self._last_failure_at = now
        self._failures += 1
        policy = self._policy
        return doubled_pause_s(self._failures, policy.first_pause_s, policy.longest_pause_s)


class VendorSampler:
    """Samples one vendor's devices, and recovers by itself from whatever its driver does.

    A device that hangs takes its vendor's others along, which share its driver: one process asks
    for all of them, one after another, and only its end ends the call. They come back with it.

    Devices keep their position in `devices` for good: a new sampler process lists them afresh,
    and they are found again by UUID.
    """

    def __init__(self, vendor: str, environ: Mapping[str, str], policy: SamplerPolicy) -> None:
        self.vendor = vendor
        self.devices: list[DeviceInfo] = []
        self.lost_reason: str | None = None
        """Why none of the vendor's devices can be read; None where that works."""
        self._environ = environ
        self._policy = policy
        self._process: SamplerProcess | None = None
        self._leaving: list[SamplerProcess] = []
        self._places: dict[int, str] = {}  # position in `devices` → the reader's id
        self._faults: dict[int, str] = {}
        self._failed = asyncio.Event()
        self._backoff = Backoff(policy)
        self._keeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Make the first attempt, and go on by itself from then; a vendor not here is let be."""
        try:
            await self._renew()
        except VendorAbsentError:
            return
        self._warn_of_repeats()
        self._keeper = start_guarded(self._keep, name=f"sampler-{self.vendor}")

    async def close(self) -> None:
        """End the sampler process, which gives the library back. Safe twice."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        process, self._process, self._places = self._process, None, {}
        if process is not None:
            await process.stop(_GRACE_S)
        for abandoned in self._leaving:
            await abandoned.stop(0)

    def _warn_of_repeats(self) -> None:
        for variable in VENDORS[self.vendor].visibility.hiding:
            value = self._environ.get(variable, "")
            repeated = find_repeated(value, self.devices)
            if self.devices and repeated is not None:
                log.warning("telemetry.named_twice", variable=variable, value=value, name=repeated)

    def fault(self, position: int) -> str | None:
        """Say why a device cannot be read, or None where it could when last tried."""
        return self.lost_reason or self._faults.get(position)

    async def sample(
        self, position: int, child_pids: tuple[int, ...], former_pids: tuple[int, ...]
    ) -> MemorySample:
        """Read a device's memory. Raises TelemetryError with reason and remedy."""
        answer = await self._ask(
            position, lambda place: SampleDevice(place, child_pids, former_pids)
        )
        assert isinstance(answer, MemoryRead)  # noqa: S101 - what that request is answered by
        return answer.sample

    async def read(self, position: int, child_pids: tuple[int, ...]) -> DeviceReading:
        """Read all that a device reports. Raises TelemetryError with reason and remedy."""
        answer = await self._ask(position, lambda place: ReadDevice(place, child_pids))
        assert isinstance(answer, DeviceRead)  # noqa: S101 - what that request is answered by
        return answer.reading

    async def _ask(
        self, position: int, request: Callable[[str], SampleDevice | ReadDevice]
    ) -> Answer:
        place = self._places.get(position)
        if self._process is None or place is None:
            raise TelemetryError(self.fault(position) or f"the {self.vendor} sampler was stopped")
        process = self._process
        try:
            answer = await process.ask(request(place), self._policy.deadline_s)
        except TelemetryError as exc:
            if not process.lost.done() and process is self._process:
                self._note_fault(position, str(exc))
            raise
        self._note_health(position, None)
        return answer

    def _note_fault(self, position: int, reason: str) -> None:
        if self._faults.get(position) != reason:
            log.warning("telemetry.lost", device=self.devices[position].name, reason=reason)
        self._faults[position] = reason
        self._failed.set()

    def _note_lost(self, reason: str) -> None:
        if self.lost_reason != reason:
            log.warning("telemetry.lost", vendor=self.vendor, reason=reason)
        self.lost_reason = reason
        self._failed.set()

    async def _keep(self) -> None:
        """Replace the sampler process for as long as something cannot be read."""
        while True:
            await self._failed.wait()
            self._failed.clear()
            await asyncio.sleep(self._backoff.next_pause_s())
            if self._process is None or self._faults or self._has_unidentified():
                try:
                    await self._renew()
                except VendorAbsentError as exc:  # it was here: a driver that is replaced now
                    self._give_up(str(exc))
                except Exception:  # a bug of ours, which must not be the last attempt
                    log.exception("telemetry.renewal_failed", vendor=self.vendor)
                    self._failed.set()

    def _has_unidentified(self) -> bool:
        """Whether a device was lost when it was found, so that little is known of it."""
        return any(info.fault is not None for info in self.devices)

    async def _renew(self) -> None:
        """Put a new sampler process in the place of the old, once it can list the devices.

        A device that cannot be read needs a new process, too: after a reset or an update of the
        driver, what the old one has loaded fails for good. Until the new one works, the old one
        goes on with the devices that it can read. Raises VendorAbsentError.
        """
        self._leaving = [process for process in self._leaving if not process.is_reaped]
        if len(self._leaving) >= self._policy.max_abandoned:
            pids = ", ".join(str(process.pid) for process in self._leaving)
            self._give_up(f"sampler processes {pids} hang in the driver and cannot be ended")
            return
        try:
            process, found = await self._start()
        except VendorAbsentError:
            raise
        except TelemetryError as exc:
            self._give_up(str(exc))
            return
        old, self._process = self._process, process
        process.lost.add_done_callback(partial(self._lose, process))
        self._adopt(found)
        if old is not None:
            await old.settle()
            await self._retire(old)

    async def _start(self) -> tuple[SamplerProcess, tuple[DeviceInfo, ...]]:
        """Spawn a process and let it list the devices. Leaves none behind where that fails."""
        process = await SamplerProcess.spawn(self.vendor, self._environ, reap_s=self._policy.reap_s)
        try:
            answer = await process.ask(ListDevices(), self._policy.discovery_s)
        except BaseException:
            await self._retire(process)
            raise
        assert isinstance(answer, DevicesFound)  # noqa: S101 - what that request is answered by
        return process, answer.devices

    async def _retire(self, process: SamplerProcess) -> None:
        """End a process; if this is cancelled, `close` sees to its end."""
        self._leaving.append(process)
        await process.stop(_GRACE_S)
        if process.is_reaped:
            self._leaving.remove(process)
        else:
            log.warning("telemetry.sampler_abandoned", vendor=self.vendor, pid=process.pid)

    def _lose(self, process: SamplerProcess, lost: asyncio.Future[str]) -> None:
        """Note that the process answers no more, unless another has taken its place."""
        if not lost.cancelled() and process is self._process:
            self._process, self._places = None, {}
            self._leaving.append(process)  # until it is seen to be gone
            self._note_lost(lost.result())

    def _give_up(self, reason: str) -> None:
        """Leave things as they are until the next attempt."""
        if self._process is None:
            self._note_lost(reason)
        else:
            log.warning("telemetry.sampler_not_renewed", vendor=self.vendor, reason=reason)
            self._failed.set()

    def _adopt(self, found: Sequence[DeviceInfo]) -> None:
        """Take over a new process's list: known devices keep their position, others follow."""
        if self.lost_reason is not None:
            log.info("telemetry.recovered", vendor=self.vendor)
        self.lost_reason = None
        unmatched = dict(enumerate(self.devices))
        self._places = {}
        for info in found:
            same = (position for position, known in unmatched.items() if _is_same(known, info))
            position = next(same, len(self.devices))
            if position == len(self.devices):
                self.devices.append(info)
            elif info.fault is None:
                self.devices[position] = info
            unmatched.pop(position, None)
            self._places[position] = info.device
            self._note_health(position, info.fault)
        for position, known in unmatched.items():
            self._note_health(position, f"the driver no longer lists {known.name} ({known.uuid})")

    def _note_health(self, position: int, fault: str | None) -> None:
        if fault is not None:
            self._note_fault(position, fault)
        elif self._faults.pop(position, None) is not None:
            log.info("telemetry.recovered", device=self.devices[position].name)


def _is_same(known: DeviceInfo, found: DeviceInfo) -> bool:
    """Recognise a device by what both lists say of it; one that is lost may have no UUID."""
    if VENDORS[known.vendor].is_known_by_place and known.pci_id and found.pci_id:
        return known.pci_id == found.pci_id
    if known.uuid and found.uuid:
        return known.uuid == found.uuid
    if known.pci_id and found.pci_id:
        return known.pci_id == found.pci_id
    return known.index == found.index
