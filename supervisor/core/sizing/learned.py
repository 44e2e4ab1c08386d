"""What a server was seen to take on its device, and how much of that counts at its next start.

Two sources, the better one first:

    its own share   the driver says how much the process holds: whatever others do, this is ours
    the growth      of the device's use since before the server started, where nobody but it can
                    have grown: no other server of ours was beside it, no other process is listed

The growth still holds what could not be told apart: an old server's memory that the driver gave
back late, another tenant that the driver does not list. So the smallest of the first readings says
what the server holds, and later ones count up to a quarter more: a server allocates before it is
ready, and what grows much beyond that is not its own.

A wrong peak must not refuse starts for ever: what is counted never exceeds twice the estimate, and
an operator can have it forgotten. Unknown is never 0, and a peak is never below what was estimated.
"""

from dataclasses import dataclass, replace

from supervisor.core.byte_size import format_bytes

SETTLING_READINGS = 5
"""Readings of a device's growth before it counts; at one a second more than late releases take."""

MAX_GROWTH = 1.25
"""By how much the growth of a device may exceed what it was once it had settled."""

MAX_TIMES_ESTIMATED = 2
"""A peak counts as at most so many times the estimate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UseReading:
    """One look at a server's use of its device, in bytes; None is what is not known.

    `own_bytes` is its own share, `growth_bytes` how much more the device holds than before it
    started: None where that may be others' (`growth_of_device`).
    """

    own_bytes: int | None = None
    growth_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UseSeen:
    """What was read of one server so far. `own_bytes`: the largest share that was reported.

    `settled_bytes` is the smallest of the first `growth_readings` growths, `growth_bytes` the
    largest that counts.
    """

    own_bytes: int | None = None
    growth_readings: int = 0
    settled_bytes: int | None = None
    growth_bytes: int | None = None

    @property
    def peak_bytes(self) -> int | None:
        """What it surely took at its peak; None as long as that cannot be said."""
        if self.own_bytes is not None:
            return self.own_bytes
        return self.growth_bytes if self.growth_readings >= SETTLING_READINGS else None


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedPeak:
    """The highest use that was seen of a server, in bytes, and the day, as `2026-11-21`."""

    peak_bytes: int
    seen_on: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedNeed:
    """The bytes that a start is held against, and (where something was learned) why."""

    need_bytes: int
    sentence: str = ""


def growth_of_device(
    *, used_bytes: int, baseline_bytes: int | None, is_alone: bool, listed_processes: int | None
) -> int | None:
    """Return how much a device has grown since before a server started, if that is its own.

    `is_alone`: no other server of ours was there since. `listed_processes` are those that the
    driver names there (None: it names none to us); with more than one, somebody else is there, and
    which one is ours cannot be said: in a container the ids are the host's.
    """
    if baseline_bytes is None or not is_alone or (listed_processes or 0) > 1:
        return None
    growth_bytes = used_bytes - baseline_bytes  # signed: others may have left meanwhile
    return growth_bytes if growth_bytes > 0 else None


def follow_use(seen: UseSeen, reading: UseReading) -> UseSeen:
    """Add a reading to what was seen of a server. A share of 0 says nothing: it is about to end."""
    if reading.own_bytes:
        return replace(seen, own_bytes=max(seen.own_bytes or 0, reading.own_bytes))
    growth = reading.growth_bytes
    if growth is None:
        return seen
    settled = seen.settled_bytes
    if settled is None or seen.growth_readings < SETTLING_READINGS:
        settled = growth if settled is None else min(settled, growth)
        return replace(
            seen,
            growth_readings=seen.growth_readings + 1,
            settled_bytes=settled,
            growth_bytes=settled,
        )
    if growth > settled * MAX_GROWTH:
        return seen
    return replace(seen, growth_bytes=max(seen.growth_bytes or 0, growth))


def exceeds_what_counts(peak_bytes: int, estimated_bytes: int) -> bool:
    """Whether a peak is so far above the estimate that not all of it counts."""
    return peak_bytes > MAX_TIMES_ESTIMATED * estimated_bytes


def count_need(estimated_bytes: int, learned: LearnedPeak | None) -> CountedNeed:
    """Return the larger of estimate and learned peak, which counts as twice the estimate at most.

    The sentence is empty where nothing was learned.
    """
    if learned is None:
        return CountedNeed(need_bytes=estimated_bytes)
    max_bytes = MAX_TIMES_ESTIMATED * estimated_bytes
    sentence = (
        f"learned: {format_bytes(learned.peak_bytes)} used at its peak on {learned.seen_on}, "
        f"estimated {format_bytes(estimated_bytes)}"
    )
    if exceeds_what_counts(learned.peak_bytes, estimated_bytes):
        sentence += f", of which {format_bytes(max_bytes)} count"
    if learned.peak_bytes > estimated_bytes:
        sentence += "; `llama-supervisor fit` with `--forget` drops it"
    return CountedNeed(
        need_bytes=max(estimated_bytes, min(learned.peak_bytes, max_bytes)), sentence=sentence
    )
