"""Collections move between stores and files, whole or not at all."""

from pathlib import Path

import pytest

from supervisor.errors import RequestRefused, SupervisorError
from supervisor.vector_store.moving import back_up, copy, restore
from supervisor.vector_store.port import Point, VectorStore
from supervisor.vector_store.server import ServerStore
from tests.vector_store.conftest import API_KEY
from tests.vector_store.points import chunk, whole

pytestmark = pytest.mark.asyncio(loop_scope="module")

COUNT = 600
"""More than two pages."""

seen: list[tuple[int, int]] = []


def note(moved: int, total: int) -> None:
    seen.append((moved, total))


async def filled(store: VectorStore, collection: str) -> str:
    points = [chunk("책", index, 1, index, page=index) for index in range(COUNT - 1)]
    await store.upsert(collection, [*points, whole("책", 1, 1, metadata={"lang": "ko"})])
    seen.clear()
    return collection


async def all_points(store: VectorStore, collection: str) -> list[Point]:
    page = await store.points(collection, start=None, limit=10_000)
    return list(page.points)


def names_in(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir()]


async def test_a_collection_is_copied_to_a_server(
    store: VectorStore, collection: str, qdrant_url: str
) -> None:
    name = await filled(store, collection)
    server = ServerStore(qdrant_url, API_KEY)
    for _ in range(2):  # a second time changes nothing
        assert await copy(store, name, server, f"{name}-copy", note) == COUNT
    assert await all_points(server, f"{name}-copy") == await all_points(store, name)
    assert (await server.space(f"{name}-copy")) == await store.space(name)
    assert seen[-1] == (COUNT, COUNT)
    await server.close()


async def test_what_was_backed_up_is_restored(
    store: VectorStore, collection: str, tmp_path: Path
) -> None:
    name, path = await filled(store, collection), tmp_path / "notes.jsonl"
    assert await back_up(store, name, path, note) == COUNT
    assert names_in(tmp_path) == ["notes.jsonl"]
    before = await all_points(store, name)
    await store.drop_collection(name)
    assert await restore(path, store, None, note) == (name, COUNT)
    assert await all_points(store, name) == before
    assert await restore(path, store, f"{name}-2", note) == (f"{name}-2", COUNT)
    assert (await store.collection(f"{name}-2")).documents == 1


async def test_an_empty_collection_moves_too(
    store: VectorStore, collection: str, tmp_path: Path
) -> None:
    path = tmp_path / "empty.jsonl"
    assert await back_up(store, collection, path, note) == 0
    assert await restore(path, store, f"{collection}-2", note) == (f"{collection}-2", 0)
    assert (await store.space(f"{collection}-2")) == await store.space(collection)


@pytest.mark.parametrize("lines_left", [1, 2, COUNT, COUNT + 1])
async def test_a_backup_that_was_cut_short_is_told(
    store: VectorStore, collection: str, tmp_path: Path, lines_left: int
) -> None:
    name, path = await filled(store, collection), tmp_path / "notes.jsonl"
    await back_up(store, name, path, note)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:lines_left]))
    with pytest.raises(SupervisorError, match=r"not whole: it breaks off behind \d+ points"):
        await restore(path, store, f"{name}-2", note)


@pytest.mark.parametrize("content", [b"", b"{}\n", b"no JSON", b'{"format": 2}\n'])
async def test_what_is_no_backup_is_told(
    store: VectorStore, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(SupervisorError, match="is no backup of a collection"):
        await restore(path, store, None, note)


async def test_a_damaged_line_is_told_by_its_place(
    store: VectorStore, collection: str, tmp_path: Path
) -> None:
    name, path = await filled(store, collection), tmp_path / "notes.jsonl"
    await back_up(store, name, path, note)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:5], lines[5][:40] + b"\n", *lines[6:]]))
    with pytest.raises(SupervisorError, match="behind point 0"):
        await restore(path, store, f"{name}-2", note)


async def test_a_backup_goes_into_no_collection_of_another_model(
    store: VectorStore, collection: str, tmp_path: Path
) -> None:
    name, path = await filled(store, collection), tmp_path / "notes.jsonl"
    await back_up(store, name, path, note)
    await store.ensure_collection(f"{name}-other", "e5", 8)
    with pytest.raises(RequestRefused) as refused:
        await restore(path, store, f"{name}-other", note)
    assert refused.value.code == "collection_mismatch"


async def test_a_file_that_cannot_be_written_leaves_nothing(
    store: VectorStore, collection: str, tmp_path: Path
) -> None:
    with pytest.raises(SupervisorError, match="cannot be written"):
        await back_up(store, collection, tmp_path / "none" / "notes.jsonl", note)
    with pytest.raises(SupervisorError, match="cannot be read"):
        await restore(tmp_path / "none", store, None, note)


async def test_backup_below_a_file_is_refused_with_the_reason(
    store: VectorStore, collection: str, tmp_path: Path
) -> None:
    name = await filled(store, collection)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SupervisorError, match="cannot be written: Not a directory"):
        await back_up(store, name, tmp_path / "file" / "backup", note)
