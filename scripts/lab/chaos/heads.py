"""Whether anybody who was next in a queue was passed over, or let wait while others were served.

What a policy can promise the head of a queue is its place in the order, and a bound on the time for
which others are served before it. What switches and drains take is not in its hands, and under a
storm it may be anything: that time is left out of what is held against the bound.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lab.chaos.facts import Facts, SwitchRun
from lab.chaos.ledger import Entry, Fault, Violation
from lab.chaos.setting import MANUAL_HOLD_S, MODELS

SCHEDULER = "scheduler"
AT_ONCE_S = 0.05
"""Who was let in within this has waited for nobody."""

SLACK_S = 0.5
"""By which the log and the readings of /status may be apart from the decisions."""

Bounds = Sequence[tuple[float, Mapping[str, float]]]
"""Readings of /status: when, and the longest wait that it gives for the head of each model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """A model that was live, from the end of the switch to it until the next switch began."""

    model: str
    began_at: float
    over_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """An interactive request that was first in its model's queue until it was let in."""

    entry: Entry
    model: str
    since: float
    let_in_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """How many heads waited for a turn; those that a fault held up are not judged."""

    heads: int = 0
    held: int = 0
    violations: tuple[Violation, ...] = ()


def judge_all(
    entries: Sequence[Entry], facts: Sequence[Facts], faults: Sequence[Fault], bounds: Bounds
) -> Promise:
    """Hold the heads of several controllers to what they are promised."""
    each = [judge_heads(entries, one, faults, bounds) for one in facts]
    return Promise(
        heads=sum(promise.heads for promise in each),
        held=sum(promise.held for promise in each),
        violations=tuple(broken for promise in each for broken in promise.violations),
    )


def judge_heads(
    entries: Sequence[Entry], facts: Facts, faults: Sequence[Fault], bounds: Bounds
) -> Promise:
    """Hold the heads of one controller, whose device is exclusive, to what they are promised."""
    heads = list(heads_of(entries, facts))
    free = [head for head in heads if not _was_held(head, facts, faults)]
    stays = stays_of(facts)
    broken = [
        Violation(at=head.let_in_at, rule="head", what=f"{problem}; {head.entry.describe()}")
        for head in free
        if (problem := _problem(head, stays, _bound_of(head, bounds)))
    ]
    return Promise(heads=len(heads), held=len(heads) - len(free), violations=tuple(broken))


def heads_of(entries: Sequence[Entry], facts: Facts) -> Iterator[Head]:
    """Yield who was first in a queue, from when on: whoever leaves it makes room for the next."""
    for model in MODELS:
        waits = [
            (facts.waits[entry.request_id], entry)
            for entry in entries
            if entry.model == model and not entry.is_batch and entry.request_id in facts.waits
        ]
        first_at = facts.began_at
        for wait, entry in sorted(waits, key=lambda each: each[0].arrived_at):
            since = max(wait.arrived_at, first_at)
            first_at = max(first_at, wait.over_at)
            if wait.was_let_in and since + AT_ONCE_S < wait.over_at:
                yield Head(entry=entry, model=model, since=since, let_in_at=wait.over_at)


def stays_of(facts: Facts) -> list[Stay]:
    """Return the stays of models on an exclusive device, in their order."""
    runs = sorted(filter(_touched_something, facts.switches), key=lambda run: run.began_at)
    ends = [after.began_at for _, after in pairwise(runs)] + [facts.ended_at]
    return [
        Stay(model=run.model, began_at=run.ended_at, over_at=over_at)
        for run, over_at in zip(runs, ends, strict=True)
        if run.outcome == "switched" and run.model is not None
    ]


def _was_held(head: Head, facts: Facts, faults: Sequence[Fault]) -> bool:
    """Whether something held the device up, or took it from the scheduler, while the head waited.

    Faults of ours, switches that failed after they had begun to change something, and those by
    hand, which precede and hold for a while.
    """
    if any(head.since - SLACK_S <= fault.at <= head.let_in_at for fault in faults):
        return True
    return any(
        run.began_at < head.let_in_at and run.ended_at + MANUAL_HOLD_S > head.since
        for run in filter(_touched_something, facts.switches)
        if run.requested_by != SCHEDULER or run.outcome != "switched"
    )


def _touched_something(run: SwitchRun) -> bool:
    """Whether a switch did more than look at a file that it found broken."""
    return run.outcome == "switched" or run.ended_at - run.began_at > AT_ONCE_S


def _problem(head: Head, stays: Sequence[Stay], bound_s: float | None) -> str | None:
    """Say what a head was promised and did not get."""
    others = [
        stay
        for stay in stays
        if stay.model != head.model and stay.over_at > head.since and stay.began_at < head.let_in_at
    ]
    begun = Counter(stay.model for stay in others if stay.began_at > head.since)
    for model, times in begun.items():
        if times > 1:
            return f"'{model}' came {times} times while the head for '{head.model}' waited"
    served_s = sum(
        min(stay.over_at, head.let_in_at) - max(stay.began_at, head.since) for stay in others
    )
    if bound_s is not None and served_s > bound_s + SLACK_S:
        return (
            f"others were served for {served_s:.2f} s, of at most {bound_s:.2f} s, while the head "
            f"for '{head.model}' waited"
        )
    return None


def _bound_of(head: Head, bounds: Bounds) -> float | None:
    """Return the longest of the bounds that were given while the head waited, or just before."""
    given = [
        by_model[head.model]
        for at, by_model in bounds
        if head.since - 2 * SLACK_S <= at <= head.let_in_at and head.model in by_model
    ]
    return max(given, default=None)
