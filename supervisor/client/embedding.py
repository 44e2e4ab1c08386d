"""Sends files to a controller that does not have them yet, some at a time.

A document's id is its file's absolute path, and its metadata hold the hash of its content: so what
is stored and unchanged is known without a record of ours, and a run that was cut short goes on
where it stopped.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from pathlib import Path

import aiohttp
import msgspec
from msgspec.structs import replace

from supervisor.client.answers import (
    DeletedDocument,
    DocumentJob,
    DocumentOutcome,
    Failure,
    SentDocument,
    StoredDocument,
)
from supervisor.client.connection import Connection, NoController, Refused
from supervisor.client.files import FoundFile, LeftOut, hash_of, is_gone, shown

AT_A_TIME = 16
"""Files that are on their way at once: many are short, and a batch has room for several."""

_POLL_S = 0.5
_ENDS = frozenset({"completed", "failed", "expired", "cancelled"})
_HASH = "sha256"


class Outcome(StrEnum):
    """What became of a file."""

    EMBEDDED = "embedded"
    UNCHANGED = "unchanged"
    REMOVED = "removed"
    SKIPPED = "skipped"
    FAILED = "failed"


class FileReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a file, and why where it was not embedded."""

    path: str
    outcome: Outcome
    chunks: int = 0
    size_bytes: int = 0
    reason: str = ""


class Embedder:
    """Embeds files into a collection (None: the default one), and tells what became of each.

    `again`: what is stored and unchanged is sent, too, and the controller sees what has to be done.
    """

    def __init__(
        self,
        connection: Connection,
        collection: str | None,
        tell: Callable[[FileReport], None],
        *,
        again: bool = False,
    ) -> None:
        self._connection = connection
        self._collection = collection
        self._tell = tell
        self._again = again
        self._known: set[Path] = set()
        """Files that are stored."""

    async def embed(self, files: Iterable[FoundFile | LeftOut]) -> None:
        """Embed files. Raises NoController when the controller has gone; the rest is left then."""
        shared = iter(files)
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(AT_A_TIME):
                    tasks.create_task(self._work(shared))
        except* NoController as gone:
            raise gone.exceptions[0] from None

    async def remove_gone(self, path: Path) -> None:
        """Remove documents whose files, at a path or below it, are gone. Raises NoController."""
        below = [each for each in self._known if each.is_relative_to(path)]
        for gone in [each for each in below if is_gone(each)]:
            reason = ""
            try:
                await self._connection.ask(
                    "DELETE", "documents", str(gone), query=self._query, shape=DeletedDocument
                )
            except Refused as error:
                if error.status != 404:  # else it was removed, and the answer was lost
                    reason = str(error)
            if not reason:
                self._known.discard(gone)
            outcome = Outcome.FAILED if reason else Outcome.REMOVED
            self._tell(FileReport(path=str(gone), outcome=outcome, reason=reason))

    async def _work(self, files: Iterator[FoundFile | LeftOut]) -> None:
        for each in files:
            report = FileReport(path=shown(each.path), outcome=Outcome.SKIPPED)
            if isinstance(each, LeftOut):
                self._tell(replace(report, reason=each.reason))
            else:
                self._tell(await self._embed(each, replace(report, size_bytes=each.size_bytes)))

    async def _embed(self, file: FoundFile, report: FileReport) -> FileReport:
        if shown(file.path) != str(file.path):
            reason = "its name is not in UTF-8, or has control characters; rename it"
            return replace(report, outcome=Outcome.FAILED, reason=reason)
        try:
            content_hash = await asyncio.to_thread(hash_of, file.path)
            stored_hash = await self._stored_hash(file.path)
            if stored_hash is not None:
                self._known.add(file.path)
            if stored_hash == content_hash and not self._again:
                return replace(report, outcome=Outcome.UNCHANGED)
            made = await self._send(file.path, content_hash)
        except (Refused, OSError) as error:
            return replace(report, outcome=Outcome.FAILED, reason=str(error))
        self._known.add(file.path)
        if made.unchanged:
            return replace(report, outcome=Outcome.UNCHANGED)
        return replace(report, outcome=Outcome.EMBEDDED, chunks=made.chunks or 0)

    async def _stored_hash(self, path: Path) -> str | None:
        """Return the hash that a file was stored with: empty without one, None if not stored."""
        try:
            stored = await self._connection.ask(
                "GET", "documents", str(path), query=self._query, shape=StoredDocument
            )
        except Refused as error:
            if error.status == 404:
                return None
            raise
        return str((stored.metadata or {}).get(_HASH, ""))

    async def _send(self, path: Path, content_hash: str) -> DocumentOutcome:
        """Send a file, and wait until it is stored; returns what the controller says of it."""

        def form() -> aiohttp.FormData:
            data = aiohttp.FormData(quote_fields=False)  # the name as it is, in UTF-8
            data.add_field("id", str(path))
            for name, value in self._query.items():
                data.add_field(name, value)
            data.add_field("metadata", msgspec.json.encode({_HASH: content_hash}).decode())
            data.add_field("file", path.open("rb"), filename=path.name)
            return data

        sent = await self._connection.ask("POST", "documents", form=form, shape=SentDocument)
        if sent.location is not None:  # it takes longer than a request should
            return await self._outcome_of(sent.job)
        return sent

    async def _outcome_of(self, job_id: str) -> DocumentOutcome:
        """Return what came of a document's job, once it has ended. Raises Refused."""
        while True:
            job = await self._connection.ask("GET", "jobs", job_id, shape=DocumentJob)
            if job.state in _ENDS:
                break
            await asyncio.sleep(_POLL_S)
        if job.state == "completed":
            return job.outcome
        error = job.outcome.error or Failure(code=job.state, message=job.reason or "")
        raise Refused(422, error.code, error.message or f"its job {job_id} is {job.state}")

    @property
    def _query(self) -> dict[str, str]:
        return {} if self._collection is None else {"collection": self._collection}
