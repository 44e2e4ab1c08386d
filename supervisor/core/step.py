"""`step(snapshot, event) -> (snapshot, commands)`: what happens next, decided without effects.

Every event of `events.py` has one reaction here. An event of an epoch or a switch that is gone
is legal and changes nothing; a transition that the tables in `draft.py` forbid raises
InvalidTransition, which is a bug of ours and never an answer to bad input.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from supervisor.core import recovery, requests, switching
from supervisor.core.commands import Command, CompleteShutdown, FinishSwitch, RefuseSwitch
from supervisor.core.confirming import take_sample
from supervisor.core.draft import Draft
from supervisor.core.events import (
    BackendExited,
    BackendReady,
    BackendSpawned,
    Event,
    MemorySampled,
    MemoryUnreadable,
    RequestArrived,
    RequestEnded,
    RestartRequested,
    RetryDue,
    ShutdownRequested,
    SwitchRequested,
    TargetAccepted,
    TargetRejected,
    TimePassed,
)
from supervisor.core.reports import report_of, switch_is_running
from supervisor.core.values import (
    Backend,
    BackendExit,
    BackendState,
    Phase,
    Refusal,
    Snapshot,
    Switch,
    Target,
)


def step(snapshot: Snapshot, event: Event) -> tuple[Snapshot, tuple[Command, ...]]:
    """Return the next snapshot and the commands that the event calls for."""
    draft = Draft(snapshot, event.at)
    _REACTIONS[type(event)](draft, event)
    return draft.snapshot, tuple(draft.commands)


def next_wakeup(snapshot: Snapshot) -> float | None:
    """Return the monotonic time at which `TimePassed` is due, or None while nothing is."""
    moments = [*_switch_moments(snapshot), *_closing_moments(snapshot)]
    oldest = requests.oldest_waiter(snapshot)
    if oldest is not None:
        moments.append(oldest.arrived_at + snapshot.limits.hold_timeout_s)
    return min(moments, default=None)


def _switch_moments(snapshot: Snapshot) -> list[float]:
    switch = snapshot.switch
    if switch is None:
        return []
    if switch.phase is Phase.DRAINING and switch.drain_deadline is not None:
        return [switch.drain_deadline]
    if switch.next_sample_at is not None:
        return [switch.next_sample_at]
    backend = snapshot.backend(switch.epoch)
    if backend is not None and backend.state is BackendState.STARTING:
        return [backend.started_at + backend.target.start_timeout_s]
    return []


def _closing_moments(snapshot: Snapshot) -> list[float]:
    is_draining = any(b.state is BackendState.DRAINING for b in snapshot.backends)
    if snapshot.close_deadline is None or not is_draining:
        return []
    return [snapshot.close_deadline]


def _on_request_arrived(draft: Draft, event: RequestArrived) -> None:
    requests.admit(draft, event)


def _on_request_ended(draft: Draft, event: RequestEnded) -> None:
    epoch = requests.end_request(draft, event.request_id)
    if epoch is not None:
        _progress_leaving(draft)


def _on_switch_requested(draft: Draft, event: SwitchRequested) -> None:
    switching.request_switch(draft, event)


def _on_target_accepted(draft: Draft, event: TargetAccepted) -> None:
    if _awaits_check(draft, event.switch_id):
        switching.accept_target(draft, event)


def _on_target_rejected(draft: Draft, event: TargetRejected) -> None:
    if _awaits_check(draft, event.switch_id):
        refusal = Refusal(code="target_cannot_start", message=event.message)
        switching.end_switch(draft, refusal=refusal)


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
        return  # it was told to stop in the meantime
    draft.move_backend(backend, BackendState.READY)
    switching.succeed_start(draft, event.memory)


def _on_backend_exited(draft: Draft, event: BackendExited) -> None:
    backend = draft.snapshot.backend(event.epoch)
    if backend is None:
        return
    record = _exit_record(backend, event)
    draft.remove_backend(event.epoch)
    draft.set(last_exit=record)
    if draft.snapshot.is_closing:
        _complete_shutdown(draft)
    elif draft.snapshot.switch is not None and event.epoch == draft.snapshot.switch.epoch:
        switching.fail_start(draft, _death_before_ready(record))
    elif draft.snapshot.switch is not None and event.epoch in draft.snapshot.switch.leaving:
        _progress_leaving(draft)
    elif not record.was_wanted:
        _on_death(draft, backend, record)


def _on_death(draft: Draft, backend: Backend, record: BackendExit) -> None:
    """It died while serving: see to its restart; if there is none, nobody waits for it."""
    recovery.note_death(draft, backend.target, record)
    noted = draft.snapshot.recovery(backend.target.model)
    if noted is not None and noted.is_open and draft.snapshot.switch is None:
        requests.settle_waiters(draft)


def _on_retry_due(draft: Draft, event: RetryDue) -> None:
    due = recovery.due_recovery(draft, event)
    if due is None or draft.snapshot.is_closing:
        return
    if draft.snapshot.switch is not None:
        recovery.postpone(draft, due)
        return
    switch_id = f"{event.model}-retry-{event.attempt}-{round(event.at * 1000)}"
    _recover(draft, switch_id, due.target)


def _on_restart_requested(draft: Draft, event: RestartRequested) -> None:
    running, down = draft.snapshot.switch, draft.snapshot.recoveries
    if draft.snapshot.is_closing:
        refusal = requests.SHUTTING_DOWN
    elif running is not None:
        refusal = switch_is_running(running)
    elif not down:
        refusal = Refusal(code="nothing_is_down", message="no backend is down; nothing to restart")
    else:
        _recover(draft, event.switch_id, recovery.reset_breakers(draft).target)
        return
    draft.order(RefuseSwitch(switch_id=event.switch_id, refusal=refusal))


def _recover(draft: Draft, switch_id: str, target: Target) -> None:
    wanted = SwitchRequested(
        at=draft.at, switch_id=switch_id, target=target, requested_by="recovery"
    )
    switching.begin_switch(draft, wanted, is_recovery=True)


def _on_time_passed(draft: Draft, _event: TimePassed) -> None:
    requests.expire_waiters(draft)
    switch = draft.snapshot.switch
    if switch is not None:
        _pass_switch_deadlines(draft, switch)
    deadline = draft.snapshot.close_deadline
    if deadline is not None and draft.at >= deadline:
        _stop_closing(draft)


def _on_shutdown_requested(draft: Draft, event: ShutdownRequested) -> None:
    if draft.snapshot.is_closing and not draft.snapshot.backends:
        return  # it is complete, and was reported
    if draft.snapshot.switch is not None:
        _abandon_switch(draft)
    draft.set(is_closing=True, close_deadline=draft.at + event.drain_timeout_s, recoveries=())
    requests.settle_waiters(draft, requests.SHUTTING_DOWN)
    for backend in draft.snapshot.backends:
        if backend.state is BackendState.STARTING:
            switching.stop_backend(draft, backend)
        elif backend.state is BackendState.READY:
            draft.move_backend(backend, BackendState.DRAINING)
    _stop_closing(draft)
    _complete_shutdown(draft)


def _abandon_switch(draft: Draft) -> None:
    report = report_of(draft.running_switch(), draft.at, refusal=requests.SHUTTING_DOWN)
    draft.set(switch=None)
    draft.order(FinishSwitch(report=report))


def _stop_closing(draft: Draft) -> None:
    """Stop the draining backends that are idle, or all of them once the deadline has passed."""
    deadline = draft.snapshot.close_deadline
    is_late = deadline is not None and draft.at >= deadline
    for backend in draft.snapshot.backends:
        if backend.state is BackendState.DRAINING and (is_late or not backend.in_flight):
            switching.stop_backend(draft, backend)


def _complete_shutdown(draft: Draft) -> None:
    if not draft.snapshot.backends:
        draft.order(CompleteShutdown())


def _progress_leaving(draft: Draft) -> None:
    """A lease came back or a leaving backend is gone: see whether the next phase is due."""
    if draft.snapshot.is_closing:
        _stop_closing(draft)
        return
    switch = draft.snapshot.switch
    if switch is None:
        return
    if switch.phase is Phase.DRAINING:
        switching.progress_drain(draft)
    elif switch.phase is Phase.STOPPING:
        switching.progress_stop(draft)


def _pass_switch_deadlines(draft: Draft, switch: Switch) -> None:
    if switch.phase is Phase.DRAINING:
        switching.progress_drain(draft)
    elif switch.next_sample_at is not None and draft.at >= switch.next_sample_at:
        take_sample(draft)
    elif switch.phase in {Phase.STARTING, Phase.ROLLING_BACK}:
        backend = draft.snapshot.backend(switch.epoch)
        if backend and draft.at >= backend.started_at + backend.target.start_timeout_s:
            switching.give_up_start(draft)


def _is_running(draft: Draft, switch_id: str) -> bool:
    switch = draft.snapshot.switch
    return switch is not None and switch.switch_id == switch_id


def _awaits_check(draft: Draft, switch_id: str) -> bool:
    """Whether the target is unchecked yet: a second answer finds its backends draining."""
    switch = draft.snapshot.switch
    return switch is not None and switch.phase is Phase.PREFLIGHT and switch.switch_id == switch_id


def _exit_record(backend: Backend, event: BackendExited) -> BackendExit:
    return BackendExit(
        epoch=event.epoch,
        model=backend.target.model,
        exit_code=event.exit_code,
        signal=event.signal,
        at=event.at,
        was_wanted=backend.state is BackendState.STOPPING,
        last_lines=event.last_lines,
    )


def _death_before_ready(record: BackendExit) -> Refusal:
    return Refusal(
        code="backend_died",
        message=f"the server of '{record.model}' ended ({record.describe()}) before it was ready",
        details=(
            ("exit_code", record.exit_code),
            ("signal", record.signal),
            ("last_lines", record.last_lines[-30:]),
        ),
    )


_REACTIONS: dict[type[Event], Callable[[Draft, Any], None]] = {
    RequestArrived: _on_request_arrived,
    RequestEnded: _on_request_ended,
    SwitchRequested: _on_switch_requested,
    TargetAccepted: _on_target_accepted,
    TargetRejected: _on_target_rejected,
    MemorySampled: _on_memory_sampled,
    MemoryUnreadable: _on_memory_unreadable,
    BackendSpawned: _on_backend_spawned,
    BackendReady: _on_backend_ready,
    BackendExited: _on_backend_exited,
    RetryDue: _on_retry_due,
    RestartRequested: _on_restart_requested,
    TimePassed: _on_time_passed,
    ShutdownRequested: _on_shutdown_requested,
}
