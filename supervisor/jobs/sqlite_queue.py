"""The queue of one controller, in an SQLite file of its data folder.

A commit is on the disk before it is answered (`synchronous=FULL`): a batch that was accepted
survives a power failure, and each commit carries up to hundreds of lines, so that its fsync is not
noticed. All statements run in one thread, one transaction after the other: the event loop never
waits for the disk.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from supervisor.core.machine.values import Mode
from supervisor.data_folder import open_database
from supervisor.errors import RequestRefused
from supervisor.jobs import sqlite_statements as statements
from supervisor.jobs.port import JobCounts
from supervisor.jobs.sqlite_schema import prepare, shorten_log
from supervisor.jobs.values import (
    Job,
    JobKind,
    JobState,
    Line,
    LineResult,
    NewLine,
    Repeat,
)

_Arguments = ParamSpec("_Arguments")
_Returned = TypeVar("_Returned")

_FULL = frozenset(
    {
        *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR),
        *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN),
    }
)
_PRIMARY_CODE = 0xFF
"""The part of an error code that says what kind it is (sqlite.org/rescode.html)."""


class SqliteQueue:
    """See `JobQueue`. One controller at a time may have the file."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Open the file, or make it; what a controller that died had claimed is free again.

        Blocks for the disk. Raises sqlite3.Error and OSError, and RequestRefused `storage_full`.
        """
        self._clock = clock
        with _refused_when_full():
            self._database = open_database(path, prepare)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="jobs")
        self._news = asyncio.Event()
        self._is_closed = False

    async def add(self, job: Job) -> None:
        """See `JobQueue`."""
        await self._write(statements.add, job)

    async def job(self, job_id: str) -> Job | None:
        """See `JobQueue`."""
        return await self._read(statements.job, job_id)

    async def jobs(self, kind: JobKind | None, *, after: str | None, limit: int) -> Sequence[Job]:
        """See `JobQueue`."""
        return await self._read(statements.jobs, kind, after, limit)

    async def change(
        self, job: Job, expected: JobState, lines: Sequence[NewLine] | None = None
    ) -> bool:
        """See `JobQueue`."""
        return await self._write(statements.change, job, expected, lines)

    async def claim_job(self, kind: JobKind, lease_s: float) -> Job | None:
        """See `JobQueue`."""
        return await self._read(statements.claim_job, kind, self._clock(), lease_s)

    async def renew_job(self, job: Job, lease_s: float) -> None:
        """See `JobQueue`."""
        await self._read(statements.renew_job, job, self._clock() + lease_s)

    async def note_reason(self, job: Job, reason: str) -> None:
        """See `JobQueue`."""
        await self._read(statements.note_reason, job, reason)

    async def remove(self, job_id: str) -> None:
        """See `JobQueue`."""
        await self._write(statements.remove, job_id)

    async def add_lines(self, job_id: str, lines: Sequence[NewLine]) -> None:
        """See `JobQueue`."""
        await self._write(statements.add_lines, job_id, lines)

    async def claim(self, kind: JobKind, owner: str, limit: int, lease_s: float) -> Sequence[Line]:
        """See `JobQueue`."""
        now = self._clock()
        return await self._read(statements.claim, kind, owner, limit, (now, now + lease_s))

    async def renew(self, owner: str, lines: Sequence[Line], lease_s: float) -> Sequence[Line]:
        """See `JobQueue`."""
        return await self._read(statements.renew, owner, lines, self._clock() + lease_s)

    async def settle(self, results: Sequence[LineResult]) -> None:
        """See `JobQueue`."""
        await self._write(statements.settle, results)

    async def put_back(self, owner: str, repeats: Sequence[Repeat]) -> None:
        """See `JobQueue`."""
        await self._write(statements.put_back, owner, repeats)

    async def results(self, job_id: str, *, after: int, limit: int) -> Sequence[LineResult]:
        """See `JobQueue`."""
        return await self._read(statements.results, job_id, after, limit)

    async def unsettled(self, job_id: str, *, after: int, limit: int) -> Sequence[NewLine]:
        """See `JobQueue`."""
        return await self._read(statements.unsettled, job_id, after, limit)

    async def forget_results(self, job_id: str) -> None:
        """See `JobQueue`."""
        await self._write(statements.forget_results, job_id)

    async def reopen(self, job: Job, expected: JobState) -> bool:
        """See `JobQueue`."""
        return await self._write(statements.reopen, job, expected)

    async def used_bytes(self) -> int:
        """See `JobQueue`."""
        return await self._read(statements.used_bytes)

    async def counts(self) -> JobCounts:
        """See `JobQueue`."""
        return await self._read(statements.counts)

    async def modes_left(self) -> frozenset[Mode]:
        """See `JobQueue`."""
        return await self._read(statements.modes_left, self._clock())

    async def wait(self, timeout_s: float) -> None:
        """See `JobQueue`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            pass

    async def close(self) -> None:
        """See `JobQueue`."""
        if not self._is_closed:
            closing = self._in_thread(self._database.close)
            self._is_closed = True
            await closing
            self._thread.shutdown()

    async def _write(
        self,
        statement: Callable[Concatenate[sqlite3.Connection, _Arguments], _Returned],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> _Returned:
        """Run what changes something that others may wait for."""
        returned = await self._read(statement, *args, **kwargs)
        news, self._news = self._news, asyncio.Event()
        news.set()
        return returned

    async def _read(
        self,
        statement: Callable[Concatenate[sqlite3.Connection, _Arguments], _Returned],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> _Returned:
        """Run statements in one transaction. Raises RequestRefused `storage_full`."""
        run = partial(statement, self._database, *args, **kwargs)
        with _refused_when_full():
            return await self._in_thread(partial(self._transact, run))

    def _in_thread(self, run: Callable[[], _Returned]) -> asyncio.Future[_Returned]:
        if self._is_closed:  # a request that was about to ask when the controller began to end
            raise RequestRefused("shutting_down", "the controller is shutting down")
        return asyncio.get_running_loop().run_in_executor(self._thread, run)

    def _transact(self, run: Callable[[], _Returned]) -> _Returned:
        with self._database:
            returned = run()
        shorten_log(self._database)
        return returned


@contextmanager
def _refused_when_full() -> Iterator[None]:
    """Raise RequestRefused `storage_full` where SQLite cannot write."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0)
        if code & _PRIMARY_CODE not in _FULL:
            raise
        raise RequestRefused(
            "storage_full", f"the queue of jobs cannot be written: {error}; make room on its disk"
        ) from error
