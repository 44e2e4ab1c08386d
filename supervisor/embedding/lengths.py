"""Inputs that are longer than their model takes: cut, or divided into windows. Pure."""

from itertools import pairwise
from typing import NamedTuple

from supervisor.embedding.values import Side

Ids = tuple[int, ...]


class Frame(NamedTuple):
    """The special tokens that a model puts before and behind each text."""

    head: Ids = ()
    tail: Ids = ()

    @property
    def length(self) -> int:
        """How many they are."""
        return len(self.head) + len(self.tail)

    def around(self, ids: Ids) -> "Frame":
        """Return what of the frame is around these ids: a caller's own ids may have none of it."""
        has_tail = not self.tail or ids[-len(self.tail) :] == self.tail
        is_framed = ids[: len(self.head)] == self.head and has_tail
        return self if is_framed and len(ids) >= self.length else Frame()

    def body(self, ids: Ids) -> Ids:
        """Return the ids without the frame around them."""
        return ids[len(self.head) : len(ids) - len(self.tail)]

    def put_around(self, body: Ids) -> Ids:
        """Return the ids of a text with the frame around them."""
        return self.head + body + self.tail


def truncated(ids: Ids, limit: int, frame: Frame, side: Side) -> Ids:
    """Return as much as fits into `limit` tokens, its frame kept; `side` is the end that is cut.

    Raises ValueError where the frame alone does not fit.
    """
    own = frame.around(ids)
    room = _room(limit, own)
    body = own.body(ids)
    return own.put_around(body[:room] if side is Side.RIGHT else body[max(0, len(body) - room) :])


def windows(ids: Ids, limit: int, frame: Frame) -> tuple[Ids, ...]:
    """Divide an input into as few windows of up to `limit` tokens as can be, each in its frame.

    They are nearly equally long, so that none is a scrap without context. Raises ValueError where
    the frame alone does not fit.
    """
    own = frame.around(ids)
    body = own.body(ids)
    count = max(1, -(-len(body) // _room(limit, own)))
    bounds = [len(body) * number // count for number in range(count + 1)]
    return tuple(own.put_around(body[begin:end]) for begin, end in pairwise(bounds))


def _room(limit: int, frame: Frame) -> int:
    """Return how many tokens of a text fit beside its frame."""
    room = limit - frame.length
    if room < 1:
        raise ValueError(f"{limit} tokens leave no room beside {frame.length} special ones")
    return room
