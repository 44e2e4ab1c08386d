"""Warming reads what is missing of a file, stops when told or when memory is short, and says so."""

import os
import threading
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from supervisor.engine.models.page_cache import (
    CHUNK_BYTES,
    FileWarmer,
    Warmed,
    look_at_chunks,
    mapped_file_bytes,
)

MIB = 1024 * 1024
CHUNKS = 3
SIZE = CHUNKS * CHUNK_BYTES + 100
PLENTY = 1 << 50
NOBODY = 65534

MakeFile = Callable[..., Path]


@pytest.fixture
def make_file(tmp_path: Path) -> MakeFile:
    """Writes a file that is on disk only; the kernel drops clean pages alone, so it is synced."""

    def make(name: str = "model.gguf", size: int = SIZE, folder: Path = tmp_path) -> Path:
        path = folder / name
        with path.open("wb") as file:
            file.write(os.urandom(size))
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert resident_bytes(path) == 0
        return path

    return make


def resident_bytes(path: Path) -> int:
    with path.open("rb") as file:
        return sum(chunk.resident_bytes for chunk in look_at_chunks(path, file.fileno()))


def warm(*paths: Path, available_bytes: Callable[[], int] = lambda: PLENTY) -> Warmed:
    return FileWarmer(available_bytes, reserve_bytes=MIB).warm(paths, threading.Event())


def test_cold_file_is_resident_after_it_was_warmed(make_file: MakeFile) -> None:
    path = make_file()
    warmed = warm(path)
    assert warmed.stopped_because is None
    assert (warmed.read_bytes, warmed.resident_bytes, warmed.total_bytes) == (SIZE, 0, SIZE)
    assert warmed.took_s > 0
    assert resident_bytes(path) == SIZE


def test_each_shard_is_warmed(make_file: MakeFile) -> None:
    shards = [make_file(f"model-{number:05}-of-00002.gguf", MIB) for number in (1, 2)]
    assert warm(*shards).read_bytes == 2 * MIB
    assert [resident_bytes(shard) for shard in shards] == [MIB, MIB]


def test_resident_file_is_not_read_again(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_file()
    path.read_bytes()
    monkeypatch.setattr(os, "preadv", None)  # a call of it fails
    warmed = warm(path)
    assert (warmed.read_bytes, warmed.resident_bytes) == (0, SIZE)
    assert warmed.stopped_because is None


def test_only_what_is_missing_is_read(make_file: MakeFile) -> None:
    path = make_file()
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no readahead
        assert os.pread(file.fileno(), CHUNK_BYTES, CHUNK_BYTES)
    before = resident_bytes(path)
    assert 0 < before < SIZE
    warmed = warm(path)
    assert (warmed.resident_bytes, warmed.read_bytes) == (before, SIZE - before)
    assert resident_bytes(path) == SIZE


def test_resident_file_needs_no_room(make_file: MakeFile) -> None:
    path = make_file()
    path.read_bytes()
    assert warm(path, available_bytes=lambda: 0).stopped_because is None


@pytest.mark.parametrize(
    ("available_bytes", "fits"),
    [(SIZE + MIB, True), (SIZE + MIB - 1, False)],
    ids=["just enough beside the reserve", "one byte short"],
)
def test_nothing_is_read_of_a_file_that_does_not_fit_beside_the_reserve(
    available_bytes: int, *, fits: bool, make_file: MakeFile
) -> None:
    path = make_file()
    warmed = warm(path, available_bytes=lambda: available_bytes)
    assert warmed.stopped_because == (None if fits else "memory is scarce")
    assert (resident_bytes(path) > 0) == fits


def test_all_shards_must_fit_together(make_file: MakeFile) -> None:
    shards = [make_file(name, 2 * MIB) for name in ("one", "two")]
    warmed = warm(*shards, available_bytes=lambda: 4 * MIB)
    assert (warmed.read_bytes, warmed.stopped_because) == (0, "memory is scarce")


def test_reading_stops_where_memory_becomes_short(make_file: MakeFile) -> None:
    looks = iter([PLENTY, PLENTY, 0])
    warmed = warm(make_file(), available_bytes=lambda: next(looks))
    assert warmed.stopped_because == "memory is scarce"
    assert warmed.read_bytes == 2 * CHUNK_BYTES


def test_reading_stops_within_a_chunk_when_it_is_told_to(make_file: MakeFile) -> None:
    should_stop = threading.Event()

    def stop_at_the_second_look() -> Iterator[int]:
        yield PLENTY
        should_stop.set()
        yield PLENTY

    looks = stop_at_the_second_look()
    warmer = FileWarmer(lambda: next(looks), reserve_bytes=0)
    warmed = warmer.warm([make_file()], should_stop)
    assert warmed.stopped_because == "stopped"
    assert warmed.read_bytes == 2 * CHUNK_BYTES


@pytest.mark.parametrize(
    ("what", "reason"), [("absent", "No such file or directory"), ("folder", "Is a directory")]
)
def test_unreadable_file_is_a_reason_and_no_error(tmp_path: Path, what: str, reason: str) -> None:
    (tmp_path / "folder").mkdir()
    warmed = warm(tmp_path / what)
    assert warmed.stopped_because == f"unreadable: {tmp_path / what}: {reason}"
    assert warmed.read_bytes == 0


def test_file_that_is_cut_while_it_is_read_is_a_reason(make_file: MakeFile) -> None:
    path = make_file()

    def cut() -> int:
        os.truncate(path, CHUNK_BYTES // 2)
        return PLENTY

    reason = warm(path, available_bytes=cut).stopped_because
    assert reason == f"unreadable: {path}: the file became shorter while it was read"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file that is not its reader's")
def test_foreign_file_is_warmed_although_the_kernel_calls_it_resident(make_file: MakeFile) -> None:
    """As in a container that runs as nobody and has its models mounted read-only."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = make_file(folder=Path(folder))
        path.chmod(0o644)
        ours, theirs = get_context("fork").Pipe(duplex=False)
        child = get_context("fork").Process(target=warm_as_nobody, args=(path, theirs))
        child.start()
        warmed = ours.recv()
        child.join()
        assert (warmed.read_bytes, warmed.stopped_because) == (SIZE, None)
        assert resident_bytes(path) == SIZE


def warm_as_nobody(path: Path, result: Connection) -> None:
    os.setgroups([])
    os.setuid(NOBODY)
    result.send(warm(path))


def test_mapped_files_of_a_process_are_told_and_of_one_that_is_gone_not() -> None:
    largest_pid = int(Path("/proc/sys/kernel/pid_max").read_text())
    assert mapped_file_bytes([os.getpid()]) > MIB  # the interpreter and its libraries
    assert mapped_file_bytes([os.getpid()] * 2 + [largest_pid]) == pytest.approx(
        2 * mapped_file_bytes([os.getpid()]), rel=0.1
    )
    assert mapped_file_bytes([largest_pid]) == 0
