"""Documents as jobs: read and divided when the job begins, embedded in parts, kept when it ends.

Nothing is stored before every part is embedded, so a document is stored whole or not at all; and
whoever takes a job over after an end in the middle finds the parts that are done in the queue.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec
from msgspec.structs import replace

from supervisor.documents.embedding_parts import PartEmbedder
from supervisor.documents.keeping import Keeper
from supervisor.documents.opening import DocumentOpener
from supervisor.documents.parts import decode_embedded, decode_part, encode, parts_of
from supervisor.documents.request import DocumentOutcome, DocumentRequest, Failure, decode_failure
from supervisor.documents.values import ReadDocument
from supervisor.errors import RequestRefused
from supervisor.jobs.handling import Begun, NotDone, Outcome
from supervisor.jobs.paging import result_pages
from supervisor.jobs.port import FileStore, JobQueue
from supervisor.jobs.values import Job, JobState, Line, LineResult, NewLine

FINAL_CODES = frozenset(
    {
        *("document_unreadable", "document_not_embedded", "file_not_found", "extra_missing"),
        "collection_mismatch",
        *("bad_request", "input_too_long", "model_not_found", "model_type_mismatch"),
        *("unknown_profile", "profile_conflict", "target_cannot_start", "target_does_not_fit"),
    }
)
"""Refusals that no other attempt can turn; any other may pass."""

_MAY_BE_ITS_FAULT = frozenset({"embedding_failed", "backend_died"})
"""Refusals after which a part may be to blame, as one that ends its server."""


class DocumentHandler:
    """See `JobHandler`."""

    max_claim = 256
    written_out = frozenset({JobState.COMPLETED})

    def __init__(
        self,
        queue: JobQueue,
        files: FileStore,
        opener: DocumentOpener,
        embedder: PartEmbedder,
        keeper: Keeper,
    ) -> None:
        self._queue = queue
        self._files = files
        self._opener = opener
        self._embedder = embedder
        self._keeper = keeper
        self._clock: Callable[[], float] = time.time

    async def begin(self, job: Job) -> Begun:
        """Read the document, whose parts are its lines, unless it is stored as it is.

        It gets them all at once: another attempt may divide it otherwise.
        """
        request = DocumentRequest.of(job)
        try:
            plan = await self._opener.plan(request)
            kept = await self._keeper.kept(job, plan.generation)
            if kept is not None:
                return self._begun(job, (), kept)
            document = await self._opener.read(request, plan.division)
        except RequestRefused as error:
            if error.code not in FINAL_CODES:
                raise
            return Begun(self._failed(job, error), ())
        outcome = DocumentOutcome(
            generation=plan.generation,
            format=document.format,
            characters=len(document.text),
            pages=len(document.page_starts) or None,
            chunks=len(document.chunks),
        )
        return self._begun(job, await asyncio.to_thread(_lines, document, request), outcome)

    async def answer(self, lines: Sequence[Line]) -> AsyncIterator[Sequence[Outcome]]:
        """Have parts embedded."""
        parts = [decode_part(line.content) for line in lines]
        async for outcomes in self._embedder.embed(parts):
            yield [
                self._refused(lines[place], each)
                if isinstance(each, RequestRefused)
                else LineResult(
                    job_id=lines[place].job_id,
                    number=lines[place].number,
                    is_success=True,
                    content=encode(each),
                    input_tokens=each.tokens,
                )
                for place, each in outcomes
            ]

    def failure(self, line: Line, code: str, reason: str) -> LineResult:
        """Return the result of a part that is given up."""
        return LineResult(
            job_id=line.job_id,
            number=line.number,
            is_success=False,
            content=encode(Failure(code, reason)),
            reason=reason,
        )

    async def end(self, job: Job) -> Job:
        """Keep the document, if all of it is embedded."""
        if job.state is JobState.CANCELLING:
            return job.entering(JobState.CANCELLED, self._clock())
        outcome = DocumentOutcome.of(job)
        if not outcome.unchanged:
            try:
                outcome = await self._kept(job)
            except RequestRefused as error:
                if error.code not in FINAL_CODES:
                    raise
                return self._failed(job, error)
        await self._files.remove(DocumentRequest.of(job).file_id)
        done = replace(outcome, error=None)  # of an attempt before
        return job.entering(JobState.COMPLETED, self._clock(), outcome=msgspec.to_builtins(done))

    async def _kept(self, job: Job) -> DocumentOutcome:
        """Keep a document of which all parts are done. Raises RequestRefused for any other."""
        results = [each async for page in result_pages(self._queue, job.id) for each in page]
        done = [each.content for each in results if each.is_success]
        failures = [decode_failure(each.content) for each in results if not each.is_success]
        if failures and failures[0].code in FINAL_CODES:
            raise RequestRefused(failures[0].code, failures[0].message)
        if len(done) < job.lines:
            why = (
                failures[0].message if failures else "the others were given up with an earlier end"
            )
            raise RequestRefused(
                "document_not_embedded",
                f"{len(done)} of {job.lines} parts of the document were embedded: {why}",
            )
        return await self._keeper.keep(job, [decode_embedded(content) for content in done])

    def _begun(self, job: Job, lines: Sequence[NewLine], outcome: DocumentOutcome) -> Begun:
        told = msgspec.to_builtins(outcome)
        following = job.entering(
            JobState.IN_PROGRESS, self._clock(), lines=len(lines), outcome=told
        )
        return Begun(following, lines)

    def _failed(self, job: Job, error: RequestRefused) -> Job:
        """Return the job FAILED; nothing of the document is stored, and its file stays."""
        outcome = replace(DocumentOutcome.of(job), error=Failure(error.code, error.message))
        return job.entering(
            JobState.FAILED,
            self._clock(),
            outcome=msgspec.to_builtins(outcome),
            reason=error.message,
        )

    def _refused(self, line: Line, error: RequestRefused) -> Outcome:
        if error.code in FINAL_CODES:
            return self.failure(line, error.code, error.message)
        return NotDone(
            line=line,
            reason=f"{error.code}: {error.message}",
            counts=error.code in _MAY_BE_ITS_FAULT,
            after_s=error.details.get("retry_after_s"),
        )


def _lines(document: ReadDocument, request: DocumentRequest) -> Sequence[NewLine]:
    parts = parts_of(document, request.model)
    return [NewLine(number, encode(part)) for number, part in enumerate(parts, 1)]
