"""The collections of the embedded store, each in a folder, opened at its first use.

The methods do what those of VectorStore do. What writes waits while an index is built: that is done
with a copy of the shard, so that searches go on, and a copy knows nothing of what comes later.
"""

import asyncio
import os
import shutil
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from supervisor.core.byte_size import MIB
from supervisor.errors import RequestRefused
from supervisor.own_process import command_of, python_path
from supervisor.vector_store.port import (
    CollectionInfo,
    Collections,
    DamagedCollection,
    Filter,
    Hit,
    Point,
    PointKind,
    PointPage,
    StoredDocument,
    VectorSpace,
    collection_not_found,
    require_name,
    require_same,
)
from supervisor.vector_store.shard import DESCRIPTION, Shard

_MIN_FREE_BYTES = 64 * MIB
"""What stays free of the disk. The engine writes through mapped memory, and is ended by the kernel
where a page of that finds no room; so many bytes hold what it writes at once, and is asked before.
"""


class Shards:
    """The collections of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, Shard] = {}
        self._writing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def ensure_collection(self, name: str, model: str, dimension: int) -> None:
        """Make a collection where it is missing."""
        require_name(name)
        given = VectorSpace(model, dimension)
        if not (self._folder / name / DESCRIPTION).exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._require_room(0)
            self._open[name] = Shard.create(self._folder / name, given)
        require_same(name, self._shard(name).space, given)

    async def collections(self) -> Collections:
        """Return all collections: one that cannot be opened hides no other."""
        found, damaged = list[CollectionInfo](), list[DamagedCollection]()
        for name in sorted(path.parent.name for path in self._folder.glob(f"*/{DESCRIPTION}")):
            try:
                found.append(self._shard(name).info())
            except RequestRefused as refusal:
                damaged.append(DamagedCollection(name=name, reason=refusal.message))
        return Collections(collections=found, damaged=damaged)

    async def collection(self, name: str) -> CollectionInfo:
        """Return one collection, with its counts."""
        return self._shard(name).info()

    async def drop_collection(self, name: str) -> None:
        """Delete a collection with all its points; also one whose files cannot be read any more."""
        require_name(name)
        folder = self._folder / name
        async with self._writing[name]:
            try:
                (folder / DESCRIPTION).unlink()
            except FileNotFoundError:
                raise collection_not_found(name) from None
            shard = self._open.pop(name, None)
            if shard is not None:
                shard.close()
            shutil.rmtree(folder)

    async def upsert(self, collection: str, points: Sequence[Point]) -> None:
        """Write points; one with the same id is replaced. Raises RequestRefused `storage_full`."""
        async with self._held(collection) as shard:
            self._require_room(0)
            shard.upsert(points)

    async def delete_document(
        self, collection: str, document: str, except_generation: str | None
    ) -> None:
        """Delete the points of a document: all, or those of other generations."""
        async with self._held(collection) as shard:
            shard.delete_document(document, except_generation)

    async def document(self, collection: str, document: str) -> StoredDocument | None:
        """Return a document; None where its own point is not there."""
        return self._shard(collection).document(document)

    async def search(
        self, collection: str, vector: bytes, limit: int, kind: PointKind, matching: Filter
    ) -> list[Hit]:
        """Return the points of a kind that are nearest to a vector, the nearest first."""
        return self._shard(collection).search(vector, limit, kind, matching)

    async def points(self, collection: str, start: str | None, limit: int) -> PointPage:
        """Return points with their vectors, from the id `start` on (None: the first)."""
        return self._shard(collection).points(start, limit)

    async def optimize(self, collection: str) -> None:
        """Build the index over what was written since the last time."""
        async with self._held(collection) as shard:
            self._require_room(0)
            source, copy = shard.copy_paths()
            self._require_room(2 * _bytes_on_disk(source))  # a copy, and its index
            try:
                await _build_index(source, copy)
            except BaseException:  # the room that it took is wanted for the next attempt
                await asyncio.to_thread(shutil.rmtree, copy, ignore_errors=True)
                raise
            shard.replace_by(copy)

    def flush(self) -> None:
        """Write to the disk what was written since the last time."""
        for shard in self._open.values():
            shard.flush()

    def close(self) -> None:
        """Write everything to the disk, and close the collections."""
        for shard in self._open.values():
            shard.close()

    @asynccontextmanager
    async def _held(self, name: str) -> AsyncIterator[Shard]:
        """Yield a collection for one who writes, while nobody else does."""
        self._shard(name)  # or there is none
        async with self._writing[name]:
            yield self._shard(name)

    def _require_room(self, needed_bytes: int) -> None:
        """Raise RequestRefused `storage_full` where there is no room beyond what must stay free."""
        free_bytes = shutil.disk_usage(self._folder).free
        if free_bytes < needed_bytes + _MIN_FREE_BYTES:
            raise RequestRefused(
                "storage_full",
                f"{self._folder} has {free_bytes // MIB} MiB left on its disk, and "
                f"{(needed_bytes + _MIN_FREE_BYTES) // MIB} MiB are needed; free some",
            )

    def _shard(self, name: str) -> Shard:
        shard = self._open.get(name)
        if shard is None:
            require_name(name)
            shard = self._open[name] = Shard.load(self._folder / name)
        return shard


def _bytes_on_disk(folder: Path) -> int:
    """Return what a folder takes of its disk: the engine's files have holes."""
    return sum(path.lstat().st_blocks for path in folder.rglob("*")) * 512


async def _build_index(source: Path, copy: Path) -> None:
    """Have a copy of a shard made that has an index. Raises RequestRefused."""
    command = command_of("supervisor.vector_store.index_builder", str(source), str(copy))
    environment = {**os.environ, "PYTHONPATH": python_path()}
    builder = await asyncio.create_subprocess_exec(
        *command, env=environment, stdin=asyncio.subprocess.DEVNULL
    )
    status = await builder.wait()
    if status != 0:
        raise RequestRefused(
            "store_failed",
            f"the index of {source.parent.name} was not built: its process ended with {status}; "
            "searches go on without it",
        )
