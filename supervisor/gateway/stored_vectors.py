"""Routes of what is stored: searching it, its collections, and single documents."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
import structlog
from pydantic import Field

from supervisor.config.holder import ConfigurationHolder
from supervisor.documents.searching import Searcher, SearchRequest
from supervisor.embedding.vectors import is_finite
from supervisor.errors import RequestRefused
from supervisor.gateway.answer import Answer, json_answer
from supervisor.gateway.forms.embedding_answer import embedding_answer
from supervisor.gateway.parameters import Parameters
from supervisor.vector_store.opening import StoreOpener
from supervisor.vector_store.port import (
    DEFAULT_COLLECTION,
    MAX_BATCH,
    MAX_DIMENSION,
    POINT_ID_PATTERN,
    Condition,
    Hit,
    Point,
    PointKind,
    require_length,
    why_not_kept,
)

log = structlog.get_logger()

MAX_HITS = 1000


class SearchParameters(Parameters):
    """What is looked for, and where."""

    query: str = Field(min_length=1)
    collection: str = DEFAULT_COLLECTION
    limit: int = Field(default=10, ge=1, le=MAX_HITS)
    filter: dict[str, Any] = Field(default_factory=dict)
    kind: PointKind = PointKind.CHUNK


PointStart = Annotated[str, Field(pattern=POINT_ID_PATTERN)]


class CollectionParameters(Parameters):
    """Which collection."""

    collection: str


class PointsParameters(CollectionParameters):
    """Which of its points: so many, from an id on."""

    start: PointStart | None = None
    limit: int = Field(default=MAX_BATCH, ge=1, le=MAX_BATCH)


class GivenPointsParameters(CollectionParameters):
    """Points for a collection, and what they are of."""

    model: str
    dimension: int = Field(ge=1, le=MAX_DIMENSION)
    points: list[dict[str, Any]] = Field(max_length=MAX_BATCH)


class DocumentParameters(Parameters):
    """Which document, and where."""

    document: str
    collection: str = DEFAULT_COLLECTION


Withdraw = Callable[[str, str | None], Awaitable[Sequence[str]]]
"""Cancels the jobs that would store a document in a collection (None: any); returns their ids."""


class StoredVectors:
    """The handlers."""

    def __init__(
        self,
        configuration: ConfigurationHolder,
        searcher: Searcher,
        opener: StoreOpener,
        withdraw: Withdraw,
    ) -> None:
        self._configuration = configuration
        self._searcher = searcher
        self._opener = opener
        self._withdraw = withdraw
        self._building: dict[str, asyncio.Task[None]] = {}

    async def search(self, asked: SearchParameters) -> Answer:
        """Find the chunks that are nearest to a question."""
        found = await self._searcher.search(
            SearchRequest(
                query=asked.query,
                collection=asked.collection,
                limit=asked.limit,
                kind=asked.kind,
                matching={field: _condition(field, each) for field, each in asked.filter.items()},
            )
        )
        content = {
            "collection": asked.collection,
            "model": found.model,
            "hits": [_described_hit(hit) for hit in found.hits],
        }
        return embedding_answer(content, found.embedded)

    async def collections(self, _: Parameters) -> Answer:
        """List the collections."""
        store = await self._opener.store()
        return json_answer(await store.collections())

    async def collection(self, asked: CollectionParameters) -> Answer:
        """Describe one collection."""
        store = await self._opener.store()
        return json_answer(await store.collection(asked.collection))

    async def drop_collection(self, asked: CollectionParameters) -> Answer:
        """Delete a collection with all that it holds, and what was about to be stored in it."""
        is_dropped = False
        try:
            cancelled = await self._withdraw(asked.collection, None)
        except RequestRefused as error:
            if error.code != "storage_full":
                raise
            await self._drop(asked.collection)  # where nothing else can be written, this makes room
            is_dropped = True
            cancelled = await self._withdraw(asked.collection, None)
        with _may_be_missing(is_dropped or bool(cancelled)):
            await self._drop(asked.collection)
        return json_answer(
            {"collection": asked.collection, "deleted": True, "cancelled_jobs": cancelled}
        )

    async def _drop(self, collection: str) -> None:
        store = await self._opener.store()
        async with self._opener.replacing(collection):
            await store.drop_collection(collection)

    async def optimize(self, asked: CollectionParameters) -> Answer:
        """Begin to build the index of a collection; `indexed` tells when it is there."""
        store = await self._opener.store()
        name = asked.collection
        await store.space(name)
        if name not in self._building:
            building = asyncio.create_task(store.optimize(name), name=f"optimize-{name}")
            self._building[name] = building
            building.add_done_callback(lambda task: self._note_end(name, task))
        location = f"/collections/{name}"
        return json_answer({"collection": name, "location": location}, status=202)

    async def points(self, asked: PointsParameters) -> Answer:
        """Show points with their vectors, a page of them."""
        store = await self._opener.store()
        return json_answer(
            await store.points(asked.collection, start=asked.start, limit=asked.limit)
        )

    async def put_points(self, asked: GivenPointsParameters) -> Answer:
        """Write points as `points` shows them."""
        points = _points(asked.points)
        for point in points:
            reason = why_not_kept(point.payload)
            if reason is not None:
                raise RequestRefused("bad_request", f"`points`: the payload of one {reason}")
            require_length(asked.collection, asked.dimension, (point.vector,))
            if not is_finite(point.vector):
                raise RequestRefused(
                    "bad_request", f"`points`: the vector of '{point.id}' has what is not a number"
                )
        # Collections are kept also of models that are not in the catalogue (any more).
        model = self._configuration.current.model_name(asked.model) or asked.model
        store = await self._opener.store()
        await store.ensure_collection(asked.collection, model, asked.dimension)
        await store.upsert(asked.collection, points)
        return json_answer({"collection": asked.collection, "written": len(points)})

    async def document(self, asked: DocumentParameters) -> Answer:
        """Show what is stored of a document."""
        store = await self._opener.store()
        found = await store.document(asked.collection, asked.document)
        if found is None:
            raise _document_not_found(asked)
        return json_answer(
            {
                "id": found.document,
                "collection": asked.collection,
                "generation": found.generation,
                "chunks": found.chunks,
                **found.payload,
            }
        )

    async def delete_document(self, asked: DocumentParameters) -> Answer:
        """Delete a document with its chunks, and what was about to be stored of it."""
        cancelled = await self._withdraw(asked.collection, asked.document)
        store, found = await self._opener.store(), None
        async with self._opener.replacing(asked.collection):
            with _may_be_missing(bool(cancelled)):
                found = await store.document(asked.collection, asked.document)
                await store.delete_document(asked.collection, asked.document)
        if found is None and not cancelled:
            raise _document_not_found(asked)
        return json_answer(
            {
                "id": asked.document,
                "collection": asked.collection,
                "deleted": True,
                "cancelled_jobs": cancelled,
            }
        )

    def _note_end(self, name: str, building: asyncio.Task[None]) -> None:
        del self._building[name]
        if building.cancelled():
            return
        error = building.exception()
        if error is not None:
            log.error("store.optimize_failed", collection=name, problem=str(error))
        else:
            log.info("store.optimized", collection=name)


@contextmanager
def _may_be_missing(is_expected: bool) -> Iterator[None]:
    """Let a collection be missing, as where all that was on its way there has not come yet."""
    try:
        yield
    except RequestRefused as error:
        if error.code != "collection_not_found" or not is_expected:
            raise


def _points(given: Any) -> list[Point]:
    try:
        return msgspec.convert(given, list[Point])
    except msgspec.ValidationError as error:
        raise RequestRefused("bad_request", f"`points`: {error}") from error


def _condition(field: str, given: Any) -> Condition:
    try:
        condition: Condition = msgspec.convert(given, Condition)
    except msgspec.ValidationError as error:
        raise RequestRefused(
            "bad_request",
            f"`filter`: {field} must be a text, a whole number, a list of these, or an object with "
            "bounds on a number (gt, gte, lt, lte)",
        ) from error
    return condition


def _described_hit(hit: Hit) -> dict[str, Any]:
    return {"id": hit.id, "score": hit.score, "document": hit.document, **hit.payload}


def _document_not_found(asked: DocumentParameters) -> RequestRefused:
    return RequestRefused(
        "document_not_found",
        f"there is no document '{asked.document}' in the collection '{asked.collection}'",
    )
