"""Collections on the move: to another store, into a file, and back.

A backup is JSON, a line for each point, behind a line that says what the collection is for and
before one that says how many there are, by which one that was cut short is known. What is written
while a collection is read may be in it or not.
"""

import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Protocol

import msgspec

from supervisor.errors import SupervisorError
from supervisor.vector_store.port import MAX_BATCH, CollectionInfo, Point, PointPage, VectorSpace

_FORMAT = 1

Progress = Callable[[int, int], None]
"""Is told how many points have been moved, and how many there were at the beginning."""


class Source(Protocol):
    """What a collection is read from: a store, or the controller that has it open."""

    async def collection(self, name: str) -> CollectionInfo:
        """As VectorStore."""
        ...

    async def points(self, collection: str, *, start: str | None, limit: int) -> PointPage:
        """As VectorStore."""
        ...


class Destination(Protocol):
    """What a collection is written to."""

    async def ensure_collection(self, name: str, model: str, dimension: int) -> None:
        """As VectorStore."""
        ...

    async def upsert(self, collection: str, points: Sequence[Point]) -> None:
        """As VectorStore."""
        ...


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of a backup. `points`: how many there were when it began."""

    format: int
    collection: str
    space: VectorSpace
    points: int


class End(msgspec.Struct, frozen=True, kw_only=True):
    """The last line of a backup."""

    points: int


async def copy(
    source: Source, name: str, destination: Destination, new_name: str, progress: Progress
) -> int:
    """Copy a collection to another store; returns how many points.

    What is there under the same ids is replaced, so a copy that was cut short is just begun again.
    Raises as the stores do.
    """
    info = await source.collection(name)
    await destination.ensure_collection(new_name, info.model, info.dimension)
    copied = 0
    async for points in _pages(source, name):
        await destination.upsert(new_name, points)
        copied += len(points)
        progress(copied, info.chunks + info.documents)
    return copied


async def back_up(source: Source, name: str, path: Path, progress: Progress) -> int:
    """Write a collection to a file, which is there once it is complete; returns how many points.

    Raises as the source does, and SupervisorError where the file cannot be written.
    """
    info = await source.collection(name)
    total = info.chunks + info.documents
    space = VectorSpace(info.model, info.dimension)
    with _new_file(path) as file:
        file.write(_line(Head(format=_FORMAT, collection=name, space=space, points=total)))
        written = 0
        async for points in _pages(source, name):
            file.writelines(map(_line, points))
            written += len(points)
            progress(written, total)
        file.write(_line(End(points=written)))
    return written


async def restore(
    path: Path, destination: Destination, new_name: str | None, progress: Progress
) -> tuple[str, int]:
    """Write what is in a backup to a collection (None: of the same name).

    Returns the collection, and how many points. Raises as the destination does, and SupervisorError
    where the file is not a backup, or not a whole one; what was in it until there is written.
    """
    with _opened(path) as file:
        head = _read_head(path, file)
        name = new_name or head.collection
        await destination.ensure_collection(name, head.space.model, head.space.dimension)
        restored = 0
        for points in _batches(path, file):
            await destination.upsert(name, points)
            restored += len(points)
            progress(restored, head.points)
    return name, restored


async def _pages(source: Source, name: str) -> AsyncIterator[Sequence[Point]]:
    page = await source.points(name, start=None, limit=MAX_BATCH)
    yield page.points
    while page.next is not None:
        page = await source.points(name, start=page.next, limit=MAX_BATCH)
        yield page.points


def _batches(path: Path, lines: Iterable[bytes]) -> Iterator[Sequence[Point]]:
    """Yield the points of a backup behind its head. Raises SupervisorError."""
    decode = msgspec.json.Decoder(Point).decode
    rest = iter(lines)
    count, last = 0, b""
    while batch := list(islice(rest, MAX_BATCH)):
        try:
            points = [decode(line) for line in [last, *batch][:-1] if line]
        except msgspec.MsgspecError as error:
            raise SupervisorError(f"{path}: behind point {count}: {error}") from error
        count, last = count + len(points), batch[-1]
        yield points
    if not _is_end(last, count):
        raise SupervisorError(f"{path} is not whole: it breaks off behind {count} points")


def _is_end(line: bytes, count: int) -> bool:
    try:
        return msgspec.json.decode(line, type=End).points == count
    except msgspec.MsgspecError:
        return False


def _read_head(path: Path, file: IO[bytes]) -> Head:
    try:
        head = msgspec.json.decode(file.readline(), type=Head)
    except msgspec.MsgspecError as error:
        raise SupervisorError(f"{path} is no backup of a collection: {error}") from error
    if head.format > _FORMAT:
        raise SupervisorError(
            f"{path} was written by a newer version (format {head.format}; this one knows "
            f"{_FORMAT}); use that version"
        )
    return head


@contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file that takes its place once all is written. Raises SupervisorError."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        raise SupervisorError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):  # else it would hide the error that is being raised
            unfinished.unlink(missing_ok=True)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise SupervisorError(f"{path} cannot be read: {error.strerror}") from error


def _line(value: msgspec.Struct) -> bytes:
    return msgspec.json.encode(value) + b"\n"
