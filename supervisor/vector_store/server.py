"""The store in a Qdrant server, by its URL.

A collection's metadata says which model it is for (Qdrant keeps it from 1.16 on); collections
without that are somebody else's, and left alone. The library takes a second to import: this module
is imported at the first use of a server, in a thread (opening.py).
"""

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import structlog
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

from supervisor.embedding.vectors import pack, unpack
from supervisor.errors import RequestRefused
from supervisor.vector_store.port import (
    MAX_BATCH,
    CollectionInfo,
    Collections,
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
    require_name,
    require_same,
)

log = structlog.get_logger()

_TIMEOUT_S = 60
_SPACE_HOLDS_S = 10.0
"""For so long what a collection is for is taken to be as it was: another controller may delete it,
and make it anew for another model."""

_EXISTS = 409
_MODEL = "llama-supervisor-model"
"""The key in a collection's metadata."""


class ServerStore:
    """A VectorStore in a Qdrant server, which builds its indexes by itself."""

    def __init__(self, url: str, api_key: str | None) -> None:
        """Nothing is asked of the server yet."""
        self._url = url
        with warnings.catch_warnings(record=True) as given:  # such as a key over plain HTTP
            warnings.simplefilter("always")
            self._client = AsyncQdrantClient(
                url=url, api_key=api_key, timeout=_TIMEOUT_S, check_compatibility=False
            )
        for each in given:
            log.warning("store.warning", url=url, problem=str(each.message))
        self._spaces: dict[str, tuple[VectorSpace, float]] = {}
        """Of collections that were asked for before, and until when that holds."""

    async def ensure_collection(self, name: str, model: str, dimension: int) -> None:
        """Make a collection where it is missing."""
        require_name(name)
        given = VectorSpace(model, dimension)
        if self._known_space(name) is None:
            with self._failures_told(name):
                if not await self._client.collection_exists(name):
                    await self._create(name, given)
        require_same(name, await self.space(name), given)

    async def collections(self) -> Collections:
        """Return all collections that are ours."""
        with self._failures_told():
            found = (await self._client.get_collections()).collections
            described = [
                (each.name, await self._client.get_collection(each.name)) for each in found
            ]
        ours = sorted(name for name, each in described if _space_of(each) is not None)
        return Collections(collections=[await self.collection(name) for name in ours])

    async def space(self, name: str) -> VectorSpace:
        """Return what the vectors of a collection have in common."""
        known = self._known_space(name)
        if known is not None:
            return known
        with self._failures_told(name):
            if not await self._client.collection_exists(name):
                raise collection_not_found(name)
            space = _space_of(await self._client.get_collection(name))
        if space is None:
            raise RequestRefused(
                "collection_mismatch",
                f"{self._url} has a collection '{name}' that was not made here (its metadata has "
                f"no {_MODEL}; servers before 1.16 keep none); use another name",
            )
        self._spaces[name] = space, time.monotonic() + _SPACE_HOLDS_S
        return space

    def _known_space(self, name: str) -> VectorSpace | None:
        space, holds_until = self._spaces.get(name, (None, 0.0))
        return space if time.monotonic() < holds_until else None

    async def collection(self, name: str) -> CollectionInfo:
        """Return one collection, with its counts."""
        space = await self.space(name)
        with self._failures_told(name):
            found = await self._client.get_collection(name)
        return CollectionInfo(
            name=name,
            model=space.model,
            dimension=space.dimension,
            chunks=await self._count(name, _must({"kind": PointKind.CHUNK.value})),
            documents=await self._count(name, _must({"kind": PointKind.DOCUMENT.value})),
            indexed=found.indexed_vectors_count or 0,
        )

    async def drop_collection(self, name: str) -> None:
        """Delete a collection with all its points."""
        await self.space(name)
        with self._failures_told(name):
            await self._client.delete_collection(name)
        self._spaces.pop(name, None)

    async def upsert(self, collection: str, points: Sequence[Point]) -> None:
        """Write points; one with the same id is replaced."""
        space = await self.space(collection)
        require_length(collection, space.dimension, (point.vector for point in points))
        for begin in range(0, len(points), MAX_BATCH):
            batch = [
                models.PointStruct(
                    id=point.id, vector=list(unpack(point.vector)), payload=point.fields
                )
                for point in points[begin : begin + MAX_BATCH]
            ]
            with self._failures_told(collection):
                await self._client.upsert(collection, batch, wait=True)

    async def delete_document(
        self, collection: str, document: str, *, except_generation: str | None = None
    ) -> None:
        """Delete the points of a document: all, or those of other generations."""
        await self.space(collection)
        condition = _must({"document": document})
        if except_generation is not None:
            condition.must_not = [_condition("generation", except_generation)]
        with self._failures_told(collection):
            await self._client.delete(
                collection, models.FilterSelector(filter=condition), wait=True
            )

    async def document(self, collection: str, document: str) -> StoredDocument | None:
        """Return a document; None where its own point is not there."""
        await self.space(collection)
        own = _must({"document": document, "kind": PointKind.DOCUMENT.value})
        with self._failures_told(collection):
            found, _ = await self._client.scroll(collection, own, limit=1)
        if not found:
            return None
        chunks = _must({"document": document, "kind": PointKind.CHUNK.value})
        return StoredDocument.of(found[0].payload or {}, await self._count(collection, chunks))

    async def search(
        self,
        collection: str,
        vector: bytes,
        *,
        limit: int,
        kind: PointKind = PointKind.CHUNK,
        matching: Filter | None = None,
    ) -> Sequence[Hit]:
        """Return the points of a kind that are nearest to a vector, the nearest first."""
        space = await self.space(collection)
        require_length(collection, space.dimension, (vector,))
        condition = _must({**(matching or {}), "kind": kind.value})
        with self._failures_told(collection):
            found = await self._client.query_points(
                collection, list(unpack(vector)), query_filter=condition, limit=limit
            )
        return [Hit.of(str(each.id), each.score, each.payload or {}) for each in found.points]

    async def points(self, collection: str, *, start: str | None, limit: int) -> PointPage:
        """Return points with their vectors, from the id `start` on (None: the first)."""
        await self.space(collection)
        with self._failures_told(collection):
            found, following = await self._client.scroll(
                collection, limit=limit, offset=start, with_vectors=True
            )
        return PointPage(
            points=[
                Point.of(str(each.id), pack(_numbers(each)), each.payload or {}) for each in found
            ],
            next=None if following is None else str(following),
        )

    async def optimize(self, collection: str) -> None:
        """Do nothing: a server does it by itself."""
        await self.space(collection)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _create(self, name: str, space: VectorSpace) -> None:
        try:
            await self._client.create_collection(
                name,
                vectors_config=models.VectorParams(
                    size=space.dimension, distance=models.Distance.COSINE
                ),
                metadata={_MODEL: space.model},
            )
        except UnexpectedResponse as error:
            if error.status_code != _EXISTS:
                raise  # else somebody else has made it just now
        for field in ("document", "kind"):
            await self._client.create_payload_index(
                name, field, models.PayloadSchemaType.KEYWORD, wait=True
            )

    async def _count(self, collection: str, condition: models.Filter) -> int:
        with self._failures_told(collection):
            counted = await self._client.count(collection, condition, exact=True)
        count: int = counted.count
        return count

    @contextmanager
    def _failures_told(self, collection: str | None = None) -> Iterator[None]:
        try:
            yield
        except (ApiException, QdrantException) as error:
            self._spaces.pop(collection or "", None)
            raise RequestRefused(
                "store_failed", f"the vector store at {self._url} failed: {error}"
            ) from error


def _space_of(found: models.CollectionInfo) -> VectorSpace | None:
    """Return what a collection is for; None where it is not ours."""
    metadata, vectors = found.config.metadata or {}, found.config.params.vectors
    if _MODEL not in metadata or not isinstance(vectors, models.VectorParams):
        return None
    return VectorSpace(str(metadata[_MODEL]), vectors.size)


def _must(conditions: Filter) -> models.Filter:
    return models.Filter(must=[_condition(key, each) for key, each in conditions.items()])


def _condition(field: str, condition: Condition) -> models.FieldCondition:
    key = path_of(field)
    match condition:
        case Range():
            bounds = models.Range(
                gt=condition.gt, gte=condition.gte, lt=condition.lt, lte=condition.lte
            )
            return models.FieldCondition(key=key, range=bounds)
        case list():
            return models.FieldCondition(key=key, match=models.MatchAny(any=condition))
        case _:
            return models.FieldCondition(key=key, match=models.MatchValue(value=condition))


def _numbers(record: models.Record) -> list[Any]:
    assert isinstance(record.vector, list)  # noqa: S101 - as `_create` asks for it
    return record.vector
