"""What a document's job was asked, and what came of it, as the queue keeps it."""

from collections.abc import Mapping
from typing import Any

import msgspec

from supervisor.jobs.values import Job


class DocumentRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A document that is to be embedded: the `spec` of its job.

    `collection`: where it is stored; None: nowhere, its vectors are written to a file. `file_id`:
    the file with its content. `file_name` and `media_type`: what its sender says of it.
    """

    id: str
    model: str
    collection: str | None
    metadata: Mapping[str, Any]
    file_id: str
    file_name: str | None = None
    media_type: str | None = None

    @classmethod
    def of(cls, job: Job) -> "DocumentRequest":
        """Return what a job was asked."""
        return msgspec.convert(job.spec, cls)


class Failure(msgspec.Struct, frozen=True):
    """Why a document was not embedded: the error that its caller is answered."""

    code: str
    message: str


decode_failure = msgspec.msgpack.Decoder(Failure).decode


class DocumentOutcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of a document: the `outcome` of its job.

    `generation`: the state of the document (`generation_of`). `unchanged`: it was stored in this
    state already. `superseded`: a later state of it was stored meanwhile, which stays.
    """

    generation: str = ""
    format: str | None = None
    characters: int | None = None
    pages: int | None = None
    chunks: int | None = None
    unchanged: bool = False
    superseded: bool = False
    vectors_file_id: str | None = None
    error: Failure | None = None

    @classmethod
    def of(cls, job: Job) -> "DocumentOutcome":
        """Return what came of a job by now."""
        return msgspec.convert(job.outcome, cls)
