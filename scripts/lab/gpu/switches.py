"""Switches to and fro: what each phase takes, when memory is back, and what the gate went by."""

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from lab.gpu.check import Check, PartResult, distribution
from lab.gpu.configuration import (
    EMBEDDING,
    GENERATION,
    LARGE_EMBEDDING,
    TALKATIVE,
    log_of,
    setting_for,
    tight_profiles,
    variants,
    visit,
)
from lab.gpu.log_reading import PhaseBegin, marks, phase_begins
from lab.gpu.needs import compare_needs, talkative_profile
from lab.gpu.watch import Point
from lab.harness.command import say
from lab.harness.servers import Controller
from supervisor.core.byte_size import MIB, format_bytes

NAME = "switches"
LIMIT_S = 300.0

TOLERANCE_BYTES = 64 * MIB
"""Above the use of the idle device, and still taken for released; as the shipped profiles say."""

SETTLE_S = 1.5
"""How long a model serves before its use is read; the controller looks once a second, too."""

SAMPLING_S = 1.0
HELPER_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """A switch. `released_s`: from the reap to the first sample that shows the memory back.

    None where no sample shows it before the next server starts. `is_held_after_reap`: whether any
    sample after the reap shows it held; else it came back before.
    """

    coming: str
    seen_s: float
    phases_s: Mapping[str, float]
    rule: str
    reason: str
    samples: int
    released_s: float | None
    is_held_after_reap: bool


def measure(check: Check) -> PartResult:
    """Switch between both modes, with needs as estimated, then with needs that leave no room."""
    idle = check.watch.sample()
    sampling = _sampling(check)
    profiles = variants("talkative", TALKATIVE) | tight_profiles(idle.free_bytes)
    setting = setting_for(check, profiles)
    reports: list[tuple[dict[str, Any], float]] = []
    with Controller(setting) as controller:
        controller.wait_until_settled()
        plateaus = _visit_roomy(check, controller, reports)
        helper = _helper_cost(controller)
        _visit_tight(check, controller, reports)
        controller.call("POST", "/unload")
    left = check.watch.sample()
    begins = phase_begins(log_of(setting))
    switches = [
        _judge(check, report, seen_s, begins, idle.used_bytes)
        for report, seen_s in reports
        if "stopping" in report["seconds"]
    ]
    figures = {
        "asked": check.switches,
        "done": len(switches),
        **_summary(switches),
        "needs": compare_needs(check, setting, plateaus, idle.used_bytes),
        "sampling": sampling | helper,
        "baseline_bytes": {"before": idle.used_bytes, "after": left.used_bytes},
        "switches": [asdict(switch) for switch in switches],
    }
    return PartResult(figures=figures, sentences=_sentences(figures), marks=marks(log_of(setting)))


def _visit_roomy(
    check: Check, controller: Controller, reports: list[tuple[dict[str, Any], float]]
) -> dict[str, int]:
    """Serve each model for a while; return the device's use meanwhile, in bytes."""
    plateaus = {}
    for model in (GENERATION, LARGE_EMBEDDING, EMBEDDING):
        reports.append(_switch(controller, model, talkative_profile(model)))
        time.sleep(SETTLE_S)  # until its predecessor's memory is surely gone
        plateaus[model] = check.watch.sample().used_bytes
    return plateaus


def _visit_tight(
    check: Check, controller: Controller, reports: list[tuple[dict[str, Any], float]]
) -> None:
    """Switch as often as is asked for, or as time allows."""
    longest_s = 0.0
    for number in range(check.switches):
        if check.remaining_s < 2 * longest_s + SETTLE_S:
            say(f"  {NAME}: no time for more than {number} of {check.switches}")
            break
        model, mode = ((GENERATION, "generation"), (EMBEDDING, "embedding"))[number % 2]
        began_at = time.monotonic()
        reports.append(_switch(controller, model, f"{mode}-tight"))
        longest_s = max(longest_s, time.monotonic() - began_at)


def _switch(controller: Controller, model: str, profile: str) -> tuple[dict[str, Any], float]:
    began_at = time.monotonic()
    report = controller.switch_to(model, profile)
    seen_s = time.monotonic() - began_at
    visit(controller, model)
    return report, seen_s


def _judge(
    check: Check,
    report: dict[str, Any],
    seen_s: float,
    begins: Sequence[PhaseBegin],
    idle_bytes: int,
) -> Switch:
    at = {begin.phase: begin.at for begin in begins if begin.switch_id == report["switch_id"]}
    points = check.watch.between(at["confirming"], at["starting"])
    released_s, is_held = find_release(points, at["confirming"], idle_bytes + TOLERANCE_BYTES)
    reason = report["memory"]["reason"] or ""
    return Switch(
        coming=report["model"],
        seen_s=seen_s,
        phases_s=report["seconds"],
        rule=rule_of(reason),
        reason=reason,
        samples=report["memory"]["samples"],
        released_s=released_s,
        is_held_after_reap=is_held,
    )


def find_release(
    points: Sequence[Point], reaped_at: float, released_bytes: int
) -> tuple[float | None, bool]:
    """Return the seconds from the reap to the first point that shows no more than that in use.

    And whether any point before it shows more.
    """
    for number, point in enumerate(points):
        if point.used_bytes <= released_bytes:
            return point.at - reaped_at, number > 0
    return None, bool(points)


def rule_of(reason: str) -> str:
    """Name the gate's rule, by the sentence that it explains itself with."""
    for rule, words in (
        ("use is back at the baseline", "at the baseline"),
        ("free ≥ need + margin", "needed"),
        ("our children hold nothing", "hold nothing"),
    ):
        if words in reason:
            return rule
    return "another"


def _summary(switches: Sequence[Switch]) -> dict[str, Any]:
    phases: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for switch in switches:
        for phase, seconds in switch.phases_s.items():
            phases[switch.coming][phase].append(seconds)
    released_s = [s.released_s for s in switches if s.released_s is not None]
    return {
        "reap_to_released_s": distribution(released_s),
        "released_before_reap": sum(
            not s.is_held_after_reap for s in switches if s.released_s is not None
        ),
        "release_not_seen": len(switches) - len(released_s),
        "confirming_s": distribution([s.phases_s["confirming"] for s in switches]),
        "seen_s": distribution([s.seen_s for s in switches]),
        "phases_s": {
            model: {phase: distribution(seconds) for phase, seconds in by_phase.items()}
            for model, by_phase in phases.items()
        },
        "rules": dict(Counter(s.rule for s in switches)),
        "samples": distribution([s.samples for s in switches]),
    }


def _sampling(check: Check) -> dict[str, Any]:
    """Tell how fast the device can be sampled, over a process boundary and back."""
    took_s = check.watch.time_samples(SAMPLING_S)
    return {"samples_per_s": len(took_s) / SAMPLING_S, "sample_s": distribution(took_s)}


def _helper_cost(controller: Controller) -> dict[str, Any]:
    """Tell what the controller's sampler process costs while it reads once a second."""
    for child in psutil.Process(controller.pid).children():
        if any("telemetry.sampler" in word for word in child.cmdline()):
            before = child.cpu_times()
            time.sleep(HELPER_S)
            after = child.cpu_times()
            used_s = after.user + after.system - before.user - before.system
            return {
                "helper_core_share": used_s / HELPER_S,
                "helper_resident_bytes": child.memory_info().rss,
            }
    return {}


def _sentences(figures: Mapping[str, Any]) -> list[str]:
    sentences = [f"{figures['done']} switches, {figures['asked']} of them asked for as tight ones."]
    released = figures["reap_to_released_s"]
    if released:
        sentences.append(
            f"From the reap to memory released: p50 {released['p50']:.3f} s, "
            f"p90 {released['p90']:.3f} s, p99 {released['p99']:.3f} s, at most "
            f"{released['max']:.3f} s; {figures['released_before_reap']} times it was back before, "
            f"{figures['release_not_seen']} times nothing showed it before the next start."
        )
    confirming = figures["confirming_s"]
    if confirming:
        rules = ", ".join(f"{rule}: {count}" for rule, count in figures["rules"].items())
        sentences.append(
            f"The gate confirmed after p50 {confirming['p50']:.3f} s, at most "
            f"{confirming['max']:.3f} s ({rules})."
        )
    sampling = figures["sampling"]
    sentences.append(f"{sampling['samples_per_s']:.0f} samples a second, back to back.")
    baseline = figures["baseline_bytes"]
    sentences.append(
        f"In use with nothing of ours: {format_bytes(baseline['before'])} before, "
        f"{format_bytes(baseline['after'])} after."
    )
    sentences += [need["sentence"] for need in figures["needs"].values()]
    return sentences
