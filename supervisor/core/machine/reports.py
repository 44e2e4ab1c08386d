"""What callers and waiters learn of a switch: reports and refusals."""

from supervisor.core.machine.draft import phase_seconds
from supervisor.core.machine.memory import MemorySample
from supervisor.core.machine.switch import MemoryReport, Switch, SwitchReport
from supervisor.core.machine.values import Outcome, Refusal


def report_of(
    switch: Switch, at: float, *, refusal: Refusal | None, memory_after: MemorySample | None = None
) -> SwitchReport:
    """Sum a switch up as of `at`."""
    target, gate, notes = switch.target, switch.gate, switch.notes
    return SwitchReport(
        switch_id=switch.switch_id,
        requested_by=switch.order.requested_by,
        outcome=Outcome.SWITCHED if refusal is None else Outcome.FAILED,
        last_phase=switch.phase.shown,
        model=target.model if target else None,
        mode=target.mode if target else None,
        profile=target.profile if target else None,
        epoch=switch.start.epoch,
        total_s=at - switch.order.started_at,
        phase_seconds=phase_seconds(switch, at),
        memory=MemoryReport(
            before=notes.memory_before,
            confirmed=gate.confirmed,
            after=memory_after or gate.confirmed,
            reason=gate.reason,
            samples_taken=gate.samples_taken,
        ),
        notes=notes,
        refusal=refusal,
        reason=switch.order.reason,
    )


def switch_is_running(running: Switch) -> Refusal:
    """Say that another switch runs, with its target."""
    target = running.target
    goal = f"to '{target.model}'" if target else "to nothing (unload)"
    return Refusal(
        code="switch_in_progress",
        message=f"a switch {goal} is running ({running.phase.shown}); wait for /switches/"
        f"{running.switch_id}",
        details=(
            ("switch_id", running.switch_id),
            ("target", target.model if target else None),
            ("phase", running.phase.shown.value),
        ),
    )


def switch_is_pending(switch_id: str) -> Refusal:
    """Say that a switch by hand waits already for the end of the running one."""
    return Refusal(
        code="switch_in_progress",
        message=f"another switch by hand is next; wait for /switches/{switch_id}",
        details=(("switch_id", switch_id),),
    )
