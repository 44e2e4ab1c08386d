"""Does the jobs of a queue: workers have lines answered, keepers begin and end jobs."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from secrets import token_hex

import structlog

from supervisor.jobs.callback_jobs import callback_of
from supervisor.jobs.handling import Handlers
from supervisor.jobs.insisting import Insisting
from supervisor.jobs.paging import all_jobs
from supervisor.jobs.port import FileStore, JobQueue
from supervisor.jobs.values import Job, JobKind, JobState, NewLine
from supervisor.jobs.worker import IDLE_S, Worker
from supervisor.observability.guarded_task import start_guarded

log = structlog.get_logger()

JOB_LEASE_S = 60.0
"""Seconds for which jobs are claimed: so late is one tried again that was not begun or ended."""

_KEEPERS = 2
"""Of each kind: what one kind takes, as documents that are slow to read, holds no other up."""

_TIDY_S = 3600.0


class JobRunner:
    """Runs the jobs of a queue by their handlers, from `start` until `stop`."""

    def __init__(  # noqa: PLR0913 - what it works with
        self,
        queue: JobQueue,
        files: FileStore,
        handlers: Handlers,
        *,
        insisting: Insisting,
        workers: int,
        keep_s: Callable[[], float],
        require_room: Callable[[], Awaitable[None]],
    ) -> None:
        """`workers`: for each kind of job. `keep_s`: how long ended jobs are kept.

        `require_room` raises RequestRefused where no further answers can be kept.
        """
        self._require_room = require_room
        self._queue = queue
        self._files = files
        self._handlers = handlers
        self._insisting = insisting
        self._workers = workers
        self._keep_s = keep_s
        self._clock: Callable[[], float] = time.time
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to work."""
        name = token_hex(4)
        for kind, handler in self._handlers.items():
            for number in range(self._workers):
                owner = f"{name}-{kind}-{number}"
                worker = Worker(
                    self._queue,
                    handler,
                    kind,
                    owner,
                    insisting=self._insisting,
                    require_room=self._require_room,
                )
                self._tasks.append(start_guarded(worker.run, name=f"jobs-{kind}-{number}"))
            for number in range(_KEEPERS):
                keeps = partial(self._keep, kind)
                self._tasks.append(start_guarded(keeps, name=f"jobs-{kind}-keeper-{number}"))
        self._tasks.append(start_guarded(self._keep_tidy, name="jobs-tidy"))

    async def stop(self) -> None:
        """End all work; lines that are under way are given back."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks.clear()

    async def _keep(self, kind: JobKind) -> None:
        """Begin and end jobs, for ever. One that fails to be is tried again after its lease."""
        while True:
            job = await self._insisting(lambda: self._queue.claim_job(kind, JOB_LEASE_S))
            if job is None:
                await self._queue.wait(IDLE_S)
                continue
            try:
                await self._advance(job)
            except Exception as error:
                log.warning("job.not_advanced", job=job.id, state=job.state, exc_info=error)
                reason = f"{job.state}: {type(error).__name__}: {error}"
                await self._insisting(lambda: self._queue.note_reason(job, reason))  # noqa: B023

    async def _advance(self, job: Job) -> None:
        """Bring a job that is due one state on."""
        handler = self._handlers[job.kind]
        async with self._claimed(job):
            following, lines = await self._following(job)
        if (callback := callback_of(following)) is not None:
            await self._queue.add(callback)  # before the end is known, for we may die in between
        if not await self._queue.change(following, job.state, lines):
            return  # it was cancelled meanwhile, or another has brought it on
        log.info("job.state", job=job.id, kind=job.kind, state=following.state)
        if following.state in handler.written_out:
            await self._queue.forget_results(job.id)

    async def _following(self, job: Job) -> tuple[Job, Sequence[NewLine] | None]:
        """Return a job in its next state, and the lines that it is given with that."""
        handler = self._handlers[job.kind]
        if job.state is JobState.VALIDATING:
            begun = await handler.begin(job)
            return begun.job, begun.lines
        if job.state is JobState.IN_PROGRESS:
            return job.entering(JobState.FINALIZING, self._clock()), None
        return await handler.end(job), None

    @asynccontextmanager
    async def _claimed(self, job: Job) -> AsyncIterator[None]:
        """Keep the claim of a job, which may take longer to begin or to end than its lease."""
        keeping = asyncio.create_task(self._keep_claim(job), name=f"claim-{job.id}")
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])

    async def _keep_claim(self, job: Job) -> None:
        while True:
            await asyncio.sleep(JOB_LEASE_S / 3)
            await self._insisting(lambda: self._queue.renew_job(job, JOB_LEASE_S))

    async def _keep_tidy(self) -> None:
        while True:
            await self._insisting(self.tidy)
            await asyncio.sleep(_TIDY_S)

    async def tidy(self) -> None:
        """Remove files whose time is over, and jobs that ended long ago.

        Forgets results, too, that a controller which died had written out already.
        """
        await self._files.remove_expired()
        ended_before = self._clock() - self._keep_s()
        for job in await all_jobs(self._queue):
            if job.state.is_end and job.entered_at[job.state] < ended_before:
                await self._queue.remove(job.id)
            elif job.kind in self._handlers and job.state in self._handlers[job.kind].written_out:
                await self._queue.forget_results(job.id)
