"""The queue that several controllers share, on a Redis server; needs the extra `[redis]`.

Each operation is one script (`redis_scripts`), so that it happens wholly or not at all, whoever is
killed. What is answered lasts as the server makes it last: see `docs/how-to/share-a-queue.md`.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import msgspec

from supervisor.core.machine.values import Mode
from supervisor.errors import RequestRefused
from supervisor.jobs import redis_scripts as scripts
from supervisor.jobs.modes import mode_of
from supervisor.jobs.port import JobCounts
from supervisor.jobs.redis_connection import PREFIX, RedisConnection
from supervisor.jobs.values import (
    Counts,
    Job,
    JobKind,
    JobPriority,
    JobState,
    Line,
    LineResult,
    NewLine,
    Repeat,
)

_RANKS = {priority: rank for rank, priority in enumerate(JobPriority)}
_COUNTED = Counts.__struct_fields__
_FIELDS = ("record", "state", "reason", *_COUNTED)
_LONGEST_BLOCK_S = 5.0
_SETTLED_AT_ONCE = 256
_CONSUMER_LASTS_S = 3600.0
_TIDY_S = 1.0
"""Whoever ends does not wait for a server that is silent: others tidy up as well."""

_encode_job = msgspec.json.Encoder().encode
_decode_job = msgspec.json.Decoder(Job).decode
_encode_result = msgspec.msgpack.Encoder().encode
_decode_result = msgspec.msgpack.Decoder(tuple[bool, bytes, str, int, int]).decode


class RedisQueue:
    """See `JobQueue`. Any number of controllers may use it at once.

    Every method raises RequestRefused `queue_unreachable` where the server does not answer.
    """

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection
        self._seen = b"0-0"

    async def add(self, job: Job) -> None:
        """See `JobQueue`."""
        await self._connection.run(scripts.ADD, job.id, job.kind, *_written(job))

    async def job(self, job_id: str) -> Job | None:
        """See `JobQueue`."""
        [found] = await self._jobs([job_id])
        return found

    async def jobs(self, kind: JobKind | None, *, after: str | None, limit: int) -> Sequence[Job]:
        """See `JobQueue`."""
        listed = PREFIX + (f"jobs:{kind}" if kind else "jobs")
        below = "+inf"
        if after is not None:
            below = f"({await self._connection.ask('ZSCORE', PREFIX + 'jobs', after) or 0}"
        ids = await self._connection.ask(
            "ZREVRANGEBYSCORE", listed, below, "-inf", "LIMIT", 0, limit
        )
        return [job for job in await self._jobs([name.decode() for name in ids]) if job]

    async def change(
        self, job: Job, expected: JobState, lines: Sequence[NewLine] | None = None
    ) -> bool:
        """See `JobQueue`."""
        told = (job.id, expected, *_written(job))
        if lines is None:
            return bool(await self._connection.run(scripts.CHANGE, *told))
        given = (word for line in lines for word in (line.number, line.content))
        return bool(await self._connection.run(scripts.BEGIN, *told, *given))

    async def claim_job(self, kind: JobKind, lease_s: float) -> Job | None:
        """See `JobQueue`."""
        job_id = await self._connection.run(scripts.CLAIM_JOB, kind, _ms(lease_s))
        return await self.job(job_id.decode()) if job_id else None

    async def renew_job(self, job: Job, lease_s: float) -> None:
        """See `JobQueue`."""
        await self._connection.run(scripts.RENEW_JOB, job.id, job.state, _ms(lease_s))

    async def note_reason(self, job: Job, reason: str) -> None:
        """See `JobQueue`."""
        await self._connection.run(scripts.NOTE_REASON, job.id, job.state, reason)

    async def remove(self, job_id: str) -> None:
        """See `JobQueue`."""
        await self._connection.run(scripts.REMOVE, job_id)

    async def add_lines(self, job_id: str, lines: Sequence[NewLine]) -> None:
        """See `JobQueue`."""
        given = (word for line in lines for word in (line.number, line.content))
        await self._connection.run(scripts.ADD_LINES, job_id, *given)

    async def claim(self, kind: JobKind, owner: str, limit: int, lease_s: float) -> Sequence[Line]:
        """See `JobQueue`."""
        found = await self._connection.run(
            scripts.CLAIM, kind, owner, limit, _ms(lease_s), len(_RANKS)
        )
        return [
            Line(job_id.decode(), int(number), content, attempts)
            for job_id, number, content, attempts in found
        ]

    async def renew(self, owner: str, lines: Sequence[Line], lease_s: float) -> Sequence[Line]:
        """See `JobQueue`."""
        named = (word for line in lines for word in (line.job_id, line.number))
        lost = await self._connection.run(scripts.RENEW, owner, _ms(lease_s), *named)
        return [lines[position] for position in lost]

    async def settle(self, results: Sequence[LineResult]) -> None:
        """See `JobQueue`."""
        for first in range(0, len(results), _SETTLED_AT_ONCE):
            some = results[first : first + _SETTLED_AT_ONCE]
            await self._connection.run(
                scripts.SETTLE, *(word for each in some for word in _settled(each))
            )

    async def put_back(self, owner: str, repeats: Sequence[Repeat]) -> None:
        """See `JobQueue`."""
        told = (
            word
            for each in repeats
            for word in (each.job_id, each.number, _ms(each.due_at), each.reason, int(each.counts))
        )
        await self._connection.run(scripts.PUT_BACK, owner, *told)

    async def results(self, job_id: str, *, after: int, limit: int) -> Sequence[LineResult]:
        """See `JobQueue`."""
        found = await self._above("results:", job_id, after, limit)
        return [_result(job_id, number, packed) for number, packed in found]

    async def unsettled(self, job_id: str, *, after: int, limit: int) -> Sequence[NewLine]:
        """See `JobQueue`."""
        found: list[NewLine] = []
        while len(found) < limit and (some := await self._above("lines:", job_id, after, limit)):
            after = some[-1][0]
            results = PREFIX + "results:" + job_id  # of lines that failed, here
            is_settled = await self._connection.ask_all(
                *(("HEXISTS", results, number) for number, _ in some)
            )
            pairs = zip(some, is_settled, strict=True)
            found += [NewLine(*line) for line, settled in pairs if not settled]
        return found[:limit]

    async def forget_results(self, job_id: str) -> None:
        """See `JobQueue`."""
        await self._connection.run(scripts.FORGET_RESULTS, job_id)

    async def reopen(self, job: Job, expected: JobState) -> bool:
        """See `JobQueue`."""
        return bool(await self._connection.run(scripts.REOPEN, job.id, expected, *_written(job)))

    async def used_bytes(self) -> int:
        """See `JobQueue`."""
        return int(await self._connection.ask("GET", PREFIX + "bytes") or 0)

    async def counts(self) -> JobCounts:
        """See `JobQueue`."""
        found: dict[JobKind, dict[JobState, int]] = {}
        told = await self._connection.ask("HGETALL", PREFIX + "counts")
        for name, number in told.items():
            kind, state = name.decode().split()
            if int(number):
                found.setdefault(JobKind(kind), {})[JobState(state)] = int(number)
        return found

    async def modes_left(self) -> frozenset[Mode]:
        """See `JobQueue`."""
        modes = await self._connection.run(scripts.MODES_LEFT, *Mode)
        return frozenset(Mode(mode.decode()) for mode in modes)

    async def wait(self, timeout_s: float) -> None:
        """See `JobQueue`. Also hears of what other controllers have added."""
        block_ms = max(1, _ms(min(timeout_s, _LONGEST_BLOCK_S)))
        try:
            told = await self._connection.ask(
                *("XREAD", "BLOCK", block_ms, "STREAMS", PREFIX + "news", self._seen)
            )
        except RequestRefused:
            await asyncio.sleep(timeout_s)
        else:
            for _, entries in told:
                self._seen = entries[-1][0]

    async def close(self) -> None:
        """See `JobQueue`."""
        with contextlib.suppress(RequestRefused, TimeoutError):
            async with asyncio.timeout(_TIDY_S):
                await self._connection.run(scripts.TIDY, _ms(_CONSUMER_LASTS_S))
        await self._connection.close()

    async def _jobs(self, ids: Sequence[str]) -> list[Job | None]:
        asked = (("HMGET", f"{PREFIX}job:{job_id}", *_FIELDS) for job_id in ids)
        return [_job(*row) for row in await self._connection.ask_all(*asked)]

    async def _above(
        self, name: str, job_id: str, after: int, limit: int
    ) -> list[tuple[int, bytes]]:
        """Return fields of a job's hash by rising numbers, those above `after`."""
        last = int(await self._connection.ask("HGET", f"{PREFIX}job:{job_id}", "last") or 0)
        found: list[tuple[int, bytes]] = []
        while after < last and len(found) < limit:
            numbers = range(after + 1, min(after + limit, last) + 1)
            contents = await self._connection.ask("HMGET", PREFIX + name + job_id, *numbers)
            pairs = zip(numbers, contents, strict=True)
            found += [(number, content) for number, content in pairs if content is not None]
            after = numbers[-1]
        return found[:limit]


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _written(job: Job) -> tuple[Any, ...]:
    """Return a job as the scripts write it (`FIELDS` there)."""
    expires_ms = "" if job.expires_at is None else _ms(job.expires_at)
    ranked = _RANKS[job.priority]
    return (
        *(_encode_job(job), job.state, ranked, _ms(job.not_before), expires_ms),
        *(job.lines, job.reason, mode_of(job) or ""),
    )


def _job(record: bytes | None, state: bytes, reason: bytes, *counted: bytes) -> Job | None:
    if record is None:
        return None
    return msgspec.structs.replace(
        _decode_job(record),
        state=JobState(state.decode()),
        reason=reason.decode(),
        counts=Counts(**dict(zip(_COUNTED, map(int, counted), strict=True))),
    )


def _settled(result: LineResult) -> tuple[Any, ...]:
    tokens = (result.input_tokens, result.output_tokens)
    packed = _encode_result((result.is_success, result.content, result.reason, *tokens))
    success = int(result.is_success)
    return (result.job_id, result.number, success, packed, result.reason, *tokens)


def _result(job_id: str, number: int, packed: bytes) -> LineResult:
    is_success, content, reason, input_tokens, output_tokens = _decode_result(packed)
    return LineResult(
        job_id=job_id,
        number=number,
        is_success=is_success,
        content=content,
        reason=reason,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
    )
