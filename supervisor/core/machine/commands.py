"""Orders that `step()` gives; the arbiter's performer carries them out."""

from dataclasses import dataclass

from supervisor.core.machine.values import Refusal, SwitchReport, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """An order. Its result comes back as an event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckTarget(Command):
    """Check file, engine and flags, estimate the need → TargetAccepted or TargetRejected."""

    switch_id: str
    target: Target


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmFile(Command):
    """Begin to read the target's file into the page cache → WarmingBegun."""

    switch_id: str
    target: Target


@dataclass(frozen=True, slots=True, kw_only=True)
class StopWarming(Command):
    """Read no further: the server itself reads now, or the switch is over."""

    switch_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartBackend(Command):
    """Spawn the target's server → BackendSpawned, then BackendReady or BackendExited."""

    epoch: int
    target: Target


@dataclass(frozen=True, slots=True, kw_only=True)
class StopBackend(Command):
    """Cut its upstream connections, end the process group, reap it → BackendExited.

    `keeps_prompts`: its prompt caches are saved first, where its profile says so. `is_replaced`:
    a successor will serve its requests, as after a death.
    """

    epoch: int
    grace_s: float
    keeps_prompts: bool = False
    is_replaced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleMemory(Command):
    """Read the device → MemorySampled or MemoryUnreadable."""

    switch_id: str
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantLease(Command):
    """The request may use the backend of this epoch until it ends."""

    request_id: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RefuseRequest(Command):
    """The request gets an error answer."""

    request_id: str
    refusal: Refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class RefuseSwitch(Command):
    """The switch is not begun, and its caller learns why."""

    switch_id: str
    refusal: Refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinSwitch(Command):
    """The same target is under way already: its caller gets the running switch's result."""

    switch_id: str
    running_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishSwitch(Command):
    """The switch ended as the report says: tell its callers, keep it in the history."""

    report: SwitchReport


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRetry(Command):
    """Wait a pause that grows with `attempt` (1, 2, …), jittered → RetryDue."""

    model: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteShutdown(Command):
    """Every backend is gone: the controller may exit."""
