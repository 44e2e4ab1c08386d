"""The embedded store: Qdrant Edge in a process of its own, which starts at the first use.

The engine is native code of several hundred megabytes in use: what goes wrong in it costs that
process, never the controller. One that dies is started again, and what it had not answered is
asked again, for every operation may be repeated.
"""

from collections.abc import Sequence
from pathlib import Path

from supervisor.side_process.kept import KeptProcess
from supervisor.vector_store.messages import (
    DeleteDocument,
    DescribeCollection,
    DropCollection,
    EnsureCollection,
    FindDocument,
    ListCollections,
    Optimize,
    ReadPoints,
    Search,
    Upsert,
)
from supervisor.vector_store.port import (
    MAX_BATCH,
    CollectionInfo,
    Collections,
    Filter,
    Hit,
    Point,
    PointKind,
    PointPage,
    StoredDocument,
    VectorSpace,
)

_PROGRAM = "supervisor.vector_store.edge_worker"
_STOP_GRACE_S = 20.0


class EdgeStore:
    """A VectorStore in the collections of a folder, each a folder in it."""

    def __init__(self, folder: Path) -> None:
        self._process = KeptProcess(
            "the process of the vector store", (_PROGRAM, str(folder)), "store_failed"
        )
        self._spaces: dict[str, VectorSpace] = {}
        """Of collections that were asked for before: only their end can change them."""

    async def ensure_collection(self, name: str, model: str, dimension: int) -> None:
        """Make a collection where it is missing."""
        given = VectorSpace(model, dimension)
        if self._spaces.get(name) != given:
            await self._process.ask(EnsureCollection(name, model, dimension), None)
            self._spaces[name] = given

    async def collections(self) -> Collections:
        """Return all collections."""
        found: Collections = await self._process.ask(ListCollections(), Collections)
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
        found: CollectionInfo = await self._process.ask(DescribeCollection(name), CollectionInfo)
        return found

    async def drop_collection(self, name: str) -> None:
        """Delete a collection with all its points."""
        try:
            await self._process.ask(DropCollection(name), None)
        finally:
            self._spaces.pop(name, None)

    async def upsert(self, collection: str, points: Sequence[Point]) -> None:
        """Write points; one with the same id is replaced."""
        for begin in range(0, len(points), MAX_BATCH):
            await self._process.ask(Upsert(collection, points[begin : begin + MAX_BATCH]), None)

    async def delete_document(
        self, collection: str, document: str, *, except_generation: str | None = None
    ) -> None:
        """Delete the points of a document: all, or those of other generations."""
        await self._process.ask(DeleteDocument(collection, document, except_generation), None)

    async def document(self, collection: str, document: str) -> StoredDocument | None:
        """Return a document; None where its own point is not there."""
        found: StoredDocument | None = await self._process.ask(
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
        found: list[Hit] = await self._process.ask(
            Search(collection, vector, limit, kind, matching or {}), list[Hit]
        )
        return found

    async def points(self, collection: str, *, start: str | None, limit: int) -> PointPage:
        """Return points with their vectors, from the id `start` on (None: the first)."""
        found: PointPage = await self._process.ask(ReadPoints(collection, start, limit), PointPage)
        return found

    async def optimize(self, collection: str) -> None:
        """Build the index over what was written since the last time; this can take long."""
        await self._process.ask(Optimize(collection), None)

    async def close(self) -> None:
        """Have the process write everything to the disk, and end it."""
        await self._process.close(_STOP_GRACE_S)
