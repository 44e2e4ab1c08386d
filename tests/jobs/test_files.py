"""What every store of files holds to."""

import errno
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from supervisor.errors import RequestRefused
from supervisor.jobs import disk_files
from supervisor.jobs.disk_files import DiskFiles
from supervisor.jobs.port import FileStore
from supervisor.jobs.redis_connection import RedisConnection
from supervisor.jobs.redis_files import RedisFiles
from supervisor.jobs.values import StoredFile

CONTENT = b"line\n" * 200_000


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["disk", "redis"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, clock: Clock
) -> AsyncIterator[FileStore]:
    if request.param == "disk":
        folder = tmp_path / "files"
        folder.mkdir()
        yield DiskFiles(folder, clock)
        return
    connection = RedisConnection(request.getfixturevalue("redis_url"))
    yield RedisFiles(connection, clock)
    await connection.close()


@pytest.fixture
def local(tmp_path: Path) -> Callable[[bytes], Path]:
    """Writes a file as it comes from elsewhere."""

    def write(content: bytes = CONTENT) -> Path:
        path = tmp_path / "upload"
        path.write_bytes(content)
        return path

    return write


def new_file(name: str, *, created_at: float = 1000.0, expires_at: float = 2000.0) -> StoredFile:
    return StoredFile(
        id=name,
        file_name="in.jsonl",
        purpose="batch",
        created_at=created_at,
        expires_at=expires_at,
    )


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def content_of(store: FileStore, name: str) -> bytes:
    return b"".join([piece async for piece in store.read(name)])


async def test_a_file_is_taken_with_its_size_and_sum(
    store: FileStore, local: Callable[..., Path]
) -> None:
    path = local()
    kept = await store.add(new_file("file-1"), path)
    assert (kept.size_bytes, kept.sha256) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    assert not path.exists()
    assert await store.file("file-1") == kept
    assert await content_of(store, "file-1") == CONTENT


async def test_a_file_is_written_once(store: FileStore, local: Callable[..., Path]) -> None:
    kept = await store.add(new_file("file-1"), local(b"first"))
    assert await store.add(new_file("file-1"), local(b"second")) == kept
    assert await content_of(store, "file-1") == b"first"


async def test_files_are_listed_from_the_newest(
    store: FileStore, local: Callable[..., Path]
) -> None:
    for name, created_at in (("file-a", 900.0), ("file-c", 1000.0), ("file-b", 950.0)):
        await store.add(new_file(name, created_at=created_at), local())
    assert [each.id for each in await store.files()] == ["file-c", "file-b", "file-a"]


async def test_a_removed_file_is_gone(store: FileStore, local: Callable[..., Path]) -> None:
    await store.add(new_file("file-1"), local())
    assert await store.remove("file-1")
    assert not await store.remove("file-1")
    assert await store.file("file-1") is None
    assert await store.files() == []
    with pytest.raises(RequestRefused, match="there is no file 'file-1'"):
        await content_of(store, "file-1")


async def test_what_files_take_is_counted_as_they_come_and_go(
    store: FileStore, local: Callable[..., Path], clock: Clock
) -> None:
    assert await store.used_bytes() == 0
    for name, expires_at in (("file-1", 2000.0), ("file-2", 3000.0), ("file-1", 2000.0)):
        await store.add(new_file(name, expires_at=expires_at), local(b"x" * 10))
    assert await store.used_bytes() == 20
    clock.now = 2500.0
    await store.remove_expired()
    assert await store.used_bytes() == 10
    assert await store.remove("file-2")
    assert not await store.remove("file-2")
    assert await store.used_bytes() == 0


async def test_what_others_remove_from_a_shared_folder_makes_room(
    tmp_path: Path, local: Callable[..., Path], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_files, "_LOOK_AGAIN_S", 0.0)
    folder = tmp_path / "files"
    folder.mkdir()
    ours, others = DiskFiles(folder, clock), DiskFiles(folder, clock)
    file = new_file("file-1")
    await ours.add(file, local(CONTENT))
    assert await ours.used_bytes() == len(CONTENT)
    await others.remove(file.id)
    assert await ours.used_bytes() == 0


async def test_a_file_whose_time_is_over_is_gone(
    store: FileStore, local: Callable[..., Path], clock: Clock
) -> None:
    await store.add(new_file("file-1", expires_at=1500.0), local())
    await store.add(new_file("file-2", expires_at=2500.0), local())
    clock.now = 1500.0
    assert await store.file("file-1") is None
    assert [each.id for each in await store.files()] == ["file-2"]
    await store.remove_expired()
    clock.now = 1000.0
    assert [each.id for each in await store.files()] == ["file-2"]


@pytest.mark.parametrize("name", ["../secret", "a/b", "", ".", "file-1.json", "x" * 200])
async def test_a_name_never_leads_out_of_the_folder(
    store: FileStore, tmp_path: Path, local: Callable[..., Path], name: str
) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "secret.json").write_bytes(b"{}")
    await store.add(new_file("file-1"), local())
    assert await store.file(name) is None
    assert not await store.remove(name)


async def test_what_was_cut_off_on_its_way_is_not_there(tmp_path: Path, clock: Clock) -> None:
    store = DiskFiles(tmp_path, clock)
    (tmp_path / "file-1").write_bytes(b"content without its record")
    (tmp_path / "file-2.json").write_bytes(b"{half a rec")
    (tmp_path / "file-3-0a1b2c3d.coming").write_bytes(b"half")
    assert await store.files() == []
    assert await store.file("file-1") is None
    clock.now = 9e9
    await store.remove_expired()
    assert names_in(tmp_path) == ["file-2.json"]


async def test_tidying_leaves_what_others_keep_in_the_folder(tmp_path: Path, clock: Clock) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("report.pdf", "film.coming", "file-list.txt", "notes.json"):
        (folder / name).write_bytes(b"{}")
    for name in ("lost+found", "file-archive"):
        (folder / name).mkdir()
    (folder / "file-1").write_bytes(b"content without its record")
    clock.now = 9e9
    await DiskFiles(folder, clock).remove_expired()
    kept = ["file-archive", "file-list.txt", "film.coming", "lost+found", "notes.json"]
    assert names_in(folder) == [*kept, "report.pdf"]


async def test_a_record_that_another_program_wrote_removes_nothing(
    tmp_path: Path, clock: Clock
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    foreign = new_file("../secret", expires_at=0.0)
    (folder / "file-1.json").write_bytes(msgspec.json.encode(foreign))
    clock.now = 9e9
    await DiskFiles(folder, clock).remove_expired()
    assert (tmp_path / "secret").exists()


async def test_a_file_that_finds_no_room_leaves_nothing_behind(
    tmp_path: Path, clock: Clock, local: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_the_disk(path: Path, to: Path) -> None:
        to.write_bytes(path.read_bytes()[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = tmp_path / "files"
    folder.mkdir()
    monkeypatch.setattr(shutil, "move", fill_the_disk)
    with pytest.raises(RequestRefused, match="No space left on device"):
        await DiskFiles(folder, clock).add(new_file("file-1"), local())
    assert names_in(folder) == []
