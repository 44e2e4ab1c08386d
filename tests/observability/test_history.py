"""The history of switches: bounded, kept over restarts, and never in the way."""

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from supervisor.observability.history import SwitchHistory


def record(number: int) -> dict[str, Any]:
    return {"switch_id": f"s{number}", "ended_at": float(number), "outcome": "switched"}


def ids(history: SwitchHistory) -> list[str]:
    return [r["switch_id"] for r in history.newest_first()]


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

    assert [line["event"] for line in lines] == ["history.unusable"]
    assert ids(history) == ["s1"]
    history.close()


def test_unknown_switch_is_none() -> None:
    history = SwitchHistory(None, 3)

    assert history.get("s9") is None
    history.close()
