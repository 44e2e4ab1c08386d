"""A collection to measure with: vectors in clusters, as those of texts are, and questions to it."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_edge import (
    EdgeShard,
    FieldCondition,
    Filter,
    MatchValue,
    Query,
    QueryRequest,
    SearchParams,
)

from supervisor.vector_store.edge import EdgeStore
from supervisor.vector_store.port import Point, PointKind, point_id

NAME, MODEL, DIMENSION = "bench", "minilm", 384

LIMIT = 10
_BATCH = 256
_CHUNKS_OF_A_DOCUMENT = 100
_CLUSTERS = 200
_TEXT = "a passage of two hundred bytes, about what a chunk of a hundred and twenty tokens has " * 2

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Vectors of chunks, and those of questions, each near to one of the same clusters."""

    vectors: Vectors
    questions: Vectors

    @classmethod
    def of(cls, size: int, questions: int) -> "Corpus":
        """Make the same one for the same numbers."""
        random = np.random.default_rng(size)
        centres = random.standard_normal((_CLUSTERS, DIMENSION))
        return cls(*(_around(centres, count, random) for count in (size, questions)))

    def points(self) -> Iterator[Sequence[Point]]:
        """Yield the points, in batches; each hundredth is of a whole document."""
        points = (_point(index, row) for index, row in enumerate(self.vectors))
        while batch := list(islice(points, _BATCH)):
            yield batch


def _around(centres: NDArray[np.float64], count: int, random: np.random.Generator) -> Vectors:
    chosen = centres[random.integers(0, len(centres), count)]
    near = chosen + 0.5 * random.standard_normal(chosen.shape)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    return near.astype("<f4")


def _point(index: int, row: Vectors) -> Point:
    document, chunk = divmod(index, _CHUNKS_OF_A_DOCUMENT)
    is_whole = chunk == _CHUNKS_OF_A_DOCUMENT - 1
    return Point(
        id=point_id(document=f"document-{document}", model=MODEL, chunker="bench", index=chunk),
        document=f"document-{document}",
        kind=PointKind.DOCUMENT if is_whole else PointKind.CHUNK,
        generation="1",
        vector=row.tobytes(),
        payload={"text": _TEXT, "page": chunk},
    )


@asynccontextmanager
async def filled_store(folder: Path, corpus: Corpus) -> AsyncIterator[EdgeStore]:
    """Yield a store in a folder with the corpus in its collection."""
    store = EdgeStore(folder)
    try:
        await store.ensure_collection(NAME, MODEL, DIMENSION)
        for points in corpus.points():
            await store.upsert(NAME, points)
        yield store
    finally:
        await store.close()


class Library:
    """The engine in this process, asked as the store's process asks it."""

    def __init__(self, folder: Path) -> None:
        """Open the shard of a collection whose store is closed."""
        (shard,) = (folder / NAME).glob("shard-*")
        self._shard = EdgeShard.load(str(shard))

    def search(self, vector: Vectors, *, is_exact: bool = False) -> list[Any]:
        """Return the hits."""
        chunks = FieldCondition(key="kind", match=MatchValue(value=PointKind.CHUNK.value))
        return self._shard.query(
            QueryRequest(
                query=Query.Nearest(vector.tolist()),
                filter=Filter(must=[chunks]),
                limit=LIMIT,
                with_payload=True,
                params=SearchParams(hnsw_ef=256, exact=is_exact),
            )
        )

    def close(self) -> None:
        """Let go of the shard."""
        self._shard.close()
