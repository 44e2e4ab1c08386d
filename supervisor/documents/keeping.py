"""What becomes of a document's vectors: they are stored, or written to a file."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any

import msgspec
from msgspec.structs import replace

from supervisor.documents.parts import EmbeddedPart, whole_vector
from supervisor.documents.request import DocumentOutcome, DocumentRequest
from supervisor.documents.storing import (
    EmbeddedChunk,
    EmbeddedDocument,
    is_complete,
    store_document,
)
from supervisor.documents.values import CHUNKER
from supervisor.embedding.vectors import length, unpack
from supervisor.errors import RequestRefused
from supervisor.jobs.port import FileStore
from supervisor.jobs.values import Job, StoredFile
from supervisor.vector_store.opening import StoreOpener
from supervisor.vector_store.port import StoredDocument, point_id

_ACCEPTED_AT = "accepted_at"
"""When a document was taken in: of two states of it, the one that was taken in later stays."""

_TOLD = ("format", "characters", "pages", "chunks")
"""What is stored of a document's outcome."""


class Keeper:
    """Keeps documents once they are embedded. `keep_s`: how long files with vectors are kept."""

    def __init__(
        self, opener: StoreOpener, files: FileStore, work_dir: Path, keep_s: Callable[[], float]
    ) -> None:
        self._opener = opener
        self._files = files
        self._work_dir = work_dir
        self._keep_s = keep_s

    async def kept(self, job: Job, generation: str) -> DocumentOutcome | None:
        """Return what came of a document that is stored in this state already.

        None where it is not, or not completely, or something older is beside it. What was sent in
        between is older than it from now on.
        """
        request = DocumentRequest.of(job)
        collection = request.collection
        if collection is None:
            return None
        async with self._opener.replacing(collection):
            found = await self._stored(collection, request.id)
            chunks = -1 if found is None else found.payload.get("chunks", -1)
            if found is None or not is_complete(found, generation=generation, chunks=chunks):
                return None
            if found.payload.get(_ACCEPTED_AT, 0.0) < job.created_at:
                await self._note_accepted(collection, request, job.created_at)
        told = {name: found.payload.get(name) for name in _TOLD}
        return msgspec.convert(
            {"generation": generation, "unchanged": True, **told}, DocumentOutcome
        )

    async def keep(self, job: Job, parts: Sequence[EmbeddedPart]) -> DocumentOutcome:
        """Store a document, or write its vectors to a file; again changes nothing.

        Returns the job's outcome. Raises RequestRefused as the stores do.
        """
        request, outcome = DocumentRequest.of(job), DocumentOutcome.of(job)
        document = await asyncio.to_thread(_document_of, job, request, outcome, parts)
        if request.collection is None:
            file_id = await self._write(job, document)
            return replace(outcome, vectors_file_id=file_id)
        store = await self._opener.store()
        async with self._opener.replacing(request.collection):
            found = await self._stored(request.collection, request.id)
            if found is not None and found.payload.get(_ACCEPTED_AT, 0.0) > job.created_at:
                return replace(outcome, superseded=True)
            await store_document(store, request.collection, document)
        return outcome

    async def _note_accepted(
        self, collection: str, request: DocumentRequest, accepted_at: float
    ) -> None:
        store = await self._opener.store()
        own_id = point_id(document=request.id, model=request.model, chunker=CHUNKER, index=None)
        page = await store.points(collection, start=own_id, limit=1)
        again = [
            replace(point, payload={**point.payload, _ACCEPTED_AT: accepted_at})
            for point in page.points
            if point.id == own_id
        ]
        await store.upsert(collection, again)

    async def _stored(self, collection: str, document: str) -> StoredDocument | None:
        store = await self._opener.store()
        try:
            return await store.document(collection, document)
        except RequestRefused as error:
            if error.code == "collection_not_found":
                return None
            raise

    async def _write(self, job: Job, document: EmbeddedDocument) -> str:
        """Write the vectors to a file, and return its id."""
        path = self._work_dir / f"{job.id}-{token_hex(4)}"  # it may be written twice at once
        file = StoredFile(
            id=f"file-{job.id}-vectors",
            file_name=f"{job.id}_vectors.json",
            purpose="document_output",
            created_at=job.created_at,
            expires_at=job.created_at + self._keep_s(),
        )
        try:
            await asyncio.to_thread(lambda: path.write_bytes(_described(document)))
            return (await self._files.add(file, path)).id
        finally:
            await asyncio.to_thread(path.unlink, missing_ok=True)


def _document_of(
    job: Job, request: DocumentRequest, outcome: DocumentOutcome, parts: Sequence[EmbeddedPart]
) -> EmbeddedDocument:
    return EmbeddedDocument(
        id=request.id,
        model=request.model,
        chunker=CHUNKER,
        generation=outcome.generation,
        vector=whole_vector(parts),
        payload={
            "metadata": request.metadata,
            "file_name": request.file_name,
            **{name: getattr(outcome, name) for name in _TOLD},
            _ACCEPTED_AT: job.created_at,
        },
        chunks=[
            EmbeddedChunk(
                vector=part.vector,
                payload={**msgspec.to_builtins(part.chunk), "metadata": request.metadata},
            )
            for part in parts
            if part.chunk is not None
        ],
    )


def _described(document: EmbeddedDocument) -> bytes:
    """Write a document with its vectors as JSON."""
    content: dict[str, Any] = {
        "id": document.id,
        "model": document.model,
        "dimensions": length(document.vector),
        "vector": unpack(document.vector),
        **document.payload,
        "chunks": [{**chunk.payload, "vector": unpack(chunk.vector)} for chunk in document.chunks],
    }
    return msgspec.json.encode(content)
