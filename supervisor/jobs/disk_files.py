"""Files of jobs in a folder: of one controller, or one that several share."""

import asyncio
import contextlib
import hashlib
import math
import os
import re
import shutil
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from pathlib import Path
from secrets import token_hex

import msgspec
import structlog

from supervisor.errors import RequestRefused
from supervisor.jobs.values import StoredFile

log = structlog.get_logger()

PIECE_BYTES = 256 * 1024

FILE_NOT_FOUND = "file_not_found"
"""The code of the refusal of a file that is not there, in any store."""

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_KNOWN = ".json"
_COMING = ".coming"
_OURS = re.compile(rf"file-[A-Za-z0-9_-]+(-[0-9a-f]{{8}}{re.escape(_COMING)})?")
"""How contents are named, and what is on its way: others may keep files in the folder, too."""

_COMING_S = 86_400.0
"""After so long, what was on its way into the folder has lost whoever brought it."""

_decode = msgspec.json.Decoder(StoredFile).decode


_LOOK_AGAIN_S = 10.0


class DiskFiles:
    """See `FileStore`. A file is there once what is known of it stands beside its content."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        """`folder` exists; what others keep in it is left alone."""
        self._folder = folder
        self._clock = clock
        self._used_bytes: int | None = None
        """What files take, since they were all looked at."""
        self._looked_at = -math.inf

    async def add(self, file: StoredFile, path: Path) -> StoredFile:
        """See `FileStore`."""
        try:
            kept, is_new = await asyncio.to_thread(self._add, file, path)
        except asyncio.CancelledError:
            self._used_bytes = None  # the file may have been kept
            raise
        except OSError as error:
            raise RequestRefused(
                "storage_full",
                f"{self._folder} cannot keep a file of jobs: {error.strerror}; make room on its "
                "disk, or delete files (DELETE /v1/files/{id})",
            ) from error
        if is_new:
            self._count(kept.size_bytes)
        return kept

    async def file(self, file_id: str) -> StoredFile | None:
        """See `FileStore`."""
        return await asyncio.to_thread(self._known, file_id)

    async def files(self) -> Sequence[StoredFile]:
        """See `FileStore`."""
        found = await asyncio.to_thread(lambda: list(self._all()))
        present = (each for each in found if each.expires_at > self._clock())
        return sorted(present, key=lambda each: (each.created_at, each.id), reverse=True)

    async def used_bytes(self) -> int:
        """See `FileStore`."""
        now = time.monotonic()
        # Other controllers write in the folder, too, and operators clear it by hand.
        if self._used_bytes is None or now - self._looked_at > _LOOK_AGAIN_S:
            self._used_bytes, self._looked_at = await asyncio.to_thread(self._sum), now
        return self._used_bytes

    async def read(self, file_id: str) -> AsyncGenerator[bytes, None]:
        """See `FileStore`."""
        if await self.file(file_id) is None:
            raise file_not_found(file_id)
        at = 0
        try:
            while piece := await asyncio.to_thread(_piece, self._content(file_id), at):
                yield piece
                at += len(piece)
        except FileNotFoundError:  # it was removed meanwhile
            raise file_not_found(file_id) from None

    async def remove(self, file_id: str) -> bool:
        """See `FileStore`."""
        file = await self.file(file_id)
        if file is None:
            return False
        if await asyncio.to_thread(self._remove, file_id):  # and nobody else meanwhile
            self._count(-file.size_bytes)
        return True

    async def remove_expired(self) -> None:
        """See `FileStore`."""
        await asyncio.to_thread(self._remove_expired)
        self._used_bytes = None

    def _count(self, more_bytes: int) -> None:
        if self._used_bytes is not None:
            self._used_bytes += more_bytes

    def _sum(self) -> int:
        return sum(file.size_bytes for file in self._all())

    def _add(self, file: StoredFile, path: Path) -> tuple[StoredFile, bool]:
        """Keep a file; returns it, and whether none of its id was there."""
        present = self._known(file.id)
        if present is not None:
            path.unlink()
            return present, False
        coming = self._content(f"{file.id}-{token_hex(4)}{_COMING}")  # one may come twice at once
        try:
            return self._bring(file, path, coming), True
        except OSError:
            coming.unlink(missing_ok=True)  # half of it would fill the disk for a day
            raise

    def _bring(self, file: StoredFile, path: Path, coming: Path) -> StoredFile:
        shutil.move(path, coming)  # a copy where the folder is on another file system
        with coming.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        size_bytes = coming.stat().st_size
        known = msgspec.structs.replace(file, size_bytes=size_bytes, sha256=digest)
        _move_durably(coming, self._content(file.id))
        coming.write_bytes(msgspec.json.encode(known))
        _move_durably(coming, self._content(f"{file.id}{_KNOWN}"))
        return known

    def _content(self, name: str) -> Path:
        return self._folder / name

    def _known(self, file_id: str) -> StoredFile | None:
        if not _ID.fullmatch(file_id):  # it comes from clients, and becomes part of a path
            return None
        found = self._read_known(self._content(f"{file_id}{_KNOWN}"))
        return found if found is not None and found.expires_at > self._clock() else None

    def _read_known(self, path: Path) -> StoredFile | None:
        try:
            return _decode(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("jobs.file_unreadable", path=str(path), reason=str(error))
            return None

    def _all(self) -> Iterator[StoredFile]:
        for path in self._folder.glob(f"file-*{_KNOWN}"):
            found = self._read_known(path)
            if found is not None and path.name == f"{found.id}{_KNOWN}":
                yield found

    def _remove(self, file_id: str) -> bool:
        """Remove a file. Returns whether it was there."""
        try:
            self._content(f"{file_id}{_KNOWN}").unlink()
            was_there = True
        except FileNotFoundError:
            was_there = False
        self._content(file_id).unlink(missing_ok=True)
        return was_there

    def _remove_expired(self) -> None:
        now = self._clock()
        for file in self._all():
            if file.expires_at <= now:
                with _told_of(self._content(file.id)):
                    self._remove(file.id)
        for path in self._folder.iterdir():
            with _told_of(path):
                if _OURS.fullmatch(path.name) and self._is_abandoned(path, now):
                    path.unlink(missing_ok=True)

    def _is_abandoned(self, path: Path, now: float) -> bool:
        """Whether a file has no record, nor will have one."""
        if not path.is_file() or path.with_name(f"{path.name}{_KNOWN}").exists():
            return False
        return path.stat().st_mtime < now - _COMING_S


@contextlib.contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Log what keeps one file from being removed: the others can be."""
    try:
        yield
    except FileNotFoundError:
        pass  # another controller was faster
    except OSError as error:
        log.warning("jobs.file_not_removed", path=str(path), reason=error.strerror)


def _piece(path: Path, at: int) -> bytes:
    """Return what stands there in a file, which is not left open: its reader may be cancelled."""
    with path.open("rb", buffering=0) as content:
        content.seek(at)
        return content.read(PIECE_BYTES)


def _move_durably(path: Path, to: Path) -> None:
    """Move a file so that it is there whole after a power failure, or not at all."""
    _sync(path)
    path.replace(to)
    _sync(to.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_not_found(file_id: str) -> RequestRefused:
    """Return the refusal of a file that is not there."""
    return RequestRefused(
        FILE_NOT_FOUND,
        f"there is no file '{file_id}'; it was deleted, its time is over, or it never was: "
        "GET /v1/files lists what there is",
    )
