"""When the core wants to know that time has passed: every deadline that the snapshot holds."""

from supervisor.core.machine import clock, idleness
from supervisor.core.machine.phases import phase_deadline
from supervisor.core.machine.recovery import retry_at
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.values import BackendState
from supervisor.core.machine.waiting import oldest_waiter


def next_wakeup(snapshot: Snapshot) -> float | None:
    """Return the monotonic time at which `TimePassed` is due, or None while nothing is."""
    moments: list[float] = []  # filled without detours: it is asked twice per request
    if (due_at := phase_deadline(snapshot)) is not None:
        moments.append(due_at)
    for backend in snapshot.backends:
        if backend.state is BackendState.DRAINING:
            if backend.departure.deadline is not None:
                moments.append(backend.departure.deadline)
            if snapshot.close_deadline is not None:
                moments.append(snapshot.close_deadline)
    if (
        snapshot.recoveries
        or snapshot.agenda.read_at is not None
        or snapshot.rules.models
        or snapshot.rules.idle_target
    ):
        moments += _of_our_own(snapshot)
    oldest = oldest_waiter(snapshot)
    if oldest is not None:
        moments.append(oldest.arrived_at + snapshot.limits.hold_timeout_s)
    if snapshot.switch is None and snapshot.scheduling.wake_at is not None:
        moments.append(snapshot.scheduling.wake_at)
        empty_since = _lingers_since(snapshot)
        if empty_since is not None:
            moments.append(empty_since + snapshot.scheduling.linger_s)
    return min(moments) if moments else None


def _of_our_own(snapshot: Snapshot) -> list[float]:
    """Return when something is to be done that nobody waits for in person."""
    due_at = (retry_at(snapshot), idleness.due_at(snapshot))
    return [*clock.moments(snapshot), *(at for at in due_at if at is not None)]


def lease_moves_wakeup(before: Snapshot, after: Snapshot) -> bool:
    """Whether a lease that was given or has come back moves `next_wakeup`; nobody else waits."""
    if after.scheduling.wake_at != before.scheduling.wake_at:
        return True
    if after.rules.models or after.rules.idle_target:  # one that work has put off may ring in vain
        due_at = idleness.due_at(after)
        if due_at is not None and due_at != idleness.due_at(before):
            return True
    return _lingers_since(after) != _lingers_since(before)


def _lingers_since(snapshot: Snapshot) -> float | None:
    """Return since when the scheduler lets the only live model linger, None where it does not."""
    only = snapshot.only if snapshot.scheduling.linger_s else None
    return None if only is None else only.work.empty_since
