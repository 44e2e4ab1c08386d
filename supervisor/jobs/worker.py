"""One who works on lines: claims some, has them answered, settles them or gives them back.

It claims as many at once as take some seconds, so that the queue costs little, and whoever shares
it finds work, too. A heartbeat prolongs its leases; when it dies, they lapse, and others go on.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import structlog

from supervisor.core.pauses import doubled_pause_s
from supervisor.errors import RequestRefused
from supervisor.jobs.handling import JobHandler, NotDone, Outcome
from supervisor.jobs.insisting import Insisting
from supervisor.jobs.port import JobQueue
from supervisor.jobs.values import JobKind, Line, LineResult, Repeat

log = structlog.get_logger()

LEASE_S = 30.0
"""Seconds for which lines are claimed: so late is the work of one that died gone on with."""

MAX_ATTEMPTS = 8
"""Attempts at a line that fails, over some two minutes, until it is given up."""

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
BUSY_PAUSE_S = 5.0
"""Seconds until another attempt at a line that was not at fault."""

MIN_CLAIM = 16
"""Lines that are claimed at once where they take long: as many as servers compute at a time."""

AIM_S = 5.0
"""Seconds that a claim should take at least, and a third of what it may: a slow server, too, wants
enough to fill its batches."""

IDLE_S = 1.0
"""Seconds between looks for what has become due by itself."""

_QUEUES_FAULTS = frozenset({"queue_unreachable", "storage_full"})
"""Why a handler may fail that asks the queue; see `JobQueue`. Lines are not to blame for that."""

_FAREWELL_S = 5.0
"""Seconds in which an ending worker gives back what it has; else its leases lapse."""


def next_claim(size: int, took_s: float, most: int) -> int:
    """Return how many lines to claim after a claim of `size` took so long."""
    if took_s < AIM_S:
        size *= 2
    elif took_s > 3 * AIM_S:
        size = max(MIN_CLAIM, size // 2)
    return min(size, most)


class Worker:
    """Works on lines of one kind of job; `owner` is a name that no other worker has."""

    def __init__(  # noqa: PLR0913 - what it works with
        self,
        queue: JobQueue,
        handler: JobHandler,
        kind: JobKind,
        owner: str,
        *,
        insisting: Insisting,
        require_room: Callable[[], Awaitable[None]],
    ) -> None:
        """`require_room` raises RequestRefused where no further answers can be kept."""
        self._require_room = require_room
        self._queue = queue
        self._handler = handler
        self._kind = kind
        self._owner = owner
        self._insisting = insisting
        self._clock: Callable[[], float] = time.time
        self._mine: dict[tuple[str, int], Line] = {}
        """What is claimed, and neither settled nor given back."""

    async def run(self) -> None:
        """Work for ever. What is claimed when that is cancelled is given back."""
        size = min(MIN_CLAIM, self._handler.max_claim)
        while True:
            lines = await self._insisting(lambda: self._claim(size))  # noqa: B023
            if not lines:
                await self._queue.wait(IDLE_S)
                continue
            began_at = time.monotonic()
            await self._work(lines)
            if len(lines) == size:
                took_s = time.monotonic() - began_at
                size = next_claim(size, took_s, self._handler.max_claim)

    async def _claim(self, size: int) -> Sequence[Line]:
        if self._kind is not JobKind.CALLBACK:  # whose answers are not kept
            await self._require_room()
        return await self._queue.claim(self._kind, self._owner, size, LEASE_S)

    async def _work(self, lines: Sequence[Line]) -> None:
        """Have lines answered, and keep their leases meanwhile."""
        self._mine = {(line.job_id, line.number): line for line in lines}
        answering = asyncio.create_task(self._answer(), name=f"answering-{self._owner}")
        try:
            while not answering.done():
                await asyncio.wait([answering], timeout=LEASE_S / 3)
                if not answering.done() and not await self._keep_leases():
                    answering.cancel()
                    await asyncio.wait([answering])
        except asyncio.CancelledError:
            answering.cancel()
            await asyncio.wait([answering])
            await self._farewell()
            raise

    async def _answer(self) -> None:
        given_up = [line for line in self._mine.values() if line.attempts > MAX_ATTEMPTS]
        await self._record([self._give_up(line, "nobody lived to finish it") for line in given_up])
        is_their_fault = True
        try:
            if self._mine:
                async for outcomes in self._handler.answer(list(self._mine.values())):
                    await self._record(outcomes)
            reason = "it was not answered"
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            is_queues = isinstance(error, RequestRefused) and error.code in _QUEUES_FAULTS
            is_their_fault = not is_queues
            if is_their_fault:
                log.exception("job.lines_failed", kind=self._kind)
            else:
                log.warning("job.lines_given_back", kind=self._kind, reason=str(error))
        lines = self._mine.values()
        await self._record([NotDone(line=x, reason=reason, counts=is_their_fault) for x in lines])

    async def _keep_leases(self) -> bool:
        """Prolong what is left; returns whether anything is."""
        lines = list(self._mine.values())
        lost = await self._insisting(lambda: self._queue.renew(self._owner, lines, LEASE_S))
        for line in lost:
            self._mine.pop((line.job_id, line.number), None)
        return bool(self._mine)

    async def _farewell(self) -> None:
        repeats = [
            self._repeat(NotDone(line=line, reason="a shutdown", counts=False, after_s=0.0))
            for line in self._mine.values()
        ]
        try:
            async with asyncio.timeout(_FAREWELL_S):
                await self._queue.put_back(self._owner, repeats)
        except Exception as error:  # noqa: BLE001 - the leases lapse
            log.warning("job.lines_not_given_back", reason=str(error))

    async def _record(self, outcomes: Sequence[Outcome]) -> None:
        """Settle lines or give them back, however long the queue takes."""
        results: list[LineResult] = []
        repeats: list[Repeat] = []
        for outcome in outcomes:
            if isinstance(outcome, LineResult):
                results.append(outcome)
            elif outcome.counts and outcome.line.attempts >= MAX_ATTEMPTS:
                results.append(self._give_up(outcome.line, outcome.reason))
            else:
                repeats.append(self._repeat(outcome))
        if results:
            await self._insisting(lambda: self._queue.settle(results))
        if repeats:
            await self._insisting(lambda: self._queue.put_back(self._owner, repeats))
        settled: Sequence[LineResult | Repeat] = (*results, *repeats)
        for each in settled:
            self._mine.pop((each.job_id, each.number), None)

    def _give_up(self, line: Line, reason: str) -> LineResult:
        tried = f"it was given up after {min(line.attempts, MAX_ATTEMPTS)} attempts: {reason}"
        log.warning("job.line_given_up", job=line.job_id, line=line.number, reason=reason)
        return self._handler.failure(line, "attempts_exhausted", tried)

    def _repeat(self, outcome: NotDone) -> Repeat:
        line, pause_s = outcome.line, outcome.after_s
        if pause_s is None and outcome.counts:
            pause_s = doubled_pause_s(line.attempts, FIRST_PAUSE_S, LONGEST_PAUSE_S)
        return Repeat(
            job_id=line.job_id,
            number=line.number,
            due_at=self._clock() + (BUSY_PAUSE_S if pause_s is None else pause_s),
            reason=outcome.reason,
            counts=outcome.counts,
        )
