"""A document's file out of the store of files, read and divided."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from secrets import token_hex

from supervisor.config.settings import DocumentSettings
from supervisor.documents.dividing import Plan, Planner
from supervisor.documents.extraction.extractor import Extractor
from supervisor.documents.extraction.messages import Limits
from supervisor.documents.request import DocumentRequest
from supervisor.documents.values import Division, ReadDocument, Source
from supervisor.jobs.disk_files import file_not_found
from supervisor.jobs.port import FileStore

_MAX_INFLATED = 200
"""Times by which what is compressed in a file may grow; text shrinks to a tenth at best."""


class DocumentOpener:
    """Opens documents that jobs name."""

    def __init__(
        self,
        files: FileStore,
        planner: Planner,
        extractor: Extractor,
        settings: Callable[[], DocumentSettings],
        work_dir: Path,
    ) -> None:
        self._files = files
        self._planner = planner
        self._extractor = extractor
        self._settings = settings
        self._work_dir = work_dir

    async def plan(self, request: DocumentRequest) -> Plan:
        """Plan how a document is divided. Raises RequestRefused."""
        file = await self._files.file(request.file_id)
        if file is None:
            raise file_not_found(request.file_id)
        return await self._planner.plan(request, file.sha256)

    async def read(self, request: DocumentRequest, division: Division) -> ReadDocument:
        """Return what a document says, and its chunks.

        Raises RequestRefused: `document_unreadable`, `file_not_found`, `extra_missing`.
        """
        path = self._work_dir / f"{request.file_id}-{token_hex(4)}"  # it may be read twice at once
        settings = self._settings()
        try:
            await self._copy(request.file_id, path)
            return await self._extractor.read(
                Source(path=path, file_name=request.file_name, media_type=request.media_type),
                division,
                Limits(
                    timeout_s=settings.timeout_s,
                    memory_bytes=settings.memory_bytes,
                    max_pages=settings.max_pages,
                    max_characters=settings.max_characters,
                    max_inflated=_MAX_INFLATED,
                ),
            )
        finally:
            await asyncio.to_thread(path.unlink, missing_ok=True)

    async def _copy(self, file_id: str, path: Path) -> None:
        await asyncio.to_thread(path.touch)
        async for piece in self._files.read(file_id):
            await asyncio.to_thread(_append, path, piece)


def _append(path: Path, piece: bytes) -> None:
    """Write more of a file, which is not left open: its writer may be cancelled."""
    with path.open("ab") as copy:
        copy.write(piece)
