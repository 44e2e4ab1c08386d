"""Batches: jobs whose lines are requests, read from a file and answered into files."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from supervisor.errors import RequestRefused
from supervisor.jobs.answering import Answered, Answerer, Asked, Keeping, NotAnswered
from supervisor.jobs.batch_lines import (
    InputCheck,
    LineReader,
    Problem,
    Response,
    decode_line,
    result,
    unanswered,
)
from supervisor.jobs.disk_files import FILE_NOT_FOUND
from supervisor.jobs.handling import Begun, NotDone, Outcome
from supervisor.jobs.output_files import OutputFiles
from supervisor.jobs.paging import result_pages, unsettled_pages
from supervisor.jobs.port import FileStore, JobQueue
from supervisor.jobs.values import (
    CANCELLABLE,
    CANCELLED_BECAUSE,
    Job,
    JobState,
    Line,
    LineResult,
    NewLine,
)

_ADD_BYTES = 4 * 1024 * 1024
"""Content of lines that are added in one transaction."""

_UNDONE = {
    JobState.CANCELLED: ("batch_cancelled", "the batch was cancelled before it was done"),
    JobState.EXPIRED: (
        "batch_expired",
        "the batch's completion_window was over before it was done",
    ),
}
"""Why a line is not answered in a batch that ended so."""


class BatchHandler:
    """See `JobHandler`."""

    max_claim = 256
    written_out = frozenset({JobState.COMPLETED, JobState.EXPIRED, JobState.CANCELLED})

    def __init__(
        self, queue: JobQueue, files: FileStore, answerer: Answerer, work_dir: Path
    ) -> None:
        """`work_dir`: where files are written before their store takes them."""
        self._queue = queue
        self._files = files
        self._answerer = answerer
        self._work_dir = work_dir
        self._clock: Callable[[], float] = time.time

    async def begin(self, job: Job) -> Begun:
        """Check the input file; where all of it is right, add its lines to the queue."""
        check = InputCheck(job.spec["endpoint"])
        try:
            async for lines in self._input(job):
                await asyncio.to_thread(check.take, lines)
                if check.is_over:
                    break
        except RequestRefused as error:
            if error.code != FILE_NOT_FOUND:  # its store does not answer now; the file may be right
                raise
            check.problems.append(Problem(error.code, error.message, param="input_file_id"))
        check.end()
        if check.problems:
            return Begun(self._failed(job, check.problems))
        async for lines in self._input(job):
            await self._queue.add_lines(job.id, lines)
        model = next(iter(check.models)) if len(check.models) == 1 else None
        return Begun(
            job.entering(
                JobState.IN_PROGRESS, self._clock(), lines=check.lines, outcome={"model": model}
            )
        )

    async def _input(self, job: Job) -> AsyncIterator[Sequence[NewLine]]:
        """Yield the lines of the input file, some at a time. Raises RequestRefused."""
        reader, some, size = LineReader(), list[NewLine](), 0
        async for piece in self._files.read(job.spec["input_file_id"]):
            lines = reader.take(piece)
            some += lines
            size += sum(len(line.content) for line in lines)
            if size > _ADD_BYTES:
                yield some
                some, size = [], 0
        yield [*some, *reader.end()]

    def _failed(self, job: Job, problems: Sequence[Problem]) -> Job:
        first = problems[0]
        where = "" if first.line is None else f"line {first.line}: "
        errors = [msgspec.to_builtins(problem) for problem in problems]
        outcome: dict[str, Any] = {"errors": errors}
        return job.entering(
            JobState.FAILED, self._clock(), outcome=outcome, reason=f"{where}{first.message}"
        )

    async def answer(self, lines: Sequence[Line]) -> AsyncIterator[Sequence[Outcome]]:
        """Have the requests of lines answered."""
        keeping = {job_id: await self._keeping(job_id) for job_id in {x.job_id for x in lines}}
        asked = [_asked(line, keeping[line.job_id]) for line in lines]
        async for some in self._answerer.answer(asked):
            yield [_outcome(lines[each.index], each) for each in some]

    async def _keeping(self, job_id: str) -> Keeping | None:
        """Return where the vectors of a batch are kept; None where they are not."""
        job = await self._queue.job(job_id)
        collection = None if job is None else collection_of(job)
        return None if collection is None else Keeping(collection, partial(self._is_open, job_id))

    async def _is_open(self, job_id: str) -> bool:
        """Whether lines of a batch are still settled."""
        job = await self._queue.job(job_id)
        return job is not None and job.state in CANCELLABLE

    def failure(self, line: Line, code: str, reason: str) -> LineResult:
        """Return the result of a line that is given up."""
        return LineResult(
            job_id=line.job_id,
            number=line.number,
            is_success=False,
            content=unanswered(line, code, reason),
            reason=reason,
        )

    async def end(self, job: Job) -> Job:
        """Write output and error file, and give them to the store."""
        if job.state is JobState.CANCELLING:
            ended = JobState.CANCELLED
        else:
            is_done = job.counts.settled >= job.lines
            ended = JobState.COMPLETED if is_done else JobState.EXPIRED
        why_undone = _why_undone(job, ended)
        async with OutputFiles(self._files, self._work_dir, job, self._clock()) as output:
            async for results in result_pages(self._queue, job.id):
                await output.write(results)
            if why_undone is not None:
                async for lines in unsettled_pages(self._queue, job.id):
                    given_up = (Line(job.id, each.number, each.content, 0) for each in lines)
                    await output.write([self.failure(line, *why_undone) for line in given_up])
            file_ids = await output.keep()
        return job.entering(ended, self._clock(), outcome={**job.outcome, **file_ids})


def collection_of(batch: Job) -> str | None:
    """Return the collection in which the vectors of a batch are kept; None where they are not."""
    collection: str | None = (batch.spec.get("store") or {}).get("collection")
    return collection


def _why_undone(job: Job, ended: JobState) -> tuple[str, str] | None:
    """Return code and reason for the lines that are not answered in a batch that ends so."""
    if ended not in _UNDONE:
        return None
    code, reason = _UNDONE[ended]
    because = job.outcome.get(CANCELLED_BECAUSE) if ended is JobState.CANCELLED else None
    return code, f"{reason}: {because}" if because else reason


def _asked(line: Line, keeping: Keeping | None) -> Asked:
    read = decode_line(line.content)
    return Asked(read.url, bytes(read.body), read.custom_id, keeping)


def _outcome(line: Line, answer: Answered | NotAnswered) -> Outcome:
    if isinstance(answer, NotAnswered):
        return NotDone(
            line=line, reason=answer.reason, counts=answer.counts, after_s=answer.after_s
        )
    response = Response(
        status_code=answer.status, request_id=answer.request_id, body=msgspec.Raw(answer.body)
    )
    return result(
        line, response, input_tokens=answer.input_tokens, output_tokens=answer.output_tokens
    )
