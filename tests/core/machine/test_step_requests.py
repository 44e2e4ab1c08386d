"""Requests: who is served at once, who waits for the running switch, who is refused."""

import time

import pytest
from immutables import Map
from msgspec.structs import replace

from supervisor.core.byte_size import MIB
from supervisor.core.machine.commands import Command, GrantLease, RefuseRequest
from supervisor.core.machine.deadlines import next_wakeup
from supervisor.core.machine.events import (
    BackendExited,
    BackendReady,
    Event,
    RequestArrived,
    RequestEnded,
    SwitchRequested,
    TargetAccepted,
    TargetRejected,
    TimePassed,
)
from supervisor.core.machine.footprint import Baseline
from supervisor.core.machine.rules import Limits
from supervisor.core.machine.snapshot import Scheduling, Snapshot
from supervisor.core.machine.step import step
from supervisor.core.machine.switch import Order, Start, Switch
from supervisor.core.machine.values import (
    Backend,
    BackendState,
    Device,
    Mode,
    Patience,
    Phase,
    Target,
    TargetNeed,
)
from supervisor.core.scheduling.estimates import Estimates, note_stay
from tests.core.machine.story import AT_ONCE
from tests.core.machine.surroundings import asked_for, taking

DEVICE = Device(name="gpu0", budget_bytes=1000 * MIB)
CHAT = Target(model="chat", mode=Mode.GENERATION, profile="chat", device="gpu0")
EMBED = Target(model="embed", mode=Mode.EMBEDDING, profile="embed", device="gpu0")
CODE = Target(model="code", mode=Mode.GENERATION, profile="code", device="gpu0")

Commands = tuple[Command, ...]


def live(epoch: int, target: Target) -> Backend:
    return Backend(
        epoch=epoch,
        target=target,
        state=BackendState.READY,
        footprint=taking(100),
        started_at=0.0,
        baselines=(Baseline(device="gpu0", used_bytes=0),),
    )


EMPTY = Snapshot(devices=Map({"gpu0": DEVICE}), rules=AT_ONCE, next_epoch=10)
CHAT_LIVE = replace(EMPTY, backends=(live(1, CHAT),))
BOTH_LIVE = replace(EMPTY, backends=(live(1, CHAT), live(2, EMBED)))

STARTING_CHAT = replace(
    EMPTY,
    backends=(replace(live(9, CHAT), state=BackendState.STARTING),),
    switch=Switch(
        order=Order(switch_id="s1", target=CHAT, requested_by="ops", started_at=0.0),
        phase=Phase.STARTING,
        phase_started_at=0.0,
        start=Start(epoch=9),
    ),
)
"""A switch to `chat` runs, nothing is live, and the epoch 9 loads."""

READY = BackendReady(at=60.0, epoch=9, memory=None)
DIED = BackendExited(at=60.0, epoch=9, exit_code=1)


def play(snapshot: Snapshot, *events: Event) -> tuple[Snapshot, Commands]:
    """Tell the events one after another; the commands are those of the last one."""
    commands: Commands = ()
    for event in events:
        snapshot, commands = step(snapshot, event)
    return snapshot, commands


def arrival(
    request_id: str,
    model: str | None = "chat",
    *,
    at: float = 0.0,
) -> RequestArrived:
    return RequestArrived(at=at, request_id=request_id, target=asked_for(model))


def end(request_id: str) -> RequestEnded:
    return RequestEnded(at=0.0, request_id=request_id)


def grant(request_id: str, epoch: int) -> GrantLease:
    return GrantLease(request_id=request_id, epoch=epoch)


def answer(commands: Commands) -> tuple[str, str]:
    """Return the code and the message of the one refusal."""
    (command,) = commands
    assert isinstance(command, RefuseRequest)
    return command.refusal.code, command.refusal.message


def in_flight(snapshot: Snapshot) -> dict[int, int]:
    return {b.epoch: b.in_flight for b in snapshot.backends}


def test_request_for_a_live_model_is_granted_at_once() -> None:
    snapshot, commands = play(BOTH_LIVE, arrival("r1", "embed"))

    assert commands == (grant("r1", 2),)
    assert in_flight(snapshot) == {1: 0, 2: 1}


def test_lease_comes_back_once_however_often_the_request_ends() -> None:
    snapshot, _ = play(CHAT_LIVE, arrival("r1"), arrival("r2"), end("r1"), end("r1"), end("rx"))

    assert in_flight(snapshot) == {1: 1}


def test_request_that_names_no_model_takes_what_was_switched_to_last() -> None:
    _, commands = play(BOTH_LIVE, arrival("r1", None))

    assert commands == (grant("r1", 2),)


def test_request_for_a_model_that_is_not_live_is_told_which_one_is() -> None:
    code, message = answer(play(CHAT_LIVE, arrival("r1", "embed"))[1])

    assert code == "model_not_live"
    assert "'embed' is not live, 'chat' is" in message
    assert '{"model_name": "embed"}' in message


def test_request_for_a_model_that_is_not_live_is_told_all_that_are() -> None:
    _, message = answer(play(BOTH_LIVE, arrival("r1", "other"))[1])
    assert "'other' is not live, 'embed' and 'chat' are;" in message


def test_request_is_refused_while_nothing_is_loaded_and_no_switch_runs() -> None:
    assert answer(play(EMPTY, arrival("r1"))[1])[0] == "no_model_loaded"
    assert answer(play(EMPTY, arrival("r1", None))[1])[0] == "no_model_loaded"


def test_request_for_a_backend_that_crashed_waits_for_the_restart() -> None:
    died = BackendExited(at=0.0, epoch=1, exit_code=None, signal=9)
    snapshot, commands = play(CHAT_LIVE, arrival("r1"), died)
    assert commands == ()
    assert [down.attempt for down in snapshot.recoveries] == [1]
    assert snapshot.requests.leases == Map()
    assert play(snapshot, end("r1")) == (snapshot, ())

    snapshot, commands = play(snapshot, arrival("r2"))
    assert commands == ()
    assert [w.request_id for w in snapshot.requests.heads()] == ["r2"]


def test_backend_that_crashed_too_often_is_named_to_the_next_request() -> None:
    fragile = replace(CHAT_LIVE, limits=Limits(breaker_deaths=1))
    died = BackendExited(at=0.0, epoch=1, exit_code=None, signal=9)
    snapshot, commands = play(fragile, died)
    assert commands == ()

    code, message = answer(play(snapshot, arrival("r1"))[1])
    assert code == "backend_down"
    assert "'chat' died while serving (signal 9)" in message
    assert "POST /backend/restart" in message


def test_requests_wait_for_the_switch_and_are_served_in_arrival_order() -> None:
    ids = [f"r{i}" for i in range(12)]
    snapshot, commands = play(STARTING_CHAT, *(arrival(i) for i in ids))
    assert commands == ()

    snapshot, (_, *grants) = play(snapshot, READY)
    assert grants == [grant(i, 9) for i in ids]
    assert in_flight(snapshot) == {9: 12}
    assert not snapshot.requests.waiting


def test_request_that_names_no_model_waits_when_nothing_is_live() -> None:
    _, (_, *grants) = play(STARTING_CHAT, arrival("r1", None), READY)

    assert grants == [grant("r1", 9)]


def test_waiters_are_refused_with_the_reason_when_the_switch_fails() -> None:
    _, (_, *answers) = play(STARTING_CHAT, arrival("r1"), DIED)

    code, message = answer(tuple(answers))
    assert code == "switch_failed"
    assert "'chat' ended (exit code 1) before it was ready" in message


def test_request_for_another_model_learns_at_the_end_of_the_switch_which_one_is_live() -> None:
    snapshot, commands = play(STARTING_CHAT, arrival("r1", "embed"))
    assert commands == ()

    assert answer(play(snapshot, READY)[1][1:])[0] == "model_not_live"
    assert answer(play(snapshot, DIED)[1][1:])[0] == "no_model_loaded"


def test_waiter_whose_client_leaves_is_not_served() -> None:
    _, (_, *grants) = play(STARTING_CHAT, arrival("r1"), arrival("r2"), end("r1"), READY)

    assert grants == [grant("r2", 9)]


def test_waiter_is_not_served_after_its_client_left_and_another_came() -> None:
    snapshot, _ = play(STARTING_CHAT, arrival("r1"), end("r1"), arrival("r2", at=5.0))

    assert play(snapshot, READY)[1][1:] == (grant("r2", 9),)


def test_switch_that_is_checked_serves_the_live_model_and_holds_the_target() -> None:
    asked = SwitchRequested(at=0.0, switch_id="s1", target=EMBED, requested_by="ops")
    snapshot, _ = play(CHAT_LIVE, asked)

    assert play(snapshot, arrival("r1", "chat"))[1] == (grant("r1", 1),)
    snapshot, commands = play(snapshot, arrival("r2", "embed"))
    assert commands == ()
    rejected = TargetRejected(at=0.0, switch_id="s1", message="no such file")
    _, (_, *answers) = play(snapshot, rejected)
    assert answer(tuple(answers))[0] == "switch_failed"


def test_draining_backend_admits_nobody() -> None:
    exclusive = replace(CHAT_LIVE, devices=Map({"gpu0": replace(DEVICE, is_exclusive=True)}))
    snapshot, _ = play(
        exclusive,
        arrival("r1"),
        SwitchRequested(at=0.0, switch_id="s1", target=EMBED, requested_by="ops"),
        TargetAccepted(at=0.0, switch_id="s1", need=TargetNeed(footprint=taking(100)), readings=()),
    )

    for model in ("chat", "embed", "code", None):
        assert play(snapshot, arrival("r2", model))[1] == ()


def test_staying_backend_serves_through_the_switch() -> None:
    snapshot, _ = play(
        CHAT_LIVE,
        SwitchRequested(at=0.0, switch_id="s1", target=EMBED, requested_by="ops"),
        TargetAccepted(at=0.0, switch_id="s1", need=TargetNeed(footprint=taking(100)), readings=()),
    )

    assert play(snapshot, arrival("r1", "chat"))[1] == (grant("r1", 1),)


def test_requests_beyond_the_hold_bound_are_refused() -> None:
    full = replace(STARTING_CHAT, limits=Limits(hold_max_requests=2))
    snapshot, _ = play(full, arrival("r1"), arrival("r2"))

    assert answer(play(snapshot, arrival("r3"))[1])[0] == "hold_queue_full"
    assert play(snapshot, end("r1"), arrival("r3"))[1] == ()


@pytest.mark.parametrize(
    ("durations_s", "elapsed_s", "expected_s"),
    [((), 0.0, 5), ((), 3.5, 2), ((9.0, 2.0, 3.0), 0.0, 3), ((20.0,), 4.5, 16), ((2.0,), 60.0, 1)],
)
def test_refused_client_is_told_to_come_back_when_the_switch_should_have_ended(
    durations_s: tuple[float, ...], elapsed_s: float, expected_s: int
) -> None:
    """The median of past switches less what the running one has taken; 5 s before the first."""
    full = replace(
        STARTING_CHAT, limits=Limits(hold_max_requests=0), switch_durations_s=durations_s
    )
    _, (command,) = play(full, arrival("r1", at=elapsed_s))

    assert isinstance(command, RefuseRequest)
    assert dict(command.refusal.details)["retry_after_s"] == expected_s


@pytest.mark.parametrize(("service_s", "expected_s"), [(2.0, 11), (100.0, 60)])
def test_client_beyond_its_models_share_is_told_where_it_stands_and_when_that_is_served(
    service_s: float, expected_s: int
) -> None:
    estimates = note_stay(
        Estimates(), "chat", answered=10, busy_s=10 * service_s, arrived=0, elapsed_s=0.0
    )
    few = replace(
        STARTING_CHAT,
        limits=Limits(hold_max_requests=9, hold_max_per_model=3),
        scheduling=Scheduling(estimates=estimates),
    )
    snapshot, _ = play(few, *(arrival(f"r{number}", at=0.0) for number in range(3)))

    _, (command,) = play(snapshot, arrival("r3", at=0.0))

    assert isinstance(command, RefuseRequest)
    assert command.refusal.code == "queue_full"
    assert dict(command.refusal.details) == {"retry_after_s": expected_s, "queue_position": 4}


def test_waiter_is_refused_when_the_hold_time_is_over_and_not_before() -> None:
    impatient = replace(STARTING_CHAT, limits=Limits(hold_timeout_s=20.0))
    snapshot, _ = play(impatient, arrival("r1", at=1.0), arrival("r2", at=5.0))

    assert next_wakeup(snapshot) == 21.0
    assert play(snapshot, TimePassed(at=20.9))[1] == ()
    snapshot, commands = play(snapshot, TimePassed(at=21.0))
    assert answer(commands)[0] == "hold_timeout"
    assert next_wakeup(snapshot) == 25.0
    assert play(snapshot, READY)[1][1:] == (grant("r2", 9),)


def test_wakeup_moves_on_when_the_oldest_waiter_leaves() -> None:
    impatient = replace(STARTING_CHAT, limits=Limits(hold_timeout_s=20.0))
    waiting = [arrival(f"r{i}", at=float(i)) for i in range(4)]
    snapshot, _ = play(impatient, *waiting, end("r1"), end("r0"))

    assert next_wakeup(snapshot) == 22.0


def test_refusals_of_hold_time_keep_the_arrival_order() -> None:
    impatient = replace(STARTING_CHAT, limits=Limits(hold_timeout_s=20.0))
    ids = [f"r{i}" for i in range(5)]
    _, commands = play(impatient, *(arrival(i) for i in ids), TimePassed(at=20.0))

    assert [c.request_id for c in commands if isinstance(c, RefuseRequest)] == ids


def test_waiters_of_the_next_switch_are_bounded_too() -> None:
    impatient = replace(STARTING_CHAT, limits=Limits(hold_timeout_s=20.0))
    snapshot, _ = play(impatient, arrival("r1"), arrival("r2"), READY)
    again = SwitchRequested(at=70.0, switch_id="s2", target=EMBED, requested_by="ops")
    snapshot, _ = play(snapshot, again, arrival("r3", "embed", at=71.0))

    assert next_wakeup(snapshot) == 91.0
    assert answer(play(snapshot, TimePassed(at=91.0))[1])[0] == "hold_timeout"


def test_drain_lasts_as_long_as_the_most_patient_backend_that_leaves() -> None:
    patient = live(
        2, replace(EMBED, patience=Patience(drain_timeout_s=CHAT.patience.drain_timeout_s + 60))
    )
    snapshot, _ = play(
        replace(EMPTY, backends=(live(1, CHAT), patient)),
        arrival("r1", "chat"),
        arrival("r2", "embed"),
        SwitchRequested(at=100.0, switch_id="s1", target=None, requested_by="ops"),
    )

    assert next_wakeup(snapshot) == 100.0 + patient.target.patience.drain_timeout_s


@pytest.mark.parametrize("is_oldest_first", [True, False])
def test_20_000_waiters_cost_little_each(*, is_oldest_first: bool) -> None:
    """Nearly all leave before the switch ends; the actor asks for the wakeup after each event.

    A search for the oldest waiter per event, or a copy of the queue, would take a minute.
    """
    count, staying = 20_000, 100
    snapshot = replace(STARTING_CHAT, limits=Limits(hold_max_requests=count))
    leaving = [f"r{i}" for i in range(count - staying)]
    if not is_oldest_first:
        leaving.reverse()
    events: list[Event] = [arrival(f"r{i}") for i in range(count)]
    events += [end(request_id) for request_id in leaving]
    began_s = time.process_time()
    for event in events:
        snapshot, _ = step(snapshot, event)
        assert next_wakeup(snapshot) is not None
    snapshot, (_, *grants) = step(snapshot, READY)

    assert time.process_time() - began_s < 6.0
    assert grants == [grant(f"r{i}", 9) for i in range(count - staying, count)]


@pytest.mark.parametrize(
    ("last", "answer_type"), [(READY, GrantLease), (TimePassed(at=300.0), RefuseRequest)]
)
def test_20_000_waiters_are_answered_together(last: Event, answer_type: type[Command]) -> None:
    count = 20_000
    limits = Limits(hold_max_requests=count, hold_timeout_s=300.0)
    snapshot = replace(STARTING_CHAT, limits=limits)
    snapshot, _ = play(snapshot, *(arrival(f"r{i}") for i in range(count)))
    began_s = time.process_time()
    snapshot, commands = step(snapshot, last)

    assert time.process_time() - began_s < 6.0
    assert sum(isinstance(c, answer_type) for c in commands) == count
    assert not snapshot.requests.waiting
