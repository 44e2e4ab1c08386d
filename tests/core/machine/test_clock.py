"""The schedule in the core: periods begin on time, a hand's choice holds, others wait."""

import pytest
from msgspec.structs import replace

from supervisor.core.machine.agenda import Agenda, Period
from supervisor.core.machine.clock import REREAD_S
from supervisor.core.machine.commands import (
    CheckTarget,
    Command,
    OptimizeVectors,
    ReadSchedule,
    RefuseRequest,
)
from supervisor.core.machine.deadlines import next_wakeup
from supervisor.core.machine.events import (
    RequestArrived,
    RulesChanged,
    ScheduleRead,
    TargetRejected,
    TimePassed,
)
from supervisor.core.machine.refusals import BATCH_RETRY_AFTER_S
from supervisor.core.machine.rules import Limits
from supervisor.core.machine.switch import CLOCK, SCHEDULER
from supervisor.core.machine.values import Mode, Target
from supervisor.core.scheduling.values import Priority
from tests.core.machine.story import (
    AT_ONCE,
    CHAT,
    EMBED,
    EXCLUSIVE,
    Story,
    granted_in,
    refused_in,
)
from tests.core.machine.surroundings import period

LEAD_S = 20.0


class Day(Story):
    """A story by the clock, which is read as often as the core wants it."""

    def __init__(
        self,
        *periods: Period,
        refuses: bool = False,
        has_work: bool = True,
        ended: Period | None = None,
    ) -> None:
        super().__init__(EXCLUSIVE, rules=AT_ONCE)
        self.snapshot = replace(self.snapshot, agenda=Agenda(ended=ended))
        self.periods, self.refuses, self.has_work = periods, refuses, has_work
        self.alarms: list[float] = []
        self.begun_with = self.read(ended)

    def read(self, ended: Period | None = None) -> tuple[Command, ...]:
        begun = [each for each in self.periods if each.starts_at <= self.now] or self.periods[:1]
        follow = [each for each in self.periods if each.starts_at > self.now]
        follow = [each for each in follow if each is not begun[-1]]
        return self.tell(
            ScheduleRead,
            periods=(begun[-1], *follow),
            refuses=self.refuses,
            lead_s=LEAD_S,
            has_work=self.has_work,
            ended=ended,
            read_again_at=self.now + REREAD_S,
        )

    def until(self, moment: float) -> list[Command]:
        """Let time pass, reading the schedule whenever the core wants that."""
        ordered: list[Command] = []
        while (alarm := next_wakeup(self.snapshot)) is not None and alarm <= moment:
            self.now = alarm
            self.alarms.append(alarm)
            for command in self.tell(TimePassed):
                ordered += self.read() if isinstance(command, ReadSchedule) else [command]
            following = next_wakeup(self.snapshot)
            assert following is None or following > self.now  # every alarm fires once
        self.now = moment
        return ordered

    def ask(
        self, request_id: str, target: Target, priority: Priority = Priority.INTERACTIVE
    ) -> tuple[Command, ...]:
        return self.tell(
            RequestArrived,
            request_id=request_id,
            target=target,
            may_switch=True,
            priority=priority,
        )

    def finish_switch(self) -> None:
        """Let the switch that runs go well, whatever gives way to it."""
        live = self.snapshot.ready_backends()
        self.accept()
        for backend in live:
            self.reap(backend.epoch)
        self.start()

    @property
    def requested_by(self) -> str | None:
        return self.snapshot.switch.order.requested_by if self.snapshot.switch else None


@pytest.fixture
def night() -> Day:
    """Chat until 2000, then embeddings until 3000, then chat again; chat is live at 1010."""
    day = Day(period(1000.0, CHAT), period(2000.0, EMBED), period(3000.0, CHAT))
    day.finish_switch()
    day.until(1010.0)
    return day


def test_start_makes_live_what_the_schedule_has_now() -> None:
    day = Day(period(900.0, EMBED), period(3000.0, CHAT))

    assert day.requested_by == CLOCK
    day.finish_switch()
    assert day.snapshot.live_models() == ("embed",)


def test_period_is_made_ready_before_it_begins_and_says_by_whom(night: Day) -> None:
    assert night.until(2000.0 - LEAD_S - 0.1) == []
    (check,) = night.until(2000.0 - LEAD_S)

    assert isinstance(check, CheckTarget)
    assert check.target == EMBED
    assert night.snapshot.switch is not None
    assert night.snapshot.switch.order.reason == "by the schedule: embedding from 2000 o'clock on"


def test_what_serves_already_needs_no_switch(night: Day) -> None:
    night.periods = (period(1000.0, CHAT), period(2000.0, CHAT), period(3000.0))
    night.read()

    assert night.until(4000.0) == []


def test_period_that_was_entered_early_is_not_left_when_the_schedule_is_read(night: Day) -> None:
    night.until(2000.0 - LEAD_S)
    night.finish_switch()
    night.read()  # which still has the boundary before it
    night.tell(TimePassed)

    assert night.snapshot.live_models() == ("embed",)
    assert night.snapshot.switch is None


def test_window_that_is_found_begun_after_a_sleep_is_kept_to_its_end() -> None:
    """What follows it held before it, too: it is another occasion."""
    chat = (replace(period(at, CHAT), began=0.0) for at in (1500.0, 3300.0))
    day = Day(period(1000.0, EMBED), next(chat), period(2500.0, EMBED), next(chat))
    day.finish_switch()
    day.until(1500.0 - LEAD_S)
    day.finish_switch()
    day.until(1510.0)
    day.now = 2600.0
    day.read()

    assert day.requested_by == CLOCK
    day.finish_switch()
    assert day.snapshot.live_models() == ("embed",)
    assert day.until(3300.0 - LEAD_S - 0.1) == []


def test_clock_that_is_set_back_leaves_what_was_entered(night: Day) -> None:
    night.until(2000.0 - LEAD_S)
    night.finish_switch()
    night.periods = tuple(
        replace(each, starts_at=each.starts_at + 7200.0) for each in night.periods
    )
    night.read()

    assert night.requested_by == CLOCK
    night.finish_switch()
    assert night.snapshot.live_models() == ("chat",)


def test_request_for_another_mode_waits_for_its_period_where_that_comes_in_time(night: Day) -> None:
    night.until(1900.0)
    assert night.ask("e", EMBED) == ()
    assert night.until(2000.0 - LEAD_S - 1) == []
    assert night.snapshot.switch is None
    night.until(2000.0 - LEAD_S)
    night.finish_switch()

    assert granted_in(night.last) == [("e", 2)]


def test_request_that_cannot_be_served_in_time_learns_when_it_will_be(night: Day) -> None:
    (refused,) = night.ask("e", EMBED)

    assert isinstance(refused, RefuseRequest)
    assert refused.refusal.code == "outside_window"
    assert refused.refusal.message == (
        "'embed' is not served now: the schedule has generation; it is served from 2000 o'clock on"
    )
    assert dict(refused.refusal.details) == {
        "retry_after_s": 990,
        "served_from": "2000 o'clock",
    }


def test_batch_work_asks_again_soon_however_late_its_period_is(night: Day) -> None:
    """A hand may switch before, or another schedule apply: nobody tells those who sleep."""
    (refused,) = night.ask("e", EMBED, Priority.BATCH)

    assert isinstance(refused, RefuseRequest)
    assert dict(refused.refusal.details) == {
        "retry_after_s": BATCH_RETRY_AFTER_S,
        "served_from": "2000 o'clock",
    }


def test_batch_work_whose_period_is_not_known_asks_again_later_too() -> None:
    """Else it would ask every few seconds, all lines of it, for as long as the period lasts."""
    day = Day(replace(period(1000.0, EMBED), until_done=True))
    day.finish_switch()
    (refused,) = day.ask("c", CHAT, Priority.BATCH)

    assert isinstance(refused, RefuseRequest)
    assert refused.refusal.message == (
        "'chat' is not served now: the schedule has embedding, until its work is done"
    )
    assert dict(refused.refusal.details) == {"retry_after_s": BATCH_RETRY_AFTER_S}


def test_refusing_schedule_refuses_at_once_and_those_who_wait_at_the_boundary() -> None:
    day = Day(period(1000.0), period(2000.0, EMBED), period(2100.0, CHAT), refuses=True)
    day.snapshot = replace(day.snapshot, rules=replace(AT_ONCE, manual_hold_s=60.0))
    day.until(1970.0)
    day.make_live(EMBED)  # by hand, which holds beyond the boundary
    assert day.ask("c", CHAT) == ()

    assert refused_in(tuple(day.until(2000.0))) == [("c", "outside_window")]
    assert refused_in(day.ask("c2", CHAT)) == [("c2", "outside_window")]


def test_request_that_waited_in_vain_learns_when_it_will_be_served(night: Day) -> None:
    night.snapshot = replace(night.snapshot, limits=Limits(hold_timeout_s=1000.0))
    night.periods = (*night.periods[:1], period(2005.0, EMBED))
    night.read()
    assert night.ask("e", EMBED) == ()
    night.periods = (*night.periods[:1], period(8000.0, EMBED))
    refused = [c for c in night.until(2010.0) if isinstance(c, RefuseRequest)]

    assert [each.refusal.code for each in refused] == ["hold_timeout"]
    assert "served from 8000 o'clock on" in refused[0].refusal.message
    assert dict(refused[0].refusal.details)["retry_after_s"] == 5990


def test_those_who_wait_for_another_period_leave_the_resident_its_room(night: Day) -> None:
    night.until(1900.0)
    night.ask("e", EMBED)

    for number in range(20):
        assert granted_in(night.ask(f"c{number}", CHAT)) == [(f"c{number}", 1)]


def test_mixed_period_switches_by_request_alone() -> None:
    day = Day(period(1000.0), period(2000.0, CHAT))
    assert day.snapshot.switch is None
    day.ask("e", EMBED)

    assert day.requested_by == SCHEDULER


def test_switch_that_fails_is_tried_again_and_anew_at_the_next_boundary(night: Day) -> None:
    night.periods = (*night.periods[:2], period(2500.0, EMBED))
    night.read()
    night.until(2000.0 - LEAD_S)
    for failures in range(1, Limits().breaker_deaths + 1):
        assert night.requested_by == CLOCK
        night.tell(TargetRejected, switch_id=night.running, message="no such file")
        night.until(night.now + 2.0 ** (failures - 1))

    assert night.until(2500.0 - LEAD_S - 1) == []
    (check,) = night.until(2500.0 - LEAD_S)
    assert isinstance(check, CheckTarget)


def test_choice_of_a_hand_holds_until_the_next_boundary(night: Day) -> None:
    night.ask_for(EMBED)
    night.finish_switch()
    assert night.until(1900.0) == []
    assert night.snapshot.live_models() == ("embed",)
    assert granted_in(night.ask("e", EMBED)) == [("e", 2)]
    night.end("e")
    assert refused_in(night.ask("c", CHAT)) == []  # a hand may end it at any time

    night.until(2001.0)
    assert night.snapshot.live_models() == ("embed",)
    assert night.snapshot.agenda.by_hand is None


def test_choice_of_a_hand_is_undone_at_the_boundary() -> None:
    day = Day(period(1000.0, CHAT), period(2000.0, CHAT), period(3000.0))
    day.finish_switch()
    day.ask_for(EMBED)
    day.finish_switch()
    assert day.until(2000.0 - LEAD_S - 1) == []
    day.until(2000.0 - LEAD_S)

    assert day.requested_by == CLOCK


def test_choice_of_a_moment_before_the_boundary_holds_for_as_long_as_any() -> None:
    day = Day(period(1000.0, CHAT), period(2000.0, CHAT), period(3000.0))
    day.finish_switch()
    day.until(1975.0)
    day.ask_for(EMBED)
    day.finish_switch()
    held_until = day.now + day.snapshot.rules.manual_hold_s
    assert held_until > 2000.0 - LEAD_S

    assert day.until(held_until - 0.1) == []
    day.until(held_until)
    assert day.requested_by == CLOCK


def test_unload_by_hand_is_not_undone_but_by_a_request(night: Day) -> None:
    night.ask_for(None)
    night.reap(1)
    night.confirm()
    assert night.until(1900.0) == []
    night.ask("c", CHAT)

    assert night.requested_by == SCHEDULER


def test_work_that_is_done_ends_its_period_and_is_followed_by_the_index() -> None:
    batch = period(2000.0, EMBED, until_done=True, optimizes=True)
    day = Day(period(1000.0, CHAT), batch, period(3000.0, CHAT))
    day.finish_switch()
    day.until(2000.0 - LEAD_S)
    day.finish_switch()
    day.until(2500.0)
    assert day.snapshot.live_models() == ("embed",)

    day.periods, day.has_work = (replace(day.periods[0], began=0.0), day.periods[2]), False
    commands = day.read(ended=batch)
    assert OptimizeVectors() in commands
    assert day.requested_by == CLOCK
    day.finish_switch()
    assert day.snapshot.live_models() == ("chat",)
    assert OptimizeVectors() not in day.read(ended=batch)


def test_index_is_not_built_again_for_a_period_that_was_over_before_a_restart() -> None:
    night = period(1000.0, EMBED, until_done=True, optimizes=True)
    day = Day(period(1000.0, CHAT), ended=night)
    assert OptimizeVectors() not in day.begun_with
    assert day.tell(RulesChanged, limits=Limits(), rules=day.snapshot.rules)[-1] == ReadSchedule(
        ended=night.began
    )


def test_period_for_work_is_not_begun_where_there_is_none() -> None:
    batch = period(2000.0, EMBED, until_done=True)
    day = Day(period(1000.0, CHAT), batch, period(3000.0, CHAT), has_work=False)
    day.finish_switch()
    day.periods = (day.periods[0], batch)
    assert day.until(1999.9) == []
    assert day.snapshot.live_models() == ("chat",)


def test_schedule_is_read_each_minute_and_when_the_rules_change(night: Day) -> None:
    night.alarms.clear()
    night.until(night.now + 3 * REREAD_S)
    assert len(night.alarms) == 3

    rules = night.snapshot.rules
    assert night.tell(RulesChanged, limits=Limits(), rules=rules) == (ReadSchedule(ended=None),)


def test_schedule_that_cannot_be_read_holds_on_and_is_read_again(night: Day) -> None:
    while (alarm := next_wakeup(night.snapshot)) is not None and alarm < 2000.0 - LEAD_S:
        night.now = alarm
        assert night.tell(TimePassed) == (ReadSchedule(ended=None),)
    night.now = 2000.0 - LEAD_S
    commands = night.tell(TimePassed)

    assert any(isinstance(c, CheckTarget) for c in commands)


def test_model_that_died_is_left_to_its_recovery(night: Day) -> None:
    night.crash(1)
    night.tell(TimePassed)
    assert night.snapshot.switch is None
    night.recover()

    assert night.snapshot.live_models() == ("chat",)


def test_one_model_may_be_all_that_is_served() -> None:
    other = replace(CHAT, model="other")
    day = Day(period(1000.0, CHAT, mode=None, model="chat"), period(3000.0))
    day.finish_switch()

    assert granted_in(day.ask("c", CHAT)) == [("c", 1)]
    assert refused_in(day.ask("o", other)) == [("o", "outside_window")]
    assert day.snapshot.agenda.period is not None
    assert day.snapshot.agenda.period.admits(replace(EMBED, mode=Mode.EMBEDDING)) is False
