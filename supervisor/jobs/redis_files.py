"""Files of jobs on the Redis server that has the queue, so that all who share that see them.

Keys, behind the prefix:

    file:ID          hash: the record of a file, and the name of the hash that holds its parts
    parts:ID:TOKEN   hash: the parts of a file by their number, from 0
    files            set: all files
    file-bytes       what all of them take
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from pathlib import Path
from secrets import token_hex

import msgspec

from supervisor.errors import RequestRefused
from supervisor.jobs.disk_files import file_not_found
from supervisor.jobs.redis_connection import PREFIX, RedisConnection
from supervisor.jobs.values import StoredFile

PART_BYTES = 1024 * 1024
"""A file is kept in parts of this size, so that nobody has all of it in memory at once."""

_COMING_S = 86_400
"""After so long, parts are dropped whose file never came to be: whoever brought it has died."""

_KEEP = """
-- ARGV: id, record, name of the parts, bytes. Returns the record of that id that is there already,
-- if any.
local file = p .. 'file:' .. ARGV[1]
local present = redis.call('HGET', file, 'record')
if present then
  if redis.call('HGET', file, 'parts') ~= ARGV[3] then  -- else it was kept, and its answer lost
    redis.call('UNLINK', ARGV[3])
  end
  return present
end
redis.call('HSET', file, 'record', ARGV[2], 'parts', ARGV[3], 'bytes', ARGV[4])
redis.call('INCRBY', p .. 'file-bytes', ARGV[4])
redis.call('PERSIST', ARGV[3])
redis.call('SADD', p .. 'files', ARGV[1])
"""

_REMOVE = """
-- ARGV: id.
local file = p .. 'file:' .. ARGV[1]
local parts, bytes = unpack(redis.call('HMGET', file, 'parts', 'bytes'))
if parts then
  redis.call('UNLINK', file, parts)  -- first: see `redis_common`, of a full server
  redis.call('SREM', p .. 'files', ARGV[1])
  redis.call('DECRBY', p .. 'file-bytes', bytes or 0)
end
"""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(StoredFile).decode


class RedisFiles:
    """See `FileStore`. A file is there once its record is, which names its parts."""

    def __init__(self, connection: RedisConnection, clock: Callable[[], float] = time.time) -> None:
        self._connection = connection
        self._clock = clock

    async def add(self, file: StoredFile, path: Path) -> StoredFile:
        """See `FileStore`."""
        parts = f"{PREFIX}parts:{file.id}:{token_hex(8)}"
        try:
            known = await self._send(file, path, parts)
        except RequestRefused:
            with contextlib.suppress(RequestRefused):
                await self._connection.ask("UNLINK", parts)
            raise
        # Where no answer comes, the file may have been kept; if not, its parts expire.
        told = (file.id, _encode(known), parts, known.size_bytes)
        present = await self._connection.run(_KEEP, *told)
        await asyncio.to_thread(path.unlink)
        return known if present is None else _decode(present)

    async def file(self, file_id: str) -> StoredFile | None:
        """See `FileStore`."""
        found = await self._found(file_id)
        return None if found is None else found[0]

    async def files(self) -> Sequence[StoredFile]:
        """See `FileStore`."""
        now = self._clock()
        present = [file for file in await self._all() if file.expires_at > now]
        return sorted(present, key=lambda each: (each.created_at, each.id), reverse=True)

    async def used_bytes(self) -> int:
        """See `FileStore`."""
        return int(await self._connection.ask("GET", PREFIX + "file-bytes") or 0)

    async def read(self, file_id: str) -> AsyncGenerator[bytes, None]:
        """See `FileStore`."""
        found = await self._found(file_id)
        if found is None:
            raise file_not_found(file_id)
        file, parts = found
        for number in range(-(-file.size_bytes // PART_BYTES)):
            part = await self._connection.ask("HGET", parts, number)
            if part is None:  # it was removed meanwhile
                raise file_not_found(file_id)
            yield part

    async def remove(self, file_id: str) -> bool:
        """See `FileStore`."""
        was_there = await self.file(file_id) is not None
        await self._connection.run(_REMOVE, file_id)
        return was_there

    async def remove_expired(self) -> None:
        """See `FileStore`."""
        now = self._clock()
        for file in await self._all():
            if file.expires_at <= now:
                await self._connection.run(_REMOVE, file.id)

    async def _send(self, file: StoredFile, path: Path, parts: str) -> StoredFile:
        """Send a file's content in parts; returns it with size and sum."""
        digest, size_bytes = hashlib.sha256(), 0
        pieces = enumerate(_pieces(path))
        while piece := await asyncio.to_thread(next, pieces, None):
            number, content = piece
            await self._connection.ask_all(
                ("HSET", parts, number, content), ("EXPIRE", parts, _COMING_S)
            )
            size_bytes += len(content)
            await asyncio.to_thread(digest.update, content)
        return msgspec.structs.replace(file, size_bytes=size_bytes, sha256=digest.hexdigest())

    async def _found(self, file_id: str) -> tuple[StoredFile, str] | None:
        """Return what is known of a file, and where its parts are."""
        record, parts = await self._connection.ask(
            *("HMGET", f"{PREFIX}file:{file_id}", "record", "parts")
        )
        if record is None:
            return None
        file = _decode(record)
        return (file, parts.decode()) if file.expires_at > self._clock() else None

    async def _all(self) -> list[StoredFile]:
        ids = await self._connection.ask("SMEMBERS", PREFIX + "files")
        records = await self._connection.ask_all(
            *(("HGET", f"{PREFIX}file:{file_id.decode()}", "record") for file_id in ids)
        )
        return [_decode(record) for record in records if record is not None]


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as content:
        while piece := content.read(PART_BYTES):
            yield piece
