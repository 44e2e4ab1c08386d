"""How a switch ends: it is reported, the way is free for the next, and who waited is settled."""

from msgspec.structs import replace

from supervisor.core.machine.commands import FinishSwitch, StopWarming
from supervisor.core.machine.draft import Draft
from supervisor.core.machine.learning import note_switch
from supervisor.core.machine.memory import MemorySample
from supervisor.core.machine.recovery import forget_recovery, note_failed_recovery
from supervisor.core.machine.reports import report_of
from supervisor.core.machine.setbacks import forget_setback, note_failure, try_all_again
from supervisor.core.machine.switch import CLOCK, IDLENESS, SCHEDULER, Switch, SwitchReport
from supervisor.core.machine.values import Outcome, Phase, Refusal, Target
from supervisor.core.machine.waiting import settle_waiters

KEPT_DURATIONS = 16
"""Switches whose duration is remembered, to tell clients when to come back."""


def end_switch(
    draft: Draft,
    *,
    refusal: Refusal | None = None,
    memory_after: MemorySample | None = None,
    outcome: Outcome | None = None,
) -> None:
    """Report the switch, free the way for the next, and settle everybody who waited for it."""
    switch = draft.running_switch()
    report = report_of(switch, draft.at, refusal=refusal, memory_after=memory_after)
    if outcome is not None:
        report = replace(report, outcome=outcome)
    if switch.start.epoch is None:
        stop_warming(draft, switch)
    durations = draft.snapshot.switch_durations_s
    if refusal is None:
        durations = (*durations, report.total_s)[-KEPT_DURATIONS:]
        if switch.target is not None:
            _forget_replaced(draft, switch.target)
    elif switch.order.is_recovery and switch.target:
        down = draft.snapshot.recovery(switch.target.model)
        if down is not None:
            note_failed_recovery(draft, down.target, refusal.message)
    draft.set(switch=None, switch_durations_s=durations)
    if switch.target is None or not switch.target.is_twin:  # else what serves is as it was
        draft.set(endings=replace(draft.snapshot.endings, failure=refusal))
    draft.commands.append(FinishSwitch(report=report))
    _note_for_scheduling(draft, switch, report)
    settle_waiters(draft, refusal, switch.target)


def _note_for_scheduling(draft: Draft, switch: Switch, report: SwitchReport) -> None:
    """Learn what the switch took, and from a failure of our own; a hand's choice holds."""
    left = tuple(each.target.model for each in switch.rollback.to_restore)
    draft.set(scheduling=note_switch(draft.snapshot, report, left))
    scheduling, target = draft.snapshot.scheduling, switch.target
    if report.refusal is None:
        if target is not None:
            draft.set(scheduling=forget_setback(scheduling, target.model))
            draft.set_scheduling(is_unloaded=False)
        if switch.order.is_by_hand:
            hold(draft, switch)
    elif target is not None and switch.order.requested_by in {SCHEDULER, CLOCK, IDLENESS}:
        failed = note_failure(
            draft.snapshot, target.model, report.refusal, report.total_s, draft.at
        )
        draft.set(scheduling=failed)


def hold(draft: Draft, switch: Switch) -> None:
    """A hand set a switch's devices (of an unload: all): the scheduler leaves them for a while.

    The schedule leaves them alone until its next period.
    """
    snapshot, target, only = draft.snapshot, switch.target, switch.order.unloads
    until = draft.at + snapshot.rules.manual_hold_s
    live = [b for b in snapshot.ready_backends() if target and b.target.is_same(target)]
    gone = [each for each in switch.rollback.to_restore if each.target.model == only]
    devices = {d for b in live for d in (*b.target.devices, *b.footprint.devices)}
    devices |= {d for each in gone for d in each.footprint.devices}
    if target is None and only is None:
        devices = set(snapshot.devices)
    held = snapshot.scheduling.held_until.update(
        {name: until for device in devices for name in snapshot.pool(device)}
    )
    draft.set_scheduling(held_until=held, is_unloaded=target is None)
    if target is None:
        draft.set(scheduling=try_all_again(draft.snapshot.scheduling))
    if target is not None or only is None or any(snapshot.agenda.admits(g.target) for g in gone):
        draft.set(agenda=snapshot.agenda.with_choice(target))


def stop_warming(draft: Draft, switch: Switch) -> None:
    """Read the target's file no further."""
    if any(phase is Phase.WARMING for phase, _ in switch.phase_seconds):
        draft.commands.append(StopWarming(switch_id=switch.switch_id))


def _forget_replaced(draft: Draft, target: Target) -> None:
    """What is live now is wanted: where it is to be alone, nothing comes back beside it."""
    exclusive = {device.name for device in draft.snapshot.devices.values() if device.is_exclusive}
    for down in draft.snapshot.recoveries:
        if down.target.model == target.model:
            forget_recovery(draft, target.model)
        elif target.is_twin or down.target.is_twin:
            continue
        is_alone = all(exclusive & each.shared_devices(target) for each in down.target.places)
        if is_alone or draft.snapshot.rules.replaces:
            forget_recovery(draft, down.target.model)
