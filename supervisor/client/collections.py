"""The collections of a running controller, as what moves collections reads and writes them."""

from collections.abc import Sequence

import msgspec

from supervisor.client.answers import WrittenPoints
from supervisor.client.connection import Connection
from supervisor.vector_store.port import CollectionInfo, Collections, Point, PointPage, VectorSpace


class RemoteCollections:
    """A Source and a Destination (vector_store/moving.py), by a controller's routes.

    All raise NoController, and Refused.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._spaces: dict[str, VectorSpace] = {}

    async def all(self) -> Collections:
        """Return all collections."""
        return await self._connection.ask("GET", "collections", shape=Collections)

    async def collection(self, name: str) -> CollectionInfo:
        """Return one collection, with its counts."""
        return await self._connection.ask("GET", "collections", name, shape=CollectionInfo)

    async def points(self, collection: str, *, start: str | None, limit: int) -> PointPage:
        """Return points with their vectors, from the id `start` on (None: the first)."""
        query = {"limit": str(limit)} | ({} if start is None else {"start": start})
        return await self._connection.ask(
            "GET", "collections", collection, "points", query=query, shape=PointPage
        )

    async def ensure_collection(self, name: str, model: str, dimension: int) -> None:
        """Make a collection where it is missing."""
        self._spaces[name] = VectorSpace(model, dimension)
        await self._put(name, ())

    async def upsert(self, collection: str, points: Sequence[Point]) -> None:
        """Write points; one with the same id is replaced."""
        await self._put(collection, points)

    async def _put(self, name: str, points: Sequence[Point]) -> None:
        space = self._spaces[name]
        body = {"model": space.model, "dimension": space.dimension}
        given = msgspec.to_builtins(points)  # with vectors in base64, as JSON has them
        await self._connection.ask(
            *("POST", "collections", name, "points"),
            body={**body, "points": given},
            shape=WrittenPoints,
        )
