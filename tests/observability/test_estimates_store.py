"""What the scheduler has learned is kept over restarts, and a file that is damaged is set aside."""

from pathlib import Path

import pytest
from immutables import Map
from msgspec.structs import replace

from supervisor.core.machine.commands import FinishSwitch
from supervisor.core.machine.events import TimePassed
from supervisor.core.machine.reports import report_of
from supervisor.core.machine.snapshot import Scheduling, Snapshot
from supervisor.core.machine.switch import Order, Switch
from supervisor.core.machine.values import Phase
from supervisor.core.scheduling.estimates import Estimates, note_return, note_switch
from supervisor.observability.estimates_store import EstimatesStore
from supervisor.observability.impairments import Impairments

LEARNED = note_return(note_switch(Estimates(), "chat", 2.5, is_cold=False), "embed", 0.01)
AFTER = Snapshot(devices=Map(), scheduling=Scheduling(estimates=LEARNED))
ORDER = Order(switch_id="s1", target=None, requested_by="scheduler", started_at=0.0)
ENDED = FinishSwitch(
    report=report_of(
        Switch(order=ORDER, phase=Phase.READY, phase_started_at=0.0), 1.0, refusal=None
    )
)


def store_at(path: Path) -> EstimatesStore:
    return EstimatesStore(path, Impairments())


def test_what_was_learned_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "estimates.json"
    store_at(path).observe(TimePassed(at=1.0), AFTER, AFTER, (ENDED,))
    assert store_at(path).read() == LEARNED


def test_nothing_is_written_before_a_switch_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "estimates.json"
    store_at(path).observe(TimePassed(at=1.0), AFTER, AFTER, ())
    assert not path.exists()
    assert store_at(path).read() == Estimates()


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[]", b'{"format": 2, "estimates": {"models": {}}}']
)
def test_file_that_cannot_be_used_is_set_aside(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "estimates.json"
    path.write_bytes(content)
    assert store_at(path).read() == Estimates()
    assert (tmp_path / "estimates.json.damaged").read_bytes() == content


def test_disk_that_takes_nothing_is_an_impairment_until_it_does(tmp_path: Path) -> None:
    impairments = Impairments()
    folder = tmp_path / "gone"
    store = EstimatesStore(folder / "estimates.json", impairments)
    store.observe(TimePassed(at=1.0), AFTER, AFTER, (ENDED,))
    assert "estimates.json cannot be written" in impairments.describe()[0]

    folder.mkdir()
    newer = replace(AFTER, scheduling=Scheduling(estimates=Estimates()))
    store.observe(TimePassed(at=2.0), AFTER, newer, (ENDED,))
    assert impairments.describe() == []
