"""Callbacks as jobs of one line, so that they are as durable as what they tell of.

A message is that of OpenAI's webhooks: its client reads and verifies it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from supervisor.jobs.callbacks import CallbackFailed, Caller
from supervisor.jobs.handling import Begun, NotDone, Outcome
from supervisor.jobs.port import JobQueue
from supervisor.jobs.values import Job, JobKind, JobState, Line, LineResult, NewLine

CALLBACK_URL = "callback_url"
"""The field of a job's `spec` that says whom to tell of its end."""

PAUSES_S = (5.0, 60.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0)
"""Seconds after each attempt that failed: the last comes some 18 hours behind the first, so that a
receiver may be down for a night. (Standard Webhooks asks for more than a few hours.)"""

_UNTIL_ENDED_S = 1.0


class _Told(msgspec.Struct, frozen=True):
    """The content of the only line."""

    url: str
    job_id: str


def callback_of(job: Job) -> Job | None:
    """Return the job that tells of the end of another; None where there is none, or nobody to tell.

    Its name follows from the job and its round: it is added once, however often it is.
    """
    url = job.spec.get(CALLBACK_URL)
    if url is None or not job.state.is_end:
        return None
    return Job(
        id=f"callback_{job.id}_{job.round}",
        kind=JobKind.CALLBACK,
        created_at=job.entered_at[job.state],
        spec={"url": url, "job_id": job.id},
    )


class CallbackHandler:
    """See `JobHandler`."""

    max_claim = 16
    written_out = frozenset({JobState.COMPLETED, JobState.CANCELLED})

    def __init__(self, queue: JobQueue, caller: Caller) -> None:
        self._queue = queue
        self._caller = caller
        self._clock: Callable[[], float] = time.time

    async def begin(self, job: Job) -> Begun:
        """Give it the only line."""
        told = _Told(url=job.spec["url"], job_id=job.spec["job_id"])
        return Begun(
            job.entering(JobState.IN_PROGRESS, self._clock(), lines=1),
            [NewLine(1, msgspec.json.encode(told))],
        )

    async def answer(self, lines: Sequence[Line]) -> AsyncIterator[Sequence[Outcome]]:
        """Send messages, all at once."""
        sending = [asyncio.create_task(self._send(line), name="callback") for line in lines]
        try:
            for each in asyncio.as_completed(sending):
                yield [await each]
        finally:
            for task in sending:
                task.cancel()

    def failure(self, line: Line, code: str, reason: str) -> LineResult:
        """Return the result of a callback that is given up."""
        return _result(line, code, is_success=False, reason=reason)

    async def end(self, job: Job) -> Job:
        """Say whether the receiver was told."""
        if job.state is JobState.CANCELLING:
            return job.entering(JobState.CANCELLED, self._clock())
        ended = JobState.COMPLETED if job.counts.succeeded else JobState.FAILED
        return job.entering(ended, self._clock())

    async def _send(self, line: Line) -> Outcome:
        told = msgspec.json.decode(line.content, type=_Told)
        job = await self._queue.job(told.job_id)
        if job is None:
            return self.failure(line, "job_not_found", f"there is no job '{told.job_id}' any more")
        if not job.state.is_end:  # it is just about to be
            reason = f"'{job.id}' is {job.state}"
            return NotDone(line=line, reason=reason, counts=False, after_s=_UNTIL_ENDED_S)
        try:
            await self._caller.send(told.url, line.job_id, _message(line.job_id, job))
        except CallbackFailed as error:
            if error.is_final:
                return self.failure(line, "callback_failed", str(error))
            after_s = PAUSES_S[min(line.attempts, len(PAUSES_S)) - 1]
            return NotDone(line=line, reason=str(error), after_s=after_s)
        return _result(line, "told")


def _message(message_id: str, job: Job) -> dict[str, object]:
    """Return what a receiver is told (OpenAI's API reference: webhook events)."""
    return {
        "object": "event",
        "id": message_id,
        "type": f"{job.kind}.{job.state}",
        "created_at": int(job.entered_at[job.state]),
        "data": {"id": job.id, "state": job.state, "round": job.round},
    }


def _result(line: Line, told: str, *, is_success: bool = True, reason: str = "") -> LineResult:
    return LineResult(
        job_id=line.job_id,
        number=line.number,
        is_success=is_success,
        content=told.encode(),
        reason=reason,
    )
