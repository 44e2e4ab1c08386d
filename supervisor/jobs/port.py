"""What the jobs room asks of a queue and of a store of files; adapters are chosen by settings."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from supervisor.core.machine.values import Mode
from supervisor.jobs.values import (
    Job,
    JobKind,
    JobState,
    Line,
    LineResult,
    NewLine,
    Repeat,
    StoredFile,
)

JobCounts = Mapping[JobKind, Mapping[JobState, int]]
"""How many jobs there are of each kind, in each state that any of them is in."""


class JobQueue(Protocol):
    """A durable queue: what it has taken survives the death of whoever works on it.

    Lines are claimed for a time, their lease, and belong to the claimer (`owner`) until it is over;
    then others may claim them. So a line may be worked on twice, but is settled once: the first
    result counts. Every method may be called from several controllers at once, and raises
    RequestRefused `storage_full` where nothing more can be written, and `queue_unreachable` where
    the queue is on another machine and does not answer.
    """

    async def add(self, job: Job) -> None:
        """Take a job; when this returns, it is durable. One that is there stays as it is."""
        ...

    async def job(self, job_id: str) -> Job | None:
        """Return one job."""
        ...

    async def jobs(self, kind: JobKind | None, *, after: str | None, limit: int) -> Sequence[Job]:
        """Return jobs of a kind (None: of all), the newest first, those behind `after`."""
        ...

    async def change(
        self, job: Job, expected: JobState, lines: Sequence[NewLine] | None = None
    ) -> bool:
        """Write all of a job but its counts, if its state is still the one that is expected.

        With `lines`, it has these from then on, in place of all others and what came of them.
        Returns whether it was. Its claim ends.
        """
        ...

    async def claim_job(self, kind: JobKind, lease_s: float) -> Job | None:
        """Claim a job of a kind that is due by itself (`Job.is_due`).

        The claim only spares work: whatever is done with a job may be done twice.
        """
        ...

    async def renew_job(self, job: Job, lease_s: float) -> None:
        """Prolong the claim of a job that is still in its state."""
        ...

    async def note_reason(self, job: Job, reason: str) -> None:
        """Write why a job that is still in its state could not be begun or ended."""
        ...

    async def remove(self, job_id: str) -> None:
        """Forget a job, and all its lines and results."""
        ...

    async def add_lines(self, job_id: str, lines: Sequence[NewLine]) -> None:
        """Add lines to a job that is VALIDATING; those that it has already are left as they are.

        They may be claimed from then on, and are for certain once the job is IN_PROGRESS.
        """
        ...

    async def claim(self, kind: JobKind, owner: str, limit: int, lease_s: float) -> Sequence[Line]:
        """Claim lines of jobs that may be worked on: of the more urgent first, then of the older.

        Returns at once, also with none.
        """
        ...

    async def renew(self, owner: str, lines: Sequence[Line], lease_s: float) -> Sequence[Line]:
        """Prolong the leases of lines. Returns those that are not the owner's any more.

        Another may have claimed them, or their job was cancelled or is over.
        """
        ...

    async def settle(self, results: Sequence[LineResult]) -> None:
        """Keep and count results; those of lines that are settled or not wanted are dropped."""
        ...

    async def put_back(self, owner: str, repeats: Sequence[Repeat]) -> None:
        """Give lines back that are the owner's."""
        ...

    async def results(self, job_id: str, *, after: int, limit: int) -> Sequence[LineResult]:
        """Return results of a job by rising numbers, those above `after`."""
        ...

    async def unsettled(self, job_id: str, *, after: int, limit: int) -> Sequence[NewLine]:
        """Return lines of a job without a result, likewise."""
        ...

    async def forget_results(self, job_id: str) -> None:
        """Forget the results of a job, and the lines that succeeded, if it has ended."""
        ...

    async def reopen(self, job: Job, expected: JobState) -> bool:
        """Write a job as `change` does, and have its lines without success claimed anew."""
        ...

    async def used_bytes(self) -> int:
        """Return what jobs, lines and results take."""
        ...

    async def counts(self) -> JobCounts:
        """Return how many jobs there are, however many: they are counted as they change."""
        ...

    async def modes_left(self) -> frozenset[Mode]:
        """Return the modes of which jobs need models for lines that may be worked on now."""
        ...

    async def wait(self, timeout_s: float) -> None:
        """Return when there may be something to claim, at the latest after `timeout_s`."""
        ...

    async def close(self) -> None:
        """Write what is to be written, and let go."""
        ...


class FileStore(Protocol):
    """Files that jobs read and write. One whose time is over is not there any more."""

    async def add(self, file: StoredFile, path: Path) -> StoredFile:
        """Keep a file's content, which stands under a path of this machine and is taken from there.

        Returns it with size and sum. One of that id that is there already stays as it is. Raises
        RequestRefused `storage_full`.
        """
        ...

    async def file(self, file_id: str) -> StoredFile | None:
        """Return what is known of a file."""
        ...

    async def files(self) -> Sequence[StoredFile]:
        """Return what is known of all files, the newest first."""
        ...

    async def used_bytes(self) -> int:
        """Return what all files take together, however many: it is counted as they come and go.

        What others bring into a folder that several share may be missing for an hour.
        """
        ...

    def read(self, file_id: str) -> AsyncGenerator[bytes, None]:
        """Yield a file's content in pieces. Raises RequestRefused `file_not_found`."""
        ...

    async def remove(self, file_id: str) -> bool:
        """Remove a file. Returns whether it was there."""
        ...

    async def remove_expired(self) -> None:
        """Remove the files whose time is over."""
        ...
