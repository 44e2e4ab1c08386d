"""Switches and memory written as JSON: the form that callers, the history and the page share."""

from typing import Any

from msgspec.structs import asdict

from supervisor.core.machine.events import RestartRequested, SwitchRequested
from supervisor.core.machine.memory import MemorySample
from supervisor.core.machine.switch import Switch, SwitchReport
from supervisor.core.machine.values import Outcome, Phase, Refusal


def describe_running(switch: Switch) -> dict[str, Any]:
    """Write a running switch as JSON."""
    return {
        "switch_id": switch.switch_id,
        "outcome": "running",
        "requested_by": switch.order.requested_by,
        "reason": switch.order.reason or None,
        "phase": switch.phase.shown.value,
        "model": switch.target.model if switch.target else None,
        "mode": switch.target.mode if switch.target else None,
        "profile": switch.target.profile if switch.target else None,
        "seconds": _seconds(switch.phase_seconds),
        "waiting_for": switch.gate.reason,
    }


def describe_waiting(pending: SwitchRequested | RestartRequested) -> dict[str, Any]:
    """Write a switch by hand that begins when the running one has ended, in the same form."""
    target = pending.target if isinstance(pending, SwitchRequested) else None
    return {
        "switch_id": pending.switch_id,
        "outcome": "running",
        "requested_by": "manual",
        "phase": "waiting",
        "model": target.model if target else None,
        "mode": target.mode if target else None,
        "profile": target.profile if target else None,
        "reason": None,
        "seconds": {},
        "waiting_for": "the end of the running switch",
    }


def describe_report(report: SwitchReport) -> dict[str, Any]:
    """Write an ended switch as JSON: seconds per phase, memory in bytes, outcome and reason."""
    seconds = _seconds(report.phase_seconds)
    is_unchanged = report.outcome is Outcome.UNCHANGED
    return {
        "switch_id": report.switch_id,
        "outcome": report.outcome.value,
        "requested_by": report.requested_by,
        "reason": report.reason or None,
        "model": report.model,
        "mode": report.mode,
        "profile": report.profile,
        "epoch": report.epoch,
        "last_phase": report.last_phase.value,
        "seconds": ({} if is_unchanged else seconds) | {"total": round(report.total_s, 4)},
        "memory": {
            "before": describe_memory(report.memory.before),
            "released": describe_memory(report.memory.confirmed),
            "after": describe_memory(report.memory.after),
            "reason": report.memory.reason,
            "samples": report.memory.samples_taken,
        },
        "fell_back": report.notes.fell_back,
        "was_parked": report.notes.was_parked,
        "parked": [asdict(parked) for parked in report.notes.parked],
        "prompt_cache": {
            "saved": [asdict(kept) for kept in report.notes.prompts_saved],
            "restored": asdict(report.notes.prompts_restored)
            if report.notes.prompts_restored
            else None,
        },
        "error": _describe_refusal(report.refusal),
    }


def _seconds(phase_seconds: tuple[tuple[Phase, float], ...]) -> dict[str, float]:
    """Sum the seconds up by phase: one that made room after all has some of them twice."""
    total_s: dict[str, float] = {}
    for phase, took_s in phase_seconds:
        total_s[phase.value] = total_s.get(phase.value, 0.0) + took_s
    return {phase: round(took_s, 4) for phase, took_s in total_s.items()}


def describe_memory(sample: MemorySample | None) -> dict[str, Any] | None:
    """Write a sample as JSON, sizes in bytes."""
    if sample is None:
        return None
    return {
        "device": sample.device,
        "used_bytes": sample.used_bytes,
        "free_bytes": sample.free_bytes,
        "total_bytes": sample.total_bytes,
        "children_bytes": sample.children_bytes,
        "source": sample.source,
    }


def _describe_refusal(refusal: Refusal | None) -> dict[str, Any] | None:
    if refusal is None:
        return None
    return {"code": refusal.code, "message": refusal.message, **dict(refusal.details)}
