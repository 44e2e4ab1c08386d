"""Switches and memory written as JSON: the form that callers, the history and the page share."""

from typing import Any

from msgspec.structs import asdict

from supervisor.core.machine.memory import MemorySample
from supervisor.core.machine.values import Outcome, Refusal, Switch, SwitchReport


def describe_running(switch: Switch) -> dict[str, Any]:
    """Write a running switch as JSON."""
    return {
        "switch_id": switch.switch_id,
        "outcome": "running",
        "requested_by": switch.requested_by,
        "phase": switch.phase.value,
        "model": switch.target.model if switch.target else None,
        "mode": switch.target.mode if switch.target else None,
        "profile": switch.target.profile if switch.target else None,
        "seconds": {phase.value: round(s, 4) for phase, s in switch.phase_seconds},
        "waiting_for": switch.gate_reason,
    }


def describe_report(report: SwitchReport) -> dict[str, Any]:
    """Write an ended switch as JSON: seconds per phase, memory in bytes, outcome and reason."""
    seconds = {phase.value: round(s, 4) for phase, s in report.phase_seconds}
    is_unchanged = report.outcome is Outcome.UNCHANGED
    return {
        "switch_id": report.switch_id,
        "outcome": report.outcome.value,
        "requested_by": report.requested_by,
        "model": report.model,
        "mode": report.mode,
        "profile": report.profile,
        "epoch": report.epoch,
        "last_phase": report.last_phase.value,
        "seconds": ({} if is_unchanged else seconds) | {"total": round(report.total_s, 4)},
        "memory": {
            "before": describe_memory(report.memory_before),
            "released": describe_memory(report.memory_confirmed),
            "after": describe_memory(report.memory_after),
            "reason": report.gate_reason,
            "samples": report.samples_taken,
        },
        "fell_back": report.fell_back,
        "prompt_cache": {
            "saved": [asdict(kept) for kept in report.prompts_saved],
            "restored": asdict(report.prompts_restored) if report.prompts_restored else None,
        },
        "error": _describe_refusal(report.refusal),
    }


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
