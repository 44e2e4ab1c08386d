"""What every queue of jobs holds to."""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from supervisor.core.machine.values import Mode
from supervisor.errors import RequestRefused
from supervisor.jobs.port import JobQueue
from supervisor.jobs.redis_queue import RedisQueue
from supervisor.jobs.sqlite_queue import SqliteQueue
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
from tests.jobs.conftest import OpenQueue, add_running, new_job
from tests.patience import PATIENCE_S

LEASE_S = 60.0
NO_LEASE_S = 0.0
"""Of one whose claim is over at once."""


async def claim(
    queue: JobQueue, limit: int = 100, *, owner: str = "me", lease_s: float = LEASE_S
) -> Sequence[Line]:
    return await queue.claim(JobKind.BATCH, owner, limit, lease_s)


async def claim_some(queue: JobQueue, owner: str) -> Sequence[Line]:
    """Claim what is there, or will be soon."""
    async with asyncio.timeout(PATIENCE_S):
        while not (lines := await claim(queue, owner=owner)):
            await queue.wait(0.02)
    return lines


def result(line: Line, content: bytes = b"done", **changes: Any) -> LineResult:
    fields = {"is_success": True, "content": content, **changes}
    return LineResult(job_id=line.job_id, number=line.number, **fields)


def repeat(line: Line, *, due_at: float = 0.0, **changes: Any) -> Repeat:
    fields = {"reason": "later", **changes}
    return Repeat(job_id=line.job_id, number=line.number, due_at=due_at, **fields)


async def found(queue: JobQueue, job_id: str = "a") -> Job:
    job = await queue.job(job_id)
    assert job is not None
    return job


async def end(queue: JobQueue, job: Job, state: JobState = JobState.COMPLETED) -> Job:
    ended = (await found(queue, job.id)).entering(state, 1002.0)
    assert await queue.change(ended, (await found(queue, job.id)).state)
    return ended


async def test_a_job_is_kept_as_it_was_given(queue: JobQueue) -> None:
    job = new_job("a", spec={"endpoint": "/v1/embeddings", "n": [1]}, expires_at=5000.5)
    await queue.add(job)
    assert await queue.job("a") == job
    assert await queue.job("b") is None


async def test_jobs_are_listed_from_the_newest_in_pages(queue: JobQueue) -> None:
    for name in "abcd":
        kind = JobKind.DOCUMENT if name == "c" else JobKind.BATCH
        await queue.add(new_job(name, kind=kind))
    assert [job.id for job in await queue.jobs(None, after=None, limit=2)] == ["d", "c"]
    assert [job.id for job in await queue.jobs(None, after="c", limit=9)] == ["b", "a"]
    assert [job.id for job in await queue.jobs(JobKind.BATCH, after="d", limit=9)] == ["b", "a"]


async def test_a_change_is_refused_to_whoever_saw_another_state(queue: JobQueue) -> None:
    await queue.add(new_job("a"))
    cancelling = new_job("a").entering(JobState.CANCELLING, 1001.0)
    assert await queue.change(cancelling, JobState.VALIDATING)
    assert not await queue.change(
        new_job("a").entering(JobState.IN_PROGRESS, 1002.0), JobState.VALIDATING
    )
    assert await queue.job("a") == cancelling


async def test_a_line_is_claimed_by_one_only(queue: JobQueue) -> None:
    await add_running(queue, new_job("a", lines=5))
    first = await claim(queue, 3, owner="me")
    second = await claim(queue, 3, owner="you")
    assert [line.number for line in (*first, *second)] == [1, 2, 3, 4, 5]
    assert first[0].content == b"a 1"
    assert await claim(queue, owner="third") == []


async def test_many_who_claim_at_once_get_each_line_once(queue: JobQueue) -> None:
    await add_running(queue, new_job("a", lines=200))
    claims = await asyncio.gather(*(claim(queue, 7, owner=f"w{n}") for n in range(40)))
    numbers = sorted(line.number for lines in claims for line in lines)
    assert numbers == list(range(1, 201))


async def test_urgent_jobs_are_worked_on_first_then_older_ones(queue: JobQueue) -> None:
    await add_running(queue, new_job("low", lines=1, priority=JobPriority.LOW))
    await add_running(queue, new_job("first", lines=1))
    await add_running(queue, new_job("second", lines=1))
    await add_running(queue, new_job("high", lines=1, priority=JobPriority.HIGH))
    order = [line.job_id for _ in range(4) for line in await claim(queue, 1)]
    assert order == ["high", "first", "second", "low"]


async def test_lines_of_one_kind_are_claimed(queue: JobQueue) -> None:
    await add_running(queue, new_job("a", lines=1, kind=JobKind.DOCUMENT))
    assert await claim(queue) == []
    [line] = await queue.claim(JobKind.DOCUMENT, "me", 9, LEASE_S)
    assert line.job_id == "a"


@pytest.mark.parametrize("changes", [{"not_before": 9e9}, {"expires_at": 1.0}])
async def test_nothing_is_claimed_before_or_after_its_time(
    queue: JobQueue, changes: dict[str, Any]
) -> None:
    await add_running(queue, new_job("a", lines=1, **changes))
    assert await claim(queue) == []


async def test_a_lapsed_lease_is_claimed_by_another_and_counted(queue: JobQueue) -> None:
    await add_running(queue, new_job("a", lines=1))
    [mine] = await claim(queue, owner="me", lease_s=NO_LEASE_S)
    [yours] = await claim_some(queue, "you")
    assert (mine.attempts, yours.attempts) == (1, 2)
    assert await queue.renew("me", [mine], LEASE_S) == [mine]
    assert await queue.renew("you", [yours], LEASE_S) == []


async def test_a_renewed_lease_holds(queue: JobQueue) -> None:
    await add_running(queue, new_job("a", lines=1))
    lines = await claim(queue, lease_s=0.2)
    assert await queue.renew("me", lines, LEASE_S) == []
    await asyncio.sleep(0.25)
    assert await claim(queue, owner="you") == []


async def test_the_first_result_of_a_line_counts(queue: JobQueue) -> None:
    await add_running(queue, new_job("a", lines=2))
    [mine, _] = await claim(queue, owner="me", lease_s=NO_LEASE_S)
    [yours, _] = await claim_some(queue, "you")
    await queue.settle([result(yours, b"yours", input_tokens=3)])
    await queue.settle([result(mine, b"mine", input_tokens=3), result(mine, is_success=False)])
    [kept] = await queue.results("a", after=0, limit=9)
    assert (kept.number, kept.content, kept.is_success) == (1, b"yours", True)
    assert (await found(queue)).counts == Counts(succeeded=1, input_tokens=3)


async def test_a_line_that_is_settled_is_never_claimed_again(queue: JobQueue) -> None:
    await add_running(queue, new_job("a", lines=3))
    failed, done = await claim(queue, 2, lease_s=NO_LEASE_S)
    await queue.settle([result(failed, is_success=False), result(done)])
    assert [line.number for line in await claim_some(queue, "you")] == [3]


async def test_results_are_counted_and_read_in_pages(queue: JobQueue) -> None:
    await add_running(queue, new_job("a", lines=3))
    lines = await claim(queue)
    failed = result(lines[1], b"no", is_success=False, reason="too long")
    await queue.settle([result(lines[2], output_tokens=2), failed, result(lines[0])])
    assert await queue.results("a", after=0, limit=2) == [result(lines[0]), failed]
    assert await queue.results("a", after=2, limit=2) == [result(lines[2], output_tokens=2)]
    job = await found(queue)
    assert job.counts == Counts(succeeded=2, failed=1, output_tokens=2)
    assert job.reason == "too long"
    assert await queue.unsettled("a", after=0, limit=9) == []


async def test_what_is_put_back_is_claimed_again_when_it_is_due(queue: JobQueue) -> None:
    await add_running(queue, new_job("a", lines=3))
    now_due, free, later = await claim(queue)
    repeats = [repeat(now_due), repeat(free, counts=False), repeat(later, due_at=time.time() + 99)]
    await queue.put_back("me", repeats)
    again = await claim_some(queue, "you")
    assert [(line.number, line.attempts) for line in again] == [(1, 2), (2, 1)]
    job = await found(queue)
    assert (job.counts.repeats, job.reason) == (3, "later")


async def test_what_another_has_claimed_is_not_put_back(queue: JobQueue) -> None:
    await add_running(queue, new_job("a", lines=1))
    [mine] = await claim(queue, owner="me", lease_s=NO_LEASE_S)
    await claim_some(queue, "you")
    await queue.put_back("me", [repeat(mine)])
    assert await claim(queue, owner="me") == []


@pytest.mark.parametrize("state", [JobState.CANCELLING, JobState.FINALIZING])
async def test_nothing_is_settled_once_a_job_is_being_ended(
    queue: JobQueue, state: JobState
) -> None:
    await add_running(queue, new_job("a", lines=3))
    [first, second] = await claim(queue, 2)
    await queue.settle([result(first)])
    await end(queue, new_job("a"), state)
    await queue.settle([result(second)])
    assert [each.number for each in await queue.results("a", after=0, limit=9)] == [1]
    left = await queue.unsettled("a", after=0, limit=9)
    assert left == [NewLine(2, b"a 2"), NewLine(3, b"a 3")]
    assert await claim(queue) == []


async def test_the_lease_of_a_cancelled_line_is_lost(queue: JobQueue) -> None:
    await add_running(queue, new_job("a", lines=1))
    lines = await claim(queue)
    await end(queue, new_job("a"), JobState.CANCELLING)
    assert await queue.renew("me", lines, LEASE_S) == lines


async def test_a_job_is_due_when_it_is_new_done_over_or_cancelled(queue: JobQueue) -> None:
    await queue.add(new_job("new"))
    for name in ("done", "busy", "cancelled", "over"):
        expires_at = 1.0 if name == "over" else None
        await add_running(queue, new_job(name, lines=1, expires_at=expires_at))
    done, *_ = await claim(queue)
    await queue.settle([result(done)])
    await end(queue, new_job("cancelled"), JobState.CANCELLING)
    due = [await queue.claim_job(JobKind.BATCH, LEASE_S) for _ in range(5)]
    assert [job.id if job else None for job in due] == ["new", "done", "cancelled", "over", None]


async def test_jobs_without_a_line_to_be_claimed_cost_no_statement_each(tmp_path: Path) -> None:
    """Ten thousand documents may be under way, and each of those who work asks all the time."""
    queue = SqliteQueue(tmp_path / "jobs.sqlite")
    for number in range(20):
        await add_running(queue, new_job(f"job {number}", lines=1))
    claimed = [await claim(queue, 15), await claim(queue, 5)]
    assert [len(lines) for lines in claimed] == [15, 5]
    statements: list[str] = []
    queue._database.set_trace_callback(statements.append)
    assert await claim(queue) == []
    queue._database.set_trace_callback(None)
    assert len(statements) < 10
    await queue.close()


async def test_a_job_whose_claim_is_over_is_due_again(queue: JobQueue) -> None:
    await queue.add(new_job("a"))
    assert await queue.claim_job(JobKind.BATCH, NO_LEASE_S) is not None
    async with asyncio.timeout(PATIENCE_S):
        while await queue.claim_job(JobKind.BATCH, LEASE_S) is None:
            await queue.wait(0.02)
    assert await queue.claim_job(JobKind.BATCH, LEASE_S) is None


async def test_lines_are_added_once_and_to_new_jobs_only(queue: JobQueue) -> None:
    job = new_job("a", lines=2)
    await queue.add(job)
    await queue.add_lines("a", [NewLine(1, b"one")])
    await queue.add_lines("a", [NewLine(1, b"other"), NewLine(2, b"two")])
    await queue.change(job.entering(JobState.IN_PROGRESS, 1001.0), JobState.VALIDATING)
    await queue.add_lines("a", [NewLine(3, b"three")])
    assert [line.content for line in await claim_some(queue, "me")] == [b"one", b"two"]


async def test_a_job_has_only_the_lines_that_it_is_begun_with(queue: JobQueue) -> None:
    """Another may have added others before it died; some of them may have been done since."""
    await queue.add(new_job("a"))
    await queue.add_lines("a", [NewLine(number, b"an older line") for number in (1, 2, 3)])
    await queue.settle([result(line) for line in await claim(queue, 1)])
    begun = (await found(queue, "a")).entering(JobState.IN_PROGRESS, 1001.0, lines=2)
    lines = [NewLine(1, b"one"), NewLine(2, b"two")]
    assert await queue.change(begun, JobState.VALIDATING, lines)
    assert not await queue.change(begun, JobState.VALIDATING, [NewLine(1, b"late")])
    assert await queue.results("a", after=0, limit=9) == []
    assert await queue.unsettled("a", after=0, limit=9) == lines
    claimed = await claim(queue, owner="you")
    assert [(line.content, line.attempts) for line in claimed] == [(b"one", 1), (b"two", 1)]
    assert (await found(queue, "a")).counts.settled == 0
    assert await queue.claim_job(JobKind.BATCH, LEASE_S) is None
    await queue.settle([result(line) for line in claimed])
    assert await queue.claim_job(JobKind.BATCH, LEASE_S) is not None
    await queue.remove("a")
    if isinstance(queue, RedisQueue):
        assert await queue.used_bytes() == 0


async def test_no_document_has_results_of_lines_that_it_was_not_begun_with(
    queue: JobQueue,
) -> None:
    """A controller of an older version may have added lines, divided otherwise, and have died."""

    async def claimed() -> Sequence[Line]:
        return await queue.claim(JobKind.DOCUMENT, "me", 9, LEASE_S)

    await queue.add(new_job("a", kind=JobKind.DOCUMENT))
    await queue.add_lines("a", [NewLine(1, b"an older line"), NewLine(2, b"another")])
    earlier = await claimed()
    begun = (await found(queue, "a")).entering(JobState.IN_PROGRESS, 1001.0, lines=1)
    assert await queue.change(begun, JobState.VALIDATING, [NewLine(1, b"one")])
    await queue.settle([result(line, line.content) for line in earlier])
    lines = await claimed()
    assert [line.content for line in lines] == [b"one"]
    await queue.settle([result(line, line.content) for line in lines])
    assert [each.content for each in await queue.results("a", after=0, limit=9)] == [b"one"]


async def test_a_renewed_claim_of_a_job_holds_until_it_is_in_another_state(
    queue: JobQueue,
) -> None:
    await queue.add(new_job("a"))
    job = await queue.claim_job(JobKind.BATCH, NO_LEASE_S)
    assert job is not None
    await queue.renew_job(job, LEASE_S)
    assert await queue.claim_job(JobKind.BATCH, LEASE_S) is None
    await queue.change(job.entering(JobState.CANCELLING, 1001.0), JobState.VALIDATING)
    await queue.renew_job(job, LEASE_S)
    assert await queue.claim_job(JobKind.BATCH, LEASE_S) is not None


async def test_reopened_jobs_do_what_failed_or_was_left_again(queue: JobQueue) -> None:
    job = await add_running(queue, new_job("a", lines=3))
    first, second, _ = await claim(queue)
    await queue.settle([result(first), result(second, is_success=False)])
    await end(queue, job, JobState.CANCELLING)
    await end(queue, job, JobState.CANCELLED)
    await queue.forget_results("a")
    again = (await found(queue)).entering(JobState.IN_PROGRESS, 1003.0, round=2)
    assert await queue.reopen(again, JobState.CANCELLED)
    lines = await claim(queue, owner="you")
    assert [(line.number, line.attempts) for line in lines] == [(2, 1), (3, 1)]
    await queue.settle([result(line) for line in lines])
    job = await found(queue)
    assert (job.round, job.counts.succeeded, job.counts.failed) == (2, 3, 0)
    assert [each.number for each in await queue.results("a", after=0, limit=9)] == [2, 3]
    assert not await queue.reopen(again, JobState.CANCELLED)


async def test_a_job_that_begins_anew_after_a_retry_does_every_line_once(queue: JobQueue) -> None:
    """A queue may hand lines out while the rest of them is added."""
    job, contents = new_job("a"), [NewLine(number, b"x") for number in (1, 2, 3)]
    await queue.add(job)
    await queue.add_lines("a", contents[:2])
    await queue.settle([result(line) for line in await claim(queue, 1)])
    cancelled = (await found(queue)).entering(JobState.CANCELLED, 1001.0)
    assert await queue.change(cancelled, JobState.VALIDATING)
    await queue.forget_results("a")

    again = (await found(queue)).entering(JobState.VALIDATING, 1002.0, round=2)
    assert await queue.reopen(again, JobState.CANCELLED)
    await queue.add_lines("a", contents)
    running = (await found(queue)).entering(JobState.IN_PROGRESS, 1003.0, lines=3)
    assert await queue.change(running, JobState.VALIDATING)
    await queue.settle([result(line) for line in await claim(queue)])
    assert (await found(queue)).counts.succeeded == 3
    assert [each.number for each in await queue.results("a", after=0, limit=9)] == [1, 2, 3]


async def test_results_of_a_job_that_was_taken_up_again_stay(queue: JobQueue) -> None:
    """Whoever tidies up may have seen it before that."""
    await add_running(queue, new_job("a", lines=2))
    await queue.settle([result(line) for line in await claim(queue, 1)])
    await queue.forget_results("a")
    assert [each.number for each in await queue.results("a", after=0, limit=9)] == [1]


async def test_a_removed_job_leaves_nothing(queue: JobQueue) -> None:
    await add_running(queue, new_job("a", lines=2))
    lines = await claim(queue)
    await queue.settle([result(lines[0])])
    await queue.remove("a")
    assert await queue.job("a") is None
    await add_running(queue, new_job("a", lines=2))
    assert await queue.results("a", after=0, limit=9) == []
    assert len(await claim(queue)) == 2


async def test_room_is_used_and_given_back(open_queue: OpenQueue) -> None:
    queue = await open_queue()
    empty = await queue.used_bytes()
    await queue.add(new_job("a"))
    await queue.add_lines("a", [NewLine(n, b"x" * 10_000) for n in range(1, 101)])
    assert await queue.used_bytes() - empty >= 1_000_000
    await queue.remove("a")
    await queue.close()  # which ends a log of changes
    assert await (await open_queue()).used_bytes() - empty < 100_000


async def test_jobs_are_counted_by_kind_and_state(open_queue: OpenQueue) -> None:
    queue = await open_queue()
    assert await queue.counts() == {}
    await queue.add(new_job("document", kind=JobKind.DOCUMENT))
    for name in ("a", "b", "c"):
        await add_running(queue, new_job(name, lines=1))
        await queue.add(new_job(name))  # which changes nothing
    await end(queue, new_job("b"))
    await queue.remove("c")
    await queue.remove("c")
    counted = {
        JobKind.DOCUMENT: {JobState.VALIDATING: 1},
        JobKind.BATCH: {JobState.IN_PROGRESS: 1, JobState.COMPLETED: 1},
    }
    assert await queue.counts() == counted
    assert await (await open_queue()).counts() == counted
    again = (await found(queue, "b")).entering(JobState.IN_PROGRESS, 1003.0)
    assert await queue.reopen(again, JobState.COMPLETED)
    assert (await queue.counts())[JobKind.BATCH] == {JobState.IN_PROGRESS: 2}


async def test_a_queue_from_before_jobs_had_a_mode_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    queue = SqliteQueue(path)
    await add_running(queue, new_job("a", lines=1, spec={"endpoint": "/v1/embeddings"}))
    await queue.close()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript("ALTER TABLE jobs DROP COLUMN mode; DELETE FROM job_counts;")

    queue = SqliteQueue(path)
    assert await queue.modes_left() == {Mode.EMBEDDING}
    assert await queue.counts() == {JobKind.BATCH: {JobState.IN_PROGRESS: 1}}
    await queue.add(new_job("b"))
    await queue.close()


async def test_whoever_asks_when_the_controller_ends_is_told_so(tmp_path: Path) -> None:
    queue = SqliteQueue(tmp_path / "jobs.sqlite")
    asking = asyncio.gather(*(queue.used_bytes() for _ in range(5)))
    await asyncio.sleep(0)
    await queue.close()
    await asking  # which came before
    with pytest.raises(RequestRefused) as refused:
        await queue.used_bytes()
    assert refused.value.code == "shutting_down"
    await queue.close()


async def test_whoever_waits_hears_of_new_lines(queue: JobQueue) -> None:
    waiting = asyncio.create_task(queue.wait(60))
    await asyncio.sleep(0)
    await add_running(queue, new_job("a", lines=1))
    async with asyncio.timeout(PATIENCE_S):
        await waiting


async def test_nothing_is_lost_when_the_queue_is_opened_again(open_queue: OpenQueue) -> None:
    queue = await open_queue()
    await add_running(queue, new_job("a", lines=3))
    lines = await claim(queue, 2, lease_s=1.0)
    await queue.settle([result(lines[0], b"one")])
    opened = await open_queue()
    assert [each.content for each in await opened.results("a", after=0, limit=9)] == [b"one"]
    numbers: set[int] = set()
    async with asyncio.timeout(PATIENCE_S):
        while numbers != {2, 3}:
            numbers |= {line.number for line in await claim(opened, owner="next")}
            await opened.wait(0.02)
