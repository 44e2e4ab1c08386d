"""The ledger: every request with what was seen of its answer, and every fault that was made.

Times are wall-clock seconds, because the controller's log is held against them.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

REWRITTEN_WITHIN_S = 7.0
"""The product tries again every five seconds to write what it could not."""

SLACK_S = 1.0
"""By which the log, the disk and the wall clock may be apart."""


class End(StrEnum):
    """How an exchange ended, as its client saw it."""

    WHOLE = "whole"
    TRUNCATED = "ended cleanly, but not whole"
    BROKEN = "broken off"
    ERROR_EVENT = "ended by an error event"
    NO_CONNECTION = "no connection"
    LEFT = "left by the client"
    TIMED_OUT = "no answer in time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a client saw. `code` is that of our error envelope; the headers are as text.

    `has_begun`: something of the answer itself came, beyond its head and comments.
    """

    end: End
    status: int | None = None
    code: str | None = None
    retry_after: str | None = None
    should_retry: str | None = None
    has_begun: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One request. `wrong` says what is wrong with the content of an answer that came.

    `is_batch`: it was sent as batch work. `right_statuses`: those of a right answer. `may_refuse`:
    codes that are a fair refusal of it.
    """

    request_id: str
    kind: str
    model: str | None
    started_at: float
    ended_at: float
    seen: Seen
    wrong: str | None = None
    is_batch: bool = False
    right_statuses: frozenset[int] = frozenset({200})
    may_refuse: frozenset[str] = frozenset()

    def describe(self) -> str:
        """Write it as a line of the story."""
        seen = self.seen
        told = [str(seen.end), str(seen.status or ""), seen.code or "", self.wrong or seen.detail]
        return (
            f"{self.request_id} {self.kind} {self.model or '-'} "
            f"({self.ended_at - self.started_at:.3f} s): {' '.join(t for t in told if t)}"
        )


class Weapon(StrEnum):
    """What a fault does, and to whom."""

    KILL = "SIGKILL"
    SEGV = "SIGSEGV"
    STOP = "SIGSTOP"
    CONTROLLER_KILL = "controller SIGKILL"
    CONTROLLER_TERM = "controller SIGTERM"
    DISK_FULL = "disk full"
    SWEEP = "sockets swept"
    QUEUE_KILL = "queue SIGKILL"
    WORKER_KILL = "workers SIGKILL"
    DRIVER_HANGS = "driver hangs"
    GPU_LOST = "GPU lost"
    SAMPLER_KILL = "sampler SIGKILL"
    TENANT = "tenant comes"
    LATE_RELEASE = "late release"

    @property
    def ends_server(self) -> bool:
        """Whether the server that it hits ends: a server that nobody can reach is ended, too.

        One that a tenant has left no room ends by itself.
        """
        return self in {Weapon.KILL, Weapon.SEGV, Weapon.SWEEP, Weapon.TENANT}

    @property
    def kind(self) -> str:
        """The choice of `--faults` that it belongs to."""
        kinds = {
            Weapon.DISK_FULL: "disk",
            Weapon.SWEEP: "sweep",
            Weapon.QUEUE_KILL: "queue",
            Weapon.WORKER_KILL: "workers",
            **dict.fromkeys(OF_GPUS, "gpu"),
        }
        return kinds.get(self, "kills")


OF_GPUS = (
    *(Weapon.DRIVER_HANGS, Weapon.GPU_LOST, Weapon.SAMPLER_KILL),
    *(Weapon.TENANT, Weapon.LATE_RELEASE),
)
"""What happens to simulated GPUs, where a run has some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault: which process was hit when, and at which phase it was aimed."""

    at: float
    weapon: Weapon
    pid: int
    aimed_at: str

    def describe(self) -> str:
        """Write it as a line of the story."""
        return f"FAULT {self.weapon} to {self.pid}, aimed at {self.aimed_at}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """Something that must not happen, with the moment whose story tells how it came about."""

    at: float
    rule: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """An event of the run for the story: a switch ordered, a file swapped, a controller started."""

    at: float
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A switch that we ordered, with its drain policy (None: the configured one)."""

    switch_id: str
    policy: str | None
    sent_at: float


@dataclass(slots=True)
class Ledger:
    """What happened so far. Everybody appends; the balance reads."""

    entries: list[Entry] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)
    pending: dict[str, float] = field(default_factory=dict)
    """When each request began that has not ended."""
    full_disks: list[tuple[float, float]] = field(default_factory=list)
    """From when until when the disk of the data folder was full."""
    bounds: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    """When /status was read, and the longest wait of a head that it gave for each model."""

    def note(self, what: str) -> None:
        """Remember an event for the story."""
        self.notes.append(Note(at=time.time(), what=what))

    def violate(self, rule: str, what: str) -> None:
        """Remember that a rule was broken now."""
        self.violations.append(Violation(at=time.time(), rule=rule, what=what))

    def may_be_unwritten(self, ended_at: float) -> bool:
        """Whether a switch that ended then may be forgotten: with a full disk, before a kill.

        What could not be written is written some seconds after it can be.
        """
        kills = [fault.at for fault in self.faults if fault.weapon is Weapon.CONTROLLER_KILL]
        return any(
            began_at - SLACK_S <= ended_at <= over_at + SLACK_S
            and any(began_at <= at <= over_at + REWRITTEN_WITHIN_S for at in kills)
            for began_at, over_at in self.full_disks
        )

    def story(self, at: float, lines: int) -> Iterator[str]:
        """Yield the last lines of what happened until a moment, the oldest first."""
        events = [
            *((e.ended_at, e.describe()) for e in self.entries),
            *((f.at, f.describe()) for f in self.faults),
            *((n.at, n.what) for n in self.notes),
        ]
        before = sorted(event for event in events if event[0] <= at)
        for moment, what in before[-lines:]:
            yield f"{moment - at:+9.3f} s  {what}"
