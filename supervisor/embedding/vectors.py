"""Vectors as the embedding service carries them: float32 numbers, little-endian, in `bytes`.

So a vector of 1,024 numbers takes 4 KiB, where a list of floats would take 32. Sums are made in
double precision. The processors that this product runs on are little-endian themselves.
"""

import math
from array import array
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence

NUMBER_BYTES = 4


def pack(numbers: Iterable[float]) -> bytes:
    """Return the numbers as a vector."""
    return array("f", numbers).tobytes()


def unpack(vector: bytes) -> list[float]:
    """Return a vector's numbers."""
    return list(_numbers(vector))


def from_base64(text: str | bytes) -> bytes:
    """Read a vector as servers and OpenAI's API write it. Raises ValueError for anything else."""
    vector = b64decode(text, validate=True)
    if not vector or len(vector) % NUMBER_BYTES:
        raise ValueError(f"{len(vector)} bytes are no vector of 4-byte numbers")
    return vector


def to_base64(vector: bytes) -> str:
    """Write a vector as OpenAI's API does with `encoding_format: base64`."""
    return b64encode(vector).decode("ascii")


def length(vector: bytes) -> int:
    """Return how many numbers a vector has."""
    return len(vector) // NUMBER_BYTES


def is_finite(vector: bytes) -> bool:
    """Whether every number is finite: an infinity, or what is not a number, makes the sum one."""
    return math.isfinite(sum(_numbers(vector)))


def normalized(vector: bytes) -> bytes:
    """Return the vector at length 1; one of length 0 stays as it is."""
    numbers = _numbers(vector)
    norm = math.hypot(*numbers)
    return pack([number / norm for number in numbers]) if norm else vector


def cut(vector: bytes, dimensions: int) -> bytes:
    """Return the first `dimensions` numbers, which have another length: normalise them again."""
    return vector[: dimensions * NUMBER_BYTES]


def joined(vectors: Sequence[bytes], weights: Sequence[float]) -> bytes:
    """Return the mean of the vectors of an input's windows, each weighted by its tokens.

    They must not be normalised before: the mean of mean-pooled windows is then the mean over all
    tokens. Nor is what is returned.
    """
    total = sum(weights)
    columns = zip(*(_numbers(vector) for vector in vectors), strict=True)
    return pack(
        sum(weight * number for weight, number in zip(weights, column, strict=True)) / total
        for column in columns
    )


def cosine(one: bytes, other: bytes) -> float:
    """Return the cosine of the angle between two vectors; 0 where one has length 0.

    Raises ValueError for vectors of different lengths.
    """
    first, second = _numbers(one), _numbers(other)
    product = math.fsum(a * b for a, b in zip(first, second, strict=True))
    norms = math.hypot(*first) * math.hypot(*second)
    return product / norms if norms else 0.0


def _numbers(vector: bytes) -> "memoryview[float]":
    return memoryview(vector).cast("f")
