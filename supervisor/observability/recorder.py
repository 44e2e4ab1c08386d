"""Watches the arbiter: writes log events, and feeds the history of switches."""

import time
from collections.abc import Callable

import structlog

from supervisor.core.machine.commands import Command, FinishSwitch
from supervisor.core.machine.events import (
    BackendExited,
    BackendMoved,
    BackendNotParked,
    BackendParked,
    BackendReady,
    BackendSpawned,
    BackendStalled,
    Event,
    RequestArrived,
    RequestEnded,
)
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.switch import CLOCK, SCHEDULER, SwitchReport
from supervisor.core.machine.values import BackendState, Outcome, Phase
from supervisor.observability.descriptions import describe_report
from supervisor.observability.history import SwitchHistory

log = structlog.get_logger()

_OF_REQUESTS = (RequestArrived, RequestEnded)


class Recorder:
    """Observer of the arbiter: hands every switch that ends to the history."""

    def __init__(
        self, history: SwitchHistory, *, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._history = history
        self._wall_clock = wall_clock

    def observe(
        self, event: Event, before: Snapshot, after: Snapshot, commands: tuple[Command, ...]
    ) -> None:
        """Note what the event changed."""
        if not isinstance(event, _OF_REQUESTS):
            _log_backend(event, before, after)
        if after.agenda is not before.agenda:
            _log_period(before, after)
        for command in commands:
            if isinstance(command, FinishSwitch):
                self._keep(command.report)
        if isinstance(event, BackendReady):
            _log_retiring(before, after)
        if after.recoveries is not before.recoveries:
            _log_retries(event.at, before, after)
        if after.switch is not before.switch:  # the next one may begin where one has just ended
            _log_decision(before, after)
            _log_phase(before, after)
            _log_unproved(before, after)

    def _keep(self, report: SwitchReport) -> None:
        record = describe_report(report) | {"ended_at": self._wall_clock()}
        if report.outcome is Outcome.UNCHANGED:  # thousands of these would push the others out
            self._history.add_passing(record)
        else:
            self._history.add(record)
        _log_switch(report)


def _log_decision(before: Snapshot, after: Snapshot) -> None:
    """Log why the scheduler, or the schedule, has begun a switch."""
    switch = after.switch
    if switch is None or switch.order.requested_by not in {SCHEDULER, CLOCK}:
        return
    if before.switch is None or before.switch.switch_id != switch.switch_id:
        log.info("scheduler.decided", switch_id=switch.switch_id, reason=switch.order.reason)


def _log_period(before: Snapshot, after: Snapshot) -> None:
    """Log what the schedule, or a hand against it, has served from now on."""
    was, now = before.agenda.period, after.agenda.period
    if now is None or (was is not None and (was.began, was.serves) == (now.began, now.serves)):
        return
    following = after.agenda.following
    log.info(
        "schedule.period",
        serves=now.serves,
        until=following.local if following else None,
        by_hand=after.agenda.by_hand is not None,
    )


def _log_phase(before: Snapshot, after: Snapshot) -> None:
    switch, was = after.switch, before.switch
    if switch is None:
        return
    shown = (switch.switch_id, switch.phase.shown)
    if was is not None and shown == (was.switch_id, was.phase.shown):
        return
    log.info(
        "switch.phase",
        switch_id=switch.switch_id,
        phase=switch.phase.shown.value,
        model=switch.target.model if switch.target else None,
    )


def _log_retiring(before: Snapshot, after: Snapshot) -> None:
    """Log which servers go on for their last requests only, because a successor is ready."""
    for backend in after.backends:
        known = before.backend(backend.epoch)
        if backend.departure.is_retiring and known is not None and not known.departure.is_retiring:
            log.info("backend.retiring", epoch=backend.epoch, in_flight=backend.in_flight)


def _log_retries(at: float, before: Snapshot, after: Snapshot) -> None:
    """Log when a model that is down is tried next."""
    for down in after.recoveries:
        if down.retry_at is not None and down not in before.recoveries:
            log.info(
                "backend.retry_scheduled",
                model=down.target.model,
                attempt=down.attempt,
                pause_s=round(down.retry_at - at, 2),
            )


def _log_switch(report: SwitchReport) -> None:
    fields = {
        "switch_id": report.switch_id,
        "requested_by": report.requested_by,
        "outcome": report.outcome.value,
        "model": report.model,
        "took_s": round(report.total_s, 3),
    }
    if report.outcome is Outcome.FAILED and report.refusal is not None:
        log.warning("switch.failed", **fields, reason=report.refusal.message)
    else:
        log.info("switch.finished", **fields, released=report.memory.reason)


def _log_parking(event: BackendParked | BackendNotParked, after: Snapshot) -> None:
    if isinstance(event, BackendNotParked):
        log.warning("backend.not_parked", epoch=event.epoch, reason=event.reason)
        return
    backend = after.backend(event.epoch)
    if backend is not None and backend.parked is not None:
        model, host_bytes = backend.target.model, backend.parked.host_bytes
        log.info("backend.parked", epoch=event.epoch, model=model, host_bytes=host_bytes)


def _log_unproved(before: Snapshot, after: Snapshot) -> None:
    """Log which servers a switch stops that it had parked: their release was not proved."""
    switch, was = after.switch, before.switch
    if switch is None or was is None or was.phase is not Phase.CONFIRMING:
        return
    if switch.phase is Phase.STOPPING:
        for backend in after.backends:
            if backend.epoch in switch.leaving.epochs and backend.state is BackendState.STOPPING:
                reason = switch.gate.reason or "it keeps more than its device has room for"
                log.warning("backend.not_parked", epoch=backend.epoch, reason=reason)


def _log_backend(event: Event, before: Snapshot, after: Snapshot) -> None:
    match event:
        case BackendParked() | BackendNotParked():
            _log_parking(event, after)
        case BackendSpawned():
            log.info("backend.spawned", epoch=event.epoch, pid=event.pid)
        case BackendReady():
            log.info("backend.ready", epoch=event.epoch)
        case BackendStalled():
            log.warning("backend.stalled", epoch=event.epoch, stalled_s=round(event.stalled_s, 1))
        case BackendMoved():
            log.info("backend.moved", epoch=event.epoch)
        case BackendExited():
            exit_record = after.endings.exit
            if exit_record is None or exit_record.epoch != event.epoch:
                return
            fields = {
                "epoch": event.epoch,
                "model": exit_record.model,
                "exit_code": event.exit_code,
                "signal": event.signal,
            }
            known = before.backend(event.epoch)
            if known is not None and known.state is BackendState.PARKED:
                log.warning("backend.died_parked", **fields, last_lines=event.last_lines[-10:])
            elif exit_record.was_wanted:
                log.info("backend.exited", **fields)
            else:
                log.warning("backend.died", **fields, last_lines=event.last_lines[-10:])
        case _:
            pass
