"""All work that nobody waits for, of whatever kind: `/jobs`."""

from typing import TYPE_CHECKING

from pydantic import Field

from supervisor.gateway.answer import Answer, json_answer
from supervisor.gateway.files import page
from supervisor.gateway.parameters import Parameters

if TYPE_CHECKING:  # the jobs room is imported when the first job or file comes
    from supervisor.jobs.service import OpenJobs


class JobsParameters(Parameters):
    """What `GET /jobs` lists."""

    after: str | None = None
    limit: int = Field(default=20, ge=1, le=100)


class JobParameters(Parameters):
    """Which job is meant."""

    job_id: str


class Jobs:
    """Handlers of the routes of jobs."""

    def __init__(self, open_jobs: "OpenJobs") -> None:
        self._open = open_jobs

    async def list(self, asked: JobsParameters) -> Answer:
        """List jobs, the newest first."""
        jobs = await self._open()
        found = await jobs.jobs(asked.after, asked.limit + 1)
        shown = [jobs.describe_job(job) for job in found[: asked.limit]]
        return json_answer(page(shown, has_more=len(found) > asked.limit))

    async def show(self, asked: JobParameters) -> Answer:
        """Show a job."""
        jobs = await self._open()
        return json_answer(jobs.describe_job(await jobs.job(asked.job_id)))

    async def retry(self, asked: JobParameters) -> Answer:
        """Take up again what failed or was not done of a job that has ended."""
        jobs = await self._open()
        return json_answer(jobs.describe_job(await jobs.retry(asked.job_id)))

    async def cancel(self, asked: JobParameters) -> Answer:
        """Cancel a job."""
        jobs = await self._open()
        return json_answer(jobs.describe_job(await jobs.cancel(asked.job_id)))
