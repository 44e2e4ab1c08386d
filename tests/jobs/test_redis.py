"""What holds of the shared queue alone: deaths of its server and of those who work on it."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lab.harness.redis_server import RedisServer

from supervisor.errors import RequestRefused
from supervisor.jobs import redis_connection
from supervisor.jobs.port import JobQueue
from supervisor.jobs.redis_connection import PREFIX, RedisConnection
from supervisor.jobs.redis_files import PART_BYTES, RedisFiles
from supervisor.jobs.redis_queue import RedisQueue
from supervisor.jobs.values import JobKind, JobState, Line, LineResult, NewLine, StoredFile
from tests.jobs.conftest import add_running, new_job
from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]

CLAIMER = """
import asyncio, sys
from supervisor.jobs.redis_connection import RedisConnection
from supervisor.jobs.redis_queue import RedisQueue
from supervisor.jobs.values import JobKind, LineResult

async def main():
    queue = RedisQueue(RedisConnection(sys.argv[1]))
    lines = await queue.claim(JobKind.BATCH, "doomed", 40, 0.5)
    await queue.settle([
        LineResult(job_id=line.job_id, number=line.number, is_success=True, content=b"doomed")
        for line in lines[:10]])
    print(len(lines), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""
"""Claims lines, settles some, and holds on to the others until it is killed."""


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that a test may kill."""
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
async def connect() -> AsyncIterator[Callable[[str], RedisConnection]]:
    made: list[RedisConnection] = []

    def make(url: str) -> RedisConnection:
        made.append(RedisConnection(url))
        return made[-1]

    yield make
    for connection in made:
        await connection.close()


Connect = Callable[[str], RedisConnection]


def done(line: Line, content: bytes = b"done") -> LineResult:
    return LineResult(job_id=line.job_id, number=line.number, is_success=True, content=content)


async def claim_all(queue: JobQueue, count: int) -> dict[int, Line]:
    """Claim until so many lines are ours."""
    found: dict[int, Line] = {}
    async with asyncio.timeout(PATIENCE_S):
        while len(found) < count:
            found |= {line.number: line for line in await queue.claim(JobKind.BATCH, "me", 256, 60)}
            await queue.wait(0.05)
    return found


async def when_back(ask: Callable[[], Awaitable[object]]) -> object:
    """Ask until the server answers again."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await ask()
            except RequestRefused as refused:
                assert refused.code == "queue_unreachable"  # noqa: PT017
                await asyncio.sleep(0.05)


async def test_what_was_answered_is_there_after_the_server_was_killed(
    own_server: RedisServer, connect: Connect, tmp_path: Path
) -> None:
    connection = connect(own_server.url)
    queue, files = RedisQueue(connection), RedisFiles(connection)
    (tmp_path / "upload").write_bytes(b"x" * (PART_BYTES + 1))
    file = StoredFile(id="file-1", file_name="in", purpose="batch", created_at=1.0, expires_at=9e9)
    await files.add(file, tmp_path / "upload")
    await add_running(queue, new_job("a", lines=30))
    lines = await queue.claim(JobKind.BATCH, "me", 20, 60.0)
    await queue.settle([done(line) for line in lines[:10]])
    own_server.kill()
    with pytest.raises(RequestRefused) as refused:
        await queue.claim(JobKind.BATCH, "me", 1, 60.0)
    assert refused.value.code == "queue_unreachable"
    await queue.wait(0.01)  # whoever waits for work goes on to wait
    own_server.start()
    job = await when_back(lambda: queue.job("a"))
    assert job is not None
    assert await queue.renew("me", lines[10:], 60.0) == []
    others = await claim_all(queue, 10)
    await queue.settle([done(line) for line in (*lines[10:], *others.values())])
    results = await queue.results("a", after=0, limit=99)
    assert [each.number for each in results] == list(range(1, 31))
    ended = await queue.claim_job(JobKind.BATCH, 60.0)
    assert ended is not None
    assert ended.counts.succeeded == 30
    assert sum([len(piece) async for piece in files.read("file-1")]) == PART_BYTES + 1


async def test_lines_of_a_killed_process_go_to_another_and_are_settled_once(
    redis_url: str, connect: Connect
) -> None:
    queue = RedisQueue(connect(redis_url))
    await add_running(queue, new_job("a", lines=60))
    doomed = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CLAIMER, redis_url), stdout=subprocess.PIPE, cwd=ROOT
    )
    assert doomed.stdout is not None
    assert await doomed.stdout.readline() == b"40\n"
    doomed.kill()
    await doomed.wait()
    claimed = await claim_all(queue, 50)
    await queue.settle([done(line, b"me") for line in claimed.values()])
    results = await queue.results("a", after=0, limit=99)
    assert [each.number for each in results] == list(range(1, 61))
    by_doomed = [each.number for each in results if each.content == b"doomed"]
    assert by_doomed == list(range(1, 11))
    assert {line.attempts for number, line in claimed.items() if number <= 40} == {2}


async def test_streams_hold_nothing_once_all_is_settled_or_gone(
    redis_url: str, connect: Connect
) -> None:
    connection = connect(redis_url)
    queue = RedisQueue(connection)
    job = await add_running(queue, new_job("cancelled", lines=3))
    await add_running(queue, new_job("done", lines=1))
    await queue.claim(JobKind.BATCH, "me", 1, 0.0)
    await queue.change(job.entering(JobState.CANCELLING, 1.0), JobState.IN_PROGRESS)
    await queue.remove("cancelled")
    claimed = await claim_all(queue, 1)
    await queue.settle([done(line) for line in claimed.values()])
    stream = f"{PREFIX}ready:batch:1"
    assert await connection.ask("XLEN", stream) == 0
    assert (await connection.ask("XPENDING", stream, "supervisors"))["pending"] == 0


async def test_a_file_that_was_kept_stays_whole_where_that_is_told_again(
    own_server: RedisServer, connect: Connect, tmp_path: Path
) -> None:
    """The first answer may be lost with its connection: then the same is sent once more."""
    connection = connect(own_server.url)
    files, run = RedisFiles(connection), connection.run

    async def run_twice(script: str, *arguments: Any) -> Any:
        await run(script, *arguments)
        return await run(script, *arguments)

    connection.run = run_twice  # type: ignore[method-assign]
    (tmp_path / "upload").write_bytes(b"content")
    file = StoredFile(id="file-1", file_name="in", purpose="batch", created_at=1.0, expires_at=9e9)
    await files.add(file, tmp_path / "upload")
    assert [piece async for piece in files.read("file-1")] == [b"content"]


async def test_full_server_says_that_there_is_no_room(
    own_server: RedisServer, connect: Connect, tmp_path: Path
) -> None:
    connection = connect(own_server.url)
    await connection.ask("CONFIG", "SET", "maxmemory", "3mb")
    (tmp_path / "upload").write_bytes(b"x" * 10 * PART_BYTES)
    file = StoredFile(id="file-1", file_name="in", purpose="batch", created_at=1.0, expires_at=9e9)
    files = RedisFiles(connection)
    with pytest.raises(RequestRefused) as refused:
        await files.add(file, tmp_path / "upload")
    assert refused.value.code == "storage_full"
    assert await files.files() == []
    await connection.ask("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(RequestRefused) as refused:
        await RedisQueue(connection).add(new_job("a"))
    assert refused.value.code == "storage_full"
    await connection.ask("CONFIG", "SET", "maxmemory", "0")
    assert await connection.ask("KEYS", f"{PREFIX}parts:*") == []
    await files.add(file, tmp_path / "upload")


async def test_full_server_can_be_emptied(
    own_server: RedisServer, connect: Connect, tmp_path: Path
) -> None:
    connection = connect(own_server.url)
    queue, files = RedisQueue(connection), RedisFiles(connection)
    (tmp_path / "upload").write_bytes(b"content")
    file = StoredFile(id="file-1", file_name="in", purpose="batch", created_at=1.0, expires_at=9e9)
    await files.add(file, tmp_path / "upload")
    ended = await add_running(queue, new_job("ended", lines=2))
    await queue.settle([done(line) for line in await queue.claim(JobKind.BATCH, "me", 2, 60.0)])
    assert await queue.change(ended.entering(JobState.COMPLETED, 1.0), JobState.IN_PROGRESS)
    running = await add_running(queue, new_job("running", lines=2))
    await connection.ask("CONFIG", "SET", "maxmemory", "1")

    cancelling = running.entering(JobState.CANCELLING, 1.0)
    assert await queue.change(cancelling, JobState.IN_PROGRESS)
    due = await queue.claim_job(JobKind.BATCH, 60.0)
    assert due is not None
    assert due.id == "running"
    assert await queue.claim_job(JobKind.BATCH, 60.0) is None
    await queue.change(cancelling.entering(JobState.CANCELLED, 1.0), JobState.CANCELLING)
    before = await queue.used_bytes()
    await queue.forget_results("ended")
    assert await queue.used_bytes() < before
    await queue.remove("ended")
    await queue.remove("running")
    assert await files.remove("file-1")

    assert (await queue.used_bytes(), await files.used_bytes()) == (0, 0)
    assert await queue.counts() == {}


async def test_whoever_waits_hears_of_lines_that_another_added(
    redis_url: str, connect: Connect
) -> None:
    mine, yours = RedisQueue(connect(redis_url)), RedisQueue(connect(redis_url))
    await mine.wait(0.01)
    waiting = asyncio.create_task(mine.wait(600))
    await add_running(yours, new_job("a", lines=1))
    await waiting
    assert len(await mine.claim(JobKind.BATCH, "me", 9, 60.0)) == 1


@pytest.mark.parametrize("turns", range(0, 60, 3))
async def test_whoever_is_cancelled_ends_wherever_that_finds_it(
    redis_url: str, connect: Connect, turns: int
) -> None:
    queue = RedisQueue(connect(redis_url))

    async def work() -> None:
        while True:
            await queue.claim(JobKind.BATCH, "me", 1, 60.0)
            await queue.wait(600)

    working = asyncio.create_task(work())
    for _ in range(turns):
        await asyncio.sleep(0)
    working.cancel()
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.wait([working])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("appendonly", "no", "appendonly yes"), ("maxmemory-policy", "allkeys-lru", "allkeys-lru")],
)
async def test_server_that_may_lose_what_it_was_told_is_found(
    own_server: RedisServer, connect: Connect, name: str, value: str, said: str
) -> None:
    connection = connect(own_server.url)
    assert await connection.why_it_passes() is None
    await connection.ask("CONFIG", "SET", name, value)
    assert said in str(await connection.why_it_passes())
    own_server.kill()
    assert await connection.why_it_passes() == "the server does not answer"


async def test_jobs_of_one_kind_that_are_due_cost_nobody_who_asks_for_another(
    redis_url: str, connect: Connect
) -> None:
    connection = connect(redis_url)
    queue = RedisQueue(connection)
    for number in range(300):
        await queue.add(new_job(f"{number}"))
    await queue.add(new_job("told", kind=JobKind.CALLBACK))
    await connection.ask("CONFIG", "RESETSTAT")
    claimed = await queue.claim_job(JobKind.CALLBACK, 60.0)
    assert claimed is not None
    assert claimed.id == "told"
    commands = await connection.ask("INFO", "commandstats")
    assert sum(each["calls"] for each in commands.values()) < 50


async def test_due_jobs_of_a_queue_from_before_each_kind_had_its_own_are_claimed(
    redis_url: str, connect: Connect
) -> None:
    """Also what a controller from then did with them, which shares the queue for a while."""
    connection = connect(redis_url)
    queue = RedisQueue(connection)
    await queue.add(new_job("new"))
    await queue.add(new_job("told", kind=JobKind.CALLBACK))
    await connection.ask("RENAME", PREFIX + "due:batch", PREFIX + "due")
    await connection.ask("ZADD", PREFIX + "due", 0, "removed")
    running = await add_running(queue, new_job("running", lines=1, expires_at=9e9))
    ended = await add_running(queue, new_job("ended", lines=1))
    await queue.change(ended.entering(JobState.COMPLETED, 1.0), JobState.IN_PROGRESS)
    for job in (running, ended):
        await connection.ask("ZADD", PREFIX + "due:batch", 0, job.id)

    claimed = [await queue.claim_job(JobKind.BATCH, 60.0) for _ in range(3)]
    assert [job.id if job else None for job in claimed] == ["new", None, None]
    told = await queue.claim_job(JobKind.CALLBACK, 60.0)
    assert told is not None
    assert await connection.ask("EXISTS", PREFIX + "due") == 0
    due = await connection.ask("ZRANGE", PREFIX + "due:batch", 0, -1)
    assert sorted(due) == [b"new", b"running"]


async def test_a_server_that_is_no_master_for_a_while_is_waited_for(
    own_server: RedisServer, connect: Connect
) -> None:
    connection = connect(own_server.url)
    queue = RedisQueue(connection)
    await queue.add(new_job("a"))
    waiting = asyncio.create_task(queue.wait(PATIENCE_S))
    await connection.ask("REPLICAOF", "127.0.0.1", "1")
    for ask in (
        lambda: queue.add(new_job("b")),
        lambda: connection.ask_all(("SET", "a", "b" * 1000)),
    ):
        with pytest.raises(RequestRefused, match="read only replica") as refused:
            await ask()
        assert refused.value.code == "queue_unreachable"
        assert "bbb" not in refused.value.message
    waiting.cancel()
    await connection.ask("REPLICAOF", "NO", "ONE")
    await queue.add(new_job("b"))
    assert [job.id for job in await queue.jobs(None, after=None, limit=9)] == ["b", "a"]


async def test_a_server_that_cannot_write_takes_no_file(
    own_server: RedisServer, connect: Connect, tmp_path: Path
) -> None:
    """A file's parts are sent several commands at a time."""
    (tmp_path / "dump.rdb").mkdir()
    connection = connect(own_server.url)
    await connection.ask("CONFIG", "SET", "save", "3600 1")

    await connection.ask("BGSAVE")
    async with asyncio.timeout(PATIENCE_S):
        while (await connection.ask("INFO"))["rdb_last_bgsave_status"] == "ok":  # noqa: ASYNC110 - it tells when asked
            await asyncio.sleep(0.05)
    with pytest.raises(RequestRefused) as refused:
        await connection.ask_all(("SET", "a", "b"))
    assert refused.value.code == "storage_full"


async def test_lines_that_an_older_controller_adds_to_a_document_wait_until_it_has_begun(
    redis_url: str, connect: Connect
) -> None:
    queue = RedisQueue(connect(redis_url))
    job = new_job("a", kind=JobKind.DOCUMENT, lines=2)
    await queue.add(job)
    await queue.add_lines("a", [NewLine(1, b"one"), NewLine(2, b"two")])
    assert await queue.claim(JobKind.DOCUMENT, "me", 9, 60.0) == []
    await queue.change(job.entering(JobState.IN_PROGRESS, 1001.0), JobState.VALIDATING)
    async with asyncio.timeout(PATIENCE_S):
        while not (lines := await queue.claim(JobKind.DOCUMENT, "you", 9, 60.0)):
            await queue.wait(0.05)
    assert [(line.content, line.attempts) for line in lines] == [(b"one", 1), (b"two", 1)]


async def test_queue_of_a_silent_server_can_be_closed(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is suspended takes connections, and answers nothing."""
    monkeypatch.setattr(redis_connection, "_ANSWER_S", 3600.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        queue = RedisQueue(connect(f"redis://127.0.0.1:{silent.getsockname()[1]}"))
        async with asyncio.timeout(PATIENCE_S):
            await queue.close()
