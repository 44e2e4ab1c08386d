"""What the jobs room asks of whoever answers the requests of a batch."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Keeping:
    """Where the vectors of a batch are kept. `is_wanted` says whether they still are.

    It is asked while nobody can delete the collection (`StoreOpener.replacing`).
    """

    collection: str
    is_wanted: Callable[[], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of a batch: its path, and its body in JSON.

    `keeping`: where the vectors that it asks for are kept, as those of the document `name`; None:
    they are only answered.
    """

    url: str
    body: bytes
    name: str
    keeping: Keeping | None = None


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
