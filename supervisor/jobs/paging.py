"""Everything of a kind that a queue has, read a page at a time."""

from collections.abc import AsyncIterator, Sequence

from supervisor.jobs.port import JobQueue
from supervisor.jobs.values import Job, JobKind, LineResult, NewLine

PAGE = 256
"""So many are read at a time at most."""

PAGE_BYTES = 16 * 1024 * 1024
"""About so much of results and lines is read at a time: one of them alone may have as much."""

_FIRST_PAGE = 8


async def all_jobs(queue: JobQueue) -> Sequence[Job]:
    """Return all jobs, the newest first.

    Whoever removes some does so behind this: a page begins behind a job that is there.
    """
    found, after = list[Job](), None
    while jobs := await queue.jobs(None, after=after, limit=PAGE):
        found += jobs
        after = jobs[-1].id
    return found


async def jobs_under_way(queue: JobQueue, kind: JobKind) -> Sequence[Job]:
    """Return the jobs of a kind that have not ended: they are among the newest."""
    counted = (await queue.counts()).get(kind, {})
    count = sum(jobs for state, jobs in counted.items() if not state.is_end)
    found, after = list[Job](), None
    while len(found) < count and (jobs := await queue.jobs(kind, after=after, limit=PAGE)):
        found += [job for job in jobs if not job.state.is_end]
        after = jobs[-1].id
    return found


async def result_pages(queue: JobQueue, job_id: str) -> AsyncIterator[Sequence[LineResult]]:
    """Yield the results of a job by rising numbers."""
    after, limit = 0, _FIRST_PAGE
    while results := await queue.results(job_id, after=after, limit=limit):
        yield results
        after, limit = results[-1].number, _next_limit([each.content for each in results])


async def unsettled_pages(queue: JobQueue, job_id: str) -> AsyncIterator[Sequence[NewLine]]:
    """Yield the lines of a job without a result, likewise."""
    after, limit = 0, _FIRST_PAGE
    while lines := await queue.unsettled(job_id, after=after, limit=limit):
        yield lines
        after, limit = lines[-1].number, _next_limit([each.content for each in lines])


def _next_limit(contents: Sequence[bytes]) -> int:
    """Return how many of about the same size make up a page."""
    mean_bytes = 1 + sum(map(len, contents)) // len(contents)
    return max(1, min(PAGE, PAGE_BYTES // mean_bytes))
