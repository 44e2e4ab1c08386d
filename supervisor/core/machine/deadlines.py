"""When the core wants to know that time has passed: every deadline that the snapshot holds."""

from supervisor.core.machine.leaving import reap_deadline
from supervisor.core.machine.requests import oldest_waiter
from supervisor.core.machine.values import BackendState, Phase, Snapshot, Switch

CHECK_TIMEOUT_S = 60.0
"""Seconds that the check of a target may take: headers are read in milliseconds, and a network
file system that hangs must not hold every later switch up."""


def next_wakeup(snapshot: Snapshot) -> float | None:
    """Return the monotonic time at which `TimePassed` is due, or None while nothing is."""
    moments: list[float] = []  # filled without detours: it is asked twice per request
    if snapshot.switch is not None:
        moments += _switch_moments(snapshot, snapshot.switch)
    for backend in snapshot.backends:
        if backend.state is BackendState.DRAINING:
            if backend.retire_deadline is not None:
                moments.append(backend.retire_deadline)
            if snapshot.close_deadline is not None:
                moments.append(snapshot.close_deadline)
    oldest = oldest_waiter(snapshot)
    if oldest is not None:
        moments.append(oldest.arrived_at + snapshot.limits.hold_timeout_s)
    return min(moments) if moments else None


def _switch_moments(snapshot: Snapshot, switch: Switch) -> list[float]:
    moments = [_phase_deadline(snapshot, switch), switch.next_sample_at]
    backend = snapshot.backend(switch.epoch)
    if backend is not None and backend.state is BackendState.STARTING:
        moments.append(backend.started_at + backend.target.start_timeout_s)
    return [moment for moment in moments if moment is not None]


def _phase_deadline(snapshot: Snapshot, switch: Switch) -> float | None:
    match switch.phase:
        case Phase.PREFLIGHT:
            return switch.started_at + CHECK_TIMEOUT_S
        case Phase.DRAINING:
            return switch.drain_deadline
        case Phase.STOPPING:
            return reap_deadline(snapshot)
        case _:
            return None
