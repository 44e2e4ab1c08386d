"""What the answers of a controller hold, as far as the commands need it of them.

Those that are printed as they came are dictionaries, which may hold more.
"""

from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import msgspec


class Lines(TypedDict):
    """How many lines of a job there are, and what became of them."""

    total: int
    succeeded: int
    failed: int


class Job(TypedDict):
    """A job. Moments are in seconds since 1970; `reason`: why it is where it is."""

    id: str
    kind: str
    state: str
    created_at: float
    not_before: float | None
    expires_at: float | None
    entered_at: dict[str, float]
    lines: Lines
    reason: str | None


class Jobs(TypedDict):
    """A page of jobs."""

    data: Sequence[Job]


class Hit(TypedDict):
    """A passage that was found."""

    score: float
    document: str
    text: NotRequired[str]
    page: NotRequired[int | None]


class Found(TypedDict):
    """Passages, the nearest first."""

    hits: Sequence[Hit]


class WrittenPoints(msgspec.Struct, frozen=True):
    """How many points were written."""

    written: int


class StoredDocument(msgspec.Struct, frozen=True):
    """A document that is stored."""

    id: str
    metadata: dict[str, Any] | None = None


class DeletedDocument(msgspec.Struct, frozen=True):
    """A document that was deleted."""

    deleted: bool


class Failure(msgspec.Struct, frozen=True):
    """Why a document was not embedded."""

    code: str
    message: str


class DocumentOutcome(msgspec.Struct, frozen=True):
    """What came of a document. `unchanged`: it was stored in this state already."""

    chunks: int | None = None
    unchanged: bool = False
    error: Failure | None = None


class SentDocument(DocumentOutcome, frozen=True, kw_only=True):
    """What is said to one who sends a document.

    `location`: it takes longer than a request should, and `job` will tell what came of it.
    """

    id: str
    job: str
    location: str | None = None


class DocumentJob(msgspec.Struct, frozen=True):
    """The job of a document."""

    state: str
    outcome: DocumentOutcome
    reason: str | None = None
