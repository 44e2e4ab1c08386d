"""The history of switches: bounded, kept over restarts, and never in the way."""

import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from supervisor.observability.history import SwitchHistory
from supervisor.observability.impairments import Impairments
from tests.patience import PATIENCE_S


def record(number: int) -> dict[str, Any]:
    return {"switch_id": f"s{number}", "ended_at": float(number), "outcome": "switched"}


def ids(history: SwitchHistory) -> list[str]:
    return [r["switch_id"] for r in history.newest_first()]


def ids_on_disk(path: Path) -> list[str]:
    """Return what a controller would find there after a restart."""
    history = SwitchHistory(path, 100)
    history.close()
    return ids(history)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.001)


def test_history_is_there_again_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    before = SwitchHistory(path, 10)
    for number in range(3):
        before.add(record(number))
    before.close()

    after = SwitchHistory(path, 10)

    assert ids(after) == ["s2", "s1", "s0"]
    assert after.get("s1") == record(1)
    after.close()


def test_only_the_last_ones_are_kept_in_memory_and_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    before = SwitchHistory(path, 3)
    for number in range(5):
        before.add(record(number))
    assert ids(before) == ["s4", "s3", "s2"]
    before.close()

    after = SwitchHistory(path, 100)

    assert ids(after) == ["s4", "s3", "s2"]
    after.close()


@pytest.mark.parametrize("content", [b"this is no database", b"\0" * 4096])
def test_file_that_is_no_database_costs_the_past_and_nothing_else(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "history.sqlite"
    path.write_bytes(content)

    with capture_logs() as lines:
        history = SwitchHistory(path, 3)
        history.add(record(1))

    assert [line["event"] for line in lines] == ["data.set_aside"]
    assert ids(history) == ["s1"]
    history.close()


def test_unknown_switch_is_none() -> None:
    history = SwitchHistory(None, 3)

    assert history.get("s9") is None
    history.close()


def test_switch_that_changed_nothing_is_found_by_its_id_and_takes_no_place(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    history = SwitchHistory(path, 3)
    history.add(record(0))
    for number in range(1, 3000):
        history.add_passing(record(number))

    assert ids(history) == ["s0"]
    assert history.get("s2999") == record(2999)
    assert history.get("s1") is None
    history.close()
    assert ids_on_disk(path) == ["s0"]


@pytest.mark.parametrize(
    "content", ["{nonsense", b"\xff\xfe\x00", "[]", '{"outcome": "switched"}', "5", "[" * 100_000]
)
def test_record_that_cannot_be_read_is_set_aside_and_the_others_are_there(
    tmp_path: Path, content: str | bytes
) -> None:
    path = tmp_path / "history.sqlite"
    before = SwitchHistory(path, 10)
    for number in range(3):
        before.add(record(number))
    before.close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE switches SET record = ? WHERE switch_id = 's1'", (content,))
    database.close()

    with capture_logs() as lines:
        after = SwitchHistory(path, 10)

    assert ids(after) == ["s2", "s0"]
    (line,) = lines
    assert (line["event"], "s1" in line["switch_id"]) == ("history.record_set_aside", True)
    after.add(record(3))
    after.close()
    with capture_logs() as lines:
        assert ids_on_disk(path) == ["s3", "s2", "s0"]
    assert lines == []  # it is named once
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT record FROM set_aside").fetchall() == [(content,)]
    database.close()


def test_what_cannot_be_written_is_said_once_and_written_when_it_can_be(tmp_path: Path) -> None:
    path = tmp_path / "data" / "history.sqlite"
    impairments = Impairments()
    with capture_logs() as lines:
        history = SwitchHistory(path, 10, impairments)
        history.add(record(0))
        wait_until(lambda: path.exists() and ids_on_disk(path) == ["s0"])
        shutil.rmtree(path.parent)
        path.parent.write_text("a file in the way")
        for number in (1, 2):
            history.add(record(number))
        wait_until(lambda: bool(impairments.describe()))
        (sentence,) = impairments.describe()
        assert str(path) in sentence
        path.parent.unlink()
        impairments._current["history"].retry()  # type: ignore[misc]
        wait_until(lambda: not impairments.describe())

    assert ids_on_disk(path) == ["s2", "s1", "s0"]
    assert ids(history) == ["s2", "s1", "s0"]
    assert [line["event"] for line in lines] == ["history.not_written", "controller.recovered"]
    history.close()


def test_file_that_was_deleted_is_there_again_with_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "data" / "history.sqlite"
    history = SwitchHistory(path, 10)
    history.add(record(0))
    wait_until(lambda: path.exists() and ids_on_disk(path) == ["s0"])
    shutil.rmtree(path.parent)
    history.add(record(1))
    history.close()

    assert ids_on_disk(path) == ["s1", "s0"]


def test_id_that_cannot_be_written_as_text_holds_no_other_up(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    history = SwitchHistory(path, 10)
    odd = "caf\udce9-retry-1"
    history.add(record(0) | {"switch_id": odd})
    history.add(record(1))
    history.close()

    assert ids_on_disk(path) == ["s1", odd]
