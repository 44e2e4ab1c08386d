"""Makes the jobs room. Imported when it is opened: see `wiring/jobs.py`."""

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path

from supervisor.gateway.batch_answers import BatchAnswerer
from supervisor.gateway.call_reader import CallReader
from supervisor.gateway.forms.openai import OpenAIForm
from supervisor.jobs.batches import BatchHandler
from supervisor.jobs.disk_files import DiskFiles
from supervisor.jobs.insisting import Insisting
from supervisor.jobs.port import JobQueue
from supervisor.jobs.runner import JobRunner
from supervisor.jobs.service import JobLimits, JobService
from supervisor.jobs.sqlite_queue import SqliteQueue
from supervisor.jobs.values import JobKind
from supervisor.wiring.embedding import Embedding
from supervisor.wiring.ground import Ground

_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRoom:
    """Who speaks for the jobs, and who works on them."""

    service: JobService
    runner: JobRunner
    queue: JobQueue

    async def close(self) -> None:
        """End all work, and close the queue."""
        await self.runner.stop()
        await self.queue.close()


async def open_job_room(
    path: Path, ground: Ground, reader: CallReader, embedding: Embedding
) -> JobRoom:
    """Open the queue, which stands under a path, and the files, and begin to work."""
    holder = ground.configuration
    queue = await asyncio.to_thread(SqliteQueue, path)
    files = DiskFiles(ground.data.subfolder("job-files"))
    work_dir = await asyncio.to_thread(_emptied, ground.data.subfolder("job-work"))
    answerer = BatchAnswerer(reader, OpenAIForm(embedding.service), embedding.servers)

    def limits() -> JobLimits:
        settings = holder.current.settings.jobs
        return JobLimits(max_bytes=settings.max_bytes, keep_s=settings.file_days * _DAY_S)

    runner = JobRunner(
        queue,
        files,
        {JobKind.BATCH: BatchHandler(queue, files, answerer, work_dir)},
        insisting=Insisting(ground.impairments),
        workers=holder.current.settings.jobs.workers,
        keep_s=lambda: limits().keep_s,
    )
    runner.start()
    return JobRoom(service=JobService(queue, files, limits), runner=runner, queue=queue)


def _emptied(folder: Path) -> Path:
    """Remove what a controller that was killed was writing; it is written anew."""
    for left in folder.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    return folder
