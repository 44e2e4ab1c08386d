"""What the controller asks of the store's process.

A request is named for the method of `Shards` that carries it out (shards.py), and has its
arguments; it may be repeated. Vectors travel as the bytes that they are.
"""

from collections.abc import Sequence

import msgspec

from supervisor.vector_store.port import Filter, Point, PointKind


class EnsureCollection(msgspec.Struct, frozen=True, array_like=True, tag="ensure_collection"):
    """Answered with nothing."""

    name: str
    model: str
    dimension: int


class ListCollections(msgspec.Struct, frozen=True, array_like=True, tag="collections"):
    """Answered with Collections."""


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
