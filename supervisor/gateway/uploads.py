"""Bodies that go to disk as they come, for routes that say so: a form with a file, or the file.

Such a body is never held in memory. Its file is removed when its request is over, unless whoever
answers it has moved it elsewhere: it stands in the data folder, where moving costs nothing.
"""

import asyncio
import contextlib
import errno
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from aiohttp import BodyPartReader, MultipartReader, web
from aiohttp.http import HttpProcessingError

from supervisor.documents.extraction.text import decoded
from supervisor.errors import RequestRefused
from supervisor.gateway.body_reading import (
    BodyPace,
    encoding_not_supported,
    meet_expectation,
    too_large,
)

FILE_FIELD = "file"
"""The field under which a body that is no form is given to its route."""

_PREFIX = "upload-"
_FORM = "multipart/form-data"
_PIECE_BYTES = 64 * 1024
_MAX_FIELDS = 100
_MAX_FIELD_BYTES = 64 * 1024  # of all fields together, beside the file
_IS_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_Result = TypeVar("_Result")


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """A file that a request brought. Name and type are what its client says of it."""

    path: Path
    size_bytes: int
    file_name: str | None
    content_type: str | None


Fields = Sequence[tuple[str, str | Upload]]


class Uploads:
    """Receives uploads into a folder of the data folder.

    What a killed controller left there is removed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for left in folder.glob(f"{_PREFIX}*"):
            left.unlink(missing_ok=True)

    @asynccontextmanager
    async def receive(
        self, request: web.BaseRequest, body_timeout_s: float, max_bytes: int, setting: str
    ) -> AsyncIterator[Fields]:
        """Yield the fields of a form, or the whole body as the field `file`, once it is here.

        The file may have `max_bytes`, by that setting. Raises RequestRefused `body_too_large`,
        `storage_full`, `body_timeout`, `encoding_not_supported` or `bad_request`.
        """
        is_form = request.content_type == _FORM
        _require_no_encoding(request)
        announced_bytes = (request.content_length or 0) - (_MAX_FIELD_BYTES if is_form else 0)
        if announced_bytes > max_bytes:
            raise too_large(max_bytes, setting)
        spool = _Spool(self._folder, max_bytes, setting)
        pace = BodyPace(request.content, body_timeout_s)
        try:
            await spool.require_room(announced_bytes)
            await meet_expectation(request)
            yield await (_read_form if is_form else _read_whole)(request, pace, spool)
        finally:
            await spool.discard()


class _Spool:
    """The one file of a request while it comes.

    All work on it is done by a thread of its own, one thing after the other: a disk that is behind
    does not hold the event loop, and a client that leaves does not have a file removed that is
    still being written.
    """

    def __init__(self, folder: Path, max_bytes: int, setting: str) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._setting = setting
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._file: tempfile._TemporaryFileWrapper[bytes] | None = None
        self._size_bytes = 0

    async def require_room(self, announced_bytes: int) -> None:
        """Raise RequestRefused `storage_full` where the disk has less room than was announced."""
        free_bytes = await self._done(self._free_bytes)
        if announced_bytes > free_bytes:
            raise _full(f"{free_bytes} bytes are free, and the body has {announced_bytes}")

    async def open(self) -> None:
        """Begin the file. Raises RequestRefused `storage_full`, or `bad_request` for a second."""
        if self._file is not None:
            raise RequestRefused("bad_request", "the form has two files; send one at a time")
        await self._done(self._make)

    async def write(self, piece: bytes) -> None:
        """Write on. Raises RequestRefused `body_too_large` or `storage_full`."""
        assert self._file is not None  # noqa: S101 - it was opened
        self._size_bytes += len(piece)
        if self._size_bytes > self._max_bytes:
            raise too_large(self._max_bytes, self._setting)
        await self._done(self._file.write, piece)

    async def close(self, file_name: str | None, content_type: str | None) -> Upload:
        """End the file, and return it. Raises RequestRefused `storage_full`."""
        assert self._file is not None  # noqa: S101 - it was opened
        await self._done(self._file.close)
        return Upload(
            path=Path(self._file.name),
            size_bytes=self._size_bytes,
            file_name=file_name,
            content_type=content_type,
        )

    async def discard(self) -> None:
        """Remove the file, where it is still here."""
        await self._done(self._remove)
        self._thread.shutdown(wait=False)

    def _free_bytes(self) -> int:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # somebody may have deleted it
        return shutil.disk_usage(self._folder).free

    def _make(self) -> None:
        self._file = tempfile.NamedTemporaryFile(  # noqa: SIM115 - `_remove` closes it
            dir=self._folder, prefix=_PREFIX, delete=False
        )

    def _remove(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what it could not write is not wanted any more
                self._file.close()
            Path(self._file.name).unlink(missing_ok=True)

    async def _done(self, work: Callable[..., _Result], *arguments: Any) -> _Result:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, work, *arguments)
        except OSError as error:
            if error.errno not in _IS_FULL:
                raise
            raise _full(error.strerror or "it is full") from error


async def _read_whole(request: web.BaseRequest, pace: BodyPace, spool: _Spool) -> Fields:
    if not request.can_read_body:
        return ()
    await spool.open()
    while piece := await pace.keep(request.content.read(_PIECE_BYTES)):
        await spool.write(piece)
    return ((FILE_FIELD, await spool.close(None, request.headers.get("Content-Type"))),)


async def _read_form(request: web.BaseRequest, pace: BodyPace, spool: _Spool) -> Fields:
    """Read a form (RFC 7578): one file at most, and other fields of little text."""
    fields: list[tuple[str, str | Upload]] = []
    room = _MAX_FIELD_BYTES
    try:
        reader = MultipartReader(request.headers, request.content)
        while (part := await pace.keep(reader.next())) is not None:
            if not isinstance(part, BodyPartReader) or not part.name or len(fields) == _MAX_FIELDS:
                raise _bad_form(f"it has a part without a name, or more than {_MAX_FIELDS}")
            if part.filename is not None:
                fields.append((part.name, await _file_of(part, pace, spool)))
                continue
            content = await _content_of(part, pace, room)
            room -= len(content)
            fields.append((part.name, content.decode()))
    except (ValueError, RuntimeError, AssertionError, HttpProcessingError) as error:
        raise _bad_form(str(error)) from error
    return fields


async def _file_of(part: BodyPartReader, pace: BodyPace, spool: _Spool) -> Upload:
    await spool.open()
    while not part.at_eof():
        await spool.write(await pace.keep(part.read_chunk(_PIECE_BYTES)))
    name = part.filename and decoded(part.filename.encode(errors="surrogateescape"))
    return await spool.close(name, part.headers.get("Content-Type"))


async def _content_of(part: BodyPartReader, pace: BodyPace, max_bytes: int) -> bytes:
    content = b""
    while not part.at_eof():
        content += await pace.keep(part.read_chunk(_PIECE_BYTES))
        if len(content) > max_bytes:
            raise _bad_form(f"its fields beside the file have more than {_MAX_FIELD_BYTES} bytes")
    return content


def _require_no_encoding(request: web.BaseRequest) -> None:
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise encoding_not_supported(encoding, ("identity",))


def _bad_form(reason: str) -> RequestRefused:
    return RequestRefused("bad_request", f"the form cannot be read: {reason}")


def _full(reason: str) -> RequestRefused:
    return RequestRefused(
        "storage_full",
        f"there is no room for the body in the data folder ({reason}); free some space there, or "
        "send less",
    )
