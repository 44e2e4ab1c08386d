"""How the answer of `fit` looks: a table for people, JSON for machines."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from supervisor.core.byte_size import format_bytes
from supervisor.core.sizing.estimate import MemoryEstimate
from supervisor.core.sizing.fitting import MAX_PARALLEL, Largest, trained_ctx_size
from supervisor.engine.fit import DeviceFit, FitReport

UNKNOWN = "–"


def print_fit(report: FitReport) -> None:
    """Print the parts of the need and the room of every device, and what would fit."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    resolved = report.candidate.resolved
    console.print(
        f"{resolved.name} with profile {resolved.profile_name} on {_devices(report)}, by "
        f"{_build(report)}".rstrip()
    )
    if report.has_forgotten:
        console.print(f"What was learned about its need on {_devices(report)} has been dropped.")
    table = Table("", show_edge=False)
    for fit in report.devices:
        chosen = " *" if fit.room.device in (*report.may_run_on, *report.split_over) else ""
        table.add_column(f"{fit.room.device}{chosen}", justify="right")
    for name, cell in _ROWS:
        cells = [cell(fit) for fit in report.devices]
        if cell not in _SOMETIMES or any(one != UNKNOWN for one in cells):
            table.add_row(name, *cells)
    console.print(table)
    for sentence in _sentences(report):
        console.print(sentence)


def describe_fit(report: FitReport) -> dict[str, Any]:
    """Return the report as JSON values; sizes in bytes, what is not known is null."""
    resolved = report.candidate.resolved
    return {
        "model": resolved.name,
        "path": str(resolved.path),
        "profile": resolved.profile_name,
        "ctx_size": resolved.profile.ctx_size,
        "parallel": resolved.profile.parallel,
        "device": report.device,
        "may_run_on": report.may_run_on,
        "fits": report.fits,
        "devices": [_describe_device(fit) for fit in report.devices],
    }


def _describe_device(fit: DeviceFit) -> dict[str, Any]:
    assessment = fit.assessment
    parts, learned = assessment.estimate, assessment.learned
    estimate = parts.memory if parts else None
    return {
        "device": fit.room.device,
        "name": fit.room.name,
        "weights_bytes": estimate.weights_bytes if estimate else None,
        "kv_bytes": estimate.kv_bytes if estimate else None,
        "kv_assumed_because": estimate.kv_assumed_because if estimate else None,
        "compute_bytes": estimate.compute_bytes if estimate else None,
        "output_bytes": parts.output_bytes if parts else None,
        "context_bytes": parts.context_bytes if parts else None,
        "companion_bytes": parts.companion_bytes if parts else None,
        "host_bytes": parts.host_bytes if parts else None,
        "estimated_bytes": parts.total_bytes if parts else None,
        "learned": asdict(learned) if learned else None,
        "need_bytes": assessment.need_bytes,
        "margin_bytes": fit.margin_bytes,
        "free_bytes": fit.room.free_bytes,
        "held_by_ours_bytes": fit.room.ours_bytes,
        "budget_bytes": fit.room.budget_bytes,
        "room_bytes": fit.room.room_bytes(fit.margin_bytes),
        "problem": fit.room.problem,
        "fits": fit.fits,
        "largest_ctx_size": asdict(fit.largest_ctx_size) if fit.largest_ctx_size else None,
        "largest_parallel": asdict(fit.largest_parallel) if fit.largest_parallel else None,
        "would_fit": [asdict(alternative) for alternative in fit.would_fit],
    }


def _build(report: FitReport) -> str:
    build = report.candidate.build
    return f"{build.name} {build.version}" if build else report.candidate.resolved.profile.engine


def _devices(report: FitReport) -> str:
    return (
        " or ".join(report.may_run_on)
        if report.choices
        else " and ".join(report.split_over or (report.device,))
    )


def _size(count: int | None) -> str:
    return UNKNOWN if count is None else format_bytes(count)


def _part(name: str) -> Callable[[DeviceFit], str]:
    return lambda fit: _size(getattr(fit.assessment.estimate, name, None))


def _memory(fit: DeviceFit) -> MemoryEstimate | None:
    estimate = fit.assessment.estimate
    return None if estimate is None else estimate.memory


def _estimated(name: str) -> Callable[[DeviceFit], str]:
    return lambda fit: _size(getattr(_memory(fit), name, None))


def _kv(fit: DeviceFit) -> str:
    memory = _memory(fit)
    is_assumed = memory is not None and memory.kv_assumed_because is not None
    return _estimated("kv_bytes")(fit) + (" (assumed)" if is_assumed else "")


def _in_host_memory(fit: DeviceFit) -> str:
    estimate = fit.assessment.estimate
    return _size((estimate.host_bytes or None) if estimate else None)


def _companions(fit: DeviceFit) -> str:
    estimate = fit.assessment.estimate
    return _size((estimate.companion_bytes or None) if estimate else None)


def _learned(fit: DeviceFit) -> str:
    learned = fit.assessment.learned
    return _size(learned.peak_bytes if learned else None)


def _after_stop(fit: DeviceFit) -> str:
    if fit.room.free_bytes is None or not fit.room.ours_bytes:
        return UNKNOWN
    return format_bytes(fit.room.free_bytes + fit.room.ours_bytes)


_ROWS: tuple[tuple[str, Callable[[DeviceFit], str]], ...] = (
    ("weights", _estimated("weights_bytes")),
    ("KV cache", _kv),
    ("compute", _estimated("compute_bytes")),
    ("results", _part("output_bytes")),
    ("driver's context", _part("context_bytes")),
    ("beside the model", _companions),
    ("estimated", _part("total_bytes")),
    ("rest in host memory", _in_host_memory),
    ("learned peak", _learned),
    ("needed", lambda fit: format_bytes(fit.assessment.need_bytes)),
    ("margin", lambda fit: format_bytes(fit.margin_bytes)),
    ("free now", lambda fit: _size(fit.room.free_bytes)),
    ("once ours have stopped", _after_stop),
    ("budget", lambda fit: format_bytes(fit.room.budget_bytes)),
    ("fits", lambda fit: {None: "unknown", True: "yes", False: "no"}[fit.fits]),
)

_SOMETIMES = (_companions, _in_host_memory)
"""Rows that most models have nothing for, and that are left out then."""


def _sentences(report: FitReport) -> Iterator[str]:
    candidate = report.candidate
    if report.choices:
        yield (
            "* where this profile may run it: of these the one is taken on which the fewest models "
            "must give way"
        )
    else:
        yield "* where this profile runs it"
    for fit in report.devices:
        if fit.room.problem is not None:
            yield f"{fit.room.device}: {fit.room.problem}"
        if fit.room.ours_bytes is None and fit.room.problem is None:
            yield (
                f"{fit.room.device}: the driver does not say what our running servers hold there; "
                "it is not counted as free"
            )
    if candidate.stated_bytes is not None:
        yield "The need is memory.need_bytes of the profile; no setting changes it."
    else:
        yield from (f"{said[0].upper()}{said[1:]}." for said in candidate.companions.uncounted)
    for fit in report.devices:
        if fit.room.device in report.may_run_on:
            about = f"On {fit.room.device}: " if report.choices else ""
            yield from (f"{about}{said}" for said in _device_sentences(report, fit))


def _device_sentences(report: FitReport, fit: DeviceFit) -> Iterator[str]:
    learned = fit.assessment.learned_sentence
    if learned:
        yield f"{learned[0].upper()}{learned[1:]}"
    memory = _memory(fit)
    reason = memory.kv_assumed_because if memory else None
    if reason is not None:
        yield (
            f"The KV cache is assumed, because {reason}: run it once, and what it takes is "
            "learned; or set memory.need_bytes in its profile. No largest context is computed."
        )
    profile = report.candidate.resolved.profile
    if fit.largest_ctx_size is not None:
        slots = "shared by all slots" if profile.kv_unified else f"for each of {profile.parallel}"
        yield f"Largest ctx_size ({slots}): {_tell_ctx(report, fit.largest_ctx_size)}"
    if fit.largest_parallel is not None:
        context = profile.ctx_size or "the model's own"
        yield f"Largest parallel (ctx_size {context}): {_tell_parallel(fit.largest_parallel)}"
    if fit.fits is False:
        would = "; ".join(f"{a.setting} ({format_bytes(a.need_bytes)})" for a in fit.would_fit)
        yield f"It would fit with: {would}" if would else "No smaller setting makes it fit."


def _tell_ctx(report: FitReport, largest: Largest) -> str:
    if largest.value is None:
        return "none fits"
    file = report.candidate.file
    is_trained = file is not None and trained_ctx_size(file.header) is not None
    bound = "what the model was trained for" if is_trained else "the largest that is tried"
    if is_trained and report.candidate.resolved.profile.kv_unified:
        bound = "all that its slots can use together"
    return f"{largest.value} tokens" + (f", {bound}" if largest.is_maximum else "")


def _tell_parallel(largest: Largest) -> str:
    if largest.value is None:
        return "none fits"
    bound = ", the maximum" if largest.is_maximum and largest.value == MAX_PARALLEL else ""
    return f"{largest.value} slots{bound}"
