"""Which period of the schedule is over as its work is done is known again after a restart."""

from pathlib import Path

from immutables import Map
from msgspec.structs import replace

from supervisor.core.machine.agenda import Agenda, Period
from supervisor.core.machine.events import TimePassed
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.values import Mode
from supervisor.observability.impairments import Impairments
from supervisor.observability.schedule_store import ScheduleStore

NIGHT = Period(starts_at=5.0, began=1764090000.25, local="02:00", mode=Mode.EMBEDDING)
BEFORE = Snapshot(devices=Map())
AFTER = replace(BEFORE, agenda=Agenda(ended=NIGHT))


def store_at(path: Path) -> ScheduleStore:
    return ScheduleStore(path, Impairments())


def test_period_that_is_over_is_known_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    assert store_at(path).read() is None
    store_at(path).observe(TimePassed(at=1.0), BEFORE, AFTER, ())
    known = store_at(path).read()
    assert known is not None
    assert (known.began, known.serves) == (NIGHT.began, NIGHT.serves)


def test_period_is_forgotten_that_the_schedule_does_not_have_any_more(tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    store_at(path).observe(TimePassed(at=1.0), BEFORE, AFTER, ())
    store_at(path).observe(TimePassed(at=2.0), AFTER, BEFORE, ())
    assert store_at(path).read() is None


def test_nothing_is_written_while_no_period_ends(tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    again = replace(AFTER, agenda=Agenda(ended=replace(NIGHT, starts_at=9.0), refuses=True))
    store_at(path).observe(TimePassed(at=1.0), AFTER, again, ())
    assert not path.exists()
