"""The port of vector stores, and the values that pass through it.

A collection holds the vectors of one model: points of chunks, and points of whole documents, which
never answer the same search. Vectors are little-endian float32 in `bytes`, as everywhere here.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Protocol
from uuid import UUID, uuid5

import msgspec

from supervisor.embedding.vectors import NUMBER_BYTES, length
from supervisor.errors import RequestRefused

MAX_BATCH = 256
"""Points that are written at once: more gains nothing, and one lost batch costs little."""

MAX_DIMENSION = 65_536
"""Numbers that a vector may have: no more than a Qdrant server takes."""

DEFAULT_COLLECTION = "documents"
"""Where documents go, and are looked for, when no collection is named."""

MAX_DEPTH = 32
"""Objects and lists within each other in a payload. What `qdrant-edge-py` 0.9.0 has taken with 127
of them, it cannot read again, nor anything else in that collection."""

_WHOLE = range(-(2**63), 2**63)
"""The whole numbers that stores and the frames of their process can carry."""

_OWN_FIELDS = ("document", "kind", "generation")
_NAMESPACE = UUID("6d2c8c0e-6a0f-4f0b-9d3e-2a1f5a0c7e11")
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+(\[\d*\])?")
_NAME = re.compile(r"[^\W_][\w.-]{0,59}")


class PointKind(StrEnum):
    """What a point's vector is of."""

    CHUNK = "chunk"
    DOCUMENT = "document"


POINT_ID_PATTERN = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
PointId = Annotated[str, msgspec.Meta(pattern=POINT_ID_PATTERN)]


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A vector, and what is known of what it was made of.

    `id`: of `point_id`. `document`: the id of the document that it is of. `generation`: one word
    for one state of the document, such as a hash of its content: by it, points of an older state
    are known. `payload`: what its writer wants back with a hit, as JSON can express it; `document`,
    `kind` and `generation` in it are taken.
    """

    id: PointId
    document: str
    kind: PointKind
    generation: str
    vector: bytes
    payload: Mapping[str, Any]

    @property
    def fields(self) -> dict[str, Any]:
        """What a store keeps beside id and vector: the payload, and by what it filters itself."""
        return {
            **self.payload,
            "document": self.document,
            "kind": self.kind.value,
            "generation": self.generation,
        }

    @classmethod
    def of(cls, point_id: str, vector: bytes, fields: Mapping[str, Any]) -> "Point":
        """Make it of what is kept of it (`fields`)."""
        return cls(
            id=point_id,
            document=fields["document"],
            kind=PointKind(fields["kind"]),
            generation=fields["generation"],
            vector=vector,
            payload=_payload_of(fields),
        )


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """A point that was found. `score`: the cosine with what was looked for."""

    id: str
    score: float
    document: str
    payload: Mapping[str, Any]

    @classmethod
    def of(cls, point_id: str, score: float, fields: Mapping[str, Any]) -> "Hit":
        """Make it of what is kept of the point (`Point.fields`)."""
        return cls(
            id=point_id, score=score, document=fields["document"], payload=_payload_of(fields)
        )


class StoredDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A document that is stored whole: generation and payload of its own point, and its chunks."""

    document: str
    generation: str
    payload: Mapping[str, Any]
    chunks: int

    @classmethod
    def of(cls, fields: Mapping[str, Any], chunks: int) -> "StoredDocument":
        """Make it of what is kept of its own point (`Point.fields`)."""
        return cls(
            document=fields["document"],
            generation=fields["generation"],
            payload=_payload_of(fields),
            chunks=chunks,
        )


class PointPage(msgspec.Struct, frozen=True, kw_only=True):
    """Some of a collection's points, in the order of their ids.

    `next`: the id that the following page begins with; None behind the last one.
    """

    points: Sequence[Point]
    next: str | None


class VectorSpace(msgspec.Struct, frozen=True):
    """What vectors must have in common to be compared: their model, and how long they are."""

    model: str
    dimension: int


class CollectionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A collection. `indexed`: points that are found by an index; the others are all compared."""

    name: str
    model: str
    dimension: int
    chunks: int
    documents: int
    indexed: int


class DamagedCollection(msgspec.Struct, frozen=True, kw_only=True):
    """A collection that is there and cannot be opened, and why."""

    name: str
    reason: str


class Collections(msgspec.Struct, frozen=True, kw_only=True):
    """All collections, by name."""

    collections: Sequence[CollectionInfo]
    damaged: Sequence[DamagedCollection] = ()


class Range(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Bounds on a number; those that are None do not count."""

    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None


Condition = str | int | list[str | int] | Range
"""What a field must be: a value, one of several, or a number within bounds. A field that is a list
meets it where one of its members does. True and false are no values (`qdrant-edge-py` 0.9.0 takes
them for 1 and 0, and finds nothing)."""

Filter = Mapping[str, Condition]
"""Conditions by the path of a payload's field, dotted where it stands in an object
(`metadata.year`). All must be met. `document` is the point's own field."""


class VectorStore(Protocol):
    """Keeps points in collections, and finds those that are near to a vector.

    What has returned survives the end of every process. Each operation may be repeated: the same
    again changes nothing. All raise RequestRefused: `collection_not_found`, `store_failed` where
    the store does not do its work; what writes, `storage_full` where its disk has no room left.
    """

    async def ensure_collection(self, name: str, model: str, dimension: int) -> None:
        """Make a collection where it is missing.

        Raises RequestRefused: `bad_request` for a name that cannot be one, `collection_mismatch`
        where it holds vectors of another model or with another number of dimensions.
        """
        ...

    async def collections(self) -> Collections:
        """Return all collections."""
        ...

    async def space(self, name: str) -> VectorSpace:
        """Return what the vectors of a collection have in common; cheap enough for each search."""
        ...

    async def collection(self, name: str) -> CollectionInfo:
        """Return one collection."""
        ...

    async def drop_collection(self, name: str) -> None:
        """Delete a collection with all its points."""
        ...

    async def upsert(self, collection: str, points: Sequence[Point]) -> None:
        """Write points; one with the same id is replaced.

        Raises RequestRefused `collection_mismatch` for a vector of another length.
        """
        ...

    async def delete_document(
        self, collection: str, document: str, *, except_generation: str | None = None
    ) -> None:
        """Delete the points of a document: all, or those of other generations."""
        ...

    async def document(self, collection: str, document: str) -> StoredDocument | None:
        """Return a document; None where its own point is not there."""
        ...

    async def search(
        self,
        collection: str,
        vector: bytes,
        *,
        limit: int,
        kind: PointKind = PointKind.CHUNK,
        matching: Filter | None = None,
    ) -> Sequence[Hit]:
        """Return the points of a kind that are nearest to a vector, the nearest first.

        Raises RequestRefused `collection_mismatch` for a vector of another length.
        """
        ...

    async def points(self, collection: str, *, start: str | None, limit: int) -> PointPage:
        """Return points with their vectors, from the id `start` on (None: the first)."""
        ...

    async def optimize(self, collection: str) -> None:
        """Build the index over what was written since the last time; this can take long."""
        ...

    async def close(self) -> None:
        """Write everything to the disk, and let go of it."""
        ...


def point_id(*, document: str, model: str, chunker: str, index: int | None) -> str:
    """Return the id of a document's chunk, or of the whole document (`index` None): a UUIDv5.

    `chunker`: a word that changes with the way in which documents are divided. The same document
    gets the same ids again, whatever it contains.
    """
    name = msgspec.json.encode((document, model, chunker, index)).decode()
    return str(uuid5(_NAMESPACE, name))


def require_name(name: str) -> None:
    """Raise RequestRefused `bad_request` for what cannot name a collection, and its folder."""
    if not _NAME.fullmatch(name):
        raise RequestRefused(
            "bad_request",
            f"'{name}' cannot be the name of a collection: up to 60 letters, digits, `.`, `_` and "
            "`-`, the first a letter or a digit",
        )


def path_of(field: str) -> str:
    """Return a field's path as Qdrant reads it: keys that are not plain words stand in quotes."""
    return ".".join(key if _PLAIN_KEY.fullmatch(key) else f'"{key}"' for key in field.split("."))


def why_not_kept(payload: Any, depth: int = MAX_DEPTH) -> str | None:
    """Return why no store can keep a payload, as the end of a sentence; None where one can."""
    if isinstance(payload, Mapping | list):
        if not depth:
            return f"has more than {MAX_DEPTH} objects or lists within each other"
        within = payload.values() if isinstance(payload, Mapping) else payload
        reasons = (why_not_kept(each, depth - 1) for each in within)
        return next((reason for reason in reasons if reason is not None), None)
    if isinstance(payload, int) and payload not in _WHOLE:
        return f"has {payload}, and whole numbers may have 64 bits; write it as a text"
    return None


def require_usable(matching: Filter) -> None:
    """Raise RequestRefused `bad_request` for a condition that no store can look for."""
    for field, condition in matching.items():
        if '"' in field or "\\" in field or not all(field.split(".")):
            raise RequestRefused("bad_request", f"`filter`: {field!r} is no path of a field")
        reason = None if isinstance(condition, Range) else why_not_kept(condition)
        if reason is not None:
            raise RequestRefused("bad_request", f"`filter`: {field} {reason}")
        if isinstance(condition, list) and len({type(each) for each in condition}) != 1:
            raise RequestRefused(
                "bad_request", f"`filter`: {field} needs texts alone, or whole numbers, in its list"
            )


def require_same(name: str, kept: VectorSpace, given: VectorSpace) -> None:
    """Raise RequestRefused `collection_mismatch` where a collection is not for these vectors."""
    if kept != given:
        raise RequestRefused(
            "collection_mismatch",
            f"the collection '{name}' holds vectors of '{kept.model}' with {kept.dimension} "
            f"dimensions, and these are of '{given.model}' with {given.dimension}; use another "
            f"collection, or delete this one first (DELETE /collections/{name})",
        )


def require_length(name: str, dimension: int, vectors: Iterable[bytes]) -> None:
    """Raise RequestRefused `collection_mismatch` for a vector that is of another length."""
    for vector in vectors:
        if len(vector) != dimension * NUMBER_BYTES:
            raise RequestRefused(
                "collection_mismatch",
                f"the collection '{name}' holds vectors with {dimension} dimensions, and this one "
                f"has {length(vector)}",
            )


def _payload_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in _OWN_FIELDS}


def collection_not_found(name: str) -> RequestRefused:
    """Return the refusal of a collection that is not there."""
    return RequestRefused(
        "collection_not_found", f"there is no collection '{name}'; GET /collections lists them"
    )
