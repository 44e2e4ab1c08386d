"""Collections in folders, each with one shard of Qdrant Edge.

    NAME/collection.json   what the collection is for; written last, so that it stands for the rest
    NAME/shard/            the engine's

Nothing but the store's process (edge_worker.py) imports this module.
"""

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from qdrant_edge import (
    CountRequest,
    Distance,
    EdgeConfig,
    EdgeShard,
    EdgeVectorParams,
    FieldCondition,
    MatchAny,
    MatchValue,
    PayloadSchemaType,
    Query,
    QueryRequest,
    RangeFloat,
    Record,
    ScrollRequest,
    UpdateOperation,
)
from qdrant_edge import Filter as EdgeFilter
from qdrant_edge import Point as EdgePoint

from supervisor.data_folder import write_new
from supervisor.embedding.vectors import pack, unpack
from supervisor.errors import RequestRefused
from supervisor.vector_store.port import (
    CollectionInfo,
    Condition,
    Filter,
    Hit,
    Point,
    PointKind,
    PointPage,
    Range,
    StoredDocument,
    VectorSpace,
    collection_not_found,
    require_length,
    require_name,
    require_same,
)

_DESCRIPTION = "collection.json"
_SHARD = "shard"
_FORMAT = 1


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What `collection.json` says."""

    format: int
    space: VectorSpace


class _Collection:
    """An open collection. `has_news`: whether something was written since it was flushed."""

    def __init__(self, name: str, space: VectorSpace, shard: EdgeShard) -> None:
        self.name = name
        self.space = space
        self.shard = shard
        self.has_news = False

    def update(self, operation: UpdateOperation) -> None:
        self.has_news = True
        self.shard.update(operation)

    def flush(self) -> None:
        if self.has_news:
            self.has_news = False
            self.shard.flush()

    def count(self, conditions: Filter) -> int:
        counted: int = self.shard.count(CountRequest(exact=True, filter=_must(conditions)))
        return counted


class Shards:
    """The collections of a folder, each opened at its first use. Any thread may ask.

    The methods do what those of VectorStore do.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, _Collection] = {}
        self._opening = threading.Lock()

    def ensure_collection(self, name: str, model: str, dimension: int) -> None:
        """Make a collection where it is missing."""
        require_name(name)
        given = VectorSpace(model, dimension)
        with self._opening:
            if not (self._folder / name / _DESCRIPTION).exists():
                self._open[name] = self._make(name, given)
        require_same(name, self._collection(name).space, given)

    def collections(self) -> list[CollectionInfo]:
        """Return all collections, by name."""
        names = sorted(path.parent.name for path in self._folder.glob(f"*/{_DESCRIPTION}"))
        return [self.collection(name) for name in names]

    def collection(self, name: str) -> CollectionInfo:
        """Return one collection, with its counts."""
        found = self._collection(name)
        return CollectionInfo(
            name=name,
            model=found.space.model,
            dimension=found.space.dimension,
            chunks=found.count({"kind": PointKind.CHUNK.value}),
            documents=found.count({"kind": PointKind.DOCUMENT.value}),
            indexed=found.shard.info().indexed_vectors_count,
        )

    def drop_collection(self, name: str) -> None:
        """Delete a collection with all its points."""
        dropped = self._collection(name)
        with self._opening:
            self._open.pop(name, None)
            (self._folder / name / _DESCRIPTION).unlink(missing_ok=True)
            dropped.shard.close()
            shutil.rmtree(self._folder / name)

    def upsert(self, collection: str, points: Sequence[Point]) -> None:
        """Write points; one with the same id is replaced."""
        found = self._collection(collection)
        require_length(collection, found.space.dimension, (point.vector for point in points))
        found.update(
            UpdateOperation.upsert_points(
                [EdgePoint(point.id, unpack(point.vector), point.fields) for point in points]
            )
        )

    def delete_document(
        self, collection: str, document: str, except_generation: str | None
    ) -> None:
        """Delete the points of a document: all, or those of other generations."""
        own = EdgeFilter(
            must=[_condition("document", document)],
            must_not=[_condition("generation", except_generation)] if except_generation else None,
        )
        self._collection(collection).update(UpdateOperation.delete_points_by_filter(own))

    def document(self, collection: str, document: str) -> StoredDocument | None:
        """Return a document; None where its own point is not there."""
        found = self._collection(collection)
        own = _must({"document": document, "kind": PointKind.DOCUMENT.value})
        records, _ = found.shard.scroll(ScrollRequest(filter=own, limit=1, with_payload=True))
        if not records:
            return None
        chunks = found.count({"document": document, "kind": PointKind.CHUNK.value})
        return StoredDocument.of(records[0].payload or {}, chunks)

    def search(
        self, collection: str, vector: bytes, limit: int, kind: PointKind, matching: Filter
    ) -> list[Hit]:
        """Return the points of a kind that are nearest to a vector, the nearest first."""
        found = self._collection(collection)
        require_length(collection, found.space.dimension, (vector,))
        hits = found.shard.query(
            QueryRequest(
                query=Query.Nearest(unpack(vector)),
                filter=_must({**matching, "kind": kind.value}),
                limit=limit,
                with_payload=True,
            )
        )
        return [Hit.of(str(hit.id), hit.score, hit.payload or {}) for hit in hits]

    def points(self, collection: str, start: str | None, limit: int) -> PointPage:
        """Return points with their vectors, from the id `start` on (None: the first)."""
        shard = self._collection(collection).shard
        records, following = shard.scroll(
            ScrollRequest(offset=start, limit=limit, with_payload=True, with_vector=True)
        )
        return PointPage(
            points=[_point_of(each) for each in records],
            next=None if following is None else str(following),
        )

    def optimize(self, collection: str) -> None:
        """Build the index over what was written since the last time."""
        self._collection(collection).shard.optimize()

    def flush(self) -> None:
        """Write to the disk what was written since the last time."""
        for each in list(self._open.values()):
            each.flush()

    def close(self) -> None:
        """Write everything to the disk, and close the collections."""
        for each in self._open.values():
            each.shard.close()

    def _collection(self, name: str) -> _Collection:
        found = self._open.get(name)
        if found is not None:
            return found
        require_name(name)
        with self._opening:
            if name not in self._open:
                self._open[name] = self._load(name)
            return self._open[name]

    def _make(self, name: str, space: VectorSpace) -> _Collection:
        folder = self._folder / name
        shutil.rmtree(folder, ignore_errors=True)  # what a process left that was ended at this
        (folder / _SHARD).mkdir(parents=True)
        vectors = EdgeVectorParams(size=space.dimension, distance=Distance.Cosine)
        shard = EdgeShard.create(str(folder / _SHARD), EdgeConfig(vectors=vectors))
        for field in ("document", "kind"):
            shard.update(UpdateOperation.create_field_index(field, PayloadSchemaType.Keyword))
        description = Description(format=_FORMAT, space=space)
        write_new(folder / _DESCRIPTION, msgspec.json.encode(description).decode())
        return _Collection(name, space, shard)

    def _load(self, name: str) -> _Collection:
        folder = self._folder / name
        try:
            content = (folder / _DESCRIPTION).read_bytes()
        except FileNotFoundError:
            raise collection_not_found(name) from None
        description = msgspec.json.decode(content, type=Description)
        if description.format > _FORMAT:
            raise RequestRefused(
                "store_failed",
                f"{folder} was written by a newer version (format {description.format}; this one "
                f"knows {_FORMAT}); use that version",
            )
        return _Collection(name, description.space, EdgeShard.load(str(folder / _SHARD)))


def _point_of(record: Record) -> Point:
    numbers: Any = record.vector  # a list, for there are no other vectors than the one of a point
    return Point.of(str(record.id), pack(numbers), record.payload or {})


def _must(conditions: Filter) -> EdgeFilter:
    return EdgeFilter(must=[_condition(key, each) for key, each in conditions.items()])


def _condition(key: str, condition: Condition) -> FieldCondition:
    match condition:
        case Range():
            bounds = RangeFloat(
                gt=condition.gt, gte=condition.gte, lt=condition.lt, lte=condition.lte
            )
            return FieldCondition(key=key, range=bounds)
        case list():
            values: Any = condition
            return FieldCondition(key=key, match=MatchAny(any=values))
        case _:
            return FieldCondition(key=key, match=MatchValue(value=condition))
