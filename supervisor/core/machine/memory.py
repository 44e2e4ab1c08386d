"""Device memory as values, and the gate that decides when a stopped backend has given it back.

The driver returns memory some time after the process is reaped (0.5 to 1.5 s on discrete GPUs,
with no published bound), other tenants move it both ways, and a crashed child has freed its share
before anybody looks. So the gate never waits for a *change*: it passes when enough is free for
the next mode, or when use is back at what it was before the old child started.

What always holds of the readings that it judges (`invariants` checks it after every step): they are
of the question's device, taken after it was asked, and each later than the one before. `confirming`
puts a question with no readings, and takes in only what is all three (`_is_new`); a reading that
comes twice, late or from elsewhere proves nothing. Since a question is asked once all that leaves
is reaped, each reading shows the device without it.
"""

from collections.abc import Sequence
from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

from supervisor.core.byte_size import MIB, format_bytes

SETTLING_PAUSE_S = 0.005
"""Pause between two samples while enough is free, so that a late release costs no more either."""

MAX_SAMPLE_PAUSE_S = 0.250
"""Longest pause between two samples while a release is awaited."""


class HolderRole(StrEnum):
    """Whose a process on a device is.

    A SURVIVOR belongs to the session of a server that was stopped. UNSEEN is a process id that
    does not exist here: it belongs to another container, or to a process that is gone.
    """

    CHILD = "child"
    SURVIVOR = "survivor"
    FOREIGN = "foreign"
    UNSEEN = "unseen"


class Holder(Struct, frozen=True, kw_only=True):
    """A process that holds memory of a device; `used_bytes` None where the driver does not say."""

    pid: int
    used_bytes: int | None
    role: HolderRole
    name: str | None = None

    def describe(self) -> str:
        """Name it for an operator: `python (pid 4711) 3.0 GiB`."""
        held = "an unknown amount" if self.used_bytes is None else format_bytes(self.used_bytes)
        return f"{self.name or 'a process that is not seen from here'} (pid {self.pid}) {held}"


class MemorySample(Struct, frozen=True, kw_only=True):
    """One reading of one device. All sizes in bytes; `taken_at` in seconds on a monotonic clock.

    `children_bytes` is what this supervisor's own children hold there, None where the platform
    does not say (a container without host process ids): unknown is never counted as zero.
    `holders` are the processes on it, None where the driver does not list them.
    """

    device: str
    taken_at: float
    total_bytes: int
    used_bytes: int
    free_bytes: int
    source: str
    children_bytes: int | None = None
    holders: tuple[Holder, ...] | None = None

    def held_by(self, *roles: HolderRole) -> tuple[Holder, ...]:
        """Return the processes of these roles, the largest first."""
        found = [holder for holder in self.holders or () if holder.role in roles]
        return tuple(sorted(found, key=lambda holder: -(holder.used_bytes or 0)))

    @property
    def foreign_bytes(self) -> int | None:
        """What others hold; None unless every process that is listed is known, with its share."""
        if self.holders is None or self.held_by(HolderRole.UNSEEN):
            return None
        shares = [holder.used_bytes for holder in self.held_by(HolderRole.FOREIGN)]
        known = [share for share in shares if share is not None]
        return sum(known) if len(known) == len(shares) else None


class OnUnconfirmed(StrEnum):
    """What becomes of a start whose memory is not confirmed in time."""

    REFUSE = "refuse"
    WAIT = "wait"
    PROCEED = "proceed"


class MemoryPolicy(Struct, frozen=True, kw_only=True):
    """How much proof of release is asked for. Sizes in bytes, times in seconds."""

    margin_bytes: int = 256 * MIB
    tolerance_bytes: int = 64 * MIB
    stable_samples: int = 3
    release_timeout_s: float = 10.0
    on_unconfirmed: OnUnconfirmed = OnUnconfirmed.REFUSE


class GateState(StrEnum):
    """What the gate says of the samples so far. UNPROVEN lets pass because the operator said so."""

    CONFIRMED = "confirmed"
    WAITING = "waiting"
    REFUSED = "refused"
    UNPROVEN = "unproven"


class GateDecision(Struct, frozen=True, kw_only=True):
    """The gate's answer and the sentence that explains it to an operator.

    `is_settling`: enough is free, and only the repetition is missing that makes it certain.
    """

    state: GateState
    reason: str
    is_settling: bool = False


class ReleaseQuestion(Struct, frozen=True, kw_only=True):
    """What must be true before the next backend may start on `device`.

    `need_bytes` is what the next backend will take (None when nothing follows: then the old
    share itself must be back) and `baseline_used_bytes` the use before the old backend started
    (None when nothing was stopped).
    `baseline_foreign_bytes` is what others held at that time, None where that is not known, and
    `baseline_exits` how many other servers have ended since (see `Baseline`).
    `is_freed_at_exit`: the kernel gives this memory back with the process, as it does the host's; a
    GPU's driver does so later, and children that are gone prove nothing there.
    `own_baseline_bytes`: the use from which the next backend ran here before, None where it did not
    or where that is not known. `is_measured`: what a parked server keeps there is measured by the
    reading that opens the gate, so that use must have come to rest.
    The operator's budget is accounted for before anything stops, so it is not part of this.
    """

    device: str
    need_bytes: int | None
    baseline_used_bytes: int | None
    policy: MemoryPolicy
    asked_at: float
    baseline_foreign_bytes: int | None = None
    baseline_exits: int = 0
    is_freed_at_exit: bool = False
    own_baseline_bytes: int | None = None
    is_measured: bool = False

    @property
    def wanted_samples(self) -> int:
        """Readings in a row that must show enough: one where no driver gives memory back late."""
        return 1 if self.is_freed_at_exit else self.policy.stable_samples

    @property
    def allowed_bytes(self) -> int:
        """By how much use may exceed the baseline: the tolerance, for each server that ended."""
        return self.policy.tolerance_bytes * (1 + self.baseline_exits)


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
    """Say whether memory is released, from the samples taken since the old group was reaped.

    It is late as long as it is not free: a slow driver has the time that its last readings take.
    """
    if not samples:
        return GateDecision(state=GateState.WAITING, reason="no sample yet")
    last = samples[-question.wanted_samples :]
    enough, sentence = _is_enough_free(question, last[-1])
    if not enough:
        return judge_late(question, last[-1].taken_at, sentence)
    is_repeated = len(last) == question.wanted_samples and all(
        _is_enough_free(question, sample)[0] for sample in last
    )
    if is_repeated and _is_at_rest(question, last):
        return GateDecision(state=GateState.CONFIRMED, reason=sentence)
    waiting = f"{sentence}; waiting for {question.wanted_samples} stable samples"
    if is_repeated:
        return replace(judge_late(question, last[-1].taken_at, waiting), is_settling=True)
    return GateDecision(state=GateState.WAITING, reason=waiting, is_settling=True)


def judge_late(question: ReleaseQuestion, at: float, reason: str) -> GateDecision:
    """Say what becomes of a release that is not confirmed `at` a time, for the reason given."""
    policy, waited_s = question.policy, at - question.asked_at
    if waited_s < policy.release_timeout_s or policy.on_unconfirmed is OnUnconfirmed.WAIT:
        return GateDecision(state=GateState.WAITING, reason=reason)
    unconfirmed = f"not confirmed within {waited_s:.1f} s: {reason}"
    if policy.on_unconfirmed is OnUnconfirmed.PROCEED:
        sentence = f"{unconfirmed}; started even so, because on_unconfirmed is proceed"
        return GateDecision(state=GateState.UNPROVEN, reason=sentence)
    return GateDecision(state=GateState.REFUSED, reason=unconfirmed)


def _is_enough_free(question: ReleaseQuestion, sample: MemorySample) -> tuple[bool, str]:
    policy, need = question.policy, question.need_bytes
    free = f"{question.device}: {format_bytes(sample.free_bytes)} free"
    survivors = sample.held_by(HolderRole.SURVIVOR)
    if survivors:
        named = ", ".join(holder.describe() for holder in survivors)
        return False, f"{question.device}: still held by what a stopped server left: {named}"
    if need is not None and sample.free_bytes >= need + policy.margin_bytes:
        return True, f"{free}, {format_bytes(need)} needed"
    ends_with_process = question.is_freed_at_exit and sample.children_bytes == 0
    if need is None and (question.baseline_used_bytes is None or ends_with_process):
        return True, f"{free}, our children hold nothing"
    expected = _expected_use(question, sample)
    # Signed: foreign tenants also leave, and use may fall below the baseline.
    is_back = expected is not None and sample.used_bytes - expected <= question.allowed_bytes
    if expected is not None and is_back and _has_room(question, sample):
        return True, (
            f"{question.device}: use is back at the baseline "
            f"({format_bytes(sample.used_bytes)} used, {format_bytes(expected)} expected)"
        )
    wanted = "" if need is None else f", {format_bytes(need)} needed"
    before = "" if expected is None else f", {format_bytes(expected)} expected"
    return False, (
        f"{free}{wanted} with a margin of {format_bytes(policy.margin_bytes)}; "
        f"{format_bytes(sample.used_bytes)} used{before}{_name_others(question, sample)}"
    )


def _has_room(question: ReleaseQuestion, sample: MemorySample) -> bool:
    """Whether there is as much as is needed, or as much as there was when the same ran here.

    The need is an estimate; that it ran beside so much use is a fact.
    """
    need, own_bytes = question.need_bytes, question.own_baseline_bytes
    if need is None or sample.free_bytes + question.policy.tolerance_bytes >= need:
        return True
    return own_bytes is not None and sample.used_bytes - own_bytes <= question.allowed_bytes


def _expected_use(question: ReleaseQuestion, sample: MemorySample) -> int | None:
    """Use that proves our share to be back: the baseline, moved by what others did since.

    What others have given back meanwhile must not pass for ours. What they have taken is not our
    fault, which matters where nothing follows; a target that follows needs that memory, so that
    there it does not count.
    """
    baseline = question.baseline_used_bytes
    growth = growth_of_others(question.baseline_foreign_bytes, sample)
    if baseline is None:
        return None
    return max(0, baseline + (growth if question.need_bytes is None else min(0, growth)))


def growth_of_others(before: int | None, sample: MemorySample) -> int:
    """Return how much more others hold than before, as far as that is known. Signed."""
    now = sample.foreign_bytes
    return 0 if before is None or now is None else now - before


def _name_others(question: ReleaseQuestion, sample: MemorySample) -> str:
    """Name who else holds memory, and how much more than before."""
    others = sample.held_by(HolderRole.FOREIGN, HolderRole.UNSEEN)[:3]
    if not others:
        return ""
    growth = growth_of_others(question.baseline_foreign_bytes, sample)
    more = f", {format_bytes(growth)} more than before" if growth > 0 else ""
    return f"; others hold memory{more}: {', '.join(holder.describe() for holder in others)}"


def _is_at_rest(question: ReleaseQuestion, samples: Sequence[MemorySample]) -> bool:
    """Whether use has come to rest, where that is asked for."""
    used = [sample.used_bytes for sample in samples]
    return not question.is_measured or max(used) - min(used) <= question.policy.tolerance_bytes
