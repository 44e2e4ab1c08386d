"""The folders of the embedded store, and its process's side of the socket."""

import asyncio
import json
import shutil
import socket
from pathlib import Path
from typing import Any, cast

import pytest

from supervisor.config.settings import VectorSettings
from supervisor.errors import RequestRefused
from supervisor.side_process.messages import Asked, Frames, framed
from supervisor.vector_store.edge_worker import serve
from supervisor.vector_store.messages import DescribeCollection
from supervisor.vector_store.opening import StoreOpener
from supervisor.vector_store.port import Collections, PointKind
from supervisor.vector_store.shards import Shards
from supervisor.wiring.scheduled_work import ScheduledWork
from tests.patience import PATIENCE_S
from tests.vector_store.points import DIMENSION, MODEL, chunk, vector, whole


async def filled(folder: Path, *names: str) -> Shards:
    """Return the collections of a folder, of two points each: notes, unless others are named."""
    shards = Shards(folder)
    for name in names or ("notes",):
        await shards.ensure_collection(name, MODEL, DIMENSION)
        await shards.upsert(name, [chunk("a", 0, 1), whole("a", 1, text="whole")])
    return shards


def damage(collection: Path) -> None:
    """Empty files of a collection, as a power cut may."""
    for path in (collection / "shard-1").rglob("config.json"):
        path.write_bytes(b"")


async def test_what_a_killed_builder_left_goes_when_the_collection_is_opened(
    tmp_path: Path,
) -> None:
    (await filled(tmp_path)).close()
    for leftover in ("shard-2", "shard-9"):
        (tmp_path / "notes" / leftover / "segments").mkdir(parents=True)
    shards = Shards(tmp_path)
    assert (await shards.collection("notes")).chunks == 1
    assert {path.name for path in (tmp_path / "notes").iterdir()} == {"collection.json", "shard-1"}
    shards.close()


async def test_a_collection_whose_files_are_damaged_can_be_deleted(tmp_path: Path) -> None:
    (await filled(tmp_path)).close()
    damage(tmp_path / "notes")
    shards = Shards(tmp_path)
    with pytest.raises(RequestRefused, match=r"failed to load segment .* or delete the collection"):
        await shards.collection("notes")
    await shards.drop_collection("notes")
    assert await shards.collections() == Collections(collections=[], damaged=[])
    with pytest.raises(RequestRefused) as refused:
        await shards.drop_collection("notes")
    assert refused.value.code == "collection_not_found"
    shards.close()


async def test_a_collection_that_cannot_be_opened_hides_no_other(tmp_path: Path) -> None:
    (await filled(tmp_path, "mails", "notes")).close()
    damage(tmp_path / "mails")
    shards = Shards(tmp_path)
    found = await shards.collections()
    assert [each.name for each in found.collections] == ["notes"]
    assert [each.name for each in found.damaged] == ["mails"]
    assert "failed to load segment" in found.damaged[0].reason
    shards.close()


@pytest.mark.parametrize("is_open", [True, False])
async def test_the_schedule_builds_the_indexes_of_the_others(
    tmp_path: Path, *, is_open: bool
) -> None:
    (await filled(tmp_path, "mails", "notes")).close()
    opener = StoreOpener(VectorSettings(), lambda: tmp_path)
    try:
        store = await opener.store()
        if is_open:
            await store.collections()
        damage(tmp_path / "mails")
        await ScheduledWork(cast("Any", None), opener).optimize_vectors()
        assert (tmp_path / "notes" / "shard-2").is_dir()
        assert not (tmp_path / "mails" / "shard-2").exists()
    finally:
        await opener.close()


async def test_an_index_takes_the_place_of_its_shard(tmp_path: Path) -> None:
    shards = await filled(tmp_path)
    for number in (2, 3):
        await shards.optimize("notes")
        assert {path.name for path in (tmp_path / "notes").iterdir()} == {
            "collection.json",
            f"shard-{number}",
        }
    await shards.delete_document("notes", "a", "1")
    found = await shards.search("notes", vector(1), 10, PointKind.DOCUMENT, {})
    assert [hit.payload for hit in found] == [{"text": "whole"}]
    document = await shards.document("notes", "a")
    assert document is not None
    assert document.chunks == 1
    assert len((await shards.points("notes", None, 10)).points) == 2
    await shards.drop_collection("notes")
    assert await shards.collections() == Collections(collections=[], damaged=[])
    shards.close()


async def test_an_index_that_fails_leaves_nothing_of_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(source: Path, copy: Path) -> None:
        await asyncio.to_thread(shutil.copytree, source, copy)
        raise RequestRefused("store_failed", "the builder was killed")

    monkeypatch.setattr("supervisor.vector_store.shards._build_index", failing)
    shards = await filled(tmp_path)
    with pytest.raises(RequestRefused):
        await shards.optimize("notes")
    assert {path.name for path in (tmp_path / "notes").iterdir()} == {"collection.json", "shard-1"}
    shards.close()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"format": 2}', "format 2; this one knows 1"),
        ("no JSON", "cannot be read"),
        ('{"format": 1, "space": []}', "cannot be read"),
    ],
)
async def test_a_collection_that_cannot_be_understood_is_left_as_it_is(
    tmp_path: Path, content: str, said: str
) -> None:
    (await filled(tmp_path)).close()
    description = tmp_path / "notes" / "collection.json"
    written = json.loads(description.read_text())
    changed = json.dumps(written | {"format": 2}) if "2" in content else content
    description.write_text(changed)
    shards = Shards(tmp_path)
    with pytest.raises(RequestRefused, match=said) as refused:
        await shards.collection("notes")
    assert refused.value.code == "store_failed"
    assert description.read_text() == changed
    assert (tmp_path / "notes" / "shard-1").is_dir()
    shards.close()


async def test_the_process_ends_with_the_socket_whatever_it_is_asked(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    (await filled(tmp_path)).close()
    serving = asyncio.create_task(serve(tmp_path, theirs))
    reader, writer = await asyncio.open_connection(sock=ours)
    for number, name in enumerate(("notes", "none", "../up")):
        writer.write(framed(Asked(number, DescribeCollection(name))))
    frames = Frames()
    answers: list[bytes] = []
    while len(answers) < 3:
        answers += frames.feed(await reader.read(1 << 16))
    assert b"minilm" in answers[0]
    assert b"collection_not_found" in answers[1]
    assert b"bad_request" in answers[2]
    writer.close()
    async with asyncio.timeout(PATIENCE_S):
        await serving
        await writer.wait_closed()
