"""Opens the jobs room when the first job or file comes, or where some were left unfinished."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from supervisor.core.machine.values import Mode
from supervisor.data_folder import JOBS
from supervisor.engine.targets import Targets
from supervisor.errors import ConfigError, RequestRefused
from supervisor.gateway.call_reader import CallReader
from supervisor.lasting import MOUNTS, why_it_passes
from supervisor.wiring.embedding import Embedding
from supervisor.wiring.ground import Ground

if TYPE_CHECKING:
    from supervisor.documents.service import DocumentService
    from supervisor.jobs.service import JobService
    from supervisor.wiring.job_room import JobRoom


class LazyJobs:
    """The jobs room: not imported before it is needed, for an idle controller stays small."""

    def __init__(
        self, ground: Ground, reader: CallReader, targets: Targets, embedding: Embedding
    ) -> None:
        self._ground = ground
        self._reader = reader
        self._targets = targets
        self._embedding = embedding
        self._opening = asyncio.Lock()
        self._room: JobRoom | None = None
        self._is_closed = False

    async def open(self) -> "JobService":
        """Open the room where that was not done yet. Raises RequestRefused at the shutdown."""
        return (await self._opened()).service

    async def open_documents(self) -> "DocumentService":
        """Open the rooms of jobs and documents, likewise."""
        return (await self._opened()).documents.service

    async def _opened(self) -> "JobRoom":
        async with self._opening:
            if self._is_closed:
                raise RequestRefused("shutting_down", "the controller is shutting down")
            if self._room is None:
                from supervisor.wiring.job_room import open_job_room  # noqa: PLC0415 - see above

                self._room = await open_job_room(
                    self._ground, self._reader, self._targets, self._embedding
                )
            return self._room

    async def describe(self) -> dict[str, Any]:
        """Say how many jobs there are, and whether they outlive a restart of where they stand.

        As JSON; `counts` is None where the queue does not answer.
        """
        room = self._room
        if room is not None and room.storage.why_it_passes is not None:
            place, reason = "jobs.queue_url", await room.storage.why_it_passes()
        else:
            place, reason = self._why_folder_passes()
        return {
            "durable": reason is None,
            "not_durable_because": None if reason is None else f"{place}: {reason}",
            "is_open": room is not None,
            "counts": {} if room is None else await room.service.counts(),
        }

    def _why_folder_passes(self) -> tuple[str, str | None]:
        folder = self._ground.data.path.resolve()
        try:
            return str(folder), why_it_passes(folder, MOUNTS.read_text(encoding="utf-8"))
        except OSError:
            return str(folder), None  # not Linux: nobody tells

    async def resume(self) -> None:
        """Open the room where one before us had opened it, or others may have left work for us.

        Raises ConfigError where the queue that the settings name cannot be opened.
        """
        is_shared = self._ground.configuration.current.settings.jobs.queue_url is not None
        if is_shared or (self._ground.data.path / JOBS).exists():
            try:
                await self.open()
            except RequestRefused as error:
                raise ConfigError((error.message,)) from error

    async def modes_left(self) -> frozenset[Mode]:
        """Return the modes of which jobs need models; where the room was never opened, none do.

        Raises RequestRefused where the queue does not answer, and at the shutdown.
        """
        room = await self._opened_before()
        return frozenset() if room is None else await room.service.modes_left()

    async def withdraw(self, collection: str, document: str | None) -> Sequence[str]:
        """Cancel the jobs that would store a document in a collection, or (None) anything.

        Returns them; where the room was never opened, there are none. Raises RequestRefused as
        `DocumentService.withdraw` does.
        """
        room = await self._opened_before()
        if room is None:
            return ()
        batches = () if document is not None else await room.service.withdraw_batches(collection)
        return [*batches, *await room.documents.service.withdraw(collection, document)]

    async def _opened_before(self) -> "JobRoom | None":
        """Return the room if it is open. Whoever closes it waits for nobody who asks its queue."""
        async with self._opening:
            if self._is_closed:
                raise RequestRefused("shutting_down", "the controller is shutting down")
            return self._room

    async def close(self) -> None:
        """End all work on jobs, and let nothing begin any more. A second time changes nothing."""
        async with self._opening:
            self._is_closed = True
            room, self._room = self._room, None
            if room is not None:
                await room.close()
