"""Orders that `step()` gives; the arbiter's performer carries them out."""

from msgspec import Struct

from supervisor.core.machine.switch import SwitchReport
from supervisor.core.machine.values import Park, Refusal, Stop, Target


class Command(Struct, frozen=True, kw_only=True):
    """An order. Its result comes back as an event."""


class CheckTarget(Command, frozen=True, kw_only=True):
    """Check file, engine and flags, estimate the need → TargetAccepted or TargetRejected.

    `also_read`: devices that are read besides those that it needs, where they can be.
    """

    switch_id: str
    target: Target
    also_read: tuple[str, ...] = ()


class WarmFile(Command, frozen=True, kw_only=True):
    """Begin to read the target's file into the page cache → WarmingBegun."""

    switch_id: str
    target: Target


class StopWarming(Command, frozen=True, kw_only=True):
    """Read no further: the server itself reads now, or the switch is over."""

    switch_id: str


class StartBackend(Command, frozen=True, kw_only=True):
    """Spawn the target's server → BackendSpawned, then BackendReady or BackendExited."""

    epoch: int
    target: Target


class UnparkBackend(Command, frozen=True, kw_only=True):
    """Have a parked server take its memory back → BackendReady or BackendExited."""

    epoch: int
    target: Target


class ReleaseMemory(Command, frozen=True, kw_only=True):
    """Have a backend give its devices' memory back, in the way that `how` says.

    Its prompts are saved → ReleaseBegun. Stopped, it is reaped → BackendExited. Parked, it lives on
    → BackendParked, or BackendNotParked.
    """

    epoch: int
    how: Stop | Park


class SampleMemory(Command, frozen=True, kw_only=True):
    """Read the device → MemorySampled or MemoryUnreadable."""

    switch_id: str
    device: str


class GrantLease(Command, frozen=True, kw_only=True):
    """The request may use the backend of this epoch until it ends."""

    request_id: str
    epoch: int


class RefuseRequest(Command, frozen=True, kw_only=True):
    """The request gets an error answer."""

    request_id: str
    refusal: Refusal


class RefuseSwitch(Command, frozen=True, kw_only=True):
    """The switch is not begun, and its caller learns why."""

    switch_id: str
    refusal: Refusal


class JoinSwitch(Command, frozen=True, kw_only=True):
    """The same target is under way already: its caller gets the running switch's result."""

    switch_id: str
    running_id: str


class FinishSwitch(Command, frozen=True, kw_only=True):
    """The switch ended as the report says: answer its callers, keep it in the history."""

    report: SwitchReport


class ReadSchedule(Command, frozen=True, kw_only=True):
    """Say what the schedule makes of the clock now → ScheduleRead.

    `ended`: when the period began that is over because its work is done.
    """

    ended: float | None


class OptimizeVectors(Command, frozen=True, kw_only=True):
    """Build the indexes over all vectors that were stored; nobody waits for it."""


class CompleteShutdown(Command, frozen=True, kw_only=True):
    """Every backend is gone: the controller may exit."""
