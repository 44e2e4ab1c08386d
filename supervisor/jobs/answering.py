"""What the jobs room asks of whoever answers the requests of a batch."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of a batch: its path, and its body in JSON.

    `collection`: where the vectors that it asks for are kept, as those of the document `name`;
    None: they are only answered.
    """

    url: str
    body: bytes
    name: str
    collection: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What a request was answered. `index`: which of those that were asked."""

    index: int
    status: int
    body: bytes
    request_id: str
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NotAnswered:
    """A request that could not be answered now; `counts` and `after_s` as in `NotDone`."""

    index: int
    reason: str
    counts: bool
    after_s: float | None = None


class Answerer(Protocol):
    """Answers requests, as batch work: whoever looks on comes first."""

    def answer(self, asked: Sequence[Asked]) -> AsyncIterator[Sequence[Answered | NotAnswered]]:
        """Yield what came of some of them as soon as it is known, each once."""
        ...
