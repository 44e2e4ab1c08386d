"""What a queue holds: jobs, their lines, and what came of these.

A job is what callers see: a batch, a document. Its lines are the work: each is claimed, repeated
where that helps, and settled once. All times are seconds of the wall clock, which survive restarts.

    VALIDATING ── IN_PROGRESS ── FINALIZING ── COMPLETED or EXPIRED
        │  └─ FAILED    │
        └── CANCELLING ─┘── CANCELLED

The states are those of OpenAI's Batch API. A job is EXPIRED that was not done when its time was
over. From FINALIZING and CANCELLING on no line is settled any more, so that what is written out of
the results is all there will be.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec


class JobKind(StrEnum):
    """What a job is: who handles it follows from that."""

    BATCH = "batch"
    DOCUMENT = "document"
    CALLBACK = "callback"


class JobPriority(StrEnum):
    """Whose lines are claimed first; between jobs of one priority the older one's are."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class JobState(StrEnum):
    """How far a job has come."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def is_end(self) -> bool:
        """Whether nothing is done any more."""
        return self in _ENDS


_ENDS = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.EXPIRED, JobState.CANCELLED})

CANCELLABLE = (JobState.VALIDATING, JobState.IN_PROGRESS)
"""States in which there is something to cancel."""

CANCELLED_BECAUSE = "cancelled_because"
"""The field of a job's outcome that says why it was cancelled, where nobody asked for that."""


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a job's lines. `repeats`: how often one of them was put back."""

    succeeded: int = 0
    failed: int = 0
    repeats: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def settled(self) -> int:
        """How many lines are done with."""
        return self.succeeded + self.failed


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job as its queue keeps it."""

    id: str
    kind: JobKind
    state: JobState = JobState.VALIDATING
    priority: JobPriority = JobPriority.NORMAL
    created_at: float

    not_before: float = 0.0
    """No line is claimed earlier."""

    expires_at: float | None = None
    """When it ends, done or not; None: when it is done."""

    spec: Mapping[str, Any] = {}
    """What was asked, in the words of its kind."""

    outcome: Mapping[str, Any] = {}
    """What came of it, likewise."""

    entered_at: Mapping[JobState, float] = {}
    """When it came into each state but the first."""

    round: int = 1
    """One more with each time that it is taken up again by hand."""

    lines: int = 0
    """How many it has; known when it is IN_PROGRESS."""

    reason: str = ""
    """Why the last line was put back or failed, or the job did, or could not be begun or ended."""

    counts: Counts = Counts()
    """Kept by the queue alone."""

    def entering(self, state: JobState, at: float, **changes: Any) -> "Job":
        """Return the job in another state."""
        entered_at = {**self.entered_at, state: at}
        return msgspec.structs.replace(self, state=state, entered_at=entered_at, **changes)

    def is_due(self, now: float) -> bool:
        """Whether something is to be done with the job itself, not with its lines."""
        if self.state is JobState.IN_PROGRESS:
            is_over = self.expires_at is not None and self.expires_at <= now
            return is_over or self.counts.settled >= self.lines
        return not self.state.is_end


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that jobs read or write: what is known of it beside its content.

    `expires_at`: when it is removed; `sha256`: of the content, in hexadecimal digits.
    """

    id: str
    file_name: str
    purpose: str
    created_at: float
    expires_at: float
    size_bytes: int = 0
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class NewLine:
    """A line as its job was given it; lines are numbered from 1."""

    number: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Line:
    """A line that was claimed. `attempts`: how often it was, this time included."""

    job_id: str
    number: int
    content: bytes
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LineResult:
    """What came of a line, for good. `content` is what its job's kind writes out of it.

    `reason`: why it failed, for people.
    """

    job_id: str
    number: int
    is_success: bool
    content: bytes
    reason: str = ""
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """A line to be put back, and claimed again from `due_at` on.

    `counts`: whether the attempt does. One that was given up for reasons beyond the line, such as a
    shutdown or a full queue, does not.
    """

    job_id: str
    number: int
    due_at: float
    reason: str
    counts: bool = True
