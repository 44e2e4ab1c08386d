"""The scheduler: whose turn it is, who is let in meanwhile, and what a hand has precedence over."""

import time

import pytest
from msgspec.structs import replace

from supervisor.core.machine.commands import (
    CheckTarget,
    Command,
    FinishSwitch,
    JoinSwitch,
    RefuseRequest,
    RefuseSwitch,
    ReleaseMemory,
    StartBackend,
)
from supervisor.core.machine.deadlines import next_wakeup
from supervisor.core.machine.events import (
    BackendExited,
    BackendReady,
    CallersCounted,
    RequestArrived,
    RequestEnded,
    RulesChanged,
    TargetRejected,
)
from supervisor.core.machine.refusals import BATCH_RETRY_AFTER_S
from supervisor.core.machine.rules import DrainPolicy, Limits, SwitchRules
from supervisor.core.machine.step import step
from supervisor.core.machine.values import BackendState, Outcome, Phase
from supervisor.core.scheduling.estimates import (
    SWITCH_S,
    Estimates,
    ModelEstimates,
    costs_of,
    note_drain,
)
from supervisor.core.scheduling.values import Priority
from tests.core.machine.story import (
    CHAT,
    EMBED,
    EXCLUSIVE,
    GIB,
    RERANK,
    SHARED,
    Story,
    accept_unread,
    granted_in,
    refused_in,
    report_in,
)
from tests.core.machine.surroundings import taking

MANUAL_HOLD_S = 10.0


def ask(
    story: Story, request_id: str, target: object = EMBED, priority: Priority = Priority.INTERACTIVE
) -> tuple[Command, ...]:
    """A request that may switch arrives."""
    return story.tell(
        RequestArrived, request_id=request_id, target=target, may_switch=True, priority=priority
    )


@pytest.fixture
def chat_live() -> Story:
    """`chat` is live on an exclusive device, chosen by a hand long ago, and has served one."""
    story = Story(EXCLUSIVE)
    story.make_live(CHAT)
    story.now += 60.0
    story.arrive("r0")
    story.end("r0")
    return story


def switch_target(commands: tuple[Command, ...]) -> str | None:
    """The model that a switch has begun to in these commands."""
    return next((c.target.model for c in commands if isinstance(c, CheckTarget)), None)


def test_request_for_another_model_is_waited_for_by_no_hand(chat_live: Story) -> None:
    """Nothing keeps an empty resident: the switch begins at once, and waits for streams."""
    assert switch_target(ask(chat_live, "r1")) == "embed"
    switch = chat_live.snapshot.switch
    assert switch is not None
    assert (switch.order.requested_by, switch.order.drain_policy) == ("scheduler", DrainPolicy.WAIT)
    assert switch.order.reason.startswith("switching to embed: ")

    chat_live.accept()
    chat_live.reap(1)
    chat_live.start()
    assert granted_in(chat_live.last) == [("r1", 2)]
    assert report_in(chat_live.last).reason == switch.order.reason


def test_answer_that_runs_is_never_cut(chat_live: Story) -> None:
    chat_live.arrive("long")
    ask(chat_live, "r1")
    chat_live.now += 3600.0
    chat_live.tell(RequestEnded, request_id="nobody")
    if chat_live.snapshot.switch is None:
        chat_live.wake()
    chat_live.accept()
    assert chat_live.phase is Phase.DRAINING
    for _ in range(3):
        if next_wakeup(chat_live.snapshot) is not None:
            assert not any(isinstance(c, ReleaseMemory) for c in chat_live.wake())
    assert any(isinstance(c, ReleaseMemory) for c in chat_live.end("long"))


def test_request_for_what_did_not_come_back_is_told_why_though_another_switch_runs() -> None:
    """Its place is taken by the end of that switch, and "another is live" would be no reason."""
    story = Story(EXCLUSIVE)
    story.make_live(CHAT)
    story.crash(1)
    story.retry()
    story.accept()
    story.confirm()
    story.reap(2, exit_code=1)
    story.now += 60.0
    assert switch_target(ask(story, "e")) == "embed"

    assert refused_in(ask(story, "c", CHAT)) == [("c", "backend_down")]

    story.accept()
    story.start()
    assert refused_in(story.last) == []
    assert refused_in(ask(story, "c", CHAT)) == []  # from now on it waits for its turn


def test_request_that_may_not_switch_is_refused_as_ever(chat_live: Story) -> None:
    assert refused_in(chat_live.arrive("r1", "embed")) == [("r1", "model_not_live")]


def test_resident_admits_twice_what_it_works_on_while_others_wait(chat_live: Story) -> None:
    ids = [f"c{i}" for i in range(4)]
    chat_live.arrive("c")
    ask(chat_live, "e")  # chat works: it keeps its turn
    grants = [ask(chat_live, request_id, CHAT) for request_id in ids]

    assert [granted_in(commands) for commands in grants] == [[("c0", 1)], [], [], []]
    assert granted_in(chat_live.end("c")) == [("c1", 1)]


def test_bound_of_the_resident_falls_with_the_last_who_waits(chat_live: Story) -> None:
    chat_live.arrive("c")
    ask(chat_live, "e")
    for request_id in ("c0", "c1", "c2"):
        ask(chat_live, request_id, CHAT)
    assert granted_in(chat_live.end("e")) == [("c1", 1), ("c2", 1)]


@pytest.fixture
def clients_return_soon(chat_live: Story) -> Story:
    """Those of chat, within 10 ms; it works for one of them while another model is waited for."""
    seen = ModelEstimates(returns_s=(0.01,) * 2)
    estimates = Estimates(models={"chat": seen})
    scheduling = replace(chat_live.snapshot.scheduling, estimates=estimates)
    chat_live.snapshot = replace(chat_live.snapshot, scheduling=scheduling)
    chat_live.arrive("c0")
    ask(chat_live, "e")
    return chat_live


def test_absence_shows_how_soon_those_came_who_came_in_it(chat_live: Story) -> None:
    """On average, without those whom it left in its line, and from its last answer on."""
    story = chat_live
    for request_id in ("c0", "c1", "c2"):
        ask(story, request_id, CHAT)
    ask(story, "e")
    story.wake()
    story.accept()  # from now on it admits nobody
    for request_id in ("c3", "c4"):
        ask(story, request_id, CHAT)
    for request_id in ("c0", "c1", "c2"):
        story.now += 1.0
        story.end(request_id)
    for request_id in ("c5", "c6"):
        story.now += 0.5
        ask(story, request_id, CHAT)
    story.reap(1)
    story.start()
    story.end("e")
    story.accept()
    story.reap(2)
    story.start()
    returns_s = story.snapshot.scheduling.estimates.models["chat"].returns_s
    assert returns_s == pytest.approx(((0.5 + 1.0) / 2,))


def test_all_callers_that_wait_for_one_request_count(chat_live: Story) -> None:
    """They come when they are counted; three are worth a switch that one was not."""
    story = chat_live
    story.arrive("c")
    ask(story, "e")
    left_at = story.now
    for callers in (2, 3):
        story.now += 0.1
        story.tell(CallersCounted, request_id="e", callers=callers)
    decision = story.snapshot.scheduling.decision
    assert decision is not None
    assert "3 wait, the oldest 0.2 s" in decision.reason
    story.tell(CallersCounted, request_id="e", callers=2)
    assert story.snapshot.requests.callers_of("embed") == 2
    assert story.snapshot.requests.arrived_at_sum("embed") == pytest.approx(2 * left_at + 0.2)
    assert story.tell(CallersCounted, request_id="c", callers=2) == ()

    story.end("c")
    story.accept()
    story.reap(1)
    story.start()
    story.tell(RequestEnded, request_id="e", callers=2)
    assert story.snapshot.backends[0].work.granted == 2


def test_decision_stands_while_the_resident_goes_on_working(clients_return_soon: Story) -> None:
    """Most requests move nothing that it rests on: nobody is asked again, and no alarm is moved."""
    story = clients_return_soon
    decided, wakeup = story.snapshot.scheduling.decision, next_wakeup(story.snapshot)
    for number in range(1, 4):
        story.now += 0.001
        assert granted_in(ask(story, f"c{number}", CHAT)) == [(f"c{number}", 1)]
        story.end(f"c{number - 1}")
    assert story.snapshot.scheduling.decision is decided
    assert next_wakeup(story.snapshot) == wakeup


def test_resident_lingers_for_clients_that_return_soon_and_no_longer(
    clients_return_soon: Story,
) -> None:
    story = clients_return_soon
    decided, wakeup = story.snapshot.scheduling.decision, next_wakeup(story.snapshot)
    story.end("c0")
    lingers_until = next_wakeup(story.snapshot)
    assert lingers_until == pytest.approx(story.now + SWITCH_S)
    story.now += 0.01
    ask(story, "c1", CHAT)
    assert story.snapshot.scheduling.decision is decided
    assert next_wakeup(story.snapshot) == wakeup
    story.end("c1")
    assert switch_target(story.wake()) == "embed"
    assert story.now == pytest.approx(story.snapshot.switch.order.started_at)  # type: ignore[union-attr]


def test_policy_is_asked_again_when_urgent_work_has_become_batch_work(
    clients_return_soon: Story,
) -> None:
    story = clients_return_soon
    decided = story.snapshot.scheduling.decision
    ask(story, "b", CHAT, Priority.BATCH)
    assert story.snapshot.scheduling.decision is decided
    story.end("c0")
    assert story.snapshot.scheduling.decision is not decided


def test_interactive_requests_go_before_batch_work_of_the_same_model() -> None:
    story = Story(EXCLUSIVE)
    story.ask_for(CHAT)
    ask(story, "b", CHAT, Priority.BATCH)
    for request_id in ("i0", "i1"):
        ask(story, request_id, CHAT)
    ask(story, "e", EMBED)
    story.accept()
    story.start()
    assert granted_in(story.last) == [("i0", 1), ("i1", 1)]
    assert granted_in(story.end("i0")) == [("b", 1)]


def test_target_that_is_known_to_fit_is_switched_to_at_once() -> None:
    story = Story(SHARED)
    story.make_live(EMBED, GIB)
    story.ask_for(None)
    story.reap(1)
    story.confirm()
    story.make_live(CHAT, GIB)
    story.arrive("long")

    assert switch_target(ask(story, "r1")) == "embed"
    assert "fits beside" in story.snapshot.switch.order.reason  # type: ignore[union-attr]


def test_a_turn_that_began_with_a_long_queue_is_longer() -> None:
    """So many as waited then are served, whatever arrives afterwards; batch work does not count."""
    story = Story(EXCLUSIVE)
    story.make_live(CHAT)
    story.now += 60.0
    known = ModelEstimates(switches_s=(1.0,), services_s=(0.5,))
    estimates = Estimates(models={"chat": known, "embed": known})
    scheduling = replace(story.snapshot.scheduling, estimates=estimates)
    story.snapshot = replace(story.snapshot, scheduling=scheduling)
    for number in range(20):
        ask(story, f"e{number}")
        ask(story, f"b{number}", priority=Priority.BATCH)
    story.accept()
    story.reap(1)
    story.start()
    began_at = story.now
    ask(story, "c", CHAT)
    ask(story, "late")
    assert story.snapshot.scheduling.wake_at == pytest.approx(began_at + 20 * 0.5)


def test_of_several_that_give_way_together_the_longest_drain_counts() -> None:
    """They drain at the same time, and who comes behind them waits for the last."""
    story = Story(SHARED)
    story.make_live(EMBED, GIB)
    story.make_live(CHAT, GIB)
    assert story.snapshot.live_models() == ("chat", "embed")
    story.arrive("c")
    story.now += 60.0
    scheduling = story.snapshot.scheduling
    known = replace(
        scheduling,
        estimates=note_drain(scheduling.estimates, "embed", 3.0),
        needs=scheduling.needs.set((RERANK.identity, RERANK.device), taking(SHARED.budget_bytes)),
    )
    story.snapshot = replace(story.snapshot, scheduling=known)

    assert switch_target(ask(story, "r", RERANK)) is None

    decision, switch_s = story.snapshot.scheduling.decision, 0.25
    longest_s = 2 * switch_s + 4 * switch_s * 0.85 / 0.15 + 3.0
    assert decision is not None
    assert f"the oldest 0 s of at most {longest_s:.1f} s" in decision.reason


def test_choice_of_a_hand_holds_for_a_while() -> None:
    story = Story(EXCLUSIVE)
    story.make_live(CHAT)
    assert ask(story, "r1") == ()
    assert next_wakeup(story.snapshot) == story.now + MANUAL_HOLD_S
    assert switch_target(story.wake()) == "embed"


def test_who_waits_gets_its_model_as_it_is_configured_by_now() -> None:
    story = Story(EXCLUSIVE)
    story.make_live(CHAT)
    ask(story, "r1")
    ask(story, "r2")
    now, rules = replace(EMBED, revision="2"), story.snapshot.rules
    story.tell(RulesChanged, limits=Limits(), rules=rules, targets={"embed": now})
    assert [story.snapshot.requests.position_of(r) for r in ("r1", "r2")] == [1, 2]

    (check,) = story.wake()

    assert isinstance(check, CheckTarget)
    assert check.target == now


def test_device_that_a_hand_freed_stays_free_for_a_while(chat_live: Story) -> None:
    chat_live.ask_for(None)
    chat_live.reap(1)
    chat_live.confirm()
    assert ask(chat_live, "r1") == ()
    assert switch_target(chat_live.wake()) == "embed"


def test_switch_by_hand_waits_for_the_schedulers(chat_live: Story) -> None:
    ask(chat_live, "r1")
    assert chat_live.ask_for(RERANK) == ()
    joined, refused = chat_live.ask_for(RERANK), chat_live.ask_for(None)
    assert joined == (JoinSwitch(switch_id="s3", running_id="s2"),)
    assert [c.refusal.code for c in refused if isinstance(c, RefuseSwitch)] == [
        "switch_in_progress"
    ]

    chat_live.accept()
    chat_live.reap(1)
    chat_live.start()
    assert granted_in(chat_live.last) == [("r1", 2)]  # every stay serves
    assert switch_target(chat_live.last) == "rerank"


def test_switch_by_hand_is_refused_for_another_by_hand(chat_live: Story) -> None:
    chat_live.ask_for(EMBED)
    assert [type(c) for c in chat_live.ask_for(RERANK)] == [RefuseSwitch]


def fail(story: Story) -> tuple[Command, ...]:
    """The scheduler's target does not start; what was live is brought back."""
    story.accept()
    (gone,) = [b.epoch for b in story.snapshot.backends if b.state is BackendState.STOPPING]
    story.reap(gone)
    *_, start = story.confirm()
    story.tell(BackendExited, epoch=start.epoch, exit_code=1, last_lines=("bad magic",))  # type: ignore[attr-defined]
    story.start()
    return story.last


def test_target_that_fails_is_left_alone_for_a_while_that_grows(chat_live: Story) -> None:
    """A hundred requests for a broken file: what is live is stopped once, and once per pause."""
    ask(chat_live, "r0")
    assert refused_in(fail(chat_live)) == [("r0", "switch_failed")]
    pauses_s = []
    for round_number in range(3):
        answers = [ask(chat_live, f"{round_number}-{i}") for i in range(100)]
        refusals = [c.refusal for a in answers for c in a if isinstance(c, RefuseRequest)]
        assert len(refusals) == 100
        assert "ended (exit code 1)" in refusals[0].message
        pauses_s.append(float(str(dict(refusals[0].details)["retry_after_s"])))
        assert chat_live.snapshot.switch is None
        chat_live.now += pauses_s[-1]
        assert switch_target(ask(chat_live, f"again-{round_number}")) == "embed"
        fail(chat_live)
    assert pauses_s[0] < pauses_s[1] < pauses_s[2]


def test_target_that_goes_on_failing_waits_for_a_hand(chat_live: Story) -> None:
    chat_live.snapshot = replace(chat_live.snapshot, limits=Limits(breaker_deaths=1))
    ask(chat_live, "r0")
    chat_live.tell(TargetRejected, switch_id=chat_live.running, message="no such file: embed.gguf")
    chat_live.now += 24 * 3600.0
    (refused,) = ask(chat_live, "r1")
    assert isinstance(refused, RefuseRequest)
    assert "no such file: embed.gguf" in refused.refusal.message
    assert "POST /switch-backend" in refused.refusal.message
    assert "retry_after_s" not in dict(refused.refusal.details)
    (refused,) = ask(chat_live, "b", priority=Priority.BATCH)
    assert isinstance(refused, RefuseRequest)
    assert dict(refused.refusal.details)["retry_after_s"] == BATCH_RETRY_AFTER_S

    chat_live.ask_for(EMBED)
    chat_live.accept()
    chat_live.reap(1)
    chat_live.start()
    assert not chat_live.snapshot.scheduling.setbacks


def test_what_passes_by_itself_is_tried_again_as_long_as_it_lasts(chat_live: Story) -> None:
    """Telemetry that is lost, as while a driver is replaced: nothing was stopped for it."""
    chat_live.snapshot = replace(chat_live.snapshot, limits=Limits(breaker_deaths=2))
    for attempt in range(5):
        assert switch_target(ask(chat_live, f"r{attempt}")) == "embed"
        accept_unread(chat_live)
        assert chat_live.snapshot.switch is None
        setback = chat_live.snapshot.scheduling.setbacks["embed"]
        assert not setback.is_final
        chat_live.now = setback.until

    assert switch_target(ask(chat_live, "well again")) == "embed"


def test_model_whose_drain_was_refused_gets_its_turn_once_nobody_is_at_work(
    chat_live: Story,
) -> None:
    rules = chat_live.snapshot.rules
    chat_live.snapshot = replace(
        chat_live.snapshot, rules=replace(rules, scheduler_drains=DrainPolicy.REFUSE)
    )
    chat_live.arrive("long")
    ask(chat_live, "r0")
    while chat_live.snapshot.switch is None or chat_live.phase is not Phase.DRAINING:
        chat_live.accept() if chat_live.snapshot.switch else chat_live.wake()
    while chat_live.snapshot.switch is not None:
        chat_live.wake()
    assert chat_live.snapshot.scheduling.setbacks["embed"].until > chat_live.now

    assert switch_target(chat_live.end("long")) == "embed"


def test_one_model_may_take_a_share_of_the_places_only(chat_live: Story) -> None:
    limits = Limits(hold_max_requests=3, hold_max_per_model=2)
    chat_live.snapshot = replace(chat_live.snapshot, limits=limits)
    for request_id in ("r0", "r1"):
        assert refused_in(ask(chat_live, request_id)) == []
    assert refused_in(ask(chat_live, "r2")) == [("r2", "queue_full")]
    assert refused_in(ask(chat_live, "r3", RERANK)) == []
    assert refused_in(ask(chat_live, "r4", RERANK)) == [("r4", "hold_queue_full")]


def test_first_load_is_no_measure_of_a_switch(chat_live: Story) -> None:
    for round_number, target in enumerate((EMBED, CHAT, EMBED)):
        live = chat_live.snapshot.backends[0].epoch
        ask(chat_live, f"r{round_number}", target)
        chat_live.accept()
        chat_live.now += 2.0
        chat_live.reap(live)
        chat_live.start()
        chat_live.end(f"r{round_number}")
        assert report_in(chat_live.last).outcome is Outcome.SWITCHED
        chat_live.now += 60.0
    learned = chat_live.snapshot.scheduling.estimates.models
    assert [len(learned[name].switches_s) for name in ("chat", "embed")] == [1, 1]
    assert learned["embed"].switches_s[0] == pytest.approx(2.01, abs=0.01)


def test_switch_times_are_of_the_settings_that_a_model_is_started_with(chat_live: Story) -> None:
    def switch_s(revision: str, took_s: float) -> float:
        """Switch to chat with the settings of a revision, in so much time, and tell what counts."""
        for target, lasts_s in ((EMBED, 0.5), (replace(CHAT, revision=revision), took_s)):
            (live,) = chat_live.snapshot.backends
            chat_live.ask_for(target)
            chat_live.accept()
            chat_live.reap(live.epoch)
            *_, start = chat_live.confirm()
            assert isinstance(start, StartBackend)
            chat_live.now += lasts_s
            chat_live.tell(BackendReady, epoch=start.epoch, memory=None)
        return costs_of(chat_live.snapshot.scheduling.estimates, "chat").switch_s

    assert switch_s("slow", 60.0) == pytest.approx(60.0, abs=0.1)
    assert switch_s("slow", 70.0) == pytest.approx(60.0, abs=0.1)
    assert switch_s("quick", 1.0) == pytest.approx(1.0, abs=0.1)


def test_100_000_that_wait_cost_little_each(chat_live: Story) -> None:
    """A walk over the queue per event would take hours. Most leave out of the middle."""
    count = 100_000
    chat_live.snapshot = replace(chat_live.snapshot, limits=Limits(hold_max_requests=count))
    chat_live.arrive("long")
    snapshot, at = chat_live.snapshot, chat_live.now
    began_s = time.process_time()
    for i in range(count):
        target = EMBED if i % 2 else CHAT
        arrived = RequestArrived(at=at, request_id=f"r{i}", target=target, may_switch=True)
        snapshot, _ = step(snapshot, arrived)
    for i in range(count // 4, count // 2):
        snapshot, _ = step(snapshot, RequestEnded(at=at, request_id=f"r{i}"))

    assert time.process_time() - began_s < 60.0
    assert not [
        c
        for c in step(snapshot, RequestEnded(at=at, request_id="r99999"))[1]
        if isinstance(c, FinishSwitch)
    ]


def switching_to_embed_behind_an_endless_stream() -> Story:
    story = Story(rules=SwitchRules(warms=False, manual_hold_s=300.0))
    story.make_live(CHAT)
    story.now += 1000.0
    story.arrive("stream")
    story.tell(RequestArrived, request_id="e1", target=EMBED, may_switch=True)
    while story.snapshot.switch is None:
        story.wake()
    story.accept()
    return story


def test_hand_that_wants_what_the_scheduler_does_ends_requests_as_it_says_and_holds() -> None:
    story = switching_to_embed_behind_an_endless_stream()
    story.wake()  # the scheduler waits on, however long it takes
    (joined,) = story.ask_for(EMBED, DrainPolicy.CANCEL)
    assert isinstance(joined, JoinSwitch)
    (stop,) = story.wake()
    assert isinstance(stop, ReleaseMemory)
    story.reap(stop.epoch)
    story.start()
    assert report_in(story.last).requested_by == "ops"
    assert story.snapshot.scheduling.held_until["gpu0"] == story.now + 300.0


def test_hand_that_wants_what_a_recovery_does_may_make_others_leave() -> None:
    story = Story(SHARED)
    chat = story.make_live(CHAT, 14 * GIB)
    story.crash(chat)
    story.ask_for(EMBED)
    story.accept(14 * GIB)
    story.start()
    story.retry()
    story.ask_for(CHAT)
    commands = story.accept(14 * GIB, used_bytes=14 * GIB)
    assert any(isinstance(c, ReleaseMemory) for c in commands)
