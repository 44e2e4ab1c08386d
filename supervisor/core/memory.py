"""Device memory as values, and the gate that decides when a stopped backend has given it back.

The driver returns memory some time after the process is reaped (0.5 to 1.5 s on discrete GPUs,
with no published bound), other tenants move it both ways, and a crashed child has freed its share
before anybody looks. So the gate never waits for a *change*: it passes when enough is free for
the next mode, or when use is back at what it was before the old child started.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

MIB = 1024 * 1024

MAX_SAMPLE_PAUSE_S = 0.250
"""Longest pause between two samples while a release is awaited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySample:
    """One reading of one device. All sizes in bytes; `taken_at` in seconds on a monotonic clock.

    `children_bytes` is what this supervisor's own children hold there, None where the platform
    does not tell (a container without host process ids): unknown is never counted as zero.
    """

    device: str
    taken_at: float
    total_bytes: int
    used_bytes: int
    free_bytes: int
    source: str
    children_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPolicy:
    """How much proof of release is asked for. Sizes in bytes, times in seconds."""

    margin_bytes: int = 256 * MIB
    tolerance_bytes: int = 64 * MIB
    stable_samples: int = 3
    release_timeout_s: float = 10.0


class GateState(StrEnum):
    """What the gate says of the samples so far."""

    CONFIRMED = "confirmed"
    WAITING = "waiting"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class GateDecision:
    """The gate's answer and the sentence that explains it to an operator."""

    state: GateState
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseQuestion:
    """What must be true before the next backend may start on `device`.

    `need_bytes` is what the next backend will take (None when nothing follows: then the old
    share itself must be back) and `baseline_used_bytes` the use before the old backend started
    (None when nothing was stopped).
    The operator's budget is accounted for before anything stops, so it is no part of this.
    """

    device: str
    need_bytes: int | None
    baseline_used_bytes: int | None
    policy: MemoryPolicy
    asked_at: float


def pause_before_sample(index: int) -> float:
    """Seconds to wait before sample `index` (0-based).

    Samples stand at 0, 5, 10, 20 and 40 ms, so that an immediate release costs about 10 ms;
    then pauses of 50 ms grow by half up to 250 ms, so that a slow driver is not hammered.
    """
    early = (0.0, 0.005, 0.005, 0.010, 0.020)
    if index < len(early):
        return early[index]
    return min(MAX_SAMPLE_PAUSE_S, 0.050 * 1.5 ** min(index - len(early), 4))


def judge_release(question: ReleaseQuestion, samples: Sequence[MemorySample]) -> GateDecision:
    """Say whether memory is released, from the samples taken since the old group was reaped."""
    if not samples:
        return GateDecision(state=GateState.WAITING, reason="no sample yet")
    enough, sentence = _is_enough_free(question, samples[-1])
    wanted = question.policy.stable_samples
    if enough and _is_stable(question, samples):
        return GateDecision(state=GateState.CONFIRMED, reason=sentence)
    if samples[-1].taken_at - question.asked_at >= question.policy.release_timeout_s:
        waited_s = samples[-1].taken_at - question.asked_at
        return GateDecision(
            state=GateState.REFUSED,
            reason=f"not confirmed within {waited_s:.1f} s: {sentence}",
        )
    if enough:
        sentence = f"{sentence}; waiting for {wanted} stable samples"
    return GateDecision(state=GateState.WAITING, reason=sentence)


def _is_enough_free(question: ReleaseQuestion, sample: MemorySample) -> tuple[bool, str]:
    policy, need, baseline = question.policy, question.need_bytes, question.baseline_used_bytes
    free = f"{question.device}: {format_bytes(sample.free_bytes)} free"
    if need is not None and sample.free_bytes >= need + policy.margin_bytes:
        return True, f"{free}, {format_bytes(need)} needed"
    if need is None and (baseline is None or sample.children_bytes == 0):
        return True, f"{free}, our children hold nothing"
    # Signed: foreign tenants leave, too, and use may fall below the baseline.
    if baseline is not None and sample.used_bytes - baseline <= policy.tolerance_bytes:
        return True, (
            f"{question.device}: use is back at the baseline "
            f"({format_bytes(sample.used_bytes)} used, {format_bytes(baseline)} before)"
        )
    wanted = "" if need is None else f", {format_bytes(need)} needed"
    before = "" if baseline is None else f", {format_bytes(baseline)} before the old backend"
    return False, (
        f"{free}{wanted} with a margin of {format_bytes(policy.margin_bytes)}; "
        f"{format_bytes(sample.used_bytes)} used{before}"
    )


def _is_stable(question: ReleaseQuestion, samples: Sequence[MemorySample]) -> bool:
    """The last N samples all show enough, so that a passing dip does not open the gate."""
    wanted = question.policy.stable_samples
    last = samples[-wanted:]
    return len(last) == wanted and all(_is_enough_free(question, s)[0] for s in last)


def format_bytes(count: int) -> str:
    """Write a size for a person, in binary units: `1.5 GiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
