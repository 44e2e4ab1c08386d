"""Brings back what should be live: restarts after a death, retries after a failed rollback.

Pauses grow with each attempt; one whose pause ends while a switch runs is made behind that. A model
that dies too often opens its breaker: it stays down, with the reason, until an operator asks for a
restart.
"""

from msgspec.structs import replace

from supervisor.core.machine.draft import Draft
from supervisor.core.machine.footprint import Baseline
from supervisor.core.machine.snapshot import BackendExit, Snapshot
from supervisor.core.machine.values import Backend, Recovery, Target
from supervisor.core.pauses import doubled_pause_s

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 60.0


def note_death(
    draft: Draft, target: Target, record: BackendExit, baselines: tuple[Baseline, ...] = ()
) -> None:
    """A backend died while serving: restart it after a pause, or open its breaker.

    `baselines` are what its devices should return to without it, as far as is known.
    """
    limits = draft.snapshot.limits
    known = draft.snapshot.recent_deaths.get(target.model, ())
    deaths = (*(t for t in known if t > draft.at - limits.breaker_window_s), draft.at)
    reason = f"the server of '{record.model}' died while serving ({record.describe()})"
    is_open = len(deaths) >= limits.breaker_deaths
    if is_open:
        reason = (
            f"{reason}, {len(deaths)} times in {limits.breaker_window_s:g} s; it stays down until "
            "POST /backend/restart"
        )
    draft.set(recent_deaths=draft.snapshot.recent_deaths.set(target.model, deaths))
    _put(
        draft,
        Recovery(
            target=target,
            attempt=len(deaths),
            reason=reason,
            is_open=is_open,
            may_hold=not is_open,
            baselines=baselines,
            beside=_beside(draft, baselines),
        ),
    )


def note_stall(draft: Draft, backend: Backend) -> None:
    """A stalled backend is being ended: its requests wait; its end will be noted as a death."""
    recovery = Recovery(
        target=backend.target,
        attempt=1,
        reason=f"the server of '{backend.target.model}' is being replaced: nothing had moved in "
        f"it for {backend.stalled_s or 0.0:.0f} s",
    )
    _note(draft, recovery)


def baselines_of_the_dead(draft: Draft) -> tuple[Baseline, ...]:
    """Return the use that the devices of what died should be back at, while nothing has changed.

    Without it, memory that a dead server still holds would become part of its successor's baseline.
    """
    return tuple(
        baseline for down in draft.snapshot.recoveries for baseline in _still_true(draft, down)
    )


def baselines_of(draft: Draft, target: Target) -> tuple[Baseline, ...]:
    """Return the use from which a target that died ran, while nothing has changed since."""
    down = draft.snapshot.recovery(target.model)
    return _still_true(draft, down) if down is not None and down.target.is_same(target) else ()


def _still_true(draft: Draft, down: Recovery) -> tuple[Baseline, ...]:
    return down.baselines if down.beside == _beside(draft, down.baselines) else ()


def _beside(draft: Draft, baselines: tuple[Baseline, ...]) -> tuple[tuple[int, int], ...]:
    """Return by epoch what is taken of the devices of the baselines; a parked one keeps some."""
    devices = [baseline.device for baseline in baselines]
    taken = ((b.epoch, b.footprint.on(*devices)) for b in draft.snapshot.backends)
    return tuple((epoch, size) for epoch, size in taken if size)


def note_lost(draft: Draft, target: Target, reason: str) -> None:
    """A backend that was to leave is gone, and the switch is given up: restart it after a pause."""
    _put(draft, Recovery(target=target, attempt=1, reason=reason))


def note_failed_recovery(draft: Draft, target: Target, reason: str) -> None:
    """An attempt to bring a model back failed: its requests are refused until one succeeds."""
    before = draft.snapshot.recovery(target.model)
    failed = before or Recovery(target=target, attempt=0, reason=reason)
    attempt = failed.attempt + 1
    _put(draft, replace(failed, target=target, attempt=attempt, reason=reason, may_hold=False))


def retry_at(snapshot: Snapshot) -> float | None:
    """Return when the next attempt is due; None while a switch runs, whose end it waits for."""
    if snapshot.switch is not None or not snapshot.recoveries:
        return None
    return min((r.retry_at for r in snapshot.recoveries if r.retry_at is not None), default=None)


def due_recovery(draft: Draft) -> Recovery | None:
    """Return the recovery whose pause is over, if one is; it has another before the next."""
    due_at = retry_at(draft.snapshot)
    if due_at is None or due_at > draft.at:
        return None
    due = next(r for r in draft.snapshot.recoveries if r.retry_at == due_at)
    _put(draft, due)
    return due


def reset_breakers(draft: Draft) -> Recovery:
    """An operator wants everything that is down to be tried again: all start over.

    Returns the one to try at once; the others, whose breaker may have been open without a retry
    to come, follow after the first pause.
    """
    down = draft.snapshot.recoveries
    draft.set(recent_deaths=draft.snapshot.recent_deaths.__class__())
    for each in down:
        _put(draft, replace(each, attempt=1, is_open=False, may_hold=True))
    return down[0]


def forget_recovery(draft: Draft, model: str) -> None:
    """The model is live again, or is not wanted any more."""
    draft.set(recoveries=tuple(r for r in draft.snapshot.recoveries if r.target.model != model))


def forget_unloaded(draft: Draft, only: str | None) -> None:
    """An unload wants a model down, or (None) all that are not pinned: none is brought back."""
    rules = draft.snapshot.rules
    left = tuple(r for r in draft.snapshot.recoveries if not rules.unloads(r.target, only))
    draft.set(recoveries=left)


def _note(draft: Draft, recovery: Recovery) -> None:
    forget_recovery(draft, recovery.target.model)
    draft.set(recoveries=(*draft.snapshot.recoveries, recovery))


def _put(draft: Draft, recovery: Recovery) -> None:
    """Note it, and when it is tried next."""
    pause_s = doubled_pause_s(recovery.attempt, FIRST_PAUSE_S, LONGEST_PAUSE_S)
    due_at = None if recovery.is_open else draft.at + pause_s
    _note(draft, replace(recovery, retry_at=due_at))
