"""What callers and waiters are told of a switch: reports and refusals."""

from supervisor.core.machine.draft import phase_seconds
from supervisor.core.machine.memory import MemorySample
from supervisor.core.machine.values import Outcome, Refusal, Switch, SwitchReport


def report_of(
    switch: Switch, at: float, *, refusal: Refusal | None, memory_after: MemorySample | None = None
) -> SwitchReport:
    """Sum a switch up as of `at`."""
    target = switch.target
    return SwitchReport(
        switch_id=switch.switch_id,
        requested_by=switch.requested_by,
        outcome=Outcome.SWITCHED if refusal is None else Outcome.FAILED,
        last_phase=switch.phase,
        model=target.model if target else None,
        mode=target.mode if target else None,
        profile=target.profile if target else None,
        epoch=switch.epoch,
        total_s=at - switch.started_at,
        phase_seconds=phase_seconds(switch, at),
        gate_reason=switch.gate_reason,
        samples_taken=switch.samples_taken,
        memory_before=switch.memory_before,
        memory_confirmed=switch.memory_confirmed,
        memory_after=memory_after or switch.memory_confirmed,
        fell_back=switch.fell_back,
        prompts_saved=switch.prompts_saved,
        prompts_restored=switch.prompts_restored,
        refusal=refusal,
    )


def switch_is_running(running: Switch) -> Refusal:
    """Say that another switch runs, with its target."""
    target = running.target
    goal = f"to '{target.model}'" if target else "to nothing (unload)"
    return Refusal(
        code="switch_in_progress",
        message=f"a switch {goal} is running ({running.phase}); wait for /switches/"
        f"{running.switch_id}",
        details=(
            ("switch_id", running.switch_id),
            ("target", target.model if target else None),
            ("phase", running.phase.value),
        ),
    )


def refusal_for_waiters(refusal: Refusal | None) -> Refusal | None:
    """Say to those who waited that the switch they waited for failed."""
    if refusal is None:
        return None
    return Refusal(code="switch_failed", message=f"the switch failed: {refusal.message}")
