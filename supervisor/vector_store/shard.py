"""One collection of the embedded store: a folder with a shard of Qdrant Edge.

    collection.json   what the collection is for, and which folder is its shard; replaced as a whole
    shard-1/          the engine's

Nothing but the store's process and the builder of indexes import this module.
"""

import shutil
from collections.abc import Iterable, Sequence
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
    SearchParams,
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
    path_of,
    require_length,
)

DESCRIPTION = "collection.json"
_FORMAT = 1

_BREADTH = SearchParams(hnsw_ef=256)
"""How many neighbours a search in an index looks at (its `ef`): with the engine's 100, queries that
are far from every vector miss one in six of the nearest ten among 20,000; this costs 0.2 ms."""


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What `collection.json` says. `shard`: the name of its folder."""

    format: int
    space: VectorSpace
    shard: str


_REMEDY = "restore the folder from a copy, or delete the collection"


class Shard:
    """An open collection. `create` and `load` open it."""

    def __init__(self, folder: Path, description: Description, engine: EdgeShard) -> None:
        self._folder = folder
        self._description = description
        self._engine = engine
        self._has_news = False
        """Whether something was written since it was last written to the disk."""

    @classmethod
    def create(cls, folder: Path, space: VectorSpace) -> "Shard":
        """Make a collection. What stands in its folder was left by one that was not finished."""
        description = Description(format=_FORMAT, space=space, shard="shard-1")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        vectors = EdgeVectorParams(size=space.dimension, distance=Distance.Cosine)
        engine = EdgeShard.create(str(folder / description.shard), EdgeConfig(vectors=vectors))
        for field in ("document", "kind"):
            engine.update(UpdateOperation.create_field_index(field, PayloadSchemaType.Keyword))
        _write(folder, description)
        return cls(folder, description, engine)

    @classmethod
    def load(cls, folder: Path) -> "Shard":
        """Open a collection. Raises RequestRefused `collection_not_found`, `store_failed`."""
        try:
            content = (folder / DESCRIPTION).read_bytes()
        except FileNotFoundError:
            raise collection_not_found(folder.name) from None
        try:
            description = msgspec.json.decode(content, type=Description)
        except msgspec.MsgspecError as error:
            raise RequestRefused(
                "store_failed",
                f"{folder / DESCRIPTION} cannot be read: {error}; {_REMEDY}",
            ) from error
        if description.format > _FORMAT:
            raise RequestRefused(
                "store_failed",
                f"{folder} was written by a newer version (format {description.format}; this one "
                f"knows {_FORMAT}); use that version",
            )
        for path in folder.glob("shard-*"):
            if path.name != description.shard:
                shutil.rmtree(path)  # a copy whose index was not finished, or the one before it
        try:
            engine = EdgeShard.load(str(folder / description.shard))
        except BaseException as error:  # a panic of a Rust library is no Exception
            raise RequestRefused(
                "store_failed", f"{folder} cannot be opened: {error}; {_REMEDY}"
            ) from error
        return cls(folder, description, engine)

    @property
    def space(self) -> VectorSpace:
        """What its vectors have in common."""
        return self._description.space

    def info(self) -> CollectionInfo:
        """Describe the collection."""
        return CollectionInfo(
            name=self._folder.name,
            model=self.space.model,
            dimension=self.space.dimension,
            chunks=self._count({"kind": PointKind.CHUNK.value}),
            documents=self._count({"kind": PointKind.DOCUMENT.value}),
            indexed=self._engine.info().indexed_vectors_count,
        )

    def upsert(self, points: Sequence[Point]) -> None:
        """Write points; one with the same id is replaced."""
        self._require_length(point.vector for point in points)
        self._update(
            UpdateOperation.upsert_points(
                [EdgePoint(point.id, list(unpack(point.vector)), point.fields) for point in points]
            )
        )

    def delete_document(self, document: str, except_generation: str | None) -> None:
        """Delete the points of a document: all, or those of other generations."""
        own = EdgeFilter(
            must=[_condition("document", document)],
            must_not=[_condition("generation", except_generation)] if except_generation else None,
        )
        self._update(UpdateOperation.delete_points_by_filter(own))

    def document(self, document: str) -> StoredDocument | None:
        """Return a document; None where its own point is not there."""
        own = _must({"document": document, "kind": PointKind.DOCUMENT.value})
        records, _ = self._engine.scroll(ScrollRequest(filter=own, limit=1, with_payload=True))
        if not records:
            return None
        chunks = self._count({"document": document, "kind": PointKind.CHUNK.value})
        return StoredDocument.of(records[0].payload or {}, chunks)

    def search(self, vector: bytes, limit: int, kind: PointKind, matching: Filter) -> list[Hit]:
        """Return the points of a kind that are nearest to a vector, the nearest first."""
        self._require_length((vector,))
        hits = self._engine.query(
            QueryRequest(
                query=Query.Nearest(list(unpack(vector))),
                filter=_must({**matching, "kind": kind.value}),
                limit=limit,
                with_payload=True,
                params=_BREADTH,
            )
        )
        return [Hit.of(str(hit.id), hit.score, hit.payload or {}) for hit in hits]

    def points(self, start: str | None, limit: int) -> PointPage:
        """Return points with their vectors, from the id `start` on (None: the first)."""
        records, following = self._engine.scroll(
            ScrollRequest(offset=start, limit=limit, with_payload=True, with_vector=True)
        )
        return PointPage(
            points=[_point_of(each) for each in records],
            next=None if following is None else str(following),
        )

    def flush(self) -> None:
        """Write to the disk what was written since the last time."""
        if self._has_news:
            self._engine.flush()
            self._has_news = False

    def close(self) -> None:
        """Write everything to the disk, and let go of the folder."""
        self._engine.close()

    def copy_paths(self) -> tuple[Path, Path]:
        """Return the shard's folder as it is on the disk now, and where a copy of it may stand."""
        self._engine.flush()
        number = int(self._description.shard.rpartition("-")[2])
        return self._folder / self._description.shard, self._folder / f"shard-{number + 1}"

    def replace_by(self, copy: Path) -> None:
        """Go on with a copy of the shard, which was given an index, in its place."""
        former = self._folder / self._description.shard
        engine = EdgeShard.load(str(copy))
        description = msgspec.structs.replace(self._description, shard=copy.name)
        _write(self._folder, description)
        self._engine.close()
        self._engine, self._description = engine, description
        shutil.rmtree(former)

    def _update(self, operation: UpdateOperation) -> None:
        self._has_news = True
        self._engine.update(operation)

    def _count(self, conditions: Filter) -> int:
        counted: int = self._engine.count(CountRequest(exact=True, filter=_must(conditions)))
        return counted

    def _require_length(self, vectors: Iterable[bytes]) -> None:
        require_length(self._folder.name, self.space.dimension, vectors)


def build_index(shard: Path) -> None:
    """Build the index of a shard that nobody has open; this can take minutes."""
    engine = EdgeShard.load(str(shard))
    engine.optimize()
    engine.close()


def _write(folder: Path, description: Description) -> None:
    write_new(folder / DESCRIPTION, msgspec.json.encode(description).decode())


def _point_of(record: Record) -> Point:
    numbers: Any = record.vector  # a list, for there are no other vectors than the one of a point
    return Point.of(str(record.id), pack(numbers), record.payload or {})


def _must(conditions: Filter) -> EdgeFilter:
    return EdgeFilter(must=[_condition(key, each) for key, each in conditions.items()])


def _condition(field: str, condition: Condition) -> FieldCondition:
    key = path_of(field)
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
