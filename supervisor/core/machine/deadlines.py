"""When the core wants to know that time has passed: every deadline that the snapshot holds."""

from supervisor.core.machine.leaving import reap_deadline
from supervisor.core.machine.requests import oldest_waiter
from supervisor.core.machine.values import BackendState, Phase, Snapshot, Switch

CHECK_TIMEOUT_S = 60.0
"""Seconds that the check of a target may take: headers are read in milliseconds, and a network
file system that hangs must not hold every later switch up."""


def next_wakeup(snapshot: Snapshot) -> float | None:
    """Return the monotonic time at which `TimePassed` is due, or None while nothing is."""
    moments = [*_switch_moments(snapshot), *_closing_moments(snapshot)]
    moments += [
        b.retire_deadline
        for b in snapshot.backends
        if b.retire_deadline is not None and b.state is BackendState.DRAINING
    ]
    oldest = oldest_waiter(snapshot)
    if oldest is not None:
        moments.append(oldest.arrived_at + snapshot.limits.hold_timeout_s)
    return min(moments, default=None)


def _switch_moments(snapshot: Snapshot) -> list[float]:
    switch = snapshot.switch
    if switch is None:
        return []
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


def _closing_moments(snapshot: Snapshot) -> list[float]:
    is_draining = any(b.state is BackendState.DRAINING for b in snapshot.backends)
    if snapshot.close_deadline is None or not is_draining:
        return []
    return [snapshot.close_deadline]
