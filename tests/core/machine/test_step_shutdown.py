"""Shutdown: drain, stop, and tell exactly once that everything is gone."""

import pytest
from immutables import Map
from msgspec.structs import replace

from supervisor.core.machine.commands import (
    Command,
    CompleteShutdown,
    FinishSwitch,
    RefuseRequest,
    RefuseSwitch,
    ReleaseMemory,
)
from supervisor.core.machine.deadlines import next_wakeup
from supervisor.core.machine.events import (
    BackendExited,
    BackendReady,
    Event,
    RequestArrived,
    RequestEnded,
    ShutdownRequested,
    SwitchRequested,
    TargetAccepted,
    TimePassed,
)
from supervisor.core.machine.footprint import Baseline
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.step import step
from supervisor.core.machine.switch import Order, Start, Switch
from supervisor.core.machine.values import (
    Backend,
    BackendState,
    Device,
    Mode,
    Outcome,
    Patience,
    Phase,
    Stop,
    Target,
    TargetNeed,
)
from tests.core.machine.surroundings import asked_for, taking

CHAT = Target(
    model="chat",
    mode=Mode.GENERATION,
    profile="chat",
    device="gpu0",
    patience=Patience(stop_grace_s=3.0),
)
EMBED = Target(
    model="embed",
    mode=Mode.EMBEDDING,
    profile="embed",
    device="gpu0",
    patience=Patience(stop_grace_s=4.0),
)

Commands = tuple[Command, ...]


def backend(epoch: int, target: Target, state: BackendState = BackendState.READY) -> Backend:
    return Backend(
        epoch=epoch,
        target=target,
        state=state,
        footprint=taking(100),
        started_at=0.0,
        baselines=(Baseline(device="gpu0", used_bytes=0),),
    )


EMPTY = Snapshot(
    devices=Map({"gpu0": Device(name="gpu0", budget_bytes=1000, is_exclusive=True)}), next_epoch=10
)
CHAT_LIVE = replace(EMPTY, backends=(backend(1, CHAT),))
BOTH_LIVE = replace(EMPTY, backends=(backend(1, CHAT), backend(2, EMBED)))
CHECKING = Switch(
    order=Order(switch_id="s1", target=CHAT, requested_by="ops", started_at=0.0),
    phase=Phase.PREFLIGHT,
    phase_started_at=0.0,
)
STARTING_CHAT = replace(
    EMPTY,
    backends=(backend(9, CHAT, BackendState.STARTING),),
    switch=replace(CHECKING, phase=Phase.STARTING, start=Start(epoch=9)),
)

SHUTDOWN = ShutdownRequested(at=100.0, drain_timeout_s=30.0)
SHUTDOWN_NOW = ShutdownRequested(at=101.0, drain_timeout_s=0.0)


def play(snapshot: Snapshot, *events: Event) -> tuple[Snapshot, Commands]:
    """Tell the events one after another; the commands are those of the last one."""
    commands: Commands = ()
    for event in events:
        snapshot, commands = step(snapshot, event)
    return snapshot, commands


def arrival(request_id: str, model: str = "chat") -> RequestArrived:
    return RequestArrived(at=99.0, request_id=request_id, target=asked_for(model))


def exited(epoch: int) -> BackendExited:
    return BackendExited(at=110.0, epoch=epoch, exit_code=0)


STOP_CHAT = ReleaseMemory(epoch=1, how=Stop(grace_s=3.0))
STOP_EMBED = ReleaseMemory(epoch=2, how=Stop(grace_s=4.0))


def test_shutdown_with_nothing_running_completes_at_once() -> None:
    assert play(EMPTY, SHUTDOWN)[1] == (CompleteShutdown(),)


def test_shutdown_stops_idle_backends_at_once_and_completes_when_the_last_is_reaped() -> None:
    snapshot, commands = play(BOTH_LIVE, SHUTDOWN)

    assert commands == (STOP_CHAT, STOP_EMBED)
    snapshot, commands = play(snapshot, exited(2))
    assert commands == ()
    assert play(snapshot, exited(1))[1] == (CompleteShutdown(),)


def test_shutdown_waits_for_the_requests_in_flight() -> None:
    snapshot, commands = play(BOTH_LIVE, arrival("r1"), arrival("r2"), SHUTDOWN)

    assert commands == (STOP_EMBED,)
    snapshot, commands = play(snapshot, RequestEnded(at=104.0, request_id="r1"))
    assert commands == ()
    assert play(snapshot, RequestEnded(at=105.0, request_id="r2"))[1] == (STOP_CHAT,)


def test_shutdown_stops_what_still_serves_at_its_deadline() -> None:
    snapshot, commands = play(CHAT_LIVE, arrival("r1"), SHUTDOWN)

    assert commands == ()
    assert next_wakeup(snapshot) == 130.0
    assert play(snapshot, TimePassed(at=129.9))[1] == ()
    snapshot, commands = play(snapshot, TimePassed(at=130.0))
    assert commands == (STOP_CHAT,)
    assert next_wakeup(snapshot) is None


def test_second_shutdown_request_stops_at_once() -> None:
    snapshot, commands = play(CHAT_LIVE, arrival("r1"), SHUTDOWN, SHUTDOWN_NOW)

    assert commands == (STOP_CHAT,)
    assert play(snapshot, exited(1))[1] == (CompleteShutdown(),)


def test_backend_is_told_to_stop_once() -> None:
    assert play(CHAT_LIVE, SHUTDOWN, SHUTDOWN_NOW)[1] == ()
    assert play(CHAT_LIVE, SHUTDOWN, TimePassed(at=500.0))[1] == ()


def test_completion_is_told_once() -> None:
    assert play(EMPTY, SHUTDOWN, SHUTDOWN_NOW)[1] == ()
    assert play(CHAT_LIVE, SHUTDOWN, exited(1), exited(1))[1] == ()
    assert play(CHAT_LIVE, SHUTDOWN, exited(1), SHUTDOWN_NOW)[1] == ()


def test_starting_backend_is_stopped_and_its_switch_ends_without_success() -> None:
    snapshot, commands = play(STARTING_CHAT, SHUTDOWN)
    finish, stop = commands

    assert isinstance(finish, FinishSwitch)
    assert finish.report.outcome is Outcome.FAILED
    assert finish.report.refusal is not None
    assert finish.report.refusal.code == "shutting_down"
    assert stop == ReleaseMemory(epoch=9, how=Stop(grace_s=3.0))
    snapshot, commands = play(snapshot, BackendReady(at=101.0, epoch=9, memory=None))
    assert (snapshot.live_models(), commands) == ((), ())
    assert play(snapshot, exited(9))[1] == (CompleteShutdown(),)


def test_target_that_is_accepted_after_the_shutdown_is_not_started() -> None:
    accepted = TargetAccepted(
        at=101.0, switch_id="s1", need=TargetNeed(footprint=taking(100)), readings=()
    )
    snapshot, commands = play(replace(CHAT_LIVE, switch=CHECKING), SHUTDOWN, accepted)

    assert commands == ()
    assert snapshot.switch is None


def test_draining_backend_of_the_abandoned_switch_drains_on() -> None:
    snapshot, commands = play(
        CHAT_LIVE,
        arrival("r1"),
        SwitchRequested(at=99.0, switch_id="s1", target=EMBED, requested_by="ops"),
        TargetAccepted(
            at=99.0, switch_id="s1", need=TargetNeed(footprint=taking(100)), readings=()
        ),
        SHUTDOWN,
    )

    assert [type(c) for c in commands] == [FinishSwitch]
    snapshot, commands = play(snapshot, RequestEnded(at=105.0, request_id="r1"))
    assert commands == (STOP_CHAT,)
    assert play(snapshot, exited(1))[1] == (CompleteShutdown(),)


def test_waiters_are_refused_by_the_shutdown() -> None:
    _, commands = play(STARTING_CHAT, arrival("r1"), arrival("r2"), SHUTDOWN)

    refused = [(c.request_id, c.refusal.code) for c in commands if isinstance(c, RefuseRequest)]
    assert refused == [("r1", "shutting_down"), ("r2", "shutting_down")]


@pytest.mark.parametrize("snapshot", [EMPTY, CHAT_LIVE, STARTING_CHAT])
def test_nothing_new_is_begun_after_the_shutdown(snapshot: Snapshot) -> None:
    snapshot, _ = play(snapshot, SHUTDOWN)
    (request,) = play(snapshot, arrival("r1"))[1]
    asked = SwitchRequested(at=101.0, switch_id="s2", target=EMBED, requested_by="ops")
    (switch,) = play(snapshot, asked)[1]

    assert isinstance(request, RefuseRequest)
    assert isinstance(switch, RefuseSwitch)
    assert request.refusal.code == switch.refusal.code == "shutting_down"


def test_backend_that_crashes_while_the_shutdown_drains_completes_it() -> None:
    snapshot, _ = play(CHAT_LIVE, arrival("r1"), SHUTDOWN)
    died = BackendExited(at=101.0, epoch=1, exit_code=None, signal=11)

    assert play(snapshot, died)[1] == (CompleteShutdown(),)
