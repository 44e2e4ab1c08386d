"""Documents come in by `POST /documents`, as a file or as a text."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import msgspec
from pydantic import BeforeValidator, Field, InstanceOf, StrictBool, model_validator

from supervisor.documents.values import NewDocument
from supervisor.errors import RequestRefused
from supervisor.gateway.answer import Answer, PiecewiseAnswer, json_answer
from supervisor.gateway.parameters import Parameters
from supervisor.gateway.uploads import Upload
from supervisor.vector_store.port import DEFAULT_COLLECTION, why_not_kept

if TYPE_CHECKING:  # the jobs room and this one are imported when the first document comes
    from supervisor.documents.service import DocumentService
    from supervisor.jobs.values import Job

MAX_METADATA_BYTES = 16 * 1024
"""Of `metadata`, which is stored with every chunk."""

WAIT_S = 30.0
"""Seconds that a caller waits for its document; then it is told where to ask."""


def _object(given: Any) -> Any:
    """Read an object that a form or a query has as text."""
    if not isinstance(given, str):
        return given
    try:
        return msgspec.json.decode(given)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"it is not JSON that can be read: {error}") from error


class NewDocumentParameters(Parameters):
    """A document: its `file` in a form or as the body, or its `text` in JSON."""

    file: InstanceOf[Upload] | None = None
    text: str | None = None
    id: str | None = Field(default=None, min_length=1, max_length=1024)
    collection: str = DEFAULT_COLLECTION
    model: str | None = None
    metadata: Annotated[dict[str, Any], BeforeValidator(_object)] = Field(default_factory=dict)
    priority: Literal["high", "normal", "low"] = "normal"
    callback_url: str | None = Field(default=None, max_length=2048)
    wait: StrictBool = True
    store: StrictBool = True

    @property
    def document(self) -> NewDocument:
        """What is sent in."""
        file = self.file
        return NewDocument(
            content=file.path if file is not None else self.text or "",
            id=self.id,
            file_name=file.file_name if file is not None else None,
            media_type=file.content_type if file is not None else "text/plain",
            model=self.model,
            collection=self.collection if self.store else None,
            metadata=self.metadata,
            priority=self.priority,
            callback_url=self.callback_url,
        )

    @model_validator(mode="after")
    def _require_one_content_and_little_beside(self) -> Self:
        if (self.file is None) == (self.text is None):
            raise ValueError("give the document's `file`, or its `text`, and not both")
        reason = why_not_kept(self.metadata)
        if reason is not None:
            raise ValueError(f"`metadata` {reason}")
        size_bytes = len(msgspec.json.encode(self.metadata))
        if size_bytes > MAX_METADATA_BYTES:
            raise ValueError(
                f"`metadata` has {size_bytes} bytes as JSON, and may have {MAX_METADATA_BYTES}"
            )
        return self


class Documents:
    """The handler."""

    def __init__(self, open_documents: "Callable[[], Awaitable[DocumentService]]") -> None:
        self._open = open_documents

    async def add(self, asked: NewDocumentParameters) -> Answer | PiecewiseAnswer:
        """Take a document in, and tell what came of it, or where that will be told."""
        if asked.file is not None:
            await asyncio.to_thread(_require_no_json, asked.file)
        documents = await self._open()
        job = await documents.add(asked.document)
        if asked.wait:
            job = await documents.ended(job, WAIT_S)
        if not job.state.is_end:
            return _taken(job)
        vectors = await documents.vectors(job)
        if vectors is None:
            return json_answer(documents.described(job))
        size_bytes, pieces = vectors
        return PiecewiseAnswer(
            headers=((b"Content-Type", b"application/json"),), size_bytes=size_bytes, pieces=pieces
        )


def _require_no_json(upload: Upload) -> None:
    """Refuse JSON as `curl -d` sends it without a header: it would be stored as a text of its own.

    Raises RequestRefused.
    """
    if (upload.content_type or "").startswith("application/x-www-form-urlencoded"):
        with upload.path.open("rb") as file:
            begins_as_json = file.read(64).lstrip().startswith(b"{")
        if begins_as_json:
            raise RequestRefused(
                "bad_request",
                "the body looks like JSON: send it with Content-Type: application/json; a file "
                "that begins like that, with its own media type, such as text/plain",
            )


def _taken(job: "Job") -> Answer:
    location = f"/jobs/{job.id}"
    return json_answer(
        {"id": job.spec["id"], "job": job.id, "state": job.state, "location": location},
        status=202,
        headers=((b"Location", location.encode()),),
    )
