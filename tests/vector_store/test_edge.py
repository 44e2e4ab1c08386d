"""What is the embedded store's own: its process dies, and builds an index."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from lab.chaos.disk import Disk
from msgspec.structs import replace

from supervisor.errors import RequestRefused
from supervisor.side_process.process import SideProcess
from supervisor.vector_store.edge import EdgeStore
from supervisor.vector_store.port import Point, PointKind, point_id
from tests.conftest import ROOT
from tests.patience import PATIENCE_S
from tests.vector_store.points import DIMENSION, MODEL, chunk, vector


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[EdgeStore]:
    store = EdgeStore(tmp_path / "vectors")
    yield store
    await store.close()


def worker_of(store: EdgeStore) -> psutil.Process:
    assert store._process.running is not None
    return psutil.Process(store._process.running.pid)


async def texts_in(store: EdgeStore) -> list[str]:
    page = await store.points("notes", start=None, limit=10_000)
    return sorted(point.payload["text"] for point in page.points)


async def test_nothing_is_started_before_the_first_use(tmp_path: Path) -> None:
    before = psutil.Process().children()
    store = EdgeStore(tmp_path)
    await store.close()
    assert psutil.Process().children() == before


async def test_500_points_survive_kills_of_the_process_while_they_are_written(
    edge: EdgeStore,
) -> None:
    await edge.ensure_collection("notes", MODEL, DIMENSION)
    for index in range(500):
        writing = asyncio.create_task(edge.upsert("notes", [chunk("a", index, 1, index)]))
        if index % 100 == 50:
            await asyncio.sleep(0)  # the request is on its way
            worker_of(edge).kill()
        await writing
    worker_of(edge).kill()
    assert await texts_in(edge) == sorted(f"a {index}" for index in range(500))


async def test_500_points_survive_a_kill_of_the_controller_and_its_process_does_not(
    edge: EdgeStore, tmp_path: Path
) -> None:
    writer = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.vector_store.writer", str(tmp_path / "vectors")),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert writer.stdout is not None
    written = 0
    while written < 500:
        line = await writer.stdout.readline()
        assert line, "the writer ended"
        written = int(line) if line.strip().isdigit() else written
    (worker,) = psutil.Process(writer.pid).children()
    writer.kill()
    rest = (await writer.stdout.read()).split()
    written = max([written, *(int(word) for word in rest if word.isdigit())])
    await writer.wait()
    await asyncio.to_thread(psutil.wait_procs, [worker], timeout=PATIENCE_S)
    assert not worker.is_running()
    texts = await texts_in(edge)
    assert len(texts) == len(set(texts)) >= written


async def test_an_operation_that_ends_the_process_each_time_is_given_up(
    edge: EdgeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await edge.ensure_collection("notes", MODEL, DIMENSION)
    killed, ask = set(), SideProcess.ask

    async def kill_and_ask(worker: SideProcess, request: Any) -> msgspec.Raw:
        killed.add(worker.pid)
        os.kill(worker.pid, signal.SIGKILL)
        return await ask(worker, request)

    with monkeypatch.context() as deadly:
        deadly.setattr(SideProcess, "ask", kill_and_ask)
        with pytest.raises(RequestRefused, match="ended 3 times at one operation") as refused:
            await edge.search("notes", vector(1), limit=1)
    assert refused.value.code == "store_failed"
    assert len(killed) == 3
    assert await edge.search("notes", vector(1), limit=1) == []


async def test_what_was_written_is_there_in_the_next_store(edge: EdgeStore, tmp_path: Path) -> None:
    await edge.ensure_collection("notes", MODEL, DIMENSION)
    await edge.upsert("notes", [chunk("a", 0, 1)])
    await edge.close()
    with pytest.raises(RequestRefused, match="shutting down"):
        await edge.collections()
    following = EdgeStore(tmp_path / "vectors")
    assert await texts_in(following) == ["a 0"]
    await following.close()


async def test_a_collection_that_was_not_finished_is_made_anew(
    edge: EdgeStore, tmp_path: Path
) -> None:
    unfinished = tmp_path / "vectors" / "notes" / "shard-1"
    unfinished.mkdir(parents=True)
    (unfinished / "segments").mkdir()
    assert (await edge.collections()).collections == []
    await edge.ensure_collection("notes", MODEL, DIMENSION)
    await edge.upsert("notes", [chunk("a", 0, 1)])
    assert await texts_in(edge) == ["a 0"]


LENGTH, COUNT = 384, 8_000
"""More than the engine leaves without an index: 10,000 KB of vectors."""


def many_points() -> list[Point]:
    generator = np.random.default_rng(1)
    vectors = generator.standard_normal((COUNT, LENGTH)).astype("<f4")
    return [
        Point(
            id=point_id(document="a", model=MODEL, chunker="c1", index=index),
            document="a",
            kind=PointKind.CHUNK,
            generation="1",
            vector=row.tobytes(),
            payload={"index": index},
        )
        for index, row in enumerate(vectors)
    ]


async def test_searches_go_on_while_an_index_is_built_and_what_is_written_waits(
    edge: EdgeStore, tmp_path: Path
) -> None:
    points = many_points()
    await edge.ensure_collection("notes", MODEL, LENGTH)
    await edge.upsert("notes", points)
    building = asyncio.create_task(edge.optimize("notes"))
    late = replace(points[0], vector=points[1].vector, document="late")
    await edge.collection("notes")  # the order to build has arrived before this was answered
    writing = asyncio.create_task(edge.upsert("notes", [late]))
    searches = 0
    while not building.done():
        wanted = searches % len(points)  # a busy machine builds for longer than there are points
        hits = await edge.search("notes", points[wanted].vector, limit=1)
        assert [hit.payload["index"] for hit in hits] == [wanted]
        assert building.done() or not writing.done()
        searches += not building.done()
    await building
    await writing
    assert searches > 1
    assert (await edge.collection("notes")).indexed > COUNT * 0.9
    hits = await edge.search("notes", points[1].vector, limit=2)
    assert {hit.document for hit in hits} == {"a", "late"}
    assert [path.name for path in (tmp_path / "vectors" / "notes").glob("shard-*")] == ["shard-2"]


async def builders_of(store: EdgeStore) -> list[psutil.Process]:
    while not (builders := worker_of(store).children()):  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.01)
    return builders


async def test_an_index_that_was_not_finished_costs_nothing_but_itself(
    edge: EdgeStore, tmp_path: Path
) -> None:
    points = many_points()
    await edge.ensure_collection("notes", MODEL, LENGTH)
    await edge.upsert("notes", points)
    building = asyncio.create_task(edge.optimize("notes"))
    (builder,) = await builders_of(edge)
    builder.kill()
    with pytest.raises(RequestRefused, match="was not built"):
        await building
    assert (await edge.collection("notes")).chunks == COUNT
    building = asyncio.create_task(edge.optimize("notes"))
    builders = await builders_of(edge)
    worker_of(edge).kill()
    await building  # asked again of the next process
    _, alive = await asyncio.to_thread(psutil.wait_procs, builders, timeout=PATIENCE_S)
    assert not alive
    assert (await edge.collection("notes")).indexed > COUNT * 0.9


async def test_a_full_disk_refuses_what_is_written_and_searches_go_on(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "vectors")
    store = EdgeStore(tmp_path / "vectors")
    try:
        if not disk._is_mounted:
            pytest.skip("only root may mount a file system")
        await store.ensure_collection("notes", MODEL, DIMENSION)
        await store.upsert("notes", [chunk("a", 0, 1)])
        disk.fill()
        for refused in (
            store.upsert("notes", [chunk("a", 1, 1)]),
            store.ensure_collection("others", MODEL, DIMENSION),
            store.optimize("notes"),
        ):
            with pytest.raises(RequestRefused, match="0 MiB left on its disk") as error:
                await refused
            assert error.value.code == "storage_full"
        assert len(await store.search("notes", vector(1), limit=10)) == 1
        disk.free()
        await store.upsert("notes", [chunk("a", 1, 1)])
        assert len(await store.search("notes", vector(1), limit=10)) == 2
    finally:
        await store.close()
        disk.close()
