"""What the runner asks of whoever knows a kind of job."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from supervisor.jobs.values import Job, JobKind, JobState, Line, LineResult, NewLine


@dataclass(frozen=True, slots=True, kw_only=True)
class NotDone:
    """A line that could not be done now, and why.

    `counts`: whether the line may be at fault; one that fails too often is given up. `after_s`:
    when another attempt is worth while; None: after a pause that grows with the attempts.
    """

    line: Line
    reason: str
    counts: bool = True
    after_s: float | None = None


Outcome = LineResult | NotDone


@dataclass(frozen=True, slots=True)
class Begun:
    """A job as its handler has begun it: IN_PROGRESS, with the number of its lines, or FAILED.

    `lines`: what it is given with that state, in place of all that it had; None: it has them.
    """

    job: Job
    lines: Sequence[NewLine] | None = None


class JobHandler(Protocol):
    """Does the jobs of one kind. Whatever it does may be done again: it may die at any moment."""

    max_claim: int
    """Lines that it is given at once at most."""

    written_out: frozenset[JobState]
    """Ends of jobs behind which no result is needed; behind others a retry goes on with them."""

    async def begin(self, job: Job) -> Begun:
        """Look at a job that is VALIDATING.

        Lines that would be the same another time may be added to the queue on the way; others are
        returned.
        """
        ...

    def answer(self, lines: Sequence[Line]) -> AsyncIterator[Sequence[Outcome]]:
        """Do lines; yields what came of some of them as soon as it is known, each line once."""
        ...

    def failure(self, line: Line, code: str, reason: str) -> LineResult:
        """Return the result of a line that is given up."""
        ...

    async def end(self, job: Job) -> Job:
        """Write out what came of a job that is FINALIZING or CANCELLING.

        Returns it in its last state.
        """
        ...


Handlers = Mapping[JobKind, JobHandler]
