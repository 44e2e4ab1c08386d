"""Past facts that reach the arbiter. Each carries the monotonic time at which it was true."""

from dataclasses import dataclass

from supervisor.core.machine.memory import MemorySample
from supervisor.core.machine.values import (
    Device,
    DrainPolicy,
    KeptPrompts,
    Mode,
    Target,
    TargetNeed,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A fact. `at` is monotonic, in seconds: the core has no clock of its own."""

    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchRequested(Event):
    """Somebody wants `target` live, or (None) the device freed."""

    switch_id: str
    target: Target | None
    requested_by: str
    drain_policy: DrainPolicy = DrainPolicy.CANCEL


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetAccepted(Event):
    """The target's file, flags and engine were checked, and its need is known.

    `memory` is a reading of its device; None where it cannot be read, for the reason in
    `memory_problem`.
    """

    switch_id: str
    need: TargetNeed
    memory: MemorySample | None
    memory_problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRejected(Event):
    """The target cannot start, for the reason given; nothing was touched."""

    switch_id: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFound(Event):
    """A device that was not there at the start, or could not be read then, can be used."""

    device: Device


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmingBegun(Event):
    """The target's file is being read into the page cache, in the background."""

    switch_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestArrived(Event):
    """A client asks for a model, or (None) for whatever is live, preferring `mode_hint`."""

    request_id: str
    model: str | None
    mode_hint: Mode | None = None
    body_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEnded(Event):
    """A request was answered, failed, or its client left: its lease or place is free."""

    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSpawned(Event):
    """The process of an epoch exists and will listen at `address`; it is not ready yet."""

    epoch: int
    pid: int
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendReady(Event):
    """The server of an epoch answers, and it is the one that we started.

    `prompts` tells what was restored for it.
    """

    epoch: int
    memory: MemorySample | None
    prompts: KeptPrompts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendStalled(Event):
    """Requests are in flight on a server, and nothing has moved in it for `stalled_s` seconds."""

    epoch: int
    stalled_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendMoved(Event):
    """A server that had stalled moves again, or has nothing left to do."""

    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendExited(Event):
    """The whole process group of an epoch is reaped (or could not be spawned at all).

    `prompts` tells what was saved of it before.
    """

    epoch: int
    exit_code: int | None
    signal: int | None = None
    last_lines: tuple[str, ...] = ()
    prompts: KeptPrompts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySampled(Event):
    """Telemetry read the device that the running switch waits for."""

    switch_id: str
    sample: MemorySample


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUnreadable(Event):
    """Telemetry could not read the device that the running switch waits for."""

    switch_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryDue(Event):
    """The pause before another attempt to bring a model back is over."""

    model: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartRequested(Event):
    """An operator wants what died brought back now, also when its breaker is open."""

    switch_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePassed(Event):
    """The moment named by `next_wakeup()` has come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownRequested(Event):
    """The controller shall end: drain until `drain_timeout_s` is over, then stop everything.

    Asked a second time with 0, it stops at once.
    """

    drain_timeout_s: float
