"""The running switch, in parts by who writes them, and what is reported of one that ended."""

from msgspec import Struct

from supervisor.core.machine.footprint import Baseline
from supervisor.core.machine.memory import MemorySample, ReleaseQuestion
from supervisor.core.machine.rules import DrainPolicy
from supervisor.core.machine.values import (
    KeptPrompts,
    Mode,
    Outcome,
    Phase,
    Placement,
    Refusal,
    Target,
)

SCHEDULER = "scheduler"
CLOCK = "clock"
IDLENESS = "idleness"
RESTART = "restart"
AUTOMATIC = frozenset({"startup", SCHEDULER, "recovery", CLOCK, IDLENESS})
"""Who asks for switches that nobody waits for in person: one by hand waits for their end."""


class Order(Struct, frozen=True, kw_only=True):
    """What was asked for, by whom and when. `target` None is an unload.

    `gives_way`: it starts where there is room, and nobody leaves for it. `unloads`: the only model
    that an unload stops; None: all that are not pinned. Written when the switch begins; later only
    the target is put on its device, or a fallback in its place.
    """

    switch_id: str
    target: Target | None
    requested_by: str
    started_at: float
    drain_policy: DrainPolicy = DrainPolicy.CANCEL
    is_recovery: bool = False
    gives_way: bool = False
    unloads: str | None = None
    reason: str = ""

    @property
    def is_by_hand(self) -> bool:
        """Whether a person asked for it, and not the controller itself."""
        return self.requested_by not in AUTOMATIC


class Leaving(Struct, frozen=True, kw_only=True):
    """Which backends give way, by epoch: written by `switching` (the plan) and `leaving`.

    `first` are to give way before the target starts, those of them that are in `parking` by being
    parked; `behind` serve until it is ready. `epochs` are those that the switch has begun to end,
    and waits for.
    """

    first: tuple[int, ...] = ()
    parking: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()
    epochs: tuple[int, ...] = ()
    drain_deadline: float | None = None


class Gate(Struct, frozen=True, kw_only=True):
    """Which memory must be free, and the readings so far: written by `confirming` alone.

    `devices` are still to be confirmed, the one in question first. `baselines` are the use that
    each device should return to. `opened` has what was asked of each device that is confirmed, and
    the reading that did it; `confirmed` is the last of these, also once a rollback asks anew.
    `was_read_again`: what had become old of these has been asked about once more.
    """

    devices: tuple[str, ...] = ()
    question: ReleaseQuestion | None = None
    samples: tuple[MemorySample, ...] = ()
    samples_taken: int = 0
    next_sample_at: float | None = None
    reason: str | None = None
    confirmed: MemorySample | None = None
    opened: tuple[tuple[ReleaseQuestion, MemorySample | None], ...] = ()
    was_read_again: bool = False
    baselines: tuple[Baseline, ...] = ()


class Start(Struct, frozen=True, kw_only=True):
    """What is started: written by `starting` alone.

    `placement` is the target, or what a rollback brings back. `epoch` is the backend that the
    switch waits for, None while none starts; `given_up`: why it is being stopped again.
    """

    placement: Placement | None = None
    epoch: int | None = None
    given_up: Refusal | None = None


class Rollback(Struct, frozen=True, kw_only=True):
    """What a failure brings back, and the failure: noted by `leaving`, used up by `rolling_back`.

    `failure` is there once a rollback runs.
    """

    to_restore: tuple[Placement, ...] = ()
    failure: Refusal | None = None


class ParkedReport(Struct, frozen=True, kw_only=True):
    """A server that a switch has parked, and what it keeps of the host and of its devices."""

    model: str
    host_bytes: int
    device_bytes: int


class Notes(Struct, frozen=True, kw_only=True):
    """What is only reported. `fell_back`: why the target is not the one that was asked for.

    `was_parked`: the target's server was, and took its memory back.
    """

    memory_before: MemorySample | None = None
    prompts_saved: tuple[KeptPrompts, ...] = ()
    prompts_restored: KeptPrompts | None = None
    fell_back: str | None = None
    parked: tuple[ParkedReport, ...] = ()
    was_parked: bool = False


class Switch(Struct, frozen=True, kw_only=True):
    """The one switch that runs. Times are monotonic, in seconds.

    The phase is written by `Draft.enter_phase`, each part by whom its docstring names.
    """

    order: Order
    phase: Phase
    phase_started_at: float
    phase_seconds: tuple[tuple[Phase, float], ...] = ()
    leaving: Leaving = Leaving()
    gate: Gate = Gate()
    start: Start = Start()
    rollback: Rollback = Rollback()
    notes: Notes = Notes()

    @property
    def switch_id(self) -> str:
        """The id that callers know it by."""
        return self.order.switch_id

    @property
    def target(self) -> Target | None:
        """What it makes live; None for an unload."""
        return self.order.target


class MemoryReport(Struct, frozen=True, kw_only=True):
    """What a switch saw of memory: before, once it was confirmed free, and after, and why then."""

    before: MemorySample | None = None
    confirmed: MemorySample | None = None
    after: MemorySample | None = None
    reason: str | None = None
    samples_taken: int = 0


class SwitchReport(Struct, frozen=True, kw_only=True):
    """What callers and the history learn of a switch that ended. Seconds and bytes.

    `reason`: why it was begun, where the scheduler decided so.
    """

    switch_id: str
    requested_by: str
    outcome: Outcome
    last_phase: Phase
    model: str | None
    mode: Mode | None
    profile: str | None
    epoch: int | None
    total_s: float
    phase_seconds: tuple[tuple[Phase, float], ...]
    memory: MemoryReport
    notes: Notes = Notes()
    refusal: Refusal | None = None
    reason: str = ""
