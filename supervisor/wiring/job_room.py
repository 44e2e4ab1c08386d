"""Makes the jobs room. Imported when it is opened: see `wiring/jobs.py`."""

import asyncio
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from supervisor.engine.targets import Targets
from supervisor.gateway.batch_answers import BatchAnswerer
from supervisor.gateway.call_reader import CallReader
from supervisor.gateway.forms.openai import OpenAIForm
from supervisor.jobs.batches import BatchHandler
from supervisor.jobs.callback_jobs import CallbackHandler
from supervisor.jobs.callbacks import Caller
from supervisor.jobs.insisting import Insisting
from supervisor.jobs.runner import JobRunner
from supervisor.jobs.service import JobLimits, JobService
from supervisor.jobs.values import JobKind
from supervisor.wiring.document_room import DocumentRoom, JobParts, make_document_room
from supervisor.wiring.embedding import Embedding
from supervisor.wiring.ground import Ground
from supervisor.wiring.job_storage import JobStorage, open_storage

_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRoom:
    """Who speaks for the jobs, and who works on them."""

    service: JobService
    runner: JobRunner
    storage: JobStorage
    documents: DocumentRoom

    async def close(self) -> None:
        """End all work, and close the queue."""
        await self.runner.stop()
        await self.documents.extractor.close()
        await self.storage.queue.close()


async def open_job_room(
    ground: Ground, reader: CallReader, targets: Targets, embedding: Embedding
) -> JobRoom:
    """Open the queue and the files, and begin to work. Raises RequestRefused as `open_storage`."""
    holder = ground.configuration
    work_dir = await asyncio.to_thread(_emptied, ground.data.subfolder("job-work"))
    storage = await open_storage(holder.current.settings.jobs, ground.data)
    queue, files = storage.queue, storage.files
    openai = OpenAIForm(embedding.service)
    answerer = BatchAnswerer(reader, openai, embedding.servers, ground.vectors)

    def limits() -> JobLimits:
        settings = holder.current.settings.jobs
        return JobLimits(max_bytes=settings.max_bytes, keep_s=settings.file_days * _DAY_S)

    caller = Caller(
        os.environ.get(holder.current.settings.jobs.callback_key_env or "", ""),
        lambda: holder.current.settings.jobs.callback_hosts,
    )
    service = JobService(queue, files, limits, caller.check)
    documents = make_document_room(
        ground,
        targets,
        embedding,
        JobParts(
            service=service,
            queue=queue,
            files=files,
            work_dir=work_dir,
            keep_s=lambda: limits().keep_s,
        ),
    )
    runner = JobRunner(
        queue,
        files,
        {
            JobKind.BATCH: BatchHandler(queue, files, answerer, work_dir),
            JobKind.DOCUMENT: documents.handler,
            JobKind.CALLBACK: CallbackHandler(queue, caller),
        },
        insisting=Insisting(ground.impairments),
        workers=holder.current.settings.jobs.workers,
        keep_s=lambda: limits().keep_s,
        require_room=service.require_room_to_work,
    )
    runner.start()
    return JobRoom(service=service, runner=runner, storage=storage, documents=documents)


def _emptied(folder: Path) -> Path:
    """Remove what a controller that was killed was writing; it is written anew."""
    for left in folder.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    return folder
