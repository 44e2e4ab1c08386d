"""Work on a queue: every line is done once, whatever happens to who does it."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.errors import RequestRefused
from supervisor.jobs import runner as runner_module
from supervisor.jobs import worker
from supervisor.jobs.disk_files import DiskFiles
from supervisor.jobs.handling import Begun, NotDone, Outcome
from supervisor.jobs.insisting import Insisting
from supervisor.jobs.paging import PAGE
from supervisor.jobs.port import JobQueue
from supervisor.jobs.runner import JobRunner
from supervisor.jobs.service import JobLimits, JobService
from supervisor.jobs.values import CANCELLABLE, Job, JobKind, JobState, Line, LineResult, NewLine
from supervisor.jobs.worker import MAX_ATTEMPTS, MIN_CLAIM, next_claim
from supervisor.observability.impairments import Impairments
from tests.jobs.conftest import has_room, new_job
from tests.patience import PATIENCE_S


class Shouting:
    """Answers each line with its content in capitals; `faults` says what goes wrong before."""

    max_claim = 64
    written_out = frozenset({JobState.COMPLETED, JobState.EXPIRED, JobState.CANCELLED})

    def __init__(self, queue: JobQueue, lines: int) -> None:
        self._queue = queue
        self._lines = lines
        self.asked: Counter[int] = Counter()
        self.fault: Callable[[Line], Awaitable[Outcome | None]] = self._no_fault
        self.written: list[bytes] = []

    async def begin(self, job: Job) -> Begun:
        lines = [NewLine(number, b"line %d" % number) for number in range(1, self._lines + 1)]
        await self._queue.add_lines(job.id, lines)
        return Begun(job.entering(JobState.IN_PROGRESS, 1001.0, lines=self._lines))

    async def answer(self, lines: Sequence[Line]) -> AsyncIterator[Sequence[Outcome]]:
        for line in lines:
            self.asked[line.number] += 1
            yield [await self.fault(line) or self._result(line, line.content.upper())]

    def failure(self, line: Line, code: str, reason: str) -> LineResult:
        return self._result(line, code.encode(), is_success=False, reason=reason)

    async def end(self, job: Job) -> Job:
        results = await self._queue.results(job.id, after=0, limit=10_000)
        self.written = [result.content for result in results]
        is_done = len(results) == job.lines
        ends = {JobState.CANCELLING: JobState.CANCELLED}
        ended = ends.get(job.state, JobState.COMPLETED if is_done else JobState.EXPIRED)
        return job.entering(ended, 1002.0)

    async def _no_fault(self, _: Line) -> Outcome | None:
        await asyncio.sleep(0)
        return None

    def _result(
        self, line: Line, content: bytes, *, is_success: bool = True, reason: str = ""
    ) -> LineResult:
        return LineResult(
            job_id=line.job_id,
            number=line.number,
            is_success=is_success,
            content=content,
            reason=reason,
        )


class Limits:
    """What jobs may take at present."""

    max_bytes = 10**9

    def __call__(self) -> JobLimits:
        return JobLimits(max_bytes=self.max_bytes, keep_s=1e12)


@pytest.fixture
def limits() -> Limits:
    return Limits()


@pytest.fixture
def impairments() -> Impairments:
    return Impairments()


StartRunner = Callable[[Shouting], JobRunner]


@pytest.fixture
async def start_runner(
    queue: JobQueue, tmp_path: Path, limits: Limits, impairments: Impairments
) -> AsyncIterator[StartRunner]:
    runners: list[JobRunner] = []
    files = DiskFiles(tmp_path)

    def start(handler: Shouting) -> JobRunner:
        runner = JobRunner(
            queue,
            files,
            {JobKind.BATCH: handler},
            insisting=Insisting(impairments),
            workers=2,
            keep_s=lambda: 1e12,
            require_room=JobService(queue, files, limits, print).require_room_to_work,
        )
        runner.start()
        runners.append(runner)
        return runner

    yield start
    for runner in runners:
        await runner.stop()


async def ended(queue: JobQueue, job_id: str = "a") -> Job:
    async with asyncio.timeout(PATIENCE_S):
        while not (job := await queue.job(job_id)) or not job.state.is_end:
            await queue.wait(0.1)
    return job


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - the condition is elsewhere
            await asyncio.sleep(0.005)


async def test_every_line_is_done_once(queue: JobQueue, start_runner: StartRunner) -> None:
    handler = Shouting(queue, 500)
    start_runner(handler)
    await queue.add(new_job("a"))
    job = await ended(queue)
    assert (job.state, job.counts.succeeded) == (JobState.COMPLETED, 500)
    assert sorted(handler.written) == sorted(b"LINE %d" % number for number in range(1, 501))
    assert set(handler.asked.values()) == {1}
    assert list(job.entered_at) == [JobState.IN_PROGRESS, JobState.FINALIZING, JobState.COMPLETED]
    async with asyncio.timeout(PATIENCE_S):  # they are forgotten after the end is known
        while await queue.results("a", after=0, limit=9):
            await queue.wait(0.01)


async def test_a_job_without_lines_ends_at_once(queue: JobQueue, start_runner: StartRunner) -> None:
    start_runner(Shouting(queue, 0))
    await queue.add(new_job("a"))
    assert (await ended(queue)).state is JobState.COMPLETED


async def test_jobs_of_one_kind_that_take_long_to_begin_hold_up_no_other(
    queue: JobQueue, tmp_path: Path, impairments: Impairments
) -> None:
    class Stuck(Shouting):
        async def begin(self, job: Job) -> Begun:
            await asyncio.sleep(3600)
            return Begun(job)

    for number in range(8):
        await queue.add(new_job(f"document-{number}", kind=JobKind.DOCUMENT))
    await queue.add(new_job("a"))
    runner = JobRunner(
        queue,
        DiskFiles(tmp_path),
        {JobKind.DOCUMENT: Stuck(queue, 1), JobKind.BATCH: Shouting(queue, 3)},
        insisting=Insisting(impairments),
        workers=1,
        keep_s=lambda: 1e12,
        require_room=has_room,
    )
    runner.start()
    assert (await ended(queue)).state is JobState.COMPLETED
    await runner.stop()


async def test_a_job_that_cannot_be_ended_says_why_and_is_once_it_can(
    queue: JobQueue, start_runner: StartRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "JOB_LEASE_S", 0.2)
    has_room = False

    class Full(Shouting):
        async def end(self, job: Job) -> Job:
            if not has_room:
                raise RequestRefused("storage_full", "there is no room for its files")
            return await super().end(job)

    start_runner(Full(queue, 1))
    await queue.add(new_job("a"))
    async with asyncio.timeout(PATIENCE_S):
        while not (job := await queue.job("a")) or not job.reason:
            await queue.wait(0.05)
    told = (job.state, job.reason)
    assert told == ("finalizing", "finalizing: RequestRefused: there is no room for its files")
    has_room = True
    assert (await ended(queue)).state is JobState.COMPLETED


@pytest.mark.parametrize("way", ["says so", "raises"])
async def test_a_line_that_fails_is_tried_again_until_it_is_given_up(
    queue: JobQueue, start_runner: StartRunner, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(worker, "FIRST_PAUSE_S", 0.0)
    handler = Shouting(queue, 3)

    async def fault(line: Line) -> Outcome | None:
        if line.number != 3:
            return None
        if way == "raises":
            raise ValueError("no")
        return NotDone(line=line, reason="no")

    handler.fault = fault
    start_runner(handler)
    await queue.add(new_job("a"))
    job = await ended(queue)
    assert (job.counts.succeeded, job.counts.failed) == (2, 1)
    assert handler.asked[3] == MAX_ATTEMPTS
    assert b"attempts_exhausted" in handler.written
    assert f"after {MAX_ATTEMPTS} attempts: " in job.reason
    assert job.reason.endswith("no")


@pytest.mark.parametrize("way", ["says so", "the queue does not answer it"])
async def test_a_line_that_is_not_at_fault_is_never_given_up(
    queue: JobQueue, start_runner: StartRunner, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(worker, "BUSY_PAUSE_S", 0.0)
    handler = Shouting(queue, 1)
    turns = iter(range(3 * MAX_ATTEMPTS))

    async def fault(line: Line) -> Outcome | None:
        is_busy = next(turns, None) is not None
        if is_busy and way != "says so":
            raise RequestRefused("queue_unreachable", "it does not answer")
        return NotDone(line=line, reason="busy", counts=False, after_s=0.0) if is_busy else None

    handler.fault = fault
    start_runner(handler)
    await queue.add(new_job("a"))
    job = await ended(queue)
    assert (job.counts.succeeded, job.counts.repeats) == (1, 3 * MAX_ATTEMPTS)


async def test_a_line_whose_workers_die_is_given_up(
    queue: JobQueue, start_runner: StartRunner
) -> None:
    handler = Shouting(queue, 1)
    await queue.add(new_job("a"))
    await queue.change((await handler.begin(new_job("a"))).job, JobState.VALIDATING)
    for _ in range(MAX_ATTEMPTS):
        async with asyncio.timeout(PATIENCE_S):
            while not await queue.claim(JobKind.BATCH, "dead", 1, 0.0):
                await queue.wait(0.01)
    start_runner(handler)
    assert (await ended(queue)).counts.failed == 1
    assert not handler.asked


async def test_a_line_that_takes_longer_than_its_lease_is_done_once(
    queue: JobQueue, start_runner: StartRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "LEASE_S", 2.0)  # so much later may a busy machine be
    handler, renewals = Shouting(queue, 1), list[int]()
    renew = queue.renew

    async def counted(*args: Any) -> Sequence[Line]:
        renewals.append(1)
        return await renew(*args)

    monkeypatch.setattr(queue, "renew", counted)

    async def slow(_: Line) -> Outcome | None:
        await until(lambda: len(renewals) > 3)  # a third of the lease each
        return None

    handler.fault = slow
    start_runner(handler)
    await queue.add(new_job("a"))
    assert (await ended(queue)).counts.succeeded == 1
    assert handler.asked == {1: 1}


async def test_a_job_that_takes_longer_than_its_lease_is_begun_and_ended_once(
    queue: JobQueue, start_runner: StartRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "JOB_LEASE_S", 2.0)  # so much later may a busy machine be
    steps, asked = Counter[JobState](), list[JobKind]()
    claim_job = queue.claim_job

    async def counted(kind: JobKind, lease_s: float) -> Job | None:
        asked.append(kind)
        return await claim_job(kind, lease_s)

    monkeypatch.setattr(queue, "claim_job", counted)

    class Slow(Shouting):
        async def begin(self, job: Job) -> Begun:
            await self._outlast(job)
            return await super().begin(job)

        async def end(self, job: Job) -> Job:
            await self._outlast(job)
            return await super().end(job)

        async def _outlast(self, job: Job) -> None:
            steps[job.state] += 1
            asked.clear()  # the other keeper asks each second
            await until(lambda: len(asked) > 6)

    start_runner(Slow(queue, 1))
    await queue.add(new_job("a"))
    assert (await ended(queue)).state is JobState.COMPLETED
    assert steps == {JobState.VALIDATING: 1, JobState.FINALIZING: 1}


async def test_a_shutdown_gives_lines_back_uncounted(
    queue: JobQueue, start_runner: StartRunner
) -> None:
    handler = Shouting(queue, 3)
    never = asyncio.Event()

    async def hang(line: Line) -> Outcome | None:
        if line.number == 2:
            await never.wait()
        return None

    handler.fault = hang
    runner = start_runner(handler)
    await queue.add(new_job("a"))
    await until(lambda: handler.asked[2] == 1)
    await runner.stop()
    assert [line.number for line in await queue.unsettled("a", after=0, limit=9)] == [2, 3]
    lines = await queue.claim(JobKind.BATCH, "next", 9, 60.0)
    assert [(line.number, line.attempts) for line in lines] == [(2, 1), (3, 1)]


async def test_two_supervisors_share_a_job(queue: JobQueue, start_runner: StartRunner) -> None:
    handlers = [Shouting(queue, 400) for _ in range(2)]
    for handler in handlers:
        start_runner(handler)
    await queue.add(new_job("a"))
    assert (await ended(queue)).counts.succeeded == 400
    assert sum((handler.asked for handler in handlers), Counter()) == Counter(range(1, 401))


async def test_a_cancelled_job_ends_though_its_lines_hang(
    queue: JobQueue, start_runner: StartRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "LEASE_S", 0.3)
    handler = Shouting(queue, 3)
    cut = asyncio.Event()

    async def hang(_: Line) -> Outcome | None:
        try:
            await asyncio.Event().wait()
        finally:
            cut.set()
        return None

    handler.fault = hang
    start_runner(handler)
    await queue.add(new_job("a"))
    await until(lambda: bool(handler.asked))
    job = await queue.job("a")
    assert job is not None
    assert job.state in CANCELLABLE
    assert await queue.change(job.entering(JobState.CANCELLING, 1001.5), job.state)
    assert (await ended(queue)).state is JobState.CANCELLED
    async with asyncio.timeout(PATIENCE_S):
        await cut.wait()  # the work, too, is given up


async def test_a_job_whose_time_is_over_ends_with_what_was_done(
    queue: JobQueue, start_runner: StartRunner
) -> None:
    handler = Shouting(queue, 3)

    async def busy(line: Line) -> Outcome | None:
        if line.number == 1:
            return None
        return NotDone(line=line, reason="busy", counts=False, after_s=0.01)

    handler.fault = busy
    start_runner(handler)
    await queue.add(new_job("a"))
    await until(lambda: handler.asked[3] > 0)
    async with asyncio.timeout(PATIENCE_S):  # a line may be claimed before its job is in progress
        while (job := await queue.job("a")) is None or job.state is JobState.VALIDATING:
            await queue.wait(0.01)
    assert await queue.change(
        job.entering(JobState.IN_PROGRESS, 1001.0, expires_at=1.0), JobState.IN_PROGRESS
    )
    assert (await ended(queue)).state is JobState.EXPIRED
    assert handler.written == [b"LINE 1"]


async def test_ended_jobs_are_forgotten_after_a_time(
    queue: JobQueue, start_runner: StartRunner
) -> None:
    await queue.add(new_job("old").entering(JobState.COMPLETED, 1000.0))
    await queue.add(new_job("young").entering(JobState.COMPLETED, 9e9))
    await queue.add(new_job("begun").entering(JobState.IN_PROGRESS, 1000.0, lines=1))
    runner = start_runner(Shouting(queue, 0))
    runner._keep_s = lambda: 60.0
    await runner.tidy()
    assert [job.id for job in await queue.jobs(None, after=None, limit=9)] == ["begun", "young"]


async def test_all_jobs_that_ended_long_ago_are_forgotten_however_many(
    queue: JobQueue, start_runner: StartRunner
) -> None:
    for number in range(PAGE + 9):
        await queue.add(new_job(f"old-{number}").entering(JobState.FAILED, 1.0))
    runner = start_runner(Shouting(queue, 0))
    runner._keep_s = lambda: 60.0
    await runner.tidy()
    assert await queue.jobs(None, after=None, limit=9) == []


async def test_work_waits_while_all_take_more_than_they_may(
    queue: JobQueue, start_runner: StartRunner, limits: Limits, impairments: Impairments
) -> None:
    handler = Shouting(queue, 20)
    limits.max_bytes = 0
    await queue.add(new_job("a"))
    start_runner(handler)

    await until(lambda: bool(impairments.describe()))
    async with asyncio.timeout(PATIENCE_S):
        while (job := await queue.job("a")) is None or job.state is not JobState.IN_PROGRESS:
            await queue.wait(0.01)
    assert "(jobs.max_bytes); jobs go on when there is room" in impairments.describe()[0]
    assert not handler.asked

    limits.max_bytes = 10**9
    assert (await ended(queue)).counts.succeeded == 20
    await until(lambda: not impairments.describe())


async def test_what_all_take_is_no_impairment_where_nobody_has_work(
    queue: JobQueue, tmp_path: Path
) -> None:
    await queue.add(new_job("a").entering(JobState.COMPLETED, 1.0))
    full = JobLimits(max_bytes=0, keep_s=1.0)
    await JobService(queue, DiskFiles(tmp_path), lambda: full, print).require_room_to_work()


async def test_what_the_queue_cannot_take_is_not_lost() -> None:
    impairments = Impairments()
    failures = iter(range(2))

    async def write() -> str:
        if next(failures, None) is not None:
            raise OSError("no space left")
        return "written"

    writing = asyncio.create_task(Insisting(impairments)(write))
    await until(lambda: bool(impairments.describe()))
    assert "no space left" in impairments.describe()[0]
    assert await writing == "written"
    assert impairments.describe() == []


@given(
    st.integers(min_value=1, max_value=256),
    st.floats(min_value=0.0, max_value=1e4),
    st.integers(min_value=1, max_value=256),
)
def test_claims_stay_within_their_bounds(size: int, took_s: float, most: int) -> None:
    following = next_claim(min(size, most), took_s, most)
    assert 1 <= following <= most
    if took_s > 3 * worker.AIM_S:
        assert following <= max(size, MIN_CLAIM)
