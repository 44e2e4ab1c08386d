"""Clients are sent here once the first model serves, if one is to be loaded at the start."""

import pytest

from supervisor.core.machine.agenda import Period
from supervisor.core.machine.events import BackendReady, ScheduleRead
from supervisor.observability.readiness import Readiness
from tests.core.machine.story import CHAT, Story
from tests.core.machine.surroundings import period

SCHEDULED = (period(0.0, CHAT),)
MIXED = (period(0.0),)


@pytest.mark.parametrize(
    ("has_default_model", "periods", "at_once"),
    [
        (False, (), "ready"),
        (False, MIXED, "ready"),
        (False, SCHEDULED, "starting"),
        (True, (), "starting"),
        (True, MIXED, "starting"),
    ],
)
def test_controller_is_ready_without_a_model_only_where_none_is_to_be_loaded(
    periods: tuple[Period, ...], at_once: str, *, has_default_model: bool
) -> None:
    readiness = Readiness(has_default_model=has_default_model, has_schedule=bool(periods))
    nothing_yet = "ready" if not (has_default_model or periods) else "starting"
    assert readiness.state(Story().snapshot) == nothing_yet
    readiness.observe(ScheduleRead(at=0.0, periods=periods))
    assert readiness.state(Story().snapshot) == at_once
    readiness.observe(BackendReady(at=0.0, epoch=1, memory=None))
    assert readiness.state(Story().snapshot) == "ready"


def test_period_that_begins_later_without_its_model_does_not_take_readiness_away() -> None:
    readiness = Readiness(has_default_model=False, has_schedule=True)
    readiness.observe(ScheduleRead(at=0.0, periods=MIXED))
    readiness.observe(ScheduleRead(at=60.0, periods=SCHEDULED))
    assert readiness.state(Story().snapshot) == "ready"


def test_controller_is_unhealthy_while_the_model_of_its_period_cannot_be_loaded() -> None:
    story = Story()
    readiness = Readiness(has_default_model=False, has_schedule=True)
    story.tell(ScheduleRead, periods=(period(story.now - 1.0, CHAT),))
    assert readiness.health(story.snapshot, is_impaired=False) == "healthy"
    story.accept(need_bytes=10**12)
    assert readiness.health(story.snapshot, is_impaired=False) == "unhealthy"
