"""Everything of a kind that a queue has, read a page at a time."""

from collections.abc import AsyncIterator, Sequence

from supervisor.jobs.port import JobQueue
from supervisor.jobs.values import Job, LineResult, NewLine

PAGE = 256


async def all_jobs(queue: JobQueue) -> Sequence[Job]:
    """Return all jobs, the newest first.

    Whoever removes some does so behind this: a page begins behind a job that is there.
    """
    found, after = list[Job](), None
    while jobs := await queue.jobs(None, after=after, limit=PAGE):
        found += jobs
        after = jobs[-1].id
    return found


async def result_pages(queue: JobQueue, job_id: str) -> AsyncIterator[Sequence[LineResult]]:
    """Yield the results of a job by rising numbers."""
    after = 0
    while results := await queue.results(job_id, after=after, limit=PAGE):
        yield results
        after = results[-1].number


async def unsettled_pages(queue: JobQueue, job_id: str) -> AsyncIterator[Sequence[NewLine]]:
    """Yield the lines of a job without a result, likewise."""
    after = 0
    while lines := await queue.unsettled(job_id, after=after, limit=PAGE):
        yield lines
        after = lines[-1].number
