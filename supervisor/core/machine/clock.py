"""What the clock asks for: periods begin, each with what it serves live; work ends some of them.

A period that has a target is entered before its boundary, by as long as the switch to it takes: so
it serves when the clock says so. What should be live is judged by the state, not by the moment: a
switch that fails is tried again, and what a start finds or a clock that was set is followed.
"""

import math

from msgspec.structs import replace

from supervisor.core.machine.agenda import Agenda, Period
from supervisor.core.machine.commands import OptimizeVectors, ReadSchedule
from supervisor.core.machine.draft import Draft
from supervisor.core.machine.events import ScheduleRead, SwitchRequested
from supervisor.core.machine.placing import free_of_hands_at
from supervisor.core.machine.setbacks import forget_setback
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.switch import CLOCK
from supervisor.core.machine.switch_requests import begin_switch, own_switch_id
from supervisor.core.machine.values import Target
from supervisor.core.machine.waiting import refuse_outside
from supervisor.core.scheduling.estimates import longest_switch_s

LONGEST_LEAD_S = 900.0
"""No period begins earlier than so before its boundary, whatever was learned of its switch."""

REREAD_S = 60.0
"""Seconds until the schedule is read again where nobody has answered."""


def take_schedule(draft: Draft, read: ScheduleRead) -> None:
    """Hold on to what the schedule says now; the clock may have been set since."""
    agenda = replace(
        draft.snapshot.agenda,
        periods=read.periods,
        refuses=read.refuses,
        lead_s=read.lead_s,
        has_work=read.has_work,
        read_at=read.read_again_at,
        ended=read.ended,
    )
    before = draft.snapshot.agenda
    draft.set(agenda=agenda)
    _pass_boundaries(draft)
    _begin_period(draft, before.period)
    ended = read.ended
    if (
        ended is not None
        and ended.optimizes
        and (before.ended is None or not _is_same(before.ended, ended))
    ):
        draft.commands.append(OptimizeVectors())


def pass_time(draft: Draft) -> None:
    """Enter the period whose time has come, and have the schedule read where that is due."""
    agenda = draft.snapshot.agenda
    if agenda.read_at is not None and draft.at >= agenda.read_at:
        reread(draft)
    if agenda.periods:
        _pass_boundaries(draft)
        _begin_period(draft, agenda.period)


def reread(draft: Draft) -> None:
    """Have the schedule read now."""
    agenda = draft.snapshot.agenda
    draft.set(agenda=replace(agenda, read_at=draft.at + REREAD_S))
    draft.commands.append(ReadSchedule(ended=agenda.over))


def begin_due(draft: Draft) -> None:
    """Begin the switch that the period needs, if none runs and nothing keeps it back."""
    period = wanting(draft.snapshot)
    if period is None or period.target is None:
        return
    if _may_switch_at(draft.snapshot, period.target) > draft.at:
        return
    begin_switch(
        draft,
        SwitchRequested(
            at=draft.at,
            switch_id=own_switch_id(draft),
            target=period.target,
            requested_by=CLOCK,
            drain_policy=draft.snapshot.rules.scheduler_drains,
            reason=f"by the schedule: {period.serves}"
            + (f" from {period.local} on" if period.local else ""),
        ),
    )


def wanting(snapshot: Snapshot) -> Period | None:
    """Return the period that nothing live serves, though a switch could begin; None: all is well.

    A model that died is brought back by its recovery.
    """
    period = snapshot.agenda.period
    if period is None or period.target is None or snapshot.switch is not None:
        return None
    if snapshot.agenda.rests:  # its requests bring it back
        return None
    if snapshot.is_closing or snapshot.recovery(period.target.model) is not None:
        return None
    return None if _is_served(snapshot, period) else period


def moments(snapshot: Snapshot) -> list[float]:
    """Return when the clock has something to do."""
    agenda = snapshot.agenda
    found = [] if agenda.read_at is None else [agenda.read_at]
    if _may_begin(agenda):
        found.append(_entered_at(snapshot, agenda.periods[1]))
    period = wanting(snapshot)
    if period is not None and period.target is not None:
        at = _may_switch_at(snapshot, period.target)
        found += [at] if at < math.inf else []
    return found


def _pass_boundaries(draft: Draft) -> None:
    agenda = draft.snapshot.agenda
    while _may_begin(agenda) and _has_begun(draft.snapshot, agenda, draft.at):
        following = agenda.periods[1]
        agenda = replace(agenda, periods=agenda.periods[1:], entered=following.local)
        if following.target is not None:  # another occasion, whatever failed before
            scheduling = forget_setback(draft.snapshot.scheduling, following.target.model)
            draft.set(scheduling=scheduling)
    if _is_past(agenda):
        agenda = replace(agenda, by_hand=None)
    draft.set(agenda=agenda)


def _begin_period(draft: Draft, before: Period | None) -> None:
    """Whoever waits for what another period admits is told; a new one may have work of its own."""
    period = draft.snapshot.agenda.period
    if period is None or (before is not None and _is_same(before, period)):
        return
    draft.set(agenda=replace(draft.snapshot.agenda, rests=False))
    refuse_outside(draft)
    if period.optimizes and not period.until_done:
        draft.commands.append(OptimizeVectors())


def _is_same(one: Period, other: Period) -> bool:
    return (one.began, one.serves) == (other.began, other.serves)


def _may_begin(agenda: Agenda) -> bool:
    """Whether there is a period to come; one for work that is not there is not begun."""
    following = agenda.following
    return following is not None and (agenda.has_work or not following.until_done)


def _has_begun(snapshot: Snapshot, agenda: Agenda, at: float) -> bool:
    """Whether the next period holds; one that was entered is not left as its lead gets shorter."""
    following = agenda.periods[1]
    # By its start: the baseline, and what is in force again behind another, began long before.
    was_entered = agenda.entered == following.local
    if was_entered and following.starts_at - at <= LONGEST_LEAD_S:
        return True
    return at >= _entered_at(snapshot, following)


def _entered_at(snapshot: Snapshot, period: Period) -> float:
    """Return when a period begins: its boundary, or as much earlier as its switch takes."""
    if period.target is None or _is_served(snapshot, period):
        return period.starts_at
    lead_s = snapshot.agenda.lead_s
    if lead_s is None:
        there = [b.target.model for b in snapshot.tenants() if not b.target.is_twin]
        lead_s = longest_switch_s(snapshot.scheduling.estimates, period.target.model, there)
    return period.starts_at - min(lead_s, LONGEST_LEAD_S)


def _is_served(snapshot: Snapshot, period: Period) -> bool:
    return any(period.admits(backend.target) for backend in snapshot.ready_backends())


def _is_past(agenda: Agenda) -> bool:
    """Whether the boundary is behind us until which a hand's choice holds."""
    by_hand, following = agenda.by_hand, agenda.following
    upcoming = None if following is None else following.began
    return by_hand is not None and by_hand.before != upcoming


def _may_switch_at(snapshot: Snapshot, target: Target) -> float:
    """Return until when a target is left alone: it has failed, or a hand has set its devices."""
    setback = snapshot.scheduling.setbacks.get(target.model)
    until = 0.0 if setback is None else setback.until
    return max(until, free_of_hands_at(snapshot, target))
