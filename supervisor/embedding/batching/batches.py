"""Callers, whose pieces wait to be embedded, and batches of these. Pure: no clock, no I/O."""

from collections.abc import Callable, Sequence
from pathlib import Path

from supervisor.core.scheduling.values import Priority
from supervisor.embedding.values import Piece
from supervisor.errors import RequestRefused

_NO_PROFILES: frozenset[str] = frozenset()


class Caller:
    """Pieces that are wanted together, and the vectors of those that are computed.

    `on_end` is called once, when all vectors are there or `error` says why they never will be. All
    times are in seconds of one clock.
    """

    __slots__ = (
        "batches",
        "came_at",
        "counted",
        "error",
        "is_over",
        "missing",
        "model_path",
        "normalize",
        "on_end",
        "pieces",
        "priority",
        "sent_at",
        "served_by",
        "vectors",
        "waits_since",
    )

    def __init__(
        self,
        pieces: Sequence[Piece],
        *,
        normalize: bool,
        priority: Priority,
        came_at: float,
        on_end: Callable[[], object],
    ) -> None:
        self.pieces = pieces
        self.model_path: Path | None = None
        """The model's file whose tokens the pieces are; None: they are texts."""
        self.normalize = normalize
        self.priority = priority
        self.came_at = came_at
        self.waits_since = came_at
        """When its request came, or its last vectors did: so long it has had nothing of the model.
        (Its request may have waited before for the server that made tokens of it.)"""
        self.on_end = on_end
        self.vectors: list[bytes] = [b""] * len(pieces)
        """In the order of the pieces; empty where one is not there yet."""
        self.missing = len(pieces)
        self.counted = 0.0
        """Tokens by their server's count; of a batch of several callers, by its share."""
        self.sent_at: float | None = None
        """When the first of the pieces was sent."""
        self.served_by = _NO_PROFILES
        """The profiles of the servers that made the vectors: one set for all who still
        wait, for one each would be a tenth of what a caller takes."""
        self.batches: list[Batch] = []
        """Those that are with the server, or are to be sent again."""
        self.error: RequestRefused | None = None
        self.is_over = False
        """Whether nothing is to be done for it any more."""


Item = tuple[Caller, int]
"""A caller, and which of its pieces."""


class Batch:
    """Pieces of one kind that a server is sent in one request.

    `died`: under how many of their servers. `counted`: its tokens by the server's count, 0 where it
    tells none. `present`: callers of whom it is not known that they
    have left, or got their error already.
    """

    __slots__ = ("counted", "died", "items", "normalize", "present", "priority", "tokens")

    def __init__(self, items: Sequence[Item], died: int = 0) -> None:
        self.items = items
        self.died = died
        self.counted = 0
        first, _ = items[0]
        self.normalize = first.normalize
        self.priority = first.priority
        self.tokens = sum(caller.pieces[index].tokens for caller, index in items)
        callers = dict.fromkeys(caller for caller, _ in items)
        self.present = len(callers)
        for caller in callers:
            caller.batches.append(self)

    def __len__(self) -> int:
        return len(self.items)

    def close(self) -> None:
        """Forget it: it was answered, or others take its place."""
        for caller in {caller for caller, _ in self.items}:
            if self in caller.batches:
                caller.batches.remove(self)

    def deliver(self, vectors: Sequence[bytes], profile: str, now: float) -> None:
        """Give each caller its vectors, which a server with this profile made; forget the batch."""
        self.close()
        counted_of_each = (self.counted or self.tokens) / self.tokens
        for (caller, index), vector in zip(self.items, vectors, strict=True):
            caller.vectors[index] = vector
            caller.counted += caller.pieces[index].tokens * counted_of_each
            caller.missing -= 1
            caller.waits_since = now
            caller.served_by |= {profile}
            if not caller.missing and not caller.is_over:
                caller.is_over = True
                caller.on_end()

    def parts(self, *, died: int) -> "list[Batch]":
        """Return two halves in its place, of those pieces that are still wanted; fewer of less."""
        self.close()
        wanted = [item for item in self.items if not item[0].is_over]
        middle = (len(wanted) + 1) // 2
        return [Batch(half, died) for half in (wanted[:middle], wanted[middle:]) if half]
