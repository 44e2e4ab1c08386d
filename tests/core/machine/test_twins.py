"""A twin serves small requests while its model is not live, and never costs anybody anything."""

import pytest
from msgspec.structs import replace

from supervisor.core.machine.commands import (
    CheckTarget,
    Command,
    GrantLease,
    RefuseRequest,
    ReleaseMemory,
    StartBackend,
)
from supervisor.core.machine.events import (
    BackendReady,
    BackendUnfit,
    RequestArrived,
    RulesChanged,
    ScheduleRead,
    TargetRejected,
    VectorsKnown,
)
from supervisor.core.machine.rules import Limits, ModelRules, SwitchRules
from supervisor.core.machine.values import Device, Mode, Target
from supervisor.core.scheduling.values import Priority
from tests.core.machine.story import (
    AT_ONCE,
    CHAT,
    EMBED,
    EXCLUSIVE,
    GIB,
    Story,
    failure_in,
    granted_in,
    refused_in,
    report_in,
)
from tests.core.machine.surroundings import period

HOST = Device(name="host", budget_bytes=8 * GIB, is_host_memory=True)
TWIN = Target(model="embed@cpu", mode=Mode.EMBEDDING, profile="cpu", device="host", twin_of="embed")
MAIN = replace(EMBED, spill=TWIN)
RULES = replace(AT_ONCE, manual_hold_s=0.0)
"""What a hand has made live holds no device."""
SMALL_MODEL = Target(model="tiny", mode=Mode.GENERATION, profile="tiny", device="host")


class TwinStory(Story):
    """A story of a GPU, a host, and an embedding model with a twin."""

    def __init__(self, host: Device = HOST, rules: SwitchRules = RULES) -> None:
        super().__init__(EXCLUSIVE, host, rules=rules)

    def ask(
        self, request_id: str, *, is_small: bool = True, may_wait: bool = True
    ) -> tuple[Command, ...]:
        """An embedding is asked for."""
        return self.tell(
            RequestArrived,
            request_id=request_id,
            target=MAIN,
            may_wait=may_wait,
            may_switch=may_wait,
            may_spill=is_small,
            priority=Priority.INTERACTIVE if is_small else Priority.BATCH,
        )

    def switch_to_main(self) -> int:
        """The model itself becomes live in place of the chat. Returns its epoch."""
        chat = self.epoch_of("chat")
        self.ask_for(MAIN)
        self.accept()
        self.reap(chat)
        return self.start()

    def know_the_vectors(self) -> None:
        self.tell(VectorsKnown, target=MAIN)

    def start_twin(self) -> int:
        """A first small request has it started. Returns its epoch."""
        (check,) = self.ask("first")
        assert isinstance(check, CheckTarget)
        assert check.target == TWIN
        return self.finish_twin()

    def finish_twin(self, need_bytes: int = GIB) -> int:
        self.accept(need_bytes)
        return self.start(device="host")


@pytest.fixture
def story() -> TwinStory:
    """Chat is live on the GPU, and the twin can be compared."""
    story = TwinStory()
    story.make_live(CHAT)
    story.know_the_vectors()
    return story


def test_small_request_has_the_twin_started_beside_the_gpus_tenant(story: TwinStory) -> None:
    chat = story.epoch_of("chat")

    twin = story.start_twin()

    assert granted_in(story.last) == [("first", twin)]
    assert report_in(story.last).model == "embed@cpu"
    assert story.epoch_of("chat") == chat
    assert granted_in(story.ask("second")) == [("second", twin)]


def test_twin_serves_a_request_that_may_not_wait(story: TwinStory) -> None:
    twin = story.start_twin()

    story.ask("at-once", may_wait=False)

    assert story.snapshot.requests.leases["at-once"] == twin


def test_large_request_waits_for_the_models_turn_though_the_twin_is_live(story: TwinStory) -> None:
    story.start_twin()

    commands = story.ask("bulk", is_small=False)

    assert not granted_in(commands)
    assert any(isinstance(c, CheckTarget) and c.target == MAIN for c in commands)


def test_live_model_serves_what_its_twin_could(story: TwinStory) -> None:
    story.start_twin()
    story.end("first")
    main = story.switch_to_main()

    assert granted_in(story.ask("small")) == [("small", main)]


def test_twin_serves_while_its_model_is_being_started(story: TwinStory) -> None:
    twin = story.start_twin()
    story.ask_for(MAIN)
    story.accept()

    assert granted_in(story.ask("meanwhile")) == [("meanwhile", twin)]


def test_model_that_has_become_live_takes_over_those_who_wait_for_its_twin() -> None:
    story = TwinStory()
    story.know_the_vectors()
    story.ask_for(MAIN)
    story.accept()
    assert not granted_in(story.ask("small"))

    main = story.start()

    assert granted_in(story.last) == [("small", main)]


def test_who_waits_for_a_model_that_dies_goes_to_its_twin() -> None:
    story = TwinStory(rules=replace(RULES, models={"embed": ModelRules(max_concurrency=1)}))
    story.make_live(CHAT)
    story.know_the_vectors()
    twin = story.start_twin()
    story.end("first")
    main = story.switch_to_main()
    assert granted_in(story.ask("served")) == [("served", main)]
    for request_id, is_small in (("small", True), ("large", False), ("smaller", True)):
        assert not granted_in(story.ask(request_id, is_small=is_small))

    commands = story.crash(main)

    assert granted_in(commands) == [("small", twin), ("smaller", twin)]
    assert "large" in story.snapshot.requests.places


def test_who_waits_for_a_twin_alone_holds_nobody_behind_it_up() -> None:
    """Its model could not be used when it came."""
    story = TwinStory()
    story.know_the_vectors()
    story.ask_for(MAIN)
    story.accept()
    story.tell(RequestArrived, request_id="alone", target=TWIN, may_switch=True)
    assert not granted_in(story.ask("small"))

    main = story.start()

    assert granted_in(story.last) == [("small", main)]


def test_request_that_names_no_model_is_not_served_by_a_twin(story: TwinStory) -> None:
    story.start_twin()

    assert granted_in(story.arrive("any", None)) == [("any", story.epoch_of("chat"))]


def test_request_that_names_no_model_is_not_told_what_became_of_a_twin() -> None:
    story = TwinStory()
    story.know_the_vectors()
    (check,) = story.ask("small")
    assert isinstance(check, CheckTarget)
    assert check.target == TWIN
    story.arrive("nameless", None)

    commands = story.tell(TargetRejected, switch_id=story.running, message="no such file")

    assert ("nameless", "no_model_loaded") in refused_in(commands)


def test_live_twin_is_no_live_model(story: TwinStory) -> None:
    story.start_twin()

    assert story.snapshot.live_models() == ("chat",)
    assert story.snapshot.server_mode() == "generation"


def test_who_waits_for_a_twin_bounds_nobody_elses_room() -> None:
    """Models on the host go on as though nobody waited."""
    story = TwinStory()
    story.make_live(SMALL_MODEL, GIB)
    story.know_the_vectors()
    story.ask("small")  # the switch to the twin runs

    granted = [
        granted_in(
            story.tell(RequestArrived, request_id=f"r{n}", target=SMALL_MODEL, may_switch=True)
        )
        for n in range(20)
    ]

    assert all(granted)


def test_twin_is_not_used_before_it_can_be_compared() -> None:
    story = TwinStory()
    story.make_live(CHAT)

    (check, *_) = story.ask("small")

    assert isinstance(check, CheckTarget)
    assert check.target == MAIN


def test_twin_stands_in_uncompared_for_a_model_that_cannot_be_had() -> None:
    """Somebody else holds the GPU: what would be refused is served."""
    story = TwinStory()
    story.ask("small")
    commands = story.tell(TargetRejected, switch_id=story.running, message="no room")

    assert not refused_in(commands)
    assert any(isinstance(c, CheckTarget) and c.target == TWIN for c in commands)
    twin = story.finish_twin()
    assert granted_in(story.last) == [("small", twin)]
    assert granted_in(story.ask("next")) == [("next", twin)]


def test_large_request_is_refused_where_its_model_cannot_be_had() -> None:
    story = TwinStory()
    story.ask("bulk", is_small=False)
    commands = story.tell(TargetRejected, switch_id=story.running, message="no room")

    assert refused_in(commands) == [("bulk", "switch_failed")]


def test_nobody_leaves_for_a_twin() -> None:
    story = TwinStory(replace(HOST, is_exclusive=True))
    tiny = story.make_live(SMALL_MODEL, GIB)
    story.know_the_vectors()
    story.ask("small")

    commands = story.accept(GIB)

    code, message = failure_in(commands)
    assert code == "twin_does_not_fit"
    assert "beside 'tiny' on host" in message
    assert story.epoch_of("tiny") == tiny
    assert not any(isinstance(c, ReleaseMemory) for c in commands)


def test_who_waited_for_a_twin_that_does_not_fit_waits_for_its_model() -> None:
    story = TwinStory(replace(HOST, is_exclusive=True))
    story.make_live(SMALL_MODEL, GIB)
    story.know_the_vectors()
    story.ask("small")

    commands = story.accept(GIB)

    assert any(isinstance(c, CheckTarget) and c.target == MAIN for c in commands)
    story.accept()
    main = story.start()
    assert granted_in(story.last) == [("small", main)]


def test_twin_makes_room_before_all_others() -> None:
    """Though the other one would be loaded again sooner."""
    story = TwinStory()
    tiny = story.make_live(SMALL_MODEL, 2 * GIB)
    story.know_the_vectors()
    story.ask("first")
    twin = story.finish_twin(3 * GIB)
    story.end("first")
    story.ask_for(replace(SMALL_MODEL, model="other"))

    (release,) = story.accept(4 * GIB)

    assert isinstance(release, ReleaseMemory)
    assert release.epoch == twin
    assert story.epoch_of("tiny") == tiny


def test_twin_that_works_has_no_turn_that_others_would_wait_for() -> None:
    story = TwinStory(host=replace(HOST, budget_bytes=2 * GIB, is_exclusive=True))
    story.know_the_vectors()
    story.make_live(CHAT)
    twin = story.start_twin()
    assert granted_in(story.ask("busy")) == [("busy", twin)]

    story.now += 1.0
    (check,) = story.tell(
        RequestArrived, request_id="t", target=SMALL_MODEL, may_wait=True, may_switch=True
    )
    assert isinstance(check, CheckTarget)
    assert check.target == SMALL_MODEL


def test_twin_stays_where_a_switch_replaces_all_else() -> None:
    story = TwinStory(rules=replace(RULES, replaces=True))
    story.make_live(CHAT)
    story.know_the_vectors()
    twin = story.start_twin()
    story.switch_to_main()

    assert [b.epoch for b in story.snapshot.admitting()] == [story.epoch_of("embed"), twin]


def test_twin_that_differs_is_stopped_and_its_requests_wait_for_the_model(story: TwinStory) -> None:
    story.ask("small")
    story.accept(GIB)
    *_, start = story.confirm(device="host")
    assert isinstance(start, StartBackend)

    (release,) = story.tell(BackendUnfit, epoch=start.epoch, reason="cosine 0.98")
    assert isinstance(release, ReleaseMemory)
    commands = story.reap(start.epoch)

    assert failure_in(commands) == ("twin_differs", "cosine 0.98")
    assert any(isinstance(c, CheckTarget) and c.target == MAIN for c in commands)


def test_twin_that_differs_is_not_tried_again_before_other_settings_apply(
    story: TwinStory,
) -> None:
    twin = story.start_twin()
    story.end("first")
    (release,) = story.tell(BackendUnfit, epoch=twin, reason="cosine 0.98")
    assert isinstance(release, ReleaseMemory)
    story.reap(twin)
    story.now += 10_000.0

    (check,) = story.ask("small")
    assert isinstance(check, CheckTarget)
    assert check.target == MAIN

    story.tell(TargetRejected, switch_id=story.running, message="no room")
    story.tell(RulesChanged, limits=Limits(), rules=RULES)
    (check,) = story.ask("again")
    assert isinstance(check, CheckTarget)
    assert check.target == TWIN


def test_twin_that_died_is_restarted_for_those_who_wait(story: TwinStory) -> None:
    twin = story.start_twin()
    story.end("first")
    story.crash(twin)
    assert not granted_in(story.ask("small"))

    (check,) = story.retry("embed@cpu")
    assert isinstance(check, CheckTarget)
    successor = story.finish_twin()

    assert granted_in(story.last) == [("small", successor)]


def test_twin_that_finds_its_place_taken_is_not_tried_for_ever(story: TwinStory) -> None:
    story.crash(story.start_twin())
    story.retry("embed@cpu")

    story.accept(9 * GIB)

    assert story.snapshot.recoveries == ()


def test_twin_that_is_no_longer_configured_ends_behind_its_requests(story: TwinStory) -> None:
    twin = story.start_twin()

    commands = story.tell(RulesChanged, limits=Limits(), rules=RULES, outdated=frozenset({twin}))
    assert not any(isinstance(c, ReleaseMemory) for c in commands)
    (release,) = story.end("first")

    assert isinstance(release, ReleaseMemory)
    assert release.epoch == twin


def test_twin_that_is_still_configured_stays(story: TwinStory) -> None:
    twin = story.start_twin()
    story.end("first")

    story.tell(RulesChanged, limits=Limits(), rules=RULES)

    assert granted_in(story.ask("next")) == [("next", twin)]


def test_death_of_a_twin_is_nothing_to_others(story: TwinStory) -> None:
    story.crash(story.start_twin())

    assert story.snapshot.recovery("embed") is None
    assert granted_in(story.arrive("hello")) == [("hello", story.epoch_of("chat"))]


def test_twin_serves_in_a_period_that_is_not_its_models(story: TwinStory) -> None:
    story.tell(ScheduleRead, periods=(period(story.now, CHAT),), refuses=True)

    story.start_twin()

    assert not any(isinstance(c, RefuseRequest) for c in story.ask("small"))
    assert refused_in(story.ask("bulk", is_small=False)) == [("bulk", "outside_window")]


def test_period_of_a_mode_is_not_served_by_a_twin(story: TwinStory) -> None:
    story.start_twin()
    story.end("first")

    commands = story.tell(ScheduleRead, periods=(period(story.now, MAIN),))

    assert any(isinstance(c, CheckTarget) and c.target == MAIN for c in commands)


def test_unload_frees_the_twins_memory_too(story: TwinStory) -> None:
    twin = story.start_twin()
    story.end("first")

    released = [c.epoch for c in story.ask_for(None) if isinstance(c, ReleaseMemory)]

    assert twin in released


def test_start_of_a_twin_leaves_the_last_failure_and_other_recoveries_alone(
    story: TwinStory,
) -> None:
    chat = story.epoch_of("chat")
    story.ask("small")
    story.accept(GIB)
    story.crash(chat)
    *_, start = story.confirm(device="host")
    assert isinstance(start, StartBackend)
    commands = story.tell(BackendReady, epoch=start.epoch, memory=None)

    assert any(isinstance(c, GrantLease) for c in commands)
    assert story.snapshot.recovery("chat") is not None
