"""What the scheduler learns on the way: what stays, drains and switches take, who comes back when.

Counters on the backend make it cost nothing per request; they are added up when a stay ends.
"""

from msgspec.structs import replace

from supervisor.core.machine.queues import queue_of
from supervisor.core.machine.snapshot import Away, Scheduling, Snapshot
from supervisor.core.machine.switch import SwitchReport
from supervisor.core.machine.values import Backend, Outcome, Phase, Work
from supervisor.core.scheduling import estimates


def begin_stay(snapshot: Snapshot, backend: Backend, at: float) -> tuple[Scheduling, Backend]:
    """The backend admits from now on: count anew, and note who asked for it while it was away."""
    scheduling, model = snapshot.scheduling, backend.target.model
    waiting = snapshot.requests.callers_of(model)
    learned = estimates.note_revision(scheduling.estimates, model, backend.target.revision)
    away = scheduling.away.get(model)
    if away is not None:
        learned = _note_absence(snapshot, learned, model, away, at)
    scheduling = replace(scheduling, estimates=learned)
    queued = queue_of(snapshot.requests, model, None).interactive
    work = Work(since=at, queued=queued, empty_since=at, queued_before=waiting)
    return scheduling, replace(backend, work=work)


def _note_absence(
    snapshot: Snapshot, learned: estimates.Estimates, model: str, away: Away, at: float
) -> estimates.Estimates:
    """Note how many asked for the model while it was away, and how soon after it was left."""
    requests, absent_s = snapshot.requests, at - away.left_at
    came = max(0, requests.callers_of(model) - away.waiting)
    learned = estimates.note_stay(
        learned,
        model,
        answered=0,
        busy_s=0.0,
        arrived=came,
        elapsed_s=absent_s,
    )
    if not came:
        return learned
    after_s = (requests.arrived_at_sum(model) - away.arrived_at_sum) / came - away.left_at
    return estimates.note_return(learned, model, min(max(0.0, after_s), absent_s))


def end_stay(snapshot: Snapshot, backend: Backend, at: float) -> tuple[Scheduling, Backend]:
    """The backend admits no more: note what it has served, and how many came in the time."""
    scheduling, model, work = snapshot.scheduling, backend.target.model, backend.work
    waiting = snapshot.requests.callers_of(model)
    idle_s = work.idle_s + (0.0 if work.empty_since is None else at - work.empty_since)
    learned = estimates.note_stay(
        scheduling.estimates,
        model,
        answered=work.granted - backend.in_flight,
        busy_s=max(0.0, at - work.since - idle_s),
        arrived=max(0, work.granted + waiting - work.queued_before),
        elapsed_s=at - work.since,
    )
    going_on = Work(
        since=at,
        granted=backend.in_flight,
        interactive_in_flight=work.interactive_in_flight,
        empty_since=work.empty_since,
        queued_before=waiting,
    )
    return replace(scheduling, estimates=learned), replace(backend, work=going_on)


def note_left(snapshot: Snapshot, backend: Backend, at: float) -> Scheduling:
    """The backend is stopped, or gone: from the end of its work on its model is away."""
    model, empty_since = backend.target.model, backend.work.empty_since
    if backend.work == Work():  # it never admitted anybody
        return snapshot.scheduling
    away = Away(
        left_at=at if empty_since is None else empty_since,
        waiting=snapshot.requests.callers_of(model),
        arrived_at_sum=snapshot.requests.arrived_at_sum(model),
    )
    return replace(snapshot.scheduling, away=snapshot.scheduling.away.set(model, away))


def note_switch(snapshot: Snapshot, report: SwitchReport, left: tuple[str, ...]) -> Scheduling:
    """A switch has ended: note what it took, and what the drain of those took that it stopped.

    The first load of a model in this run may read its file from a disk, and is no measure.
    """
    scheduling, model = snapshot.scheduling, report.model
    drain_s = sum(took_s for phase, took_s in report.phase_seconds if phase is Phase.DRAINING)
    learned = scheduling.estimates
    for gone in left:
        learned = estimates.note_drain(learned, gone, drain_s)
    if report.outcome is Outcome.SWITCHED and model is not None:
        is_cold = model not in scheduling.away
        took_s = report.total_s - drain_s
        learned = estimates.note_switch(
            learned, model, took_s, is_cold=is_cold, was_parked=report.notes.was_parked
        )
    return replace(scheduling, estimates=learned)
