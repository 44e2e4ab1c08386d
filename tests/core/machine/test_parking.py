"""A server that gives its memory up and lives on: parked, proved, counted, woken, or stopped."""

from typing import TypeGuard

import pytest
from immutables import Map
from msgspec.structs import replace

from supervisor.core.machine.commands import (
    CheckTarget,
    Command,
    CompleteShutdown,
    ReleaseMemory,
    SampleMemory,
    StartBackend,
    UnparkBackend,
)
from supervisor.core.machine.contentions import contentions, view_of
from supervisor.core.machine.events import (
    BackendNotParked,
    BackendParked,
    BackendReady,
    BackendSpawned,
    BackendStalled,
    DeviceFound,
    MemorySampled,
    ReleaseBegun,
    RequestArrived,
    RulesChanged,
    ShutdownRequested,
    TimePassed,
)
from supervisor.core.machine.footprint import Footprint
from supervisor.core.machine.leaving import REAP_TIMEOUT_S
from supervisor.core.machine.memory import Holder, HolderRole
from supervisor.core.machine.parking import PARK_TIMEOUT_S, UNPROVED_PAUSE_S
from supervisor.core.machine.rules import SwitchRules
from supervisor.core.machine.switch import ParkedReport
from supervisor.core.machine.values import (
    Backend,
    BackendState,
    Device,
    Outcome,
    Park,
    Phase,
    Stop,
    Target,
)
from tests.core.machine.story import (
    AT_ONCE,
    CHAT,
    CHAT_LONG,
    EMBED,
    EXCLUSIVE,
    GIB,
    RERANK,
    SHARED,
    Story,
    failure_in,
    report_in,
)
from tests.core.machine.surroundings import used_before

HOST = Device(name="host", budget_bytes=64 * GIB, pool="host", is_host_memory=True)
PARKING_CHAT = replace(CHAT, parks=True)
CHAT_PID = 4711
PARKING_EMBED = replace(EMBED, parks=True)


class Place(Story):
    """A GPU and a host with 24 GiB each, on which chat, which parks, takes 8 GiB of the GPU."""

    def __init__(self, *, gpu: Device = EXCLUSIVE, parked_max_bytes: int | None = None) -> None:
        super().__init__(gpu, HOST, rules=replace(AT_ONCE, parked_max_bytes=parked_max_bytes))

    def begin(
        self, target: Target, need_gib: int = 2, host_used_gib: int = 0, used_gib: int = 8
    ) -> tuple[Command, ...]:
        """Ask for a target, and let it be accepted."""
        self.ask_for(target)
        return self.accept(
            need_gib * GIB,
            used_bytes=used_gib * GIB,
            also=(self.reading(host_used_gib * GIB, "host"),),
        )

    def park(self, epoch: int, host_gib: int = 8) -> tuple[Command, ...]:
        """Let a server say that it has given its memory up."""
        return self.tell(BackendParked, epoch=epoch, kept=Footprint.of({"host": host_gib * GIB}))

    def switch_to(self, target: Target, left_gib: int = 0, need_gib: int = 2) -> int:
        """Go all the way to a target, for which chat is parked. Returns the target's epoch."""
        (give_up,) = self.begin(target, need_gib)
        assert isinstance(give_up, ReleaseMemory)
        assert isinstance(give_up.how, Park)
        self.park(give_up.epoch)
        return self.start(left_gib * GIB)

    def backend(self, epoch: int) -> Backend:
        found = self.snapshot.backend(epoch)
        assert found is not None
        return found


@pytest.fixture
def place() -> Place:
    return Place()


@pytest.fixture
def chat(place: Place) -> int:
    return place.make_live(PARKING_CHAT)


def test_what_leaves_is_parked_proved_and_counted(place: Place, chat: int) -> None:
    assert place.begin(EMBED) == (ReleaseMemory(epoch=chat, how=Park(keeps_prompts=True)),)
    assert place.phase is Phase.STOPPING

    assert place.park(chat) == (SampleMemory(switch_id="s2", device="gpu0"),)
    (start,) = place.confirm(1 * GIB)

    assert isinstance(start, StartBackend)
    parked = place.backend(chat)
    assert parked.state is BackendState.PARKED
    assert parked.footprint.on("gpu0") == 1 * GIB
    assert parked.footprint.on("host") == 8 * GIB
    assert used_before(place.backend(start.epoch)) == 1 * GIB
    report = report_in(place.tell(BackendReady, epoch=start.epoch, memory=None))
    assert report.notes.parked == (
        ParkedReport(model="chat", host_bytes=8 * GIB, device_bytes=1 * GIB),
    )


def test_nothing_starts_while_a_parked_server_holds_its_memory_and_then_it_is_stopped(
    place: Place, chat: int
) -> None:
    place.begin(EMBED, need_gib=20)
    place.park(chat)
    commands = place.answer_until_the_gate_decides(lambda: place.show(8 * GIB))

    assert commands == (ReleaseMemory(epoch=chat, how=Stop(grace_s=CHAT.patience.stop_grace_s)),)
    assert place.phase is Phase.STOPPING
    place.reap(chat)
    assert place.start(0) > chat
    assert place.snapshot.parked() == ()


def test_use_must_come_to_rest_before_what_is_kept_is_measured(place: Place, chat: int) -> None:
    place.begin(EMBED)
    place.park(chat)
    for used_gib in (7, 5, 3, 1, 1):
        assert place.show(used_gib * GIB) == ()
        place.wake()
    place.show(1 * GIB)

    assert place.backend(chat).footprint.on("gpu0") == 1 * GIB


def serve_again_behind_an_unproved_release(place: Place, chat: int) -> int:
    """Park chat for another, in vain, and have it live again. Returns its epoch."""
    place.begin(EMBED, need_gib=20)
    place.park(chat)
    place.answer_until_the_gate_decides(lambda: place.show(8 * GIB))
    place.reap(chat)
    embed = place.start(0)
    place.begin(PARKING_CHAT, need_gib=8, used_gib=20)
    place.reap(embed)
    return place.start(0)


def test_a_server_that_kept_too_much_is_stopped_at_once_the_next_time(
    place: Place, chat: int
) -> None:
    again = serve_again_behind_an_unproved_release(place, chat)

    (give_up,) = place.begin(EMBED, need_gib=20)

    assert give_up == ReleaseMemory(
        epoch=again, how=Stop(grace_s=CHAT.patience.stop_grace_s, keeps_prompts=True)
    )


def test_a_server_that_seemed_to_keep_too_much_is_parked_again_after_a_while(
    place: Place, chat: int
) -> None:
    """It may have been another process, which came at that moment and cannot be told from it."""
    again = serve_again_behind_an_unproved_release(place, chat)
    place.now += UNPROVED_PAUSE_S

    (give_up,) = place.begin(EMBED, need_gib=20)

    assert give_up == ReleaseMemory(epoch=again, how=Park(keeps_prompts=True))


@pytest.mark.parametrize("how", ["refuses", "is late"])
def test_a_server_that_cannot_be_parked_is_stopped(place: Place, chat: int, how: str) -> None:
    place.begin(EMBED)
    if how == "refuses":
        commands = place.tell(BackendNotParked, epoch=chat, reason="status 500")
    else:
        place.now += 100.0  # its prompts are large
        assert place.tell(TimePassed) == ()
        place.tell(ReleaseBegun, epoch=chat)
        begun_at = place.now
        commands = place.wake()
        assert place.now == begun_at + PARK_TIMEOUT_S

    assert commands == (ReleaseMemory(epoch=chat, how=Stop(grace_s=CHAT.patience.stop_grace_s)),)
    place.reap(chat)
    assert place.start(0) > chat


def test_one_that_neither_parks_nor_ends_ends_the_switch(place: Place, chat: int) -> None:
    place.begin(EMBED)
    place.wake()
    place.now += CHAT.patience.stop_grace_s + REAP_TIMEOUT_S
    code, _ = failure_in(place.wake())
    assert code == "backend_not_reaped"


def test_a_start_of_a_parked_model_wakes_it_behind_the_gate(place: Place, chat: int) -> None:
    embed = place.switch_to(EMBED, left_gib=1)

    place.begin(PARKING_CHAT, need_gib=8, used_gib=3)
    place.reap(embed)
    question = place.snapshot.switch.gate.question if place.snapshot.switch else None
    assert question is not None
    assert question.need_bytes == 7 * GIB  # 1 GiB it has already
    (wake,) = place.confirm(1 * GIB)

    assert wake == UnparkBackend(epoch=chat, target=PARKING_CHAT)
    assert place.backend(chat).state is BackendState.STARTING
    assert place.backend(chat).footprint.on("gpu0", "host") == 8 * GIB
    assert used_before(place.backend(chat)) == 0
    report = report_in(place.tell(BackendReady, epoch=chat, memory=None))
    assert report.outcome is Outcome.SWITCHED
    assert report.notes.was_parked
    assert place.snapshot.live_models() == ("chat",)


def test_one_that_does_not_wake_in_time_is_stopped_and_what_left_for_it_comes_back(
    place: Place, chat: int
) -> None:
    embed = place.switch_to(EMBED)
    place.begin(PARKING_CHAT, need_gib=8)
    place.reap(embed)
    place.confirm(0)

    (stop,) = place.wake()
    assert stop == ReleaseMemory(epoch=chat, how=Stop(grace_s=CHAT.patience.stop_grace_s))
    place.reap(chat)
    assert place.phase is Phase.ROLLING_BACK
    place.start(0)
    assert place.snapshot.live_models() == ("embed",)


def test_a_switch_that_fails_wakes_what_it_has_parked(place: Place, chat: int) -> None:
    place.begin(EMBED)
    place.park(chat)
    (start,) = place.confirm(1 * GIB)
    assert isinstance(start, StartBackend)
    place.reap(start.epoch, exit_code=1)
    assert place.phase is Phase.ROLLING_BACK

    assert place.confirm(1 * GIB) == (UnparkBackend(epoch=chat, target=PARKING_CHAT),)
    code, _ = failure_in(place.tell(BackendReady, epoch=chat, memory=None))

    assert code == "backend_died"
    assert place.snapshot.live_models() == ("chat",)


def fail_a_start_for_which_chat_was_parked(kept_gib: int) -> Place:
    """Chat, of 20 GiB, is told to sleep, and embed dies; chat was measured to keep `kept_gib`."""
    place = Place()
    chat = place.make_live(PARKING_CHAT, 20 * GIB)
    place.tell(BackendSpawned, epoch=chat, pid=CHAT_PID, address="/run/chat")
    place.begin(EMBED, used_gib=20)
    place.park(chat)
    (start,) = place.confirm(kept_gib * GIB)
    assert isinstance(start, StartBackend)
    place.reap(start.epoch, exit_code=1)
    assert place.phase is Phase.ROLLING_BACK
    return place


def test_use_by_others_is_not_taken_for_what_a_parked_server_has_not_given_back_yet() -> None:
    """It is measured when the gate opens, and that may be while its memory is on the way back."""
    place = fail_a_start_for_which_chat_was_parked(kept_gib=20)
    held = Holder(pid=CHAT_PID, used_bytes=1 * GIB, role=HolderRole.CHILD)
    others = Holder(pid=9, used_bytes=19 * GIB, role=HolderRole.FOREIGN)

    def show() -> tuple[Command, ...]:
        reading = replace(place.reading(20 * GIB), holders=(held, others))
        return place.tell(MemorySampled, switch_id=place.running, sample=reading)

    code, _ = failure_in(place.answer_until_the_gate_decides(show))
    assert code == "backend_died"
    assert place.snapshot.live_models() == ()


def test_what_the_driver_lists_of_one_that_wakes_need_not_be_free_as_well() -> None:
    """It was measured while others gave memory back, and taken for one that keeps little."""
    place = Place()
    chat = place.make_live(PARKING_CHAT, 20 * GIB)
    place.tell(BackendSpawned, epoch=chat, pid=CHAT_PID, address="/run/chat")
    place.begin(EMBED, used_gib=20)
    place.park(chat)
    embed = place.start(1 * GIB)
    place.ask_for(PARKING_CHAT)
    place.accept(20 * GIB)
    place.reap(embed)
    held = Holder(pid=CHAT_PID, used_bytes=15 * GIB, role=HolderRole.CHILD)

    def show() -> tuple[Command, ...]:
        reading = replace(place.reading(18 * GIB), holders=(held,))
        return place.tell(MemorySampled, switch_id=place.running, sample=reading)

    assert place.answer_until_the_gate_decides(show) == (
        UnparkBackend(epoch=chat, target=PARKING_CHAT),
    )


def test_a_rollback_wakes_what_was_parked_though_its_budget_is_lower_by_now() -> None:
    place = fail_a_start_for_which_chat_was_parked(kept_gib=1)
    place.tell(DeviceFound, device=replace(EXCLUSIVE, budget_bytes=16 * GIB))
    (wake,) = place.confirm(1 * GIB)
    assert isinstance(wake, UnparkBackend)


def test_what_is_found_to_be_kept_counts_the_next_time_it_is_to_be_parked(
    place: Place, chat: int
) -> None:
    embed = place.switch_to(EMBED, left_gib=8)  # its memory was on the way back
    place.begin(PARKING_CHAT, need_gib=8, used_gib=10)
    place.reap(embed)
    place.show(1 * GIB)
    (last,) = dict(place.snapshot.scheduling.parkings).values()
    kept = last.kept
    assert kept is not None
    assert kept.on("gpu0") == 1 * GIB
    assert place.backend(chat).footprint == kept


def test_what_is_kept_is_not_counted_by_what_others_were_taken_to_need(
    place: Place, chat: int
) -> None:
    """Embed takes less than the 8 GiB that it is accounted for."""
    place.begin(EMBED, need_gib=8)
    place.park(chat)
    place.start(1 * GIB)
    place.begin(RERANK, used_gib=7)
    assert place.backend(chat).footprint.on("gpu0") == 1 * GIB


def test_one_that_is_being_stopped_is_not_missed_twice() -> None:
    place = Place()
    chat = place.make_live(PARKING_CHAT)
    embed = place.switch_to(PARKING_EMBED, left_gib=1)
    place.begin(RERANK, used_gib=9)
    place.park(embed)
    place.start(2 * GIB)
    lower = replace(HOST, budget_bytes=12 * GIB)
    assert [c.epoch for c in place.tell(DeviceFound, device=lower) if is_stop(c)] == [chat]
    assert [c for c in place.tell(DeviceFound, device=EXCLUSIVE) if is_stop(c)] == []


def is_stop(command: Command) -> TypeGuard[ReleaseMemory]:
    return isinstance(command, ReleaseMemory)


def test_parked_servers_make_way_for_what_a_rollback_brings_back() -> None:
    """Embed keeps 2 GiB while chat serves; others come, so that chat has no room beside it."""
    place = Place()
    embed = place.make_live(PARKING_EMBED)
    place.begin(CHAT, need_gib=8)
    place.park(embed)
    chat = place.start(2 * GIB)
    place.begin(RERANK, used_gib=10)
    place.reap(chat)
    (start,) = place.confirm(2 * GIB)
    assert isinstance(start, StartBackend)
    place.reap(start.epoch, exit_code=1)

    commands = place.answer_until_the_gate_decides(lambda: place.show(17 * GIB))
    assert commands[0] == ReleaseMemory(epoch=embed, how=Stop(grace_s=EMBED.patience.stop_grace_s))
    assert place.phase is Phase.ROLLING_BACK
    assert place.show(17 * GIB) == ()
    place.reap(embed)
    place.wake()
    place.start(15 * GIB)

    code, _ = failure_in(place.last)
    assert code == "backend_died"
    assert place.snapshot.live_models() == ("chat",)


def test_one_that_dies_is_gone(place: Place, chat: int) -> None:
    embed = place.switch_to(EMBED)
    assert place.crash(chat) == ()
    assert place.snapshot.recoveries == ()
    assert place.snapshot.live_models() == ("embed",)

    place.begin(PARKING_CHAT, need_gib=8)
    place.reap(embed)
    (start,) = place.confirm(0)
    assert isinstance(start, StartBackend)


def test_its_whole_need_is_asked_for_where_it_dies_as_it_is_about_to_be_woken(
    place: Place, chat: int
) -> None:
    embed = place.switch_to(EMBED, left_gib=1)
    place.begin(PARKING_CHAT, need_gib=8)
    place.reap(embed)

    place.now += 0.001
    assert place.crash(chat) == (SampleMemory(switch_id="s3", device="gpu0"),)
    assert place.snapshot.switch is not None
    assert place.snapshot.switch.gate.question is not None
    assert place.snapshot.switch.gate.question.need_bytes == 8 * GIB


def test_its_whole_need_is_asked_for_where_it_dies_as_a_rollback_is_about_to_wake_it(
    place: Place, chat: int
) -> None:
    place.begin(EMBED)
    place.park(chat)
    (start,) = place.confirm(1 * GIB)
    assert isinstance(start, StartBackend)
    place.reap(start.epoch, exit_code=1)
    assert place.snapshot.switch is not None
    assert place.snapshot.switch.gate.question is not None
    assert place.snapshot.switch.gate.question.need_bytes == 7 * GIB

    place.now += 0.001
    place.crash(chat)
    assert place.snapshot.switch.phase is Phase.ROLLING_BACK
    assert place.snapshot.switch.gate.question is not None
    assert place.snapshot.switch.gate.question.need_bytes == 8 * GIB
    (again,) = place.confirm(0)
    assert isinstance(again, StartBackend)


def test_nothing_starts_by_readings_from_before_the_death_of_what_was_parked_for_it(
    place: Place, chat: int
) -> None:
    place.begin(EMBED)
    place.park(chat)
    place.show(1 * GIB)
    place.wake()
    place.now += 0.001
    assert place.crash(chat) == (SampleMemory(switch_id="s2", device="gpu0"),)
    (start,) = place.confirm(0)
    assert isinstance(start, StartBackend)
    assert place.snapshot.recoveries == ()


def test_requests_for_a_parked_model_wait_for_a_switch_and_are_never_given_to_it(
    place: Place, chat: int
) -> None:
    place.switch_to(EMBED)
    place.now += 60.0  # the hand's choice holds no more
    place.tell(RequestArrived, request_id="r1", target=PARKING_CHAT, may_switch=True)
    assert dict(place.snapshot.requests.leases) == {}
    while place.snapshot.switch is None:
        place.wake()

    assert place.snapshot.switch.target == PARKING_CHAT
    assert chat in {b.epoch for b in place.snapshot.parked()}


def test_what_a_device_is_expected_to_return_to_counts_what_parked_servers_keep(
    place: Place, chat: int
) -> None:
    """Else a release is refused for the memory of a parked one, or passes with another's held."""
    embed = place.switch_to(EMBED, left_gib=1)
    place.begin(RERANK, need_gib=23, used_gib=3)
    assert place.phase is Phase.DRAINING or place.phase is Phase.STOPPING
    question = None
    for epoch in (chat, embed):
        place.reap(epoch)
    assert place.snapshot.switch is not None
    question = place.snapshot.switch.gate.question
    assert question is not None
    assert question.baseline_used_bytes == 0  # with 23 GiB, chat had to go, too


def test_a_parked_server_makes_way_where_it_keeps_too_much(place: Place, chat: int) -> None:
    place.switch_to(EMBED, left_gib=1)
    commands = place.begin(RERANK, need_gib=23, used_gib=3)
    stopped = {c.epoch for c in commands if isinstance(c, ReleaseMemory)}
    assert chat in stopped
    assert place.backend(chat).state is BackendState.STOPPING


def test_one_that_was_taken_to_keep_nothing_makes_way_by_what_the_driver_lists(
    place: Place,
) -> None:
    """Others gave as much back meanwhile as it keeps."""
    chat = place.make_live(PARKING_CHAT, used_bytes=2 * GIB)
    place.tell(BackendSpawned, epoch=chat, pid=CHAT_PID, address="a.sock")
    embed = place.switch_to(EMBED, left_gib=2, need_gib=4)
    assert place.backend(chat).footprint.on("gpu0") == 0

    kept = (Holder(pid=CHAT_PID, used_bytes=2 * GIB, role=HolderRole.CHILD),)
    place.ask_for(RERANK)
    listed = replace(place.reading(6 * GIB), holders=kept)
    host = place.reading(0, "host")
    stops = place.accept(22 * GIB, also=(listed, host))
    assert {c.epoch for c in stops if is_stop(c)} == {chat, embed}


def test_what_a_woken_server_keeps_already_counts_for_who_makes_room() -> None:
    place = Place(gpu=SHARED)
    place.make_live(PARKING_CHAT)
    embed = place.switch_to(EMBED, left_gib=5, need_gib=17)
    commands = place.begin(PARKING_CHAT, need_gib=8, used_gib=22)  # 3 more, beside 5 that it keeps
    assert embed in {c.epoch for c in commands if isinstance(c, ReleaseMemory)}


def test_a_parked_server_stays_where_it_is_in_nobodys_way(place: Place, chat: int) -> None:
    place.switch_to(EMBED, left_gib=1)
    place.begin(RERANK, need_gib=20, used_gib=3)
    assert place.backend(chat).state is BackendState.PARKED


def test_a_parked_server_makes_way_where_the_host_is_short(place: Place, chat: int) -> None:
    place.switch_to(EMBED)
    place.begin(replace(RERANK, device="host"), need_gib=1)
    assert place.phase is Phase.CONFIRMING
    assert place.backend(chat).state is BackendState.PARKED
    place.start(8 * GIB, "host")

    place.ask_for(replace(RERANK, device="host", profile="long"))
    place.accept(18 * GIB, used_bytes=9 * GIB)  # of 24 GiB, 8 are parked

    assert place.backend(chat).state is BackendState.STOPPING


@pytest.mark.parametrize(
    ("parked_max_bytes", "host_used_gib", "why"),
    [
        (7 * GIB, 0, "more than may be parked"),
        (None, 17, "the host has not so much left"),
    ],
)
def test_what_the_host_has_no_room_for_is_stopped(
    parked_max_bytes: int | None, host_used_gib: int, why: str
) -> None:
    place = Place(parked_max_bytes=parked_max_bytes)
    chat = place.make_live(PARKING_CHAT)
    (give_up,) = place.begin(EMBED, host_used_gib=host_used_gib)
    assert give_up == ReleaseMemory(
        epoch=chat, how=Stop(grace_s=CHAT.patience.stop_grace_s, keeps_prompts=True)
    ), why


def test_one_without_a_baseline_is_stopped_for_nothing_could_be_measured(place: Place) -> None:
    chat = place.make_live(PARKING_CHAT)
    place.snapshot = replace(place.snapshot, backends=(replace(place.backend(chat), baselines=()),))
    (give_up,) = place.begin(EMBED)
    assert isinstance(give_up, ReleaseMemory)
    assert isinstance(give_up.how, Stop)


def test_the_one_parked_for_longest_makes_way_for_the_next() -> None:
    place = Place(parked_max_bytes=10 * GIB)
    chat = place.make_live(PARKING_CHAT)
    embed = place.switch_to(PARKING_EMBED)
    commands = place.begin(RERANK, used_gib=2)
    assert ReleaseMemory(epoch=embed, how=Park(keeps_prompts=True)) in commands
    assert place.backend(chat).state is BackendState.PARKED  # 8 and 2 GiB, as far as is known
    place.park(embed, host_gib=4)
    assert place.backend(chat).state is BackendState.STOPPING


def test_less_is_allowed_to_be_parked_from_now_on(place: Place, chat: int) -> None:
    place.switch_to(EMBED)
    rules = SwitchRules(parked_max_bytes=0)
    commands = place.tell(RulesChanged, limits=place.snapshot.limits, rules=rules)
    assert [c.epoch for c in commands if isinstance(c, ReleaseMemory)] == [chat]


def test_less_of_the_host_is_allowed_to_be_taken_from_now_on(place: Place, chat: int) -> None:
    place.switch_to(EMBED)
    commands = place.tell(DeviceFound, device=replace(HOST, budget_bytes=4 * GIB))
    assert [c.epoch for c in commands if isinstance(c, ReleaseMemory)] == [chat]


def test_one_that_would_be_started_otherwise_now_is_stopped(place: Place, chat: int) -> None:
    place.switch_to(EMBED)
    snapshot = place.snapshot
    facts = {"limits": snapshot.limits, "rules": snapshot.rules}
    place.tell(RulesChanged, **facts, outdated=frozenset({chat + 1}))
    assert place.backend(chat).state is BackendState.PARKED
    commands = place.tell(RulesChanged, **facts, outdated=frozenset({chat}))
    assert [c.epoch for c in commands if isinstance(c, ReleaseMemory)] == [chat]


def test_one_whose_settings_have_changed_while_it_was_live_is_not_parked(
    place: Place, chat: int
) -> None:
    facts = {"limits": place.snapshot.limits, "rules": place.snapshot.rules}
    place.tell(RulesChanged, **facts, outdated=frozenset({chat}))
    (give_up,) = place.begin(EMBED)
    assert give_up == ReleaseMemory(
        epoch=chat, how=Stop(grace_s=CHAT.patience.stop_grace_s, keeps_prompts=True)
    )


def test_one_whose_settings_are_as_they_were_again_is_parked(place: Place, chat: int) -> None:
    facts = {"limits": place.snapshot.limits, "rules": place.snapshot.rules}
    place.tell(RulesChanged, **facts, outdated=frozenset({chat}))
    place.tell(RulesChanged, **facts)
    place.switch_to(EMBED)
    assert place.backend(chat).state is BackendState.PARKED


def test_one_whose_settings_change_while_it_is_being_parked_is_stopped_then(
    place: Place, chat: int
) -> None:
    facts = {"limits": place.snapshot.limits, "rules": place.snapshot.rules}
    place.begin(EMBED)
    place.tell(RulesChanged, **facts, outdated=frozenset({chat}))
    (stop,) = place.park(chat)
    assert stop == ReleaseMemory(epoch=chat, how=Stop(grace_s=CHAT.patience.stop_grace_s))
    place.reap(chat)
    assert place.start(0) > chat


def test_another_profile_of_a_parked_model_has_it_stopped(place: Place, chat: int) -> None:
    place.switch_to(EMBED)
    place.begin(CHAT_LONG, used_gib=2)
    assert place.backend(chat).state is BackendState.STOPPING


def test_an_unload_stops_what_is_parked(place: Place, chat: int) -> None:
    embed = place.switch_to(EMBED)
    commands = place.ask_for(None)
    assert {c.epoch for c in commands if isinstance(c, ReleaseMemory)} == {chat, embed}


def test_an_unload_stops_what_is_parked_where_nothing_is_live(place: Place, chat: int) -> None:
    embed = place.switch_to(EMBED)
    place.snapshot = replace(place.snapshot, recent_deaths=Map({"embed": (place.now,) * 4}))
    place.crash(embed)
    (stop,) = place.ask_for(None)
    assert isinstance(stop, ReleaseMemory)
    assert stop.epoch == chat
    assert place.phase is Phase.STOPPING


def test_a_shutdown_stops_what_is_parked_and_what_is_being_parked(place: Place, chat: int) -> None:
    place.begin(EMBED)
    commands = place.tell(ShutdownRequested, drain_timeout_s=5.0)
    assert [c.epoch for c in commands if isinstance(c, ReleaseMemory)] == [chat]
    assert place.park(chat) == ()
    assert place.reap(chat) == (CompleteShutdown(),)


def test_a_parked_server_does_not_stall(place: Place, chat: int) -> None:
    place.switch_to(EMBED)
    assert place.tell(BackendStalled, epoch=chat, stalled_s=500.0) == ()
    assert place.backend(chat).stalled_s is None


def test_a_switch_to_a_parked_model_is_learned_apart_from_others(place: Place, chat: int) -> None:
    embed = place.switch_to(EMBED)
    place.begin(PARKING_CHAT, need_gib=8)
    place.reap(embed)
    place.confirm(0)
    place.now += 7.0
    place.tell(BackendReady, epoch=chat, memory=None)

    known = place.snapshot.scheduling.estimates.models["chat"]
    assert known.switches_s == ()
    (took_s,) = known.unparkings_s
    assert 7.0 < took_s < 7.1


@pytest.mark.parametrize("others", [(), ("gpu1", "gpu0")])
def test_the_policy_is_shown_what_unparking_takes_wherever_it_is_parked(
    place: Place, chat: int, others: tuple[str, ...]
) -> None:
    wanted = replace(PARKING_CHAT, device=(*others, "gpu0")[0], candidates=others)
    test_a_switch_to_a_parked_model_is_learned_apart_from_others(place, chat)
    place.switch_to(EMBED)
    place.now += 60.0
    place.arrive("busy", "embed")
    place.tell(RequestArrived, request_id="r1", target=wanted, may_switch=True)
    (contention,) = contentions(place.snapshot, place.now)
    costs = view_of(place.snapshot, contention, place.now).costs
    assert 7.0 < costs["chat"].switch_s < 7.1


def test_what_a_device_can_carry_counts_what_parked_servers_keep(place: Place, chat: int) -> None:
    """It is ours: others hold nothing of these 24 GiB, of which embed takes 2 and chat keeps 1."""
    place.switch_to(EMBED, left_gib=1)
    place.begin(RERANK, used_gib=3)
    assert place.snapshot.scheduling.capacities["gpu0"] == 24 * GIB


def test_the_host_is_read_only_where_somebody_may_be_parked(place: Place) -> None:
    (check,) = place.ask_for(PARKING_CHAT)
    assert check == CheckTarget(switch_id="s1", target=PARKING_CHAT)
    place.accept()
    place.start()
    (check,) = place.ask_for(EMBED)
    assert check == CheckTarget(switch_id="s2", target=EMBED, also_read=("host",))


def test_what_died_does_not_come_back_where_a_parked_server_was_woken_in_its_place() -> None:
    place = Place(gpu=SHARED)
    place.make_live(PARKING_CHAT)
    place.switch_to(EMBED, left_gib=1, need_gib=16)
    place.begin(RERANK, need_gib=4, used_gib=17)
    place.crash(place.start(17 * GIB))
    place.begin(PARKING_CHAT, need_gib=6, used_gib=17)
    *_, wake = place.confirm(17 * GIB)
    assert isinstance(wake, UnparkBackend)
    place.tell(BackendReady, epoch=wake.epoch, memory=None)
    assert place.attempts() == [("rerank", 1)]

    place.retry("rerank")
    place.accept(4 * GIB, used_bytes=22 * GIB)

    assert place.attempts() == []
