"""What the controller and the store's process say to each other, in MessagePack.

A message is a head of four bytes, its length (little-endian), and its content. A request is named
for the method of `Shards` that carries it out (shards.py), and has its arguments; it has a number,
and may be repeated. Answers come in any order. Vectors travel as the bytes that they are.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from supervisor.vector_store.port import Filter, Point, PointKind


class EnsureCollection(msgspec.Struct, frozen=True, array_like=True, tag="ensure_collection"):
    """Answered with nothing."""

    name: str
    model: str
    dimension: int


class ListCollections(msgspec.Struct, frozen=True, array_like=True, tag="collections"):
    """Answered with a CollectionInfo for each."""


class DescribeCollection(msgspec.Struct, frozen=True, array_like=True, tag="collection"):
    """Answered with its CollectionInfo."""

    name: str


class DropCollection(msgspec.Struct, frozen=True, array_like=True, tag="drop_collection"):
    """Answered with nothing."""

    name: str


class Upsert(msgspec.Struct, frozen=True, array_like=True, tag="upsert"):
    """Answered with nothing."""

    collection: str
    points: Sequence[Point]


class DeleteDocument(msgspec.Struct, frozen=True, array_like=True, tag="delete_document"):
    """Answered with nothing."""

    collection: str
    document: str
    except_generation: str | None


class FindDocument(msgspec.Struct, frozen=True, array_like=True, tag="document"):
    """Answered with a StoredDocument, or None."""

    collection: str
    document: str


class Search(msgspec.Struct, frozen=True, array_like=True, tag="search"):
    """Answered with a Hit for each point that was found."""

    collection: str
    vector: bytes
    limit: int
    kind: PointKind
    matching: Filter


class ReadPoints(msgspec.Struct, frozen=True, array_like=True, tag="points"):
    """Answered with a PointPage."""

    collection: str
    start: str | None
    limit: int


class Optimize(msgspec.Struct, frozen=True, array_like=True, tag="optimize"):
    """Answered with nothing, once the index is built."""

    collection: str


Request = (
    EnsureCollection
    | ListCollections
    | DescribeCollection
    | DropCollection
    | Upsert
    | DeleteDocument
    | FindDocument
    | Search
    | ReadPoints
    | Optimize
)


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """A request with its number."""

    number: int
    request: Request


class Answered(msgspec.Struct, frozen=True, array_like=True):
    """What came of the request of that number. `code`: of RequestRefused, with its message."""

    number: int
    content: msgspec.Raw = msgspec.Raw(b"\xc0")  # None
    code: str | None = None
    message: str = ""


_HEAD = struct.Struct("<I")
_encode = msgspec.msgpack.Encoder().encode


def framed(message: Any) -> bytes:
    """Return a message as it is sent."""
    content = _encode(message)
    return _HEAD.pack(len(content)) + content


class Frames:
    """Takes messages out of bytes that come in pieces."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the content of each message that is complete now."""
        self._rest += data
        while len(self._rest) >= _HEAD.size:
            end = _HEAD.size + _HEAD.unpack_from(self._rest)[0]
            if len(self._rest) < end:
                return
            content = bytes(memoryview(self._rest)[_HEAD.size : end])
            del self._rest[:end]
            yield content
