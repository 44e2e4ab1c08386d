"""The files that a batch writes: what was answered, and what was not."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import BinaryIO, Self

from supervisor.errors import RequestRefused
from supervisor.jobs.disk_files import FILE_NOT_FOUND
from supervisor.jobs.port import FileStore
from supervisor.jobs.values import Job, LineResult, StoredFile

OUTPUT_FILE_ID = "output_file_id"
"""Where the outcome of a batch names the file of what was answered."""

_FIELDS = {"output": OUTPUT_FILE_ID, "error": "error_file_id"}
"""The files, by what they are for; both are made when they have a line."""


class OutputFiles:
    """Output and error file of one batch while they are written.

    Their names follow from the batch and its round, and the store keeps the first file of a name:
    so it does not matter how often they are written. What an earlier round had answered comes
    first.
    """

    def __init__(self, files: FileStore, work_dir: Path, job: Job, now: float) -> None:
        self._files = files
        self._work_dir = work_dir
        self._job = job
        self._now = now
        self._token = token_hex(4)  # the same batch may be written twice at once
        self._open: dict[str, BinaryIO] = {}

    async def __aenter__(self) -> Self:
        try:
            await self._take_over()
        except BaseException:
            self._discard()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._discard()

    async def _take_over(self) -> None:
        """Begin with what an earlier round had answered, as long as that is kept.

        Raises RequestRefused where the store does not answer: without it, answers would be lost.
        """
        earlier = self._job.outcome.get(OUTPUT_FILE_ID)
        if earlier is None:
            return
        try:
            async for piece in self._files.read(earlier):
                await asyncio.to_thread(self._write, "output", piece)
        except RequestRefused as error:
            if error.code != FILE_NOT_FOUND:
                raise
            self._discard()  # it was deleted: what was read of it may end within a line

    def _discard(self) -> None:
        """Remove them, even if the disk is full and closing them fails."""
        for name, file in self._open.items():
            with suppress(OSError):
                file.close()
            self._path(name).unlink(missing_ok=True)
        self._open.clear()

    async def write(self, results: Sequence[LineResult]) -> None:
        """Write lines."""
        for name in _FIELDS:
            lines = [each.content for each in results if each.is_success == (name == "output")]
            if lines:
                await asyncio.to_thread(self._write, name, *lines, end=b"\n")

    async def keep(self) -> dict[str, str | None]:
        """Give the files to the store; returns their ids by the batch's fields."""
        ids: dict[str, str | None] = dict.fromkeys(_FIELDS.values())
        for name, file in self._open.items():
            await asyncio.to_thread(file.close)
            kept = await self._files.add(self._file(name), self._path(name))
            ids[_FIELDS[name]] = kept.id
        return ids

    def _file(self, name: str) -> StoredFile:
        job = self._job
        return StoredFile(
            id=f"file-{job.id.removeprefix('batch_')}-{job.round}-{name}",
            file_name=f"{job.id}_{name}.jsonl",
            purpose="batch_output",
            created_at=self._now,
            expires_at=self._now + job.spec["files_expire_after_s"],
        )

    def _write(self, name: str, *contents: bytes, end: bytes = b"") -> None:
        file = self._open.get(name)
        if file is None:
            file = self._open[name] = self._path(name).open("wb")
        for content in contents:
            file.write(content)
            file.write(end)

    def _path(self, name: str) -> Path:
        return self._work_dir / f"{self._job.id}-{self._token}-{name}"
