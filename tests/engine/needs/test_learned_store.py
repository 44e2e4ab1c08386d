"""Learned needs on disk: the peak stays, whoever writes, and a broken file stops nothing."""

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from supervisor.core.sizing.learned import LearnedPeak
from supervisor.engine.needs import learned_store
from supervisor.engine.needs.learned_store import LearnedStore
from supervisor.observability.impairments import Impairments

OpenNeeds = Callable[[], LearnedStore]


def peak(peak_bytes: int, seen_on: str = "2026-11-21") -> LearnedPeak:
    return LearnedPeak(peak_bytes=peak_bytes, seen_on=seen_on)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / learned_store.FILE_NAME


@pytest.fixture
def open_needs(path: Path) -> Iterator[OpenNeeds]:
    """Opens the file once more each time; all are closed at the end."""
    opened: list[LearnedStore] = []

    def open_again() -> LearnedStore:
        opened.append(LearnedStore(path))
        return opened[-1]

    yield open_again
    for needs in opened:
        needs.close()


def test_what_was_learned_is_found_by_the_next_controller(open_needs: OpenNeeds) -> None:
    first = open_needs()
    first.note("chat", peak(100))
    first.close()

    second = open_needs()

    assert second.get("chat") == peak(100)
    assert second.get("another") is None


def test_a_lower_peak_changes_nothing_and_a_higher_one_brings_its_day(
    open_needs: OpenNeeds,
) -> None:
    needs = open_needs()
    needs.note("chat", peak(100, "2026-11-01"))

    needs.note("chat", peak(90, "2026-11-02"))
    assert needs.get("chat") == peak(100, "2026-11-01")

    needs.note("chat", peak(110, "2026-11-03"))
    assert needs.get("chat") == peak(110, "2026-11-03")


def test_what_another_process_forgets_is_forgotten_here(open_needs: OpenNeeds) -> None:
    controller, command = open_needs(), open_needs()
    controller.note("chat", peak(100))
    controller.note("other", peak(7))

    assert command.forget("chat")
    assert not command.forget("chat")

    assert controller.get("chat") is None
    assert controller.get("other") == peak(7)


def test_threads_may_note_at_the_same_time(open_needs: OpenNeeds) -> None:
    needs = open_needs()

    with ThreadPoolExecutor(max_workers=4) as threads:
        list(threads.map(lambda count: needs.note("chat", peak(count)), range(1, 41)))

    assert needs.get("chat") == peak(40)


def test_those_noted_least_lately_make_room(
    open_needs: OpenNeeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned_store, "MAX_ENTRIES", 3)
    needs = open_needs()
    for name in ("a", "b", "c"):
        needs.note(name, peak(1))
    needs.note("a", peak(1))  # it ran again

    needs.note("d", peak(1))

    assert [name for name in "abcd" if needs.get(name)] == ["a", "c", "d"]


def test_a_damaged_file_is_reported_put_aside_and_begun_anew(
    path: Path, open_needs: OpenNeeds
) -> None:
    path.write_bytes(b"no database" * 1000)

    with capture_logs() as lines:
        needs = open_needs()
        needs.note("chat", peak(100))

    assert [line["event"] for line in lines] == ["data.set_aside"]
    assert needs.get("chat") == peak(100)
    assert path.with_name(f"{path.name}.set-aside").read_bytes().startswith(b"no database")


def test_a_file_of_another_shape_is_reported_and_left_as_it_is(
    path: Path, open_needs: OpenNeeds
) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE needs (of TEXT)")

    with capture_logs() as lines:
        needs = open_needs()
        needs.note("chat", peak(100))

    assert [line["event"] for line in lines] == ["needs.unusable"]
    assert needs.get("chat") is None


def test_without_a_place_to_write_nothing_is_learned_and_nothing_fails(tmp_path: Path) -> None:
    with capture_logs() as lines:
        needs = LearnedStore(tmp_path / "missing" / learned_store.FILE_NAME)
        needs.note("chat", peak(100))

    assert (needs.get("chat"), needs.forget("chat")) == (None, False)
    assert [line["event"] for line in lines] == ["needs.unusable"]


def test_what_was_learned_while_nothing_could_be_written_is_kept_once_it_can_be(
    tmp_path: Path,
) -> None:
    impairments = Impairments()
    folder = tmp_path / "data"
    needs = LearnedStore(folder / learned_store.FILE_NAME, impairments)
    needs.note("chat", peak(100))
    needs.note("embed", peak(50))
    assert "needs are estimated meanwhile" in impairments.describe()[0]

    folder.mkdir()
    impairments._current[learned_store.PART].retry()  # type: ignore[misc]

    assert impairments.describe() == []
    assert (needs.get("chat"), needs.get("embed")) == (peak(100), peak(50))
    needs.close()
    needs.note("chat", peak(200))  # a reading that ends after the store's
    assert needs.get("chat") is None


def test_file_that_was_deleted_under_it_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / learned_store.FILE_NAME
    needs = LearnedStore(path)
    needs.note("chat", peak(100))
    path.unlink()
    needs.note("embed", peak(50))
    needs.note("embed", peak(50))
    needs.close()

    again = LearnedStore(path)
    assert again.get("embed") == peak(50)
    again.close()
