"""Past facts that reach the arbiter. Each carries the monotonic time at which it was true."""

from collections.abc import Mapping

from msgspec import Struct

from supervisor.core.machine.agenda import Period
from supervisor.core.machine.footprint import Footprint
from supervisor.core.machine.memory import MemorySample
from supervisor.core.machine.rules import DrainPolicy, Limits, SwitchRules
from supervisor.core.machine.values import Device, KeptPrompts, Target, TargetNeed
from supervisor.core.scheduling.values import Priority


class Event(Struct, frozen=True, kw_only=True):
    """A fact. `at` is monotonic, in seconds: the core has no clock of its own."""

    at: float


class SwitchRequested(Event, frozen=True, kw_only=True):
    """Somebody wants `target` live, or (None) devices freed. `reason`: why, in a sentence.

    `unloads`: the only model that is to go then; None: all that are not pinned.
    """

    switch_id: str
    target: Target | None
    requested_by: str
    drain_policy: DrainPolicy = DrainPolicy.CANCEL
    unloads: str | None = None
    reason: str = ""


class TargetAccepted(Event, frozen=True, kw_only=True):
    """The target's file, flags and engine were checked, and its need is known.

    `elsewhere` is what it needs on the others of its candidates, device by device. `readings` are
    of the devices that it needs, wherever it is put. One that is missing could not be read, for the
    reason in `memory_problem`.
    """

    switch_id: str
    need: TargetNeed
    readings: tuple[MemorySample, ...]
    memory_problem: str | None = None
    elsewhere: tuple[tuple[str, TargetNeed], ...] = ()

    def need_on(self, device: str) -> TargetNeed:
        """Return what the target needs where it is put on this device."""
        return dict(self.elsewhere).get(device, self.need)


class TargetRejected(Event, frozen=True, kw_only=True):
    """The target cannot start, for the reason given; nothing was touched."""

    switch_id: str
    message: str


class DeviceFound(Event, frozen=True, kw_only=True):
    """A device that was not there at the start, or could not be read then, can be used."""

    device: Device


class RulesChanged(Event, frozen=True, kw_only=True):
    """Other settings of the operator were applied: what comes from now on is held to these.

    `outdated`: epochs of servers that would be started otherwise now, or not at all. `targets` are
    those of the models that requests wait for, by their names.
    """

    limits: Limits
    rules: SwitchRules
    outdated: frozenset[int] = frozenset()
    targets: Mapping[str, Target] = {}


class ScheduleRead(Event, frozen=True, kw_only=True):
    """What the schedule makes of the clock now; the fields are those of `Agenda`.

    `periods` begins with the one that holds; empty: there is no schedule.
    """

    periods: tuple[Period, ...] = ()
    refuses: bool = False
    lead_s: float | None = None
    has_work: bool = False
    ended: Period | None = None
    read_again_at: float | None = None


class WarmingBegun(Event, frozen=True, kw_only=True):
    """The target's file is being read into the page cache, in the background."""

    switch_id: str


class RequestArrived(Event, frozen=True, kw_only=True):
    """A client asks for a target, or (None) for whatever is live.

    A target is served by the live backend of its model, whatever that one's profile.
    `may_wait` False: where no lease can be granted at once, nothing is ordered, and nothing kept.
    `may_switch`: where its model is not live, it waits for its turn, and the scheduler decides
    when; otherwise it is refused. `may_spill`: it is small, and its model's twin may serve it while
    that is not live; `main` is its target from then on, and `target` the twin.
    """

    request_id: str
    target: Target | None
    may_wait: bool = True
    may_switch: bool = False
    may_spill: bool = False
    main: Target | None = None
    priority: Priority = Priority.INTERACTIVE

    @property
    def model(self) -> str | None:
        """The name of the model that is asked for; None where none is."""
        return None if self.target is None else self.target.model


class CallersCounted(Event, frozen=True, kw_only=True):
    """So many callers wait for one request, which will bring the answers to all of them."""

    request_id: str
    callers: int


class RequestEnded(Event, frozen=True, kw_only=True):
    """A request was answered, failed, or its client left: its lease or place is free.

    It brought answers to so many callers.
    """

    request_id: str
    callers: int = 1


class BackendSpawned(Event, frozen=True, kw_only=True):
    """The process of an epoch exists and will listen at `address`; it is not ready yet."""

    epoch: int
    pid: int
    address: str


class BackendReady(Event, frozen=True, kw_only=True):
    """The server of an epoch answers, and it is the one that we started.

    `prompts` is what was restored for it.
    """

    epoch: int
    memory: MemorySample | None
    prompts: KeptPrompts | None = None


class VectorsKnown(Event, frozen=True, kw_only=True):
    """It is known what vectors a target makes of the probes, so that its twin can be compared."""

    target: Target


class BackendUnfit(Event, frozen=True, kw_only=True):
    """The server of an epoch runs, and must not serve: a twin that makes other vectors."""

    epoch: int
    reason: str


class BackendStalled(Event, frozen=True, kw_only=True):
    """Requests are in flight on a server, and nothing has moved in it for `stalled_s` seconds."""

    epoch: int
    stalled_s: float


class BackendMoved(Event, frozen=True, kw_only=True):
    """A server that had stalled moves again, or has nothing left to do."""

    epoch: int


class ReleaseBegun(Event, frozen=True, kw_only=True):
    """A server's prompts are saved, and it is now told to end or to park."""

    epoch: int


class BackendParked(Event, frozen=True, kw_only=True):
    """A server has given its devices' memory up, by its own account, and lives on.

    `kept` is the host memory that it holds now. `prompts` is what was saved of it before.
    """

    epoch: int
    kept: Footprint
    prompts: KeptPrompts | None = None


class BackendNotParked(Event, frozen=True, kw_only=True):
    """A server could not be parked, for the reason given: nobody knows what it holds."""

    epoch: int
    reason: str


class BackendExited(Event, frozen=True, kw_only=True):
    """The whole process group of an epoch is reaped (or could not be spawned at all).

    `prompts` is what was saved of it before.
    """

    epoch: int
    exit_code: int | None
    signal: int | None = None
    last_lines: tuple[str, ...] = ()
    prompts: KeptPrompts | None = None


class MemorySampled(Event, frozen=True, kw_only=True):
    """Telemetry read the device that the running switch waits for."""

    switch_id: str
    sample: MemorySample


class MemoryUnreadable(Event, frozen=True, kw_only=True):
    """Telemetry could not read the device that the running switch waits for."""

    switch_id: str
    reason: str


class RestartRequested(Event, frozen=True, kw_only=True):
    """An operator wants what died brought back now, even if its breaker is open."""

    switch_id: str


class TimePassed(Event, frozen=True, kw_only=True):
    """The moment named by `next_wakeup()` has come."""


class ShutdownRequested(Event, frozen=True, kw_only=True):
    """The controller shall end: drain until `drain_timeout_s` is over, then stop everything.

    Asked a second time with 0, it stops at once.
    """

    drain_timeout_s: float
