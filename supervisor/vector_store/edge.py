"""The embedded store: Qdrant Edge in a process of its own, which starts at the first use.

The engine is native code of several hundred megabytes in use: what goes wrong in it costs that
process, never the controller. One that dies is started again, and what it had not answered is
asked again, for every operation may be repeated.
"""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from supervisor.errors import RequestRefused
from supervisor.vector_store.messages import (
    DeleteDocument,
    DescribeCollection,
    DropCollection,
    EnsureCollection,
    FindDocument,
    ListCollections,
    Optimize,
    ReadPoints,
    Request,
    Search,
    Upsert,
)
from supervisor.vector_store.port import (
    MAX_BATCH,
    CollectionInfo,
    Filter,
    Hit,
    Point,
    PointKind,
    PointPage,
    StoredDocument,
    VectorSpace,
)
from supervisor.vector_store.worker_process import WorkerLost, WorkerProcess

log = structlog.get_logger()

_MAX_ATTEMPTS = 3
"""An operation that has ended the process so often is not asked again."""

_STOP_GRACE_S = 20.0


class EdgeStore:
    """A VectorStore in the collections of a folder, each a folder in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._worker: WorkerProcess | None = None
        self._starting = asyncio.Lock()
        self._spaces: dict[str, VectorSpace] = {}
        """Of collections that were asked for before: only their end can change them."""
        self._is_closed = False

    async def ensure_collection(self, name: str, model: str, dimension: int) -> None:
        """Make a collection where it is missing."""
        given = VectorSpace(model, dimension)
        if self._spaces.get(name) != given:
            await self._ask(EnsureCollection(name, model, dimension), None)
            self._spaces[name] = given

    async def collections(self) -> Sequence[CollectionInfo]:
        """Return all collections, by name."""
        found: list[CollectionInfo] = await self._ask(ListCollections(), list[CollectionInfo])
        return found

    async def space(self, name: str) -> VectorSpace:
        """Return what the vectors of a collection have in common."""
        space = self._spaces.get(name)
        if space is None:
            found = await self.collection(name)
            space = self._spaces[name] = VectorSpace(found.model, found.dimension)
        return space

    async def collection(self, name: str) -> CollectionInfo:
        """Return one collection."""
        found: CollectionInfo = await self._ask(DescribeCollection(name), CollectionInfo)
        return found

    async def drop_collection(self, name: str) -> None:
        """Delete a collection with all its points."""
        try:
            await self._ask(DropCollection(name), None)
        finally:
            self._spaces.pop(name, None)

    async def upsert(self, collection: str, points: Sequence[Point]) -> None:
        """Write points; one with the same id is replaced."""
        for begin in range(0, len(points), MAX_BATCH):
            await self._ask(Upsert(collection, points[begin : begin + MAX_BATCH]), None)

    async def delete_document(
        self, collection: str, document: str, *, except_generation: str | None = None
    ) -> None:
        """Delete the points of a document: all, or those of other generations."""
        await self._ask(DeleteDocument(collection, document, except_generation), None)

    async def document(self, collection: str, document: str) -> StoredDocument | None:
        """Return a document; None where its own point is not there."""
        found: StoredDocument | None = await self._ask(
            FindDocument(collection, document), StoredDocument | None
        )
        return found

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
        found: list[Hit] = await self._ask(
            Search(collection, vector, limit, kind, matching or {}), list[Hit]
        )
        return found

    async def points(self, collection: str, *, start: str | None, limit: int) -> PointPage:
        """Return points with their vectors, from the id `start` on (None: the first)."""
        found: PointPage = await self._ask(ReadPoints(collection, start, limit), PointPage)
        return found

    async def optimize(self, collection: str) -> None:
        """Build the index over what was written since the last time; this can take long."""
        await self._ask(Optimize(collection), None)

    async def close(self) -> None:
        """Have the process write everything to the disk, and end it."""
        self._is_closed = True
        async with self._starting:
            if self._worker is not None:
                await self._worker.stop(_STOP_GRACE_S)

    async def _ask(self, request: Request, kind: Any) -> Any:
        for _ in range(_MAX_ATTEMPTS):
            worker = await self._running_worker()
            try:
                content = await worker.ask(request)
            except WorkerLost:
                continue
            return msgspec.msgpack.decode(content, type=kind)
        raise RequestRefused(
            "store_failed",
            f"the process of the vector store ended {_MAX_ATTEMPTS} times at one operation "
            f"({type(request).__name__}); its folder is {self._folder}",
        )

    async def _running_worker(self) -> WorkerProcess:
        """Return the process; starts one where none runs. Raises RequestRefused."""
        worker = self._worker
        if worker is not None and not worker.is_lost and not self._is_closed:
            return worker
        async with self._starting:
            if self._is_closed:
                raise RequestRefused("shutting_down", "the controller is shutting down")
            if self._worker is None or self._worker.is_lost:
                self._worker = await self._start(self._worker)
            return self._worker

    async def _start(self, former: WorkerProcess | None) -> WorkerProcess:
        if former is not None:
            log.warning("store.died", pid=former.pid)
            await former.stop(0)
        try:
            worker = await WorkerProcess.start(self._folder, os.environ)
        except OSError as error:
            raise RequestRefused(
                "store_failed", f"the process of the vector store cannot be started: {error}"
            ) from error
        log.info("store.started", pid=worker.pid, folder=str(self._folder))
        return worker
