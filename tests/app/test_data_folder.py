"""The data folder: whose it is, and what of it is touched."""

import asyncio
import errno
import fcntl
import json
import os
import socket
import sqlite3
import stat
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from supervisor.data_folder import MARKER, DataFolder
from supervisor.errors import ConfigError, RequestRefused, SupervisorError


async def claim_and_use(path: Path) -> Path:
    """Claim a folder as a start does, and give it back; returns its folder of sockets."""
    data = await DataFolder.claim(path)
    try:
        run_dir = data.make_run_dir()
        data.store("history.sqlite")
        (data.subfolder("prompt-cache") / "of-ours").touch()
    finally:
        data.release()
    return run_dir


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# One controller at a time


async def test_second_controller_on_a_folder_is_refused_with_the_pid_of_the_first(
    tmp_path: Path,
) -> None:
    first = await DataFolder.claim(tmp_path)

    with pytest.raises(SupervisorError, match=f"in use by the controller with pid {os.getpid()}"):
        await DataFolder.claim(tmp_path)
    with pytest.raises(SupervisorError, match=r"after 0\.1 s"):
        await DataFolder.claim(tmp_path, wait_s=0.1)

    first.release()
    (await DataFolder.claim(tmp_path)).release()


# Whose it is


def test_what_was_in_a_folder_before_us_is_never_deleted(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run-42" / "checkpoint.bin"
    checkpoint.parent.mkdir()
    checkpoint.write_text("weeks of work")
    (tmp_path / "run-43").mkdir()
    (tmp_path / "prompt-cache").mkdir()
    (tmp_path / "prompt-cache" / "notes.txt").write_text("mine")
    (tmp_path / "controller.lock").write_text("a lock of somebody else")
    tmp_path.chmod(0o755)

    with capture_logs() as lines:
        asyncio.run(claim_and_use(tmp_path))

    assert checkpoint.read_text() == "weeks of work"
    assert (tmp_path / "run-43").is_dir()
    assert (tmp_path / "prompt-cache.set-aside" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "controller.lock.set-aside").read_text() == "a lock of somebody else"
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    set_aside = [line["path"] for line in lines if line["event"] == "data.set_aside"]
    assert set_aside == [f"{tmp_path}/controller.lock", f"{tmp_path}/prompt-cache"]


async def test_no_link_in_the_folder_is_followed(tmp_path: Path) -> None:
    data, outside = tmp_path / "data", tmp_path / "outside"
    data.mkdir()
    outside.mkdir()
    (outside / "precious").write_text("12345")
    for name in ("run-1", "run-abcd-xxxx", "prompt-cache"):
        (data / name).symlink_to(outside)
    for name in ("controller.lock", MARKER, f"{MARKER}.new", "history.sqlite"):
        (data / name).symlink_to(outside / "precious")

    await claim_and_use(data)

    assert names_in(outside) == ["precious"]
    assert (outside / "precious").read_text() == "12345"
    assert (data / "prompt-cache").is_dir()
    assert not (data / "prompt-cache").is_symlink()


async def test_a_folder_from_before_markers_is_adopted_once_and_said(tmp_path: Path) -> None:
    (tmp_path / "controller.lock").write_text("4711")
    sqlite3.connect(tmp_path / "history.sqlite").close()
    (tmp_path / "history.sqlite").touch()
    (tmp_path / "prompt-cache" / "identity").mkdir(parents=True)
    stale = tmp_path / "run-abcdefgh"
    stale.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(stale / "backend-1.sock"))

    with capture_logs() as first:
        await claim_and_use(tmp_path)
    with capture_logs() as second:
        await claim_and_use(tmp_path)

    assert [line["event"] for line in first] == ["data.adopted"]
    assert second == []
    assert not stale.exists()
    assert (tmp_path / "prompt-cache" / "identity").is_dir()


async def test_what_a_killed_controller_left_of_sockets_is_removed_and_nothing_else(
    tmp_path: Path,
) -> None:
    left = await claim_and_use(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(left / "backend-1.sock"))
    strange = left.with_name(f"{left.name}-more")
    strange.mkdir()
    (strange / "file").touch()

    await claim_and_use(tmp_path)

    assert not left.exists()
    assert (strange / "file").exists()


async def test_a_copy_of_a_folder_is_another_one(tmp_path: Path) -> None:
    one, copy = tmp_path / "one", tmp_path / "copy"
    await claim_and_use(one)
    copy.mkdir()
    (copy / MARKER).write_text((one / MARKER).read_text())

    first, second = await DataFolder.claim(one), await DataFolder.claim(copy)

    assert first.identity != second.identity
    first.release()
    second.release()
    assert (await DataFolder.claim(one)).identity == first.identity


async def test_a_damaged_marker_is_set_aside_and_nothing_counts_as_ours(tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text("{")
    (tmp_path / "prompt-cache").mkdir()
    (tmp_path / "prompt-cache" / "kept").touch()

    await claim_and_use(tmp_path)

    assert (tmp_path / f"{MARKER}.set-aside").read_text() == "{"
    assert (tmp_path / "prompt-cache.set-aside" / "kept").exists()


async def test_a_file_in_the_place_of_the_prompt_cache_is_set_aside_each_time(
    tmp_path: Path,
) -> None:
    for _ in range(2):
        (tmp_path / "prompt-cache").write_text("a file")
        await claim_and_use(tmp_path)
        (tmp_path / "prompt-cache" / "of-ours").unlink()
        (tmp_path / "prompt-cache").rmdir()

    kept = ("prompt-cache.set-aside", "prompt-cache.set-aside-2")
    assert [(tmp_path / name).read_text() for name in kept] == ["a file", "a file"]


# Formats


async def test_a_folder_of_a_newer_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    await claim_and_use(tmp_path)
    said = json.loads((tmp_path / MARKER).read_text()) | {"format": 2}
    (tmp_path / MARKER).write_text(json.dumps(said))
    (tmp_path / "controller.lock").write_text("4711")

    with pytest.raises(SupervisorError, match=r"newer version \(format 2; this one knows 1\)"):
        await DataFolder.claim(tmp_path)

    assert json.loads((tmp_path / MARKER).read_text()) == said
    assert (tmp_path / "controller.lock").read_text() == "4711"


async def test_a_store_of_a_newer_version_is_refused_and_an_older_one_is_migrated(
    tmp_path: Path,
) -> None:
    data = await DataFolder.claim(tmp_path)
    versions = {"older.sqlite": 0, "newer.sqlite": 2}
    for name, version in versions.items():
        with sqlite3.connect(tmp_path / name) as database:
            database.execute("CREATE TABLE mine (x)")
            database.execute(f"PRAGMA user_version = {version}")
        database.close()

    data.store("older.sqlite")
    with pytest.raises(SupervisorError, match=r"newer\.sqlite was written by a newer version"):
        data.store("newer.sqlite")

    database = sqlite3.connect(tmp_path / "older.sqlite")
    assert database.execute("PRAGMA user_version").fetchone() == (1,)
    assert database.execute("SELECT name FROM sqlite_master").fetchone() == ("mine",)
    database.close()
    data.release()


async def test_a_damaged_store_is_left_to_its_reader(tmp_path: Path) -> None:
    data = await DataFolder.claim(tmp_path)
    (tmp_path / "history.sqlite").write_text("this is not a database, and it is long enough" * 99)
    assert data.store("history.sqlite") == tmp_path / "history.sqlite"
    data.release()


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file/data: cannot be written"):
        await DataFolder.claim(tmp_path / "file" / "data")


async def test_a_folder_that_cannot_be_locked_is_not_taken_for_one_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(ConfigError, match="cannot be locked: No locks available"):
        await DataFolder.claim(tmp_path)


async def test_a_folder_on_a_full_disk_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ConfigError, match="cannot be written: No space left on device"):
        await DataFolder.claim(tmp_path)


async def test_folder_that_a_full_disk_could_not_note_is_ours_once_it_could(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it is set aside at the next start, with all that is in it."""

    def fill(_: Path, __: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    data = await DataFolder.claim(tmp_path)
    with monkeypatch.context() as full:
        full.setattr("supervisor.data_folder.write_new", fill)
        with pytest.raises(RequestRefused, match="No space left on device") as refused:
            data.subfolder("vectors")
    assert refused.value.code == "storage_full"
    (data.subfolder("vectors") / "of-ours").touch()
    data.release()

    again = await DataFolder.claim(tmp_path)
    assert names_in(again.subfolder("vectors")) == ["of-ours"]
    again.release()
