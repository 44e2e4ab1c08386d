"""Batches between their files: whatever dies when, each line is in one file, once."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path

import pytest

from supervisor.errors import RequestRefused
from supervisor.jobs import output_files, paging
from supervisor.jobs.answering import Answered, Asked, NotAnswered
from supervisor.jobs.batches import BatchHandler
from supervisor.jobs.disk_files import DiskFiles
from supervisor.jobs.output_files import OutputFiles
from supervisor.jobs.port import JobQueue
from supervisor.jobs.service import JobLimits, JobService
from supervisor.jobs.values import Job, JobKind, JobState, LineResult, StoredFile
from tests.jobs.conftest import add_running, new_job

ENDPOINT = "/v1/embeddings"
LINES = 40


class Echo:
    """Answers each request with its own body; one in four is refused, one in nine must wait."""

    async def answer(
        self, asked: Sequence[Asked]
    ) -> AsyncIterator[Sequence[Answered | NotAnswered]]:
        for index, each in enumerate(asked):
            number = int(json.loads(each.body)["input"])
            if number % 9 == 0:
                yield [NotAnswered(index=index, reason="busy", counts=False, after_s=0.0)]
            else:
                status = 400 if number % 4 == 0 else 200
                yield [Answered(index=index, status=status, body=each.body, request_id="r")]


class Files(DiskFiles):
    """Files whose store may break off in the middle of one, as one behind a network."""

    refusal: RequestRefused | None = None

    async def read(self, file_id: str) -> AsyncGenerator[bytes, None]:
        async for piece in super().read(file_id):
            if self.refusal is not None:
                yield piece[: len(piece) // 2]
                raise self.refusal
            yield piece


@pytest.fixture
def files(tmp_path: Path) -> Files:
    folder = tmp_path / "files"
    folder.mkdir()
    return Files(folder)


@pytest.fixture
def handler(queue: JobQueue, files: DiskFiles, tmp_path: Path) -> BatchHandler:
    work_dir = tmp_path / "work"
    work_dir.mkdir()
    return BatchHandler(queue, files, Echo(), work_dir)


async def begun(queue: JobQueue, files: DiskFiles, handler: BatchHandler, path: Path) -> Job:
    """Return a batch whose lines are in the queue."""
    lines = [
        {"custom_id": f"c{n}", "method": "POST", "url": ENDPOINT, "body": {"input": str(n)}}
        for n in range(LINES)
    ]
    await asyncio.to_thread(path.write_text, "\n".join(map(json.dumps, lines)))
    asked = StoredFile(
        id="file-in", file_name="in", purpose="batch", created_at=0.0, expires_at=9e9
    )
    await files.add(asked, path)
    spec = {"endpoint": ENDPOINT, "input_file_id": "file-in", "files_expire_after_s": 9e9}
    job = new_job("batch_a", spec=spec)
    await queue.add(job)
    await handler.begin(job)
    running = (await handler.begin(job)).job  # as one that died before it could say so
    assert await queue.change(running, JobState.VALIDATING)
    return running


async def worked_on(queue: JobQueue, handler: BatchHandler) -> None:
    """Answer the lines once."""
    lines = await queue.claim(JobKind.BATCH, "me", 1000, 60.0)
    assert len(lines) == LINES
    async for outcomes in handler.answer(lines):
        await queue.settle([each for each in outcomes if isinstance(each, LineResult)])


async def ids_in(files: DiskFiles, file_id: str | None) -> Counter[str]:
    if file_id is None:
        return Counter()
    content = b"".join([piece async for piece in files.read(file_id)])
    return Counter(json.loads(line)["custom_id"] for line in content.splitlines())


async def current(queue: JobQueue) -> Job:
    job = await queue.job("batch_a")
    assert job is not None
    return job


async def test_however_often_a_batch_is_ended_its_files_are_the_same(
    queue: JobQueue, files: DiskFiles, handler: BatchHandler, tmp_path: Path
) -> None:
    job = await begun(queue, files, handler, tmp_path / "in")
    await worked_on(queue, handler)
    assert await queue.change(job.entering(JobState.FINALIZING, 1.0), JobState.IN_PROGRESS)
    job = await current(queue)
    ended = await asyncio.gather(*(handler.end(job) for _ in range(3)))
    assert (
        len({(each.outcome["output_file_id"], each.outcome["error_file_id"]) for each in ended})
        == 1
    )
    assert ended[0].state is JobState.EXPIRED
    output = await ids_in(files, ended[0].outcome["output_file_id"])
    errors = await ids_in(files, ended[0].outcome["error_file_id"])
    assert output + errors == Counter(f"c{n}" for n in range(LINES))
    assert output == Counter(f"c{n}" for n in range(LINES) if n % 9 and n % 4)
    assert await asyncio.to_thread(lambda: list((tmp_path / "work").iterdir())) == []


@pytest.mark.parametrize("is_forgotten", [True, False], ids=["forgotten", "died before that"])
async def test_a_later_round_has_what_an_earlier_one_answered(
    queue: JobQueue, files: DiskFiles, handler: BatchHandler, tmp_path: Path, is_forgotten: bool
) -> None:
    job = await begun(queue, files, handler, tmp_path / "in")
    await worked_on(queue, handler)
    assert await queue.change(job.entering(JobState.CANCELLING, 1.0), JobState.IN_PROGRESS)
    ended = await handler.end(await current(queue))
    assert ended.state is JobState.CANCELLED
    assert await queue.change(ended, JobState.CANCELLING)
    if is_forgotten:
        await queue.forget_results(job.id)
    service = JobService(queue, files, lambda: JobLimits(max_bytes=10**9, keep_s=9e9), print)
    again = await service.retry(job.id)
    lines = await queue.claim(JobKind.BATCH, "me", 1000, 60.0)
    await queue.settle([handler.failure(line, "attempts_exhausted", "no") for line in lines])
    assert await queue.change(again.entering(JobState.FINALIZING, 2.0), JobState.IN_PROGRESS)
    ended = await handler.end(await current(queue))
    assert ended.state is JobState.COMPLETED
    output = await ids_in(files, ended.outcome["output_file_id"])
    errors = await ids_in(files, ended.outcome["error_file_id"])
    assert output + errors == Counter(f"c{n}" for n in range(LINES))
    assert output == Counter(f"c{n}" for n in range(LINES) if n % 9 and n % 4)


async def test_a_batch_whose_file_is_gone_fails_with_that_reason(
    queue: JobQueue, handler: BatchHandler
) -> None:
    spec = {"endpoint": ENDPOINT, "input_file_id": "file-none", "files_expire_after_s": 9e9}
    job = (await handler.begin(new_job("batch_a", spec=spec))).job
    assert job.state is JobState.FAILED
    assert "there is no file 'file-none'" in job.reason


async def test_what_is_full_takes_no_more(
    queue: JobQueue, files: DiskFiles, tmp_path: Path
) -> None:
    used = await queue.used_bytes()
    service = JobService(queue, files, lambda: JobLimits(max_bytes=used + 1000, keep_s=60.0), print)
    first = tmp_path / "first"
    await asyncio.to_thread(first.write_bytes, b"x" * 900)
    kept = await service.add_file(first, "in.jsonl", "batch", None)
    await asyncio.to_thread(first.write_bytes, b"x" * 900)
    with pytest.raises(RequestRefused, match=r"jobs.max_bytes") as refused:
        await service.add_file(first, "in.jsonl", "batch", None)
    assert refused.value.code == "storage_full"
    await service.remove_file(kept.id)
    assert (await service.add_file(first, "in.jsonl", "batch", None)).size_bytes == 900


async def test_a_store_that_does_not_answer_fails_no_batch(
    queue: JobQueue, files: Files, handler: BatchHandler, tmp_path: Path
) -> None:
    job = await begun(queue, files, handler, tmp_path / "in")
    files.refusal = RequestRefused("queue_unreachable", "the server does not answer")
    with pytest.raises(RequestRefused, match="does not answer"):
        await handler.begin(job)
    files.refusal = None
    assert (await handler.begin(job)).job.state is JobState.IN_PROGRESS


async def second_round(
    queue: JobQueue, files: Files, handler: BatchHandler, path: Path
) -> tuple[Job, Counter[str]]:
    """Return a batch that is about to end again, and what its first round had answered."""
    job = await begun(queue, files, handler, path)
    await worked_on(queue, handler)
    assert await queue.change(job.entering(JobState.FINALIZING, 1.0), JobState.IN_PROGRESS)
    ended = await handler.end(await current(queue))
    assert await queue.change(ended, JobState.FINALIZING)
    await queue.forget_results(job.id)
    answered = await ids_in(files, ended.outcome["output_file_id"])
    return ended.entering(JobState.FINALIZING, 2.0, round=ended.round + 1), answered


async def test_earlier_answers_wait_for_a_store_that_does_not_answer(
    queue: JobQueue, files: Files, handler: BatchHandler, tmp_path: Path
) -> None:
    again, answered = await second_round(queue, files, handler, tmp_path / "in")
    files.refusal = RequestRefused("queue_unreachable", "the server does not answer")
    with pytest.raises(RequestRefused, match="does not answer"):
        await handler.end(again)
    assert await asyncio.to_thread(lambda: list((tmp_path / "work").iterdir())) == []
    files.refusal = None
    ended = await handler.end(again)
    assert await ids_in(files, ended.outcome["output_file_id"]) == answered


async def test_earlier_answers_whose_file_is_deleted_meanwhile_leave_no_half_line(
    queue: JobQueue, files: Files, handler: BatchHandler, tmp_path: Path
) -> None:
    again, _ = await second_round(queue, files, handler, tmp_path / "in")
    files.refusal = RequestRefused("file_not_found", "it was deleted")
    ended = await handler.end(again)
    assert ended.outcome["output_file_id"] is None
    assert ended.outcome["error_file_id"] is not None


async def test_a_full_disk_is_left_nothing_of_what_could_not_be_written(
    files: DiskFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each attempt would take of what was freed meanwhile."""
    monkeypatch.setattr(output_files, "token_hex", lambda _: "t")
    (tmp_path / "batch_a-t-output").symlink_to("/dev/full")
    some = [
        LineResult(job_id="batch_a", number=number, is_success=True, content=b"x" * 1000)
        for number in range(1, 20)
    ]
    job = new_job("batch_a", spec={"files_expire_after_s": 9e9})

    async def write() -> None:
        async with OutputFiles(files, tmp_path, job, 0.0) as written:
            for each in some:  # what is in the file's buffer is written when that is closed
                await written.write([each])

    with pytest.raises(OSError, match="No space left"):
        await write()
    left = await asyncio.to_thread(lambda: list(tmp_path.glob("batch_a*")))
    assert left == []


async def test_results_are_read_by_their_size(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "PAGE_BYTES", 1000)
    await add_running(queue, new_job("batch_a", lines=20))
    lines = await queue.claim(JobKind.BATCH, "me", 100, 60.0)
    await queue.settle(
        [
            LineResult(job_id="batch_a", number=each.number, is_success=True, content=b"x" * 190)
            for each in lines
        ]
    )
    pages = [len(page) async for page in paging.result_pages(queue, "batch_a")]
    assert pages == [8, 5, 5, 2]


async def test_a_retry_of_what_is_to_begin_later_leaves_it_all_its_time(
    queue: JobQueue, files: DiskFiles
) -> None:
    job = new_job("batch_a", lines=1, spec={"window_s": 10.0}, not_before=9e9, expires_at=9e9 + 10)
    running = await add_running(queue, job)
    assert await queue.change(running.entering(JobState.CANCELLED, 1.0), JobState.IN_PROGRESS)
    service = JobService(queue, files, lambda: JobLimits(max_bytes=10**9, keep_s=60.0), print)
    assert (await service.retry("batch_a")).expires_at == 9e9 + 10
