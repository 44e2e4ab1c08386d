"""What every part of the check works with, and what it hands back."""

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from types import FrameType
from typing import Any

from lab.gpu.watch import Watch
from lab.harness.command import LabError

GB = 1_000_000_000


class NotHereError(Exception):
    """What a part needs is not on this machine, so that it is left out."""


class OutOfTimeError(LabError):
    """The time of a part is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """The files: one that generates, one that embeds, and one whose embedding keeps a GPU busy.

    `experts` is a mixture of experts, which generates, too.
    """

    generation: Path
    embedding: Path
    large_embedding: Path
    experts: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Options and surroundings of a part; `work_dir` is temporary and that part's alone.

    `ends_at` is when its time is over, on the monotonic clock.
    """

    watch: Watch
    server: Path
    models: Models
    profiles: Path
    work_dir: Path
    switches: int
    embedding_seconds: float
    libcuda: str
    ends_at: float

    @property
    def remaining_s(self) -> float:
        """Seconds until its time is over."""
        return self.ends_at - time.monotonic()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Something that begins `at` a time of the monotonic clock, to be drawn on the timeline."""

    at: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartResult:
    """What a part has found, as values for JSON, and what to mark on the timeline.

    `sentences` say the same for people.
    """

    figures: Mapping[str, Any]
    sentences: Sequence[str]
    marks: Sequence[Mark] = field(default=())


def distribution(values: Sequence[float]) -> dict[str, float | int] | None:
    """Return count, p50, p90, p99 (nearest rank) and maximum; None where there is no value."""
    if not values:
        return None
    ordered = sorted(values)
    ranks = {
        f"p{percent}": ordered[max(0, ceil(percent / 100 * len(ordered)) - 1)]
        for percent in (50, 90, 99)
    }
    return {"count": len(ordered), **ranks, "max": ordered[-1]}


@contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """Raise OutOfTimeError in this, the main, thread once the time is over."""

    def end(number: int, frame: FrameType | None) -> None:
        _ = number, frame
        raise OutOfTimeError(f"{what} did not end within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
