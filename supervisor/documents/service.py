"""What callers may do with documents: have them embedded, and wait for it."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any

import msgspec

from supervisor.documents.extraction.extractor import require_extra
from supervisor.documents.request import DocumentOutcome, DocumentRequest
from supervisor.documents.values import NewDocument
from supervisor.embedding.service import EmbeddingService
from supervisor.engine.targets import Targets
from supervisor.errors import RequestRefused
from supervisor.jobs.callback_jobs import CALLBACK_URL
from supervisor.jobs.paging import jobs_under_way
from supervisor.jobs.service import JobService
from supervisor.jobs.values import Job, JobKind, JobPriority, JobState, StoredFile
from supervisor.vector_store.opening import StoreOpener
from supervisor.vector_store.port import VectorSpace, require_name, require_same

PURPOSE = "document"
"""The purpose of files with documents."""

STORED_WITHIN_S = 30.0
"""Seconds in which a document is stored, once it is embedded, unless its store does not answer."""


class DocumentService:
    """Takes documents in. `work_dir`: where texts are written before the jobs' files take them."""

    def __init__(
        self,
        jobs: JobService,
        embedding: EmbeddingService,
        targets: Targets,
        opener: StoreOpener,
        work_dir: Path,
    ) -> None:
        self._jobs = jobs
        self._embedding = embedding
        self._targets = targets
        self._opener = opener
        self._work_dir = work_dir

    async def add(self, new: NewDocument) -> Job:
        """Take a document in; when this returns, it is durable.

        Raises RequestRefused where it is clear that it cannot be done: `extra_missing`,
        `model_not_found`, `model_type_mismatch`, `bad_request` for a collection's name,
        `collection_mismatch`, `callback_not_allowed`, `storage_full`.
        """
        require_extra()
        callback = {}
        if new.callback_url is not None:
            self._jobs.check_callback(new.callback_url)
            callback = {CALLBACK_URL: new.callback_url}
        wanted = None if new.model is None else self._targets.target(new.model)
        model = self._embedding.target(wanted, "/documents").model
        if new.collection is not None:
            await self._require_fitting(new.collection, model)
        file = await self._kept(new)
        request = DocumentRequest(
            id=new.id or new.file_name or f"sha256-{file.sha256[:32]}",
            model=model,
            collection=new.collection,
            metadata=new.metadata,
            file_id=file.id,
            file_name=new.file_name,
            media_type=new.media_type,
        )
        job = Job(
            id=f"document_{token_hex(12)}",
            kind=JobKind.DOCUMENT,
            priority=JobPriority(new.priority),
            created_at=time.time(),
            spec=msgspec.to_builtins(request) | callback,
        )
        try:
            await self._jobs.queue.add(job)
        except RequestRefused:
            await self._jobs.files.remove(file.id)
            raise
        return job

    async def ended(self, job: Job, within_s: float) -> Job:
        """Return a job as it is when it has ended, or after so many seconds."""
        return await self._jobs.ended(job, within_s)

    async def withdraw(self, collection: str, document: str | None) -> Sequence[str]:
        """Cancel the jobs that would store a document in a collection (None: any); returns them.

        One that is being stored ends first. Raises RequestRefused `job_not_cancellable` where it
        does not.
        """
        withdrawn = []
        for job in await jobs_under_way(self._jobs.queue, JobKind.DOCUMENT):
            request = DocumentRequest.of(job)
            if request.collection == collection and document in {None, request.id}:
                withdrawn.append(job.id)
                await self._end(job)
        return withdrawn

    async def _end(self, job: Job) -> None:
        try:
            await self._jobs.cancel(job.id)
        except RequestRefused as error:
            if error.code != "job_not_cancellable":
                raise
            ended = await self._jobs.ended(job, STORED_WITHIN_S)
            if not ended.state.is_end:
                raise

    def described(self, job: Job) -> dict[str, Any]:
        """Describe the document of a job that has ended.

        Raises RequestRefused where it was not embedded: with the reason, or `job_cancelled`.
        """
        outcome = DocumentOutcome.of(job)
        if outcome.error is not None:
            raise RequestRefused(outcome.error.code, outcome.error.message, {"job": job.id})
        if job.state is not JobState.COMPLETED:
            raise RequestRefused("job_cancelled", f"'{job.id}' is {job.state}", {"job": job.id})
        told = msgspec.to_builtins(outcome)
        del told["generation"]
        request = {name: job.spec[name] for name in ("id", "collection", "model")}
        return {**request, "job": job.id, **told, "tokens": job.counts.input_tokens}

    async def vectors(self, job: Job) -> tuple[int, AsyncGenerator[bytes, None]] | None:
        """Return the file with the vectors of a document that is not stored: size and content."""
        file_id = DocumentOutcome.of(job).vectors_file_id
        if file_id is None:
            return None
        file = await self._jobs.file(file_id)
        return file.size_bytes, self._jobs.files.read(file_id)

    async def _require_fitting(self, collection: str, model: str) -> None:
        """Raise RequestRefused where a collection cannot take the vectors of a model."""
        require_name(collection)
        store = await self._opener.store()
        try:
            space = await store.space(collection)
        except RequestRefused as error:
            if error.code == "collection_not_found":
                return
            raise
        require_same(collection, space, VectorSpace(model, space.dimension))

    async def _kept(self, new: NewDocument) -> StoredFile:
        """Keep a document's content until its job is done. Raises RequestRefused `storage_full`."""
        if isinstance(new.content, Path):
            return await self._jobs.add_file(new.content, new.file_name or "file", PURPOSE, None)
        path, content = self._work_dir / f"text-{token_hex(8)}", new.content.encode()
        try:
            try:
                await asyncio.to_thread(path.write_bytes, content)
            except OSError as error:
                raise RequestRefused(
                    "storage_full",
                    f"{self._work_dir} cannot take a document: {error.strerror}; make room on its "
                    "disk",
                ) from error
            return await self._jobs.add_file(path, "text", PURPOSE, None)
        finally:
            await asyncio.to_thread(path.unlink, missing_ok=True)
