"""When the core wants to know that time has passed: every deadline that the snapshot holds."""

from supervisor.core.machine.phases import phase_deadline
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
            if backend.retire_deadline is not None:
                moments.append(backend.retire_deadline)
            if snapshot.close_deadline is not None:
                moments.append(snapshot.close_deadline)
    oldest = oldest_waiter(snapshot)
    if oldest is not None:
        moments.append(oldest.arrived_at + snapshot.limits.hold_timeout_s)
    if snapshot.switch is None and snapshot.scheduling.wake_at is not None:
        moments.append(snapshot.scheduling.wake_at)
    return min(moments) if moments else None
