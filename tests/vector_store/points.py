"""Points to put into stores."""

from array import array
from typing import Any

from supervisor.vector_store.port import Point, PointKind, point_id

MODEL, DIMENSION = "minilm", 4


def vector(*numbers: float) -> bytes:
    """Return a vector of four numbers; those that are not given are 0."""
    return array("f", [*numbers, *[0.0] * (DIMENSION - len(numbers))]).tobytes()


def chunk(
    document: str, index: int, *numbers: float, generation: str = "1", **payload: Any
) -> Point:
    """Return the point of a chunk."""
    return Point(
        id=point_id(document=document, model=MODEL, chunker="c1", index=index),
        document=document,
        kind=PointKind.CHUNK,
        generation=generation,
        vector=vector(*numbers),
        payload={"text": f"{document} {index}", **payload},
    )


def whole(document: str, *numbers: float, generation: str = "1", **payload: Any) -> Point:
    """Return the point of a whole document."""
    return Point(
        id=point_id(document=document, model=MODEL, chunker="c1", index=None),
        document=document,
        kind=PointKind.DOCUMENT,
        generation=generation,
        vector=vector(*numbers),
        payload=payload,
    )
