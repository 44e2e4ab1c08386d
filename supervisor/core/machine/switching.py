"""How a switch moves: what is done in each of its phases; `phases` has the table.

Nothing is touched before the target is accepted. Where there is room for both, the target starts
beside what it replaces, and nothing is drained before. A backend starts only after the gate has
confirmed the device's memory; a gate that cannot confirm in time fails the switch (closed).
What fails after something was stopped leads to a rollback, which brings that back.

What always holds of a switch (`invariants` checks it after every step):

1. *Nothing starts beside what must be gone.* No backend of `leaving.epochs` is there in
   CONFIRMING, STARTING, ROLLING_BACK and RESTORING, unless it is parked. Only `_ask_for_release`
   enters CONFIRMING, and only when `leaving_backends` is empty or nothing was to leave; `epochs`
   grows before that only, in `begin_to_leave` (a switch that makes room after all goes back to
   DRAINING for it, or to STOPPING for what it has parked), and one that is started again is taken
   out of it; the later phases are reached from CONFIRMING only; and a backend that is gone does not
   come back under its epoch.
2. *One backend starts at a time, and the switch waits for it.* `start.epoch` is set exactly in
   STARTING and RESTORING, and names a backend that is STARTING, or is STOPPING because it was
   given up. `start_placed` enters these phases and sets it; `finish_start`, `fail_switch` and
   `roll_back` leave them and clear it or end the switch; its exit is `fail_start`. Nobody else
   puts a backend into STARTING.
3. *A question is open exactly while memory is confirmed*, in CONFIRMING and ROLLING_BACK, and is
   about a device of what is placed, of what is parked for it, or, unloading, of what leaves:
   `question_device` opens it with the phase, and the decision that closes it leaves the phase, or
   opens the next one, in the same step.
4. *A rollback has a failure to report*: `rollback.failure` is set exactly in ROLLING_BACK and
   RESTORING. `roll_back` enters with it, and every way out ends the switch.
5. *A switch does not hang*: each phase has a moment at which it goes on, or an answer is on its way
   that the performer owes (a reading), or the operator said to wait for streams
   (`drain_policy: wait`). `phases` names the moments. From CONFIRMING it goes back at most once
   for each backend that there is: each time one that it has not begun to end, or has parked, is
   ended, and none is started meanwhile. A rollback asks once more for each device, without what
   is parked there. Readings that have become old are asked for once more.
"""

from collections.abc import Sequence

from msgspec.structs import replace

from supervisor.core.machine.commands import CheckTarget, WarmFile
from supervisor.core.machine.confirming import (
    expect_devices,
    expect_devices_again,
    expect_less_use,
    expect_use_of_the_dead,
    next_device,
    note_confirmed,
    question_device,
    weigh_sample,
)
from supervisor.core.machine.draft import Draft
from supervisor.core.machine.ending import end_switch, stop_warming
from supervisor.core.machine.events import BackendReady, TargetAccepted
from supervisor.core.machine.footprint import Footprint
from supervisor.core.machine.leaving import (
    begin_to_leave,
    leaving_backends,
    may_stop,
    not_reaped,
    reap_deadline,
    retire_replaced,
    stay,
    stop_backend,
    stop_leaving,
    stop_parking,
)
from supervisor.core.machine.making_room import (
    may_make_room,
    others_in_the_way,
    parked_beside,
    parked_in_the_way,
    replaced_in_the_way,
    was_made_to_refuse,
)
from supervisor.core.machine.memory import GateState, MemorySample
from supervisor.core.machine.packing import measured_capacity
from supervisor.core.machine.parking import (
    devices_to_judge_by,
    note_unproved,
    over_budget,
    recount_kept,
    report_parked,
)
from supervisor.core.machine.placing import choose_place
from supervisor.core.machine.recovery import (
    baselines_of,
    baselines_of_the_dead,
    forget_recovery,
    forget_unloaded,
    note_lost,
)
from supervisor.core.machine.rolling_back import fail_rollback, note_restored, roll_back
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.starting import give_up_late_start, note_live, place, start_placed
from supervisor.core.machine.values import (
    Backend,
    BackendState,
    Outcome,
    Phase,
    Placement,
    Refusal,
    Target,
)

_TAKEN = frozenset({"place_is_taken", "pinned_in_the_way"})
"""Why what died is not brought back: it comes into free room only."""

CHECK_TIMEOUT_S = 60.0
"""Seconds that the check of a target may take: headers are read in milliseconds, and a network
file system that hangs must not hold every later switch up."""

WARM_TIMEOUT_S = 10.0
"""Seconds after which a switch goes on without having heard that the file is being read."""


def order_check(draft: Draft, target: Target) -> None:
    """Have a target checked, and read what is to be known of memory to plan for it."""
    draft.commands.append(
        CheckTarget(
            switch_id=draft.running_switch().switch_id,
            target=target,
            also_read=devices_to_judge_by(draft.snapshot),
        )
    )


def accept_target(draft: Draft, event: TargetAccepted) -> None:
    """The target can start: choose its place and what gives way, and see that it fits then."""
    switch = draft.running_switch()
    target = switch.target
    if target is None:
        return
    for reading in event.readings:
        need = event.need_on(reading.device).footprint.among(draft.snapshot.devices)
        recount_kept(draft, reading, Placement(target=target, footprint=need))
    chosen, refusal = choose_place(draft.snapshot, switch.order, event, draft.at)
    _note_needs(draft, target, event)
    target, footprint = chosen.target, chosen.footprint or event.need.footprint
    switch = draft.set_switch("order", target=target)
    before = baselines_of(draft, target) if switch.order.is_recovery else ()
    place(draft, Placement(target=target, footprint=footprint, baselines=before))
    expect_use_of_the_dead(draft, baselines_of_the_dead(draft))
    own = next((r for r in event.readings if r.device == target.device), None)
    draft.set_switch("notes", memory_before=own)
    draft.set_switch(
        "leaving",
        first=tuple(b.epoch for b in chosen.plan.leaving),
        parking=tuple(b.epoch for b in chosen.plan.parking),
        behind=tuple(b.epoch for b in chosen.plan.retiring),
    )
    if refusal is not None and refusal.code in _TAKEN and switch.order.is_recovery:
        if _was_replaced(draft.snapshot, target.model, footprint):
            forget_recovery(draft, target.model)  # somebody chose what is live now
        else:
            message = f"'{target.model}' has less room beside the others than it had before"
            refusal = Refusal(code="target_does_not_fit", message=message)
        end_switch(draft, refusal=refusal)
    elif refusal is not None and refusal.code == "place_is_taken":
        end_switch(draft, refusal=refusal)
    elif refusal is not None:
        if target.is_twin:  # one that died comes back when it is asked for
            forget_recovery(draft, target.model)
        _fall_back_or_end(draft, target, refusal)
    elif draft.snapshot.rules.warms and draft.snapshot.parked_of(target) is None:
        draft.enter_phase(Phase.WARMING)
        draft.commands.append(WarmFile(switch_id=switch.switch_id, target=target))
    else:
        begin_leaving(draft)


def _was_replaced(snapshot: Snapshot, model: str, footprint: Footprint) -> bool:
    """Whether somebody came to the devices of a model since it died, or was woken there.

    Where only those are there that were there before it, a stranger has taken what is missing.
    """
    down = snapshot.recovery(model)
    if down is None or not down.beside:
        return True
    before, devices = dict(down.beside), [baseline.device for baseline in down.baselines]
    return any(
        backend.epoch not in before or backend.footprint.on(*devices) > before[backend.epoch]
        for backend in snapshot.sharing(*footprint.devices)
    )


def _note_needs(draft: Draft, target: Target, event: TargetAccepted) -> None:
    """Remember what the target takes, wherever it is put, and what devices can carry, as read."""
    snapshot = draft.snapshot
    needs, capacities = snapshot.scheduling.needs, snapshot.scheduling.capacities
    for each in target.places:
        footprint = event.need_on(each.device).footprint.among(snapshot.devices)
        needs = needs.set((target.identity, each.device), footprint)
    for reading in event.readings:
        measured = measured_capacity(snapshot, reading.device, target, event.readings)
        if measured is not None:
            capacities = capacities.set(reading.device, measured)
    draft.set_scheduling(needs=needs, capacities=capacities)


def _fall_back_or_end(draft: Draft, target: Target, refusal: Refusal) -> None:
    """There is no room for the target: try what the operator named for that, or give up."""
    fallback = target.fallback
    if fallback is None:
        end_switch(draft, refusal=refusal)
        return
    draft.set_switch("notes", fell_back=refusal.message)
    place(draft, None)
    draft.set_switch("order", target=fallback)
    same = next((b for b in draft.snapshot.ready_backends() if b.target.is_same(fallback)), None)
    if same is not None:
        note_live(draft, same.epoch)
        end_switch(draft, outcome=Outcome.UNCHANGED)
    else:
        order_check(draft, fallback)


def begin_leaving(draft: Draft) -> None:
    """Let what must give way drain; nothing: ask for the memory at once."""
    switch = draft.running_switch()
    leaving = tuple(b for b in draft.snapshot.backends if b.epoch in switch.leaving.first)
    leave(draft, leaving)


def progress_drain(draft: Draft) -> None:
    """Stop the leaving backends once they are drained, or as the policy says at the deadline."""
    if not leaving_backends(draft):
        _ask_for_release(draft)
        return
    answer = may_stop(draft)
    if isinstance(answer, Refusal):
        stay(draft)
        end_switch(draft, refusal=answer)
    elif answer:
        draft.enter_phase(Phase.STOPPING)
        stop_leaving(draft)


def progress_stop(draft: Draft) -> None:
    """Ask telemetry once every leaving backend is reaped; give up on one that cannot be."""
    if not leaving_backends(draft):
        _ask_for_release(draft)
    elif draft.at >= reap_deadline(draft.snapshot, draft.running_switch()) and not stop_parking(
        draft
    ):
        _end_unreaped(draft, leaving_backends(draft))


def weigh_reading(draft: Draft, sample: MemorySample | None, unreadable: str = "") -> None:
    """A reading of the device came, or (None) could not be had: go on once the gate decides."""
    question = draft.running_switch().gate.question
    decision = weigh_sample(draft, sample, unreadable)
    if decision is None:
        return
    may_pass = decision.state in {GateState.CONFIRMED, GateState.UNPROVEN}
    if may_pass and question is not None:
        note_confirmed(draft, question, sample)
        if over := over_budget(draft, question.device):
            _stop_instead(draft, over)
        else:
            _go_on_behind_the_gate(draft)
    elif parked := parked_in_the_way(draft):
        note_unproved(draft)
        _stop_instead(draft, parked)
    elif question is not None and (beside := parked_beside(draft, question.device)):
        _stop_beside(draft, beside, question.device)
    elif others := replaced_in_the_way(draft) or others_in_the_way(draft, sample):
        leave(draft, others)
    elif question is not None and was_made_to_refuse(draft, question):
        question_device(draft, question.device)  # nobody can go: it is as the operator said
    else:
        fail_switch(draft, Refusal(code="memory_not_released", message=decision.reason))


def _go_on_behind_the_gate(draft: Draft) -> None:
    """Go on to the next device, to the start of what is placed, or to the end of an unload."""
    switch = draft.running_switch()
    if (device := next_device(draft)) is not None:
        question_device(draft, device, may_make_room=may_make_room(draft, device))
    elif switch.phase is Phase.ROLLING_BACK:
        start_placed(draft, Phase.RESTORING)
    elif switch.start.placement is None:
        end_switch(draft)
    else:
        stop_warming(draft, switch)
        report_parked(draft)
        start_placed(draft, Phase.STARTING)


def _stop_instead(draft: Draft, parked: tuple[Backend, ...]) -> None:
    """That they gave their memory up is not proved: stop them, and ask again."""
    draft.enter_phase(Phase.STOPPING)
    draft.set_switch("leaving", parking=())
    for backend in parked:
        stop_backend(draft, backend)
    expect_devices(draft, parked)


def _stop_beside(draft: Draft, parked: tuple[Backend, ...], device: str) -> None:
    """What is parked makes way for what comes back; the use without it is waited for."""
    for backend in parked:
        stop_backend(draft, backend)
        expect_less_use(draft, backend.footprint)
    question_device(draft, device)


def ask_anew(draft: Draft) -> None:
    """A parked server is gone that the question counted on: to be woken, or for what it keeps."""
    switch = draft.running_switch()
    if switch.gate.question is not None:
        expect_devices_again(draft)
        device = draft.running_switch().gate.devices[0]
        question_device(draft, device, may_make_room=may_make_room(draft, device))


def finish_start(draft: Draft, event: BackendReady) -> None:
    """What the switch started is ready: the target, or what a rollback brings back."""
    draft.set_switch("notes", prompts_restored=event.prompts)
    if draft.running_switch().phase is Phase.RESTORING:
        note_restored(draft, event.memory)
    else:
        draft.enter_phase(Phase.READY)
        retire_replaced(draft)
        end_switch(draft, memory_after=event.memory)


def fail_start(draft: Draft, refusal: Refusal) -> None:
    """What was started is gone before it was ready; `refusal` says how its process ended."""
    given_up = draft.running_switch().start.given_up
    if given_up is not None:  # its last lines may say why it was slow
        refusal = replace(given_up, details=refusal.details)
    fail_switch(draft, refusal)


def fail_switch(draft: Draft, refusal: Refusal) -> None:
    """The switch cannot go on: bring back what was stopped, or end it."""
    switch = draft.running_switch()
    if switch.phase is Phase.RESTORING:
        draft.enter_phase(Phase.ROLLING_BACK)
    if switch.rollback.failure is not None:
        fail_rollback(draft, refusal)
    elif switch.target is not None and switch.rollback.to_restore:
        roll_back(draft, refusal)
    else:
        end_switch(draft, refusal=refusal)


def fail_unchecked(draft: Draft) -> None:
    """The check of the target does not come back."""
    target = draft.running_switch().target
    refusal = Refusal(
        code="target_cannot_start",
        message=f"the file of '{target.model if target else ''}' was not checked within "
        f"{CHECK_TIMEOUT_S:g} s; does its file system answer?",
    )
    end_switch(draft, refusal=refusal)


def pass_start_deadline(draft: Draft) -> None:
    """What is started is late: stop it. It was, and does not end either: give the switch up."""
    backend = draft.snapshot.backend(draft.running_switch().start.epoch)
    if backend is None:
        return
    if backend.state is BackendState.STARTING:
        give_up_late_start(draft, backend)
    else:
        _end_unreaped(draft, [backend])


def _end_unreaped(draft: Draft, there: Sequence[Backend]) -> None:
    """The kernel holds a server: nothing may be started on its memory, so the switch is over."""
    refusal = not_reaped(there)
    if draft.running_switch().rollback.failure is not None:
        fail_switch(draft, refusal)
        return
    for lost in draft.running_switch().rollback.to_restore:
        note_lost(draft, lost.target, refusal.message)
    end_switch(draft, refusal=refusal)


def leave(draft: Draft, leaving: tuple[Backend, ...]) -> None:
    """Close admission to what gives way, and drain it."""
    expect_devices(draft, leaving)
    if not leaving:
        _ask_for_release(draft)
        return
    draft.enter_phase(Phase.DRAINING)
    begin_to_leave(draft, leaving)
    progress_drain(draft)


def _ask_for_release(draft: Draft) -> None:
    """Put the question for the first device that is not confirmed yet, and take a sample."""
    switch = draft.enter_phase(Phase.CONFIRMING)
    if switch.target is None:  # what is unloaded is not to come back
        forget_unloaded(draft, switch.order.unloads)
    device = switch.gate.devices[0]
    question_device(draft, device, may_make_room=may_make_room(draft, device))
