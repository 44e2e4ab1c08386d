"""What callers may do with jobs and their files."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any, Protocol

from supervisor.core.machine.values import Mode
from supervisor.errors import RequestRefused
from supervisor.jobs.batches import collection_of
from supervisor.jobs.callback_jobs import CALLBACK_URL
from supervisor.jobs.describing import describe_batch, describe_file, describe_job
from supervisor.jobs.disk_files import file_not_found
from supervisor.jobs.output_files import OUTPUT_FILE_ID
from supervisor.jobs.paging import jobs_under_way
from supervisor.jobs.port import FileStore, JobCounts, JobQueue
from supervisor.jobs.values import (
    CANCELLABLE,
    CANCELLED_BECAUSE,
    Job,
    JobKind,
    JobPriority,
    JobState,
    StoredFile,
)

_LOOK_S = 0.5
"""Seconds after which a job is looked at again, where nobody tells that it has changed."""

_COUNTS_WITHIN_S = 1.0

_KINDS_THAT_GROW = frozenset(JobKind) - {JobKind.CALLBACK}
"""Kinds of jobs whose lines have answers to be kept."""

BATCH_PURPOSE = "batch"
"""The purpose of files that batches read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLimits:
    """What all jobs may take together, and how long files and ended jobs are kept."""

    max_bytes: int
    keep_s: float


class BatchRequest(Protocol):
    """A batch as it is asked for."""

    @property
    def endpoint(self) -> str:
        """Whose route its lines ask."""
        ...

    @property
    def input_file_id(self) -> str:
        """The file with its lines."""
        ...

    @property
    def completion_window(self) -> str:
        """How long it may take, as it was written."""
        ...

    @property
    def metadata(self) -> Mapping[str, str] | None:
        """What its caller wants back with it."""
        ...

    @property
    def priority(self) -> str:
        """One of `JobPriority`."""
        ...

    @property
    def window_s(self) -> float:
        """Seconds until it ends, done or not, from when it may begin."""
        ...

    @property
    def not_before_s(self) -> float:
        """When it may begin, in seconds of the wall clock."""
        ...

    @property
    def files_expire_after_s(self) -> float | None:
        """How long its files are kept; None: as long as others."""
        ...

    @property
    def extensions(self) -> Mapping[str, Any]:
        """What is asked beyond OpenAI's API, as it was given."""
        ...


class JobService:
    """Takes jobs and files in, shows them, cancels and retries."""

    describe_file = staticmethod(describe_file)
    describe_batch = staticmethod(describe_batch)
    describe_job = staticmethod(describe_job)

    def __init__(
        self,
        queue: JobQueue,
        files: FileStore,
        limits: Callable[[], JobLimits],
        check_callback: Callable[[str], None],
    ) -> None:
        """`check_callback` raises RequestRefused for a URL that may not be called."""
        self.check_callback = check_callback
        self.queue = queue
        self.files = files
        self._limits = limits
        self._clock: Callable[[], float] = time.time

    async def modes_left(self) -> frozenset[Mode]:
        """See `JobQueue`."""
        return await self.queue.modes_left()

    async def add_file(
        self, path: Path, file_name: str, purpose: str, expires_after_s: float | None
    ) -> StoredFile:
        """Keep a file, which is taken from its path. Raises RequestRefused `storage_full`."""
        await self._require_room((await asyncio.to_thread(path.stat)).st_size)
        now = self._clock()
        return await self.files.add(
            StoredFile(
                id=f"file-{token_hex(12)}",
                file_name=file_name,
                purpose=purpose,
                created_at=now,
                expires_at=now + (expires_after_s or self._limits().keep_s),
            ),
            path,
        )

    async def file(self, file_id: str) -> StoredFile:
        """Return what is known of a file. Raises RequestRefused `file_not_found`."""
        file = await self.files.file(file_id)
        if file is None:
            raise file_not_found(file_id)
        return file

    async def remove_file(self, file_id: str) -> None:
        """Remove a file. Raises RequestRefused `file_not_found`."""
        if not await self.files.remove(file_id):
            raise file_not_found(file_id)

    async def add_batch(self, asked: BatchRequest) -> Job:
        """Take a batch.

        Raises RequestRefused: `file_not_found`, `bad_request`, `callback_not_allowed`,
        `storage_full`.
        """
        if callback_url := asked.extensions.get(CALLBACK_URL):
            self.check_callback(callback_url)
        file = await self.file(asked.input_file_id)
        if file.purpose != BATCH_PURPOSE:
            raise RequestRefused(
                "bad_request",
                f"file '{file.id}' was uploaded with purpose '{file.purpose}'; batches read files "
                f"with purpose '{BATCH_PURPOSE}'",
            )
        await self._require_room(file.size_bytes)
        now = self._clock()
        job = Job(
            id=f"batch_{token_hex(12)}",
            kind=JobKind.BATCH,
            priority=JobPriority(asked.priority),
            created_at=now,
            not_before=asked.not_before_s,
            expires_at=max(now, asked.not_before_s) + asked.window_s,
            spec=self._spec(asked),
        )
        await self.queue.add(job)
        return job

    def _spec(self, asked: BatchRequest) -> dict[str, Any]:
        return {
            "endpoint": asked.endpoint,
            "input_file_id": asked.input_file_id,
            "completion_window": asked.completion_window,
            "window_s": asked.window_s,
            "metadata": asked.metadata,
            "files_expire_after_s": asked.files_expire_after_s or self._limits().keep_s,
            **asked.extensions,
        }

    async def job(self, job_id: str, kind: JobKind | None = None) -> Job:
        """Return a job, of that kind. Raises RequestRefused `job_not_found`."""
        job = await self.queue.job(job_id)
        if job is None or kind not in {None, job.kind}:
            raise RequestRefused(
                "job_not_found", f"there is no {kind or 'job'} '{job_id}'; GET /jobs lists them"
            )
        return job

    async def ended(self, job: Job, within_s: float) -> Job:
        """Return a job as it is when it has ended, or after so many seconds."""
        ends_at = time.monotonic() + within_s
        while not job.state.is_end:
            left_s = ends_at - time.monotonic()
            if left_s <= 0:
                break
            await self.queue.wait(min(_LOOK_S, left_s))
            job = await self.job(job.id)
        return job

    async def batch(self, batch_id: str) -> Job:
        """Return a batch. Raises RequestRefused `job_not_found`."""
        return await self.job(batch_id, JobKind.BATCH)

    async def batches(self, after: str | None, limit: int) -> Sequence[Job]:
        """Return batches, as `jobs` does."""
        return await self.jobs(after, limit, JobKind.BATCH)

    async def jobs(
        self, after: str | None, limit: int, kind: JobKind | None = None
    ) -> Sequence[Job]:
        """Return jobs, the newest first, those behind `after`. Raises RequestRefused."""
        if after is not None:
            await self.job(after, kind)
        return await self.queue.jobs(kind, after=after, limit=limit)

    async def cancel(self, job_id: str, because: str = "") -> Job:
        """Cancel a job; what is done of it already is written out. Raises RequestRefused.

        `because`: why, where its caller did not ask for that.
        """
        while True:
            job = await self.job(job_id)
            if job.state in {JobState.CANCELLING, JobState.CANCELLED}:
                return job
            if job.state not in CANCELLABLE:
                raise RequestRefused(
                    "job_not_cancellable", f"'{job_id}' is {job.state}; there is nothing to cancel"
                )
            outcome = {**job.outcome, CANCELLED_BECAUSE: because}
            told = {"reason": because, "outcome": outcome} if because else {}
            cancelling = job.entering(JobState.CANCELLING, self._clock(), **told)
            if await self.queue.change(cancelling, job.state):
                return cancelling

    async def withdraw_batches(self, collection: str) -> Sequence[str]:
        """Cancel the batches that keep their vectors in a collection that is to be deleted.

        Returns them. They would make it anew.
        """
        because = f"its vectors were for the collection '{collection}', which was deleted"
        withdrawn = []
        for job in await jobs_under_way(self.queue, JobKind.BATCH):
            if job.state not in CANCELLABLE or collection_of(job) != collection:
                continue
            try:
                await self.cancel(job.id, because)
            except RequestRefused as error:
                if error.code not in {"job_not_cancellable", "job_not_found"}:
                    raise
            else:  # else it has just been done: nothing of it is stored any more
                withdrawn.append(job.id)
        return withdrawn

    async def retry(self, job_id: str) -> Job:
        """Take an ended job up again, with what failed or was not done. Raises RequestRefused.

        One that had not begun, or could not, begins anew, as long as its file is kept.
        """
        job = await self.job(job_id)
        if not _is_retryable(job):
            why = "has no line that failed" if job.state.is_end else f"is {job.state}"
            raise RequestRefused("job_not_retryable", f"'{job_id}' {why}")
        now, window_s = self._clock(), job.spec.get("window_s")
        again = job.entering(
            JobState.IN_PROGRESS if job.lines else JobState.VALIDATING,
            now,
            round=job.round + 1,
            reason="",
            expires_at=None if window_s is None else max(now, job.not_before) + window_s,
            outcome={x: each for x, each in job.outcome.items() if x != CANCELLED_BECAUSE},
        )
        if job.outcome.get(OUTPUT_FILE_ID) is not None:
            # They may still be there, and would stand in the next output file a second time.
            await self.queue.forget_results(job_id)
        if not await self.queue.reopen(again, job.state):
            raise RequestRefused("job_not_retryable", f"'{job_id}' has just been taken up again")
        return again

    async def counts(self) -> JobCounts | None:
        """Return how many jobs there are; None where the queue does not answer soon."""
        try:
            async with asyncio.timeout(_COUNTS_WITHIN_S):
                return await self.queue.counts()
        except (RequestRefused, TimeoutError):
            return None

    async def used_bytes(self) -> int:
        """Return what jobs and files take."""
        return await self.queue.used_bytes() + await self.files.used_bytes()

    async def require_room_to_work(self) -> None:
        """Raise RequestRefused `storage_full` where jobs have work, and all take too much.

        Answers may be many times as long as what was asked, so the room for a file is not enough.
        """
        used, most = await self.used_bytes(), self._limits().max_bytes
        if used <= most:
            return
        counts = await self.queue.counts()
        if any(counts.get(kind, {}).keys() & CANCELLABLE for kind in _KINDS_THAT_GROW):
            raise _full(used, most, "jobs go on when there is room")

    async def _require_room(self, more_bytes: int) -> None:
        used, most = await self.used_bytes(), self._limits().max_bytes
        if used + more_bytes > most:
            raise _full(used, most, f"there is no room for {more_bytes} more")


def _full(used_bytes: int, max_bytes: int, what_follows: str) -> RequestRefused:
    return RequestRefused(
        "storage_full",
        f"jobs and their files take {used_bytes} bytes, and may take {max_bytes} "
        f"(jobs.max_bytes); {what_follows}: delete files (DELETE /v1/files/{{id}}), or wait until "
        "some expire",
        {"used_bytes": used_bytes, "max_bytes": max_bytes},
    )


def _is_retryable(job: Job) -> bool:
    """Whether something of an ended job failed or was not done.

    A batch that FAILED has a file that is wrong, and will be. A document may fail to be stored
    though all of its parts succeeded.
    """
    has_failed = job.state is JobState.FAILED
    if job.lines:
        return job.state.is_end and (has_failed or job.counts.succeeded < job.lines)
    return job.state is JobState.CANCELLED or (has_failed and job.kind is JobKind.DOCUMENT)


OpenJobs = Callable[[], Awaitable[JobService]]
"""Opens the jobs room at the first call, and returns who speaks for it."""
