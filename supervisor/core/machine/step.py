"""`step(snapshot, event) -> (snapshot, commands)`: what happens next, decided without effects.

Every event of `events.py` has one reaction here. An event of an epoch or a switch that is gone
is legal and changes nothing; a transition that the tables in `draft.py` and `phases.py` forbid
raises InvalidTransition, which is a bug of ours and never an answer to bad input.
"""

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from supervisor.core.machine import (
    clock,
    idleness,
    leaving,
    requests,
    scheduler,
    switch_requests,
    switching,
    waiting,
)
from supervisor.core.machine.commands import Command, FinishSwitch
from supervisor.core.machine.draft import Draft
from supervisor.core.machine.ending import end_switch
from supervisor.core.machine.events import (
    BackendExited,
    BackendMoved,
    BackendNotParked,
    BackendParked,
    BackendReady,
    BackendSpawned,
    BackendStalled,
    BackendUnfit,
    CallersCounted,
    DeviceFound,
    Event,
    MemorySampled,
    MemoryUnreadable,
    ReleaseBegun,
    RequestArrived,
    RequestEnded,
    RestartRequested,
    RulesChanged,
    ScheduleRead,
    ShutdownRequested,
    SwitchRequested,
    TargetAccepted,
    TargetRejected,
    TimePassed,
    VectorsKnown,
    WarmingBegun,
)
from supervisor.core.machine.exits import complete_shutdown, note_exit
from supervisor.core.machine.learning import begin_stay
from supervisor.core.machine.phases import check_moves, pass_phase_deadline, progress_phase
from supervisor.core.machine.queues import count_callers
from supervisor.core.machine.refusals import SHUTTING_DOWN
from supervisor.core.machine.reports import report_of
from supervisor.core.machine.setbacks import try_all_again
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.twins import dismiss_twin, drop_twins
from supervisor.core.machine.values import BackendState, Phase, Refusal


def step(snapshot: Snapshot, event: Event) -> tuple[Snapshot, tuple[Command, ...]]:
    """Return the next snapshot and the commands that the event calls for."""
    draft = Draft(snapshot, event.at)
    _REACTIONS[type(event)](draft, event)
    if snapshot.switch is not None and draft.snapshot.switch is None:
        leaving.keep_to_limit(draft)  # what the switch counted on is free to go
    scheduling = draft.snapshot.scheduling
    is_due = (  # something is to be done for nobody's sake
        scheduling.pending is not None
        or scheduling.wake_at is not None
        or (bool(draft.snapshot.agenda.periods) and clock.wanting(draft.snapshot) is not None)
    )
    is_open = bool(draft.snapshot.requests.lines) or is_due
    if is_open and not scheduler.stands(snapshot, draft.snapshot, event):
        scheduler.go_on(draft)
    if draft.moves:
        check_moves(draft)
    return draft.snapshot, tuple(draft.commands)


def _on_request_ended(draft: Draft, event: RequestEnded) -> None:
    backend = requests.end_request(draft, event.request_id, event.callers)
    if backend is not None and backend.state is not BackendState.READY:
        _progress_leaving(draft)


def _on_callers_counted(draft: Draft, event: CallersCounted) -> None:
    waiting = draft.snapshot.requests
    if event.request_id in waiting.places:
        counted = count_callers(waiting, event.request_id, event.callers, event.at)
        draft.set(requests=counted)


def _on_switch_requested(draft: Draft, event: SwitchRequested) -> None:
    switch_requests.request_switch(draft, event)


def _on_target_accepted(draft: Draft, event: TargetAccepted) -> None:
    if _awaits_check(draft, event.switch_id):
        switching.accept_target(draft, event)


def _on_device_found(draft: Draft, event: DeviceFound) -> None:
    draft.set(devices=draft.snapshot.devices.set(event.device.name, event.device))
    leaving.keep_to_limit(draft)


def _on_rules_changed(draft: Draft, event: RulesChanged) -> None:
    draft.set(limits=event.limits, rules=event.rules)
    draft.set(scheduling=try_all_again(draft.snapshot.scheduling))
    leaving.note_outdated(draft, event.outdated)
    leaving.keep_to_limit(draft)
    drop_twins(draft)
    waiting.exchange_targets(draft, event.targets)
    clock.reread(draft)


def _on_schedule_read(draft: Draft, event: ScheduleRead) -> None:
    clock.take_schedule(draft, event)


def _on_warming_begun(draft: Draft, event: WarmingBegun) -> None:
    switch = draft.snapshot.switch
    if _is_running(draft, event.switch_id) and switch and switch.phase is Phase.WARMING:
        switching.begin_leaving(draft)


def _on_target_rejected(draft: Draft, event: TargetRejected) -> None:
    if _awaits_check(draft, event.switch_id):
        refusal = Refusal(code="target_cannot_start", message=event.message)
        end_switch(draft, refusal=refusal)


def _on_memory_sampled(draft: Draft, event: MemorySampled) -> None:
    if _is_running(draft, event.switch_id):
        switching.weigh_reading(draft, event.sample)


def _on_memory_unreadable(draft: Draft, event: MemoryUnreadable) -> None:
    if _is_running(draft, event.switch_id):
        switching.weigh_reading(draft, None, event.reason)


def _on_backend_spawned(draft: Draft, event: BackendSpawned) -> None:
    backend = draft.snapshot.backend(event.epoch)
    if backend is not None:
        draft.put_backend(replace(backend, pid=event.pid, address=event.address))


def _on_backend_ready(draft: Draft, event: BackendReady) -> None:
    backend = draft.snapshot.backend(event.epoch)
    if backend is None or backend.state is not BackendState.STARTING:
        return  # it was stopped in the meantime
    scheduling, begun = begin_stay(draft.snapshot, backend, draft.at)
    draft.set(scheduling=scheduling)
    draft.move_backend(begun, BackendState.READY)
    switching.finish_start(draft, event)


def _on_backend_stalled(draft: Draft, event: BackendStalled) -> None:
    backend = draft.snapshot.backend(event.epoch)
    if backend is None or backend.state not in {BackendState.READY, BackendState.DRAINING}:
        return
    stalled = replace(backend, stalled_s=event.stalled_s)
    draft.put_backend(stalled)
    if leaving.is_hung(stalled):
        leaving.replace_hung(draft, stalled)
    elif leaving.waits_without_end(draft.snapshot, stalled):
        leaving.stop_backend(draft, stalled)


def _on_backend_moved(draft: Draft, event: BackendMoved) -> None:
    backend = draft.snapshot.backend(event.epoch)
    if backend is not None and backend.state is not BackendState.STOPPING:
        draft.put_backend(replace(backend, stalled_s=None))


def _on_backend_unfit(draft: Draft, event: BackendUnfit) -> None:
    backend = draft.snapshot.backend(event.epoch)
    if backend is not None:
        dismiss_twin(draft, backend, event.reason)


def _on_vectors_known(draft: Draft, event: VectorsKnown) -> None:
    known = draft.snapshot.scheduling.comparable
    draft.set_scheduling(comparable=known | {event.target.identity})


def _on_release_begun(draft: Draft, event: ReleaseBegun) -> None:
    leaving.note_release_begun(draft, event)


def _on_backend_parked(draft: Draft, event: BackendParked) -> None:
    leaving.note_parked(draft, event)
    progress_phase(draft)


def _on_backend_not_parked(draft: Draft, event: BackendNotParked) -> None:
    backend = draft.snapshot.backend(event.epoch)
    if backend is not None and backend.state is BackendState.PARKING:
        leaving.stop_backend(draft, backend)


def _on_backend_exited(draft: Draft, event: BackendExited) -> None:
    backend = draft.snapshot.backend(event.epoch)
    if backend is not None:
        note_exit(draft, backend, event)


def _on_restart_requested(draft: Draft, event: RestartRequested) -> None:
    switch_requests.request_restart(draft, event)


def _on_time_passed(draft: Draft, _event: TimePassed) -> None:
    clock.pass_time(draft)
    waiting.expire_waiters(draft)
    leaving.advance_retiring(draft)
    pass_phase_deadline(draft)
    switch_requests.begin_due_recovery(draft)
    idleness.begin_due(draft)
    deadline = draft.snapshot.close_deadline
    if deadline is not None and draft.at >= deadline:
        _stop_closing(draft)


def _on_shutdown_requested(draft: Draft, event: ShutdownRequested) -> None:
    if draft.snapshot.is_closing and not draft.snapshot.backends:
        return  # it is complete, and was reported
    if draft.snapshot.switch is not None:
        _abandon_switch(draft)
    switch_requests.abandon_pending(draft)
    draft.set(close_deadline=draft.at + event.drain_timeout_s, recoveries=())
    waiting.settle_waiters(draft, SHUTTING_DOWN)
    for backend in draft.snapshot.backends:
        if backend.state in {BackendState.STARTING, BackendState.PARKING, BackendState.PARKED}:
            leaving.stop_backend(draft, backend)
        elif backend.state is BackendState.READY:
            draft.move_backend(backend, BackendState.DRAINING)
    _stop_closing(draft)
    complete_shutdown(draft)


def _abandon_switch(draft: Draft) -> None:
    report = report_of(draft.running_switch(), draft.at, refusal=SHUTTING_DOWN)
    draft.set(switch=None)
    draft.commands.append(FinishSwitch(report=report))


def _stop_closing(draft: Draft) -> None:
    """Stop the draining backends that are idle, or all of them once the deadline has passed."""
    deadline = draft.snapshot.close_deadline
    is_late = deadline is not None and draft.at >= deadline
    for backend in draft.snapshot.backends:
        if backend.state is BackendState.DRAINING and (is_late or not backend.in_flight):
            keeps = draft.snapshot.rules.keeps_prompts_at_exit
            leaving.stop_backend(draft, backend, keeps_prompts=keeps)


def _progress_leaving(draft: Draft) -> None:
    """A lease came back: see whether what leaves may stop."""
    if draft.snapshot.is_closing:
        _stop_closing(draft)
        return
    leaving.advance_retiring(draft)
    progress_phase(draft)


def _is_running(draft: Draft, switch_id: str) -> bool:
    switch = draft.snapshot.switch
    return switch is not None and switch.switch_id == switch_id


def _awaits_check(draft: Draft, switch_id: str) -> bool:
    """Whether the target is unchecked yet: a second answer finds its backends draining."""
    switch = draft.snapshot.switch
    return switch is not None and switch.phase is Phase.PREFLIGHT and switch.switch_id == switch_id


_REACTIONS: dict[type[Event], Callable[[Draft, Any], None]] = {
    RequestArrived: requests.admit,
    RequestEnded: _on_request_ended,
    CallersCounted: _on_callers_counted,
    SwitchRequested: _on_switch_requested,
    TargetAccepted: _on_target_accepted,
    TargetRejected: _on_target_rejected,
    DeviceFound: _on_device_found,
    RulesChanged: _on_rules_changed,
    ScheduleRead: _on_schedule_read,
    WarmingBegun: _on_warming_begun,
    MemorySampled: _on_memory_sampled,
    MemoryUnreadable: _on_memory_unreadable,
    BackendSpawned: _on_backend_spawned,
    BackendReady: _on_backend_ready,
    ReleaseBegun: _on_release_begun,
    BackendParked: _on_backend_parked,
    BackendNotParked: _on_backend_not_parked,
    BackendExited: _on_backend_exited,
    BackendStalled: _on_backend_stalled,
    BackendMoved: _on_backend_moved,
    BackendUnfit: _on_backend_unfit,
    VectorsKnown: _on_vectors_known,
    RestartRequested: _on_restart_requested,
    TimePassed: _on_time_passed,
    ShutdownRequested: _on_shutdown_requested,
}
