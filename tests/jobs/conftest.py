"""Queues of each kind: whatever holds of one must hold of all."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import redis
from lab.harness.redis_server import RedisServer

from supervisor.jobs.port import JobQueue
from supervisor.jobs.redis_connection import RedisConnection
from supervisor.jobs.redis_queue import RedisQueue
from supervisor.jobs.sqlite_queue import SqliteQueue
from supervisor.jobs.values import Job, JobKind, JobPriority, JobState, NewLine

OpenQueue = Callable[[], Awaitable[JobQueue]]
"""Opens the queue again, as after the death of whoever had it."""


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Debian's redis-server; whoever uses it finds it as others have left it."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of an empty Redis."""
    redis.Redis.from_url(redis_server.url).flushdb()
    return redis_server.url


@pytest.fixture(params=["sqlite", "redis"])
async def open_queue(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenQueue]:
    opened: list[JobQueue] = []
    url = request.getfixturevalue("redis_url") if request.param == "redis" else ""

    async def open_again() -> JobQueue:
        opened.append(
            RedisQueue(RedisConnection(url)) if url else SqliteQueue(tmp_path / "jobs.sqlite")
        )
        return opened[-1]

    yield open_again
    for queue in opened:
        await queue.close()


@pytest.fixture
async def queue(open_queue: OpenQueue) -> JobQueue:
    return await open_queue()


def new_job(
    name: str, *, lines: int = 0, priority: JobPriority = JobPriority.NORMAL, **changes: object
) -> Job:
    """Return a job as it is asked for."""
    fields = {"kind": JobKind.BATCH, "created_at": 1000.0, **changes}
    return Job(id=name, priority=priority, lines=lines, **fields)  # type: ignore[arg-type]


async def has_room() -> None:
    """Whatever jobs take, it is not too much."""


async def add_running(queue: JobQueue, job: Job) -> Job:
    """Add a job with its lines, and have it worked on."""
    await queue.add(job)
    numbers = range(1, job.lines + 1)
    await queue.add_lines(job.id, [NewLine(n, f"{job.id} {n}".encode()) for n in numbers])
    running = job.entering(JobState.IN_PROGRESS, 1001.0)
    assert await queue.change(running, JobState.VALIDATING)
    return running
