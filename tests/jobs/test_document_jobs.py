"""Jobs of documents, from a queue into a store: parts that fail, states that overtake."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from supervisor.config.settings import VectorSettings
from supervisor.core.machine.values import Mode, Target
from supervisor.documents import service
from supervisor.documents.dividing import Plan
from supervisor.documents.embedding_parts import PartEmbedder, PartOutcome
from supervisor.documents.ingest import DocumentHandler
from supervisor.documents.keeping import Keeper
from supervisor.documents.opening import DocumentOpener
from supervisor.documents.parts import EmbeddedPart, Part, encode
from supervisor.documents.request import DocumentOutcome, DocumentRequest
from supervisor.documents.service import DocumentService
from supervisor.documents.values import Chunk, Division, NewDocument, ReadDocument
from supervisor.embedding.service import EmbeddingService
from supervisor.embedding.vectors import pack
from supervisor.engine.targets import Targets
from supervisor.errors import RequestRefused
from supervisor.jobs import runner
from supervisor.jobs.disk_files import DiskFiles
from supervisor.jobs.insisting import Insisting
from supervisor.jobs.port import JobQueue
from supervisor.jobs.runner import JobRunner
from supervisor.jobs.service import JobLimits, JobService
from supervisor.jobs.values import Job, JobKind, JobState, NewLine, StoredFile
from supervisor.observability.impairments import Impairments
from supervisor.vector_store.opening import StoreOpener
from tests.jobs.conftest import has_room
from tests.patience import PATIENCE_S

VECTOR = pack([1, 0, 0, 0])


class Library(DocumentOpener):
    """Has documents by the files that their jobs name, a chunk for each word."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.refusal: RequestRefused | None = None

    async def plan(self, request: DocumentRequest) -> Plan:
        if self.refusal is not None:
            raise self.refusal
        return Plan(division=Division(size=9, overlap=0), generation=self.texts[request.file_id])

    async def read(self, request: DocumentRequest, _division: Division) -> ReadDocument:
        text = self.texts[request.file_id]
        chunks = [Chunk(word, 0, len(word), None) for word in text.split()]
        return ReadDocument(format="txt", text=text, page_starts=(), chunks=chunks)


class Model(PartEmbedder):
    """Embeds parts; `refusals` by their texts."""

    def __init__(self) -> None:
        self.refusals: dict[str, RequestRefused] = {}
        self.asked: list[str] = []

    async def embed(self, parts: Sequence[Part]) -> AsyncIterator[Sequence[PartOutcome]]:
        for place, part in enumerate(parts):
            self.asked.append(part.text)
            chunk = part.content if isinstance(part.content, Chunk) else None
            refused = self.refusals.get(part.text)
            yield [(place, refused or EmbeddedPart(VECTOR, 1, chunk))]


@dataclass(slots=True, kw_only=True)
class Room:
    library: Library
    model: Model
    queue: JobQueue
    service: JobService
    stores: StoreOpener
    files: DiskFiles
    folder: Path

    async def take(self, text: str, *, created_at: float = 1000.0) -> str:
        """Take a state of the document `book` in; returns the id of its job."""
        job_id = f"document_{len(self.library.texts)}"
        self.library.texts[job_id] = text
        path = self.folder / job_id
        await asyncio.to_thread(path.write_text, text)
        await self.files.add(
            StoredFile(id=job_id, file_name="", purpose="document", created_at=0.0, expires_at=9e9),
            path,
        )
        spec = {"id": "book", "model": "m", "collection": "notes", "metadata": {}}
        await self.queue.add(
            Job(
                id=job_id,
                kind=JobKind.DOCUMENT,
                created_at=created_at,
                spec={**spec, "file_id": job_id},
            )
        )
        return job_id

    @property
    def taker(self) -> DocumentService:
        """Takes documents in."""
        return DocumentService(
            self.service, OneModel(), cast("Targets", None), self.stores, self.folder / "work"
        )

    async def comes(self, job_id: str, state: JobState) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while (await self.service.job(job_id)).state is not state:
                await self.queue.wait(0.05)

    async def ended(self, job_id: str) -> Job:
        job = await self.service.ended(await self.service.job(job_id), PATIENCE_S)
        assert job.state.is_end
        return job

    async def stored(self) -> list[str]:
        store = await self.stores.store()
        hits = await store.search("notes", VECTOR, limit=100)
        return [hit.payload["text"] for hit in sorted(hits, key=lambda hit: hit.payload["index"])]


@pytest.fixture
async def room(queue: JobQueue, tmp_path: Path) -> AsyncIterator[Room]:
    for name in ("files", "work", "vectors"):
        (tmp_path / name).mkdir()
    files = DiskFiles(tmp_path / "files")
    stores = StoreOpener(VectorSettings(), lambda: tmp_path / "vectors")
    library, model = Library(), Model()
    keeper = Keeper(stores, files, tmp_path / "work", lambda: 60.0)
    handler = DocumentHandler(queue, files, library, model, keeper)
    working = JobRunner(
        queue,
        files,
        {JobKind.DOCUMENT: handler},
        insisting=Insisting(Impairments()),
        workers=1,
        keep_s=lambda: 60.0,
        require_room=has_room,
    )
    working.start()
    limits = JobLimits(max_bytes=10**9, keep_s=60.0)
    jobs = JobService(queue, files, lambda: limits, lambda _: None)
    yield Room(
        library=library,
        model=model,
        queue=queue,
        service=jobs,
        stores=stores,
        files=files,
        folder=tmp_path,
    )
    await working.stop()
    await stores.close()


async def test_a_document_with_a_part_that_fails_is_not_stored_and_a_retry_does_what_failed(
    room: Room,
) -> None:
    await room.ended(await room.take("older state"))
    room.model.refusals["two"] = RequestRefused("input_too_long", "two is too long")
    job_id = await room.take("one two three")
    failed = await room.ended(job_id)
    assert (failed.state, failed.counts.succeeded, failed.counts.failed) == ("failed", 3, 1)
    error = DocumentOutcome.of(failed).error
    assert error is not None
    assert (error.code, error.message) == ("input_too_long", "two is too long")
    assert await room.stored() == ["older", "state"]

    room.model.refusals.clear()
    room.model.asked.clear()
    await room.service.retry(job_id)
    done = await room.ended(job_id)
    assert (done.state, DocumentOutcome.of(done).error) == (JobState.COMPLETED, None)
    assert room.model.asked == ["two"]
    assert await room.stored() == ["one", "two", "three"]


async def test_a_document_that_could_not_be_stored_is_after_a_retry(room: Room) -> None:
    """All of its parts are embedded by then, and none of them is embedded again."""
    store = await room.stores.store()
    await store.ensure_collection("notes", "another model", 4)
    job_id = await room.take("one two")
    failed = await room.ended(job_id)
    assert (failed.state, failed.counts.succeeded) == (JobState.FAILED, failed.lines)
    error = DocumentOutcome.of(failed).error
    assert error is not None
    assert error.code == "collection_mismatch"

    await store.drop_collection("notes")
    room.model.asked.clear()
    await room.service.retry(job_id)
    assert (await room.ended(job_id)).state is JobState.COMPLETED
    assert room.model.asked == []
    assert await room.stored() == ["one", "two"]


async def test_a_cancelled_document_goes_on_where_it_was_after_a_retry(room: Room) -> None:
    room.model.refusals["two"] = RequestRefused("queue_full", "full", {"retry_after_s": 0})
    job_id = await room.take("one two three")
    async with asyncio.timeout(PATIENCE_S):
        while (await room.service.job(job_id)).counts.succeeded < 3:
            await room.queue.wait(0.05)
    await room.service.cancel(job_id)
    assert (await room.ended(job_id)).state is JobState.CANCELLED
    assert await room.files.file(job_id) is not None
    room.model.refusals.clear()
    room.model.asked.clear()
    await room.service.retry(job_id)
    ended = await room.ended(job_id)
    assert (ended.state, ended.round) == (JobState.COMPLETED, 2)
    assert set(room.model.asked) == {"two"}  # twice where a worker had it when it was cancelled
    assert await room.stored() == ["one", "two", "three"]
    assert await room.files.file(job_id) is None


async def test_a_document_that_could_not_be_begun_is_after_a_retry(room: Room) -> None:
    room.library.refusal = RequestRefused("model_not_found", "no such model")
    job_id = await room.take("one two")
    failed = await room.ended(job_id)
    assert (failed.state, failed.lines) == (JobState.FAILED, 0)
    room.library.refusal = None
    await room.service.retry(job_id)
    ended = await room.ended(job_id)
    assert ended.state is JobState.COMPLETED
    assert DocumentOutcome.of(ended).error is None
    assert await room.stored() == ["one", "two"]


async def test_a_document_has_nothing_of_a_division_with_which_it_was_not_begun(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A controller may die while it adds parts, and `chunk_tokens` change before the next one."""
    monkeypatch.setattr(runner, "JOB_LEASE_S", 0.1)
    room.library.refusal = RequestRefused("queue_full", "full")  # which may pass
    job_id = await room.take("one two")
    parts = [Part("m", Chunk(text, 0, 9, None)) for text in ("of", "another", "division", "", "")]
    lines = [NewLine(number, encode(part)) for number, part in enumerate(parts, 1)]
    await room.queue.add_lines(job_id, lines)
    room.library.refusal = None
    ended = await room.ended(job_id)
    assert (ended.state, ended.lines, ended.counts.succeeded) == (JobState.COMPLETED, 3, 3)
    assert await room.stored() == ["one", "two"]


async def test_a_job_that_was_cancelled_before_it_began_begins_after_a_retry(room: Room) -> None:
    room.library.refusal = RequestRefused("queue_full", "full")  # which may pass
    job_id = await room.take("one two")
    await room.service.cancel(job_id)
    cancelled = await room.ended(job_id)
    assert (cancelled.state, cancelled.lines) == (JobState.CANCELLED, 0)
    room.library.refusal = None
    await room.service.retry(job_id)
    assert (await room.ended(job_id)).state is JobState.COMPLETED
    with pytest.raises(RequestRefused) as refused:
        await room.service.retry(job_id)
    assert refused.value.code == "job_not_retryable"


async def test_a_state_that_was_sent_in_earlier_does_not_replace_a_later_one(room: Room) -> None:
    later = await room.ended(await room.take("the later", created_at=2000.0))
    earlier = await room.ended(await room.take("the earlier one", created_at=1000.0))
    assert [DocumentOutcome.of(job).superseded for job in (later, earlier)] == [False, True]
    assert await room.stored() == ["the", "later"]


async def test_a_state_that_was_sent_in_again_is_not_replaced_by_one_from_in_between(
    room: Room,
) -> None:
    first = [await room.ended(await room.take("one", created_at=at)) for at in (1000.0, 3000.0)]
    between = await room.ended(await room.take("another", created_at=2000.0))
    assert [DocumentOutcome.of(job).unchanged for job in first] == [False, True]
    assert DocumentOutcome.of(between).superseded
    assert await room.stored() == ["one"]


async def test_what_another_attempt_may_heal_is_tried_again(room: Room) -> None:
    room.model.refusals["one"] = RequestRefused("queue_full", "full", {"retry_after_s": 0})
    job_id = await room.take("one two")
    while room.model.asked.count("one") < 3:
        await room.queue.wait(0.05)
    room.model.refusals.clear()
    ended = await room.ended(job_id)
    assert (ended.state, ended.counts.failed) == ("completed", 0)
    assert await room.stored() == ["one", "two"]


async def test_who_waits_for_a_document_does_so_for_a_time(room: Room) -> None:
    room.model.refusals["one"] = RequestRefused("queue_full", "full", {"retry_after_s": 0})
    job = await room.service.job(await room.take("one two"))
    assert not (await room.service.ended(job, 0.05)).state.is_end


async def test_a_cancelled_document_is_not_stored(room: Room) -> None:
    room.model.refusals["one"] = RequestRefused("queue_full", "full", {"retry_after_s": 0})
    job_id = await room.take("one two")
    while not room.model.asked:
        await room.queue.wait(0.05)
    await room.service.cancel(job_id)
    assert (await room.ended(job_id)).state is JobState.CANCELLED
    store = await room.stores.store()
    assert (await store.collections()).collections == []


async def test_a_document_that_is_being_stored_is_withdrawn_once_it_is(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that does not answer keeps nobody waiting for ever."""
    room.model.refusals["one"] = RequestRefused("queue_full", "full", {"retry_after_s": 0})
    job_id = await room.take("one two")
    await room.comes(job_id, JobState.IN_PROGRESS)
    async with room.stores.replacing("notes"):
        room.model.refusals.clear()
        await room.comes(job_id, JobState.FINALIZING)
        monkeypatch.setattr(service, "STORED_WITHIN_S", 0.1)
        with pytest.raises(RequestRefused) as refused:
            await room.taker.withdraw("notes", "book")
        assert refused.value.code == "job_not_cancellable"
        monkeypatch.setattr(service, "STORED_WITHIN_S", PATIENCE_S)
        assert await room.taker.withdraw("notes", "another") == []
        assert await room.taker.withdraw("others", None) == []
        withdrawing = asyncio.create_task(room.taker.withdraw("notes", None))
    assert await withdrawing == [job_id]
    assert (await room.service.job(job_id)).state is JobState.COMPLETED
    assert await room.taker.withdraw("notes", None) == []


class OneModel(EmbeddingService):
    """Has one model, whatever is wanted."""

    def __init__(self) -> None:
        pass

    def target(self, wanted: Target | None, path: str) -> Target:  # noqa: ARG002
        return Target(model="m", mode=Mode.EMBEDDING, profile="p", device="host")


async def test_a_document_that_the_queue_cannot_take_leaves_no_file(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each attempt would leave one for as long as jobs are kept."""

    async def full(_: Job) -> None:
        raise RequestRefused("storage_full", "the queue's server has no memory left")

    monkeypatch.setattr(room.queue, "add", full)
    with pytest.raises(RequestRefused):
        await room.taker.add(
            NewDocument(
                content="some text",
                id=None,
                file_name=None,
                media_type=None,
                model=None,
                collection=None,
                metadata={},
                priority="normal",
            )
        )
    assert await room.files.files() == []
