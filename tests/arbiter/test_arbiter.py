"""The arbiter: leases, switches, what a failure anywhere becomes, wake-ups and the shutdown."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from immutables import Map
from msgspec.structs import replace
from structlog.testing import capture_logs

from supervisor.arbiter.arbiter import Arbiter
from supervisor.core.machine.commands import Command, WarmFile
from supervisor.core.machine.events import (
    BackendExited,
    BackendReady,
    DeviceFound,
    Event,
    ReleaseBegun,
    RequestEnded,
    RulesChanged,
    SwitchRequested,
    TimePassed,
)
from supervisor.core.machine.rules import Limits, SwitchRules
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.step import step
from supervisor.core.machine.switch import SwitchReport
from supervisor.core.machine.values import (
    Backend,
    BackendState,
    Device,
    Mode,
    Outcome,
    Patience,
    Phase,
    Target,
)
from supervisor.errors import (
    EngineError,
    InvalidTransition,
    ModelFileError,
    RequestRefused,
    TelemetryError,
)
from supervisor.observability.impairments import Impairments
from tests.core.machine.surroundings import taking
from tests.patience import PATIENCE_S

Eventually = Callable[..., Awaitable[None]]
MakeTarget = Callable[..., Target]
World = Any  # the class stands in conftest.py, which is not imported


def in_flight(world: World) -> int:
    return sum(backend.in_flight for backend in world.snapshot.backends)


def phase(world: World) -> Phase | None:
    switch = world.snapshot.switch
    return switch.phase if switch else None


def refusal_of(report: SwitchReport) -> tuple[str, str]:
    assert report.outcome is Outcome.FAILED
    assert report.refusal is not None
    return report.refusal.code, report.refusal.message


class Client:
    """A request that holds its lease until it is told to let go."""

    def __init__(self, world: World, target: Target | None) -> None:
        self._may_go = asyncio.Event()
        self.epoch: int | None = None
        self.waited_s: float | None = None
        self.task = asyncio.create_task(self._ask(world, target))

    async def _ask(self, world: World, target: Target | None) -> None:
        async with world.arbiter.lease(target) as lease:
            self.epoch, self.waited_s = lease.backend.epoch, lease.waited_s
            await self._may_go.wait()

    async def let_go(self) -> None:
        self._may_go.set()
        await self.task


# Leases


async def test_a_live_model_is_leased_without_a_task_switch(
    world: World, make_target: MakeTarget
) -> None:
    await world.switch_to(make_target("chat"))
    turns: list[str] = []
    asyncio.get_running_loop().call_soon(turns.append, "another task's turn")
    async with world.arbiter.lease(make_target("chat")) as lease:
        assert turns == []
        assert lease.backend is world.launcher.newest
        assert lease.waited_s < 0.05
        assert in_flight(world) == 1
    assert in_flight(world) == 0


async def test_a_lease_comes_back_when_its_request_fails(
    world: World, make_target: MakeTarget
) -> None:
    await world.switch_to(make_target("chat"))
    with pytest.raises(ZeroDivisionError):
        async with world.arbiter.lease(make_target("chat")):
            raise ZeroDivisionError
    assert in_flight(world) == 0
    assert not world.snapshot.requests.leases


async def test_a_request_without_a_model_takes_what_is_live(
    world: World, make_target: MakeTarget
) -> None:
    await world.switch_to(make_target("chat"))
    async with world.arbiter.lease(None) as lease:
        assert lease.backend.model == "chat"


async def test_a_request_for_what_is_not_live_is_refused_with_what_is(
    world: World, make_target: MakeTarget
) -> None:
    await world.switch_to(make_target("chat"))
    with pytest.raises(RequestRefused) as refusal:
        async with world.arbiter.lease(make_target("other")):
            pass
    assert refusal.value.code == "model_not_live"
    assert refusal.value.details == {"live_models": ("chat",)}
    assert "POST /switch-backend" in refusal.value.message


async def test_requests_that_arrive_during_a_switch_wait_and_are_served(
    world: World, make_target: MakeTarget, eventually: Eventually
) -> None:
    world.launcher.is_slow = True
    switching = asyncio.create_task(world.switch_to(make_target("chat")))
    await eventually(lambda: world.launcher.backends)
    began_at = time.monotonic()
    clients = [Client(world, make_target("chat")), Client(world, None)]
    await eventually(lambda: world.snapshot.requests.waiting == 2)
    world.launcher.newest.ready.set()
    await switching
    await eventually(lambda: in_flight(world) == 2)
    for client in clients:
        assert client.epoch == 1
        assert client.waited_s is not None
        assert 0 < client.waited_s <= time.monotonic() - began_at
        await client.let_go()
    assert in_flight(world) == 0


async def test_a_client_that_leaves_while_it_waits_leaves_no_trace(
    world: World, make_target: MakeTarget, eventually: Eventually
) -> None:
    world.launcher.is_slow = True
    switching = asyncio.create_task(world.switch_to(make_target("chat")))
    await eventually(lambda: world.launcher.backends)
    client = Client(world, make_target("chat"))
    await eventually(lambda: world.snapshot.requests.waiting)
    client.task.cancel()
    await asyncio.wait([client.task])
    assert not world.snapshot.requests.waiting
    assert not world.snapshot.requests.lines
    world.launcher.newest.ready.set()
    await switching
    assert in_flight(world) == 0
    assert not world.snapshot.requests.leases


async def test_a_client_that_leaves_between_its_grant_and_its_turn_gives_the_lease_back(
    world: World, make_target: MakeTarget, eventually: Eventually
) -> None:
    world.launcher.is_slow = True
    switching = asyncio.create_task(world.switch_to(make_target("chat")))
    await eventually(lambda: world.launcher.backends)
    client = Client(world, make_target("chat"))
    await eventually(lambda: world.snapshot.requests.waiting)
    # The grant is decided inside post(); the client's task has its turn afterwards.
    world.arbiter.post(BackendReady(at=time.monotonic(), epoch=1, memory=None))
    assert in_flight(world) == 1
    client.task.cancel()
    await asyncio.wait([client.task])
    assert client.epoch is None
    assert in_flight(world) == 0
    await switching


async def test_a_backend_that_dies_between_grant_and_turn_is_a_refusal_that_says_so(
    world: World, make_target: MakeTarget, eventually: Eventually
) -> None:
    world.launcher.is_slow = True
    switching = asyncio.create_task(world.switch_to(make_target("chat")))
    await eventually(lambda: world.launcher.backends)
    client = Client(world, make_target("chat"))
    await eventually(lambda: world.snapshot.requests.waiting)
    world.arbiter.post(BackendReady(at=time.monotonic(), epoch=1, memory=None))
    del world.arbiter._performer.backends[1]  # as when its exit is handled in the same turn
    with pytest.raises(RequestRefused) as refusal:
        await client.task
    assert refusal.value.code == "backend_unreachable"
    assert in_flight(world) == 0
    world.arbiter._performer.backends[1] = world.launcher.backends[1]
    await switching


async def test_a_request_waits_no_longer_than_the_bound(
    impatient_world: World, make_target: MakeTarget, eventually: Eventually
) -> None:
    world = impatient_world
    world.launcher.is_slow = True
    switching = asyncio.create_task(world.switch_to(make_target("chat")))
    await eventually(lambda: world.launcher.backends)
    client = Client(world, make_target("chat"))
    with pytest.raises(RequestRefused) as refusal:
        await client.task
    assert refusal.value.code == "hold_timeout"
    world.launcher.newest.ready.set()
    assert (await switching).outcome is Outcome.SWITCHED


async def test_a_lease_at_once_holds_its_backend_until_it_is_ended(
    world: World, make_target: MakeTarget
) -> None:
    await world.switch_to(make_target("chat"))
    other_profile = make_target("chat", profile="another")
    lease = world.arbiter.lease_at_once(other_profile)
    assert lease.backend is world.launcher.newest
    assert in_flight(world) == 1
    lease.end()
    lease.end()  # once more changes nothing
    assert in_flight(world) == 0
    assert not world.snapshot.requests.leases
    assert not world.arbiter._requests


async def test_where_nothing_can_be_leased_at_once_no_trace_is_left(
    world: World, make_target: MakeTarget, eventually: Eventually
) -> None:
    assert world.arbiter.lease_at_once(make_target("chat")) is None
    world.launcher.is_slow = True
    switching = asyncio.create_task(world.switch_to(make_target("chat")))
    await eventually(lambda: world.launcher.backends)
    assert world.arbiter.lease_at_once(make_target("chat")) is None
    assert not world.snapshot.requests.waiting
    assert not world.arbiter._requests
    world.launcher.newest.ready.set()
    await switching
    assert in_flight(world) == 0
    assert world.arbiter.lease_at_once(make_target("other")) is None
    assert world.arbiter.lease_at_once(None) is not None


async def test_nothing_is_leased_at_once_of_a_server_that_is_gone(
    world: World, make_target: MakeTarget
) -> None:
    await world.switch_to(make_target("chat"))
    del world.arbiter._performer.backends[1]  # as when its exit is handled in the same turn
    assert world.arbiter.lease_at_once(make_target("chat")) is None
    assert in_flight(world) == 0
    world.arbiter._performer.backends[1] = world.launcher.backends[1]


async def test_new_rules_hold_for_requests_that_wait_already(
    world: World, make_target: MakeTarget, eventually: Eventually
) -> None:
    world.launcher.is_slow = True
    switching = asyncio.create_task(world.switch_to(make_target("chat")))
    await eventually(lambda: world.launcher.backends)
    client = Client(world, make_target("chat"))
    await eventually(lambda: world.snapshot.requests.waiting)
    world.arbiter.post(
        RulesChanged(
            at=time.monotonic(), limits=Limits(hold_timeout_s=0.0), rules=SwitchRules(warms=False)
        )
    )
    with pytest.raises(RequestRefused) as refusal:
        await client.task
    assert refusal.value.code == "hold_timeout"
    assert world.snapshot.rules == SwitchRules(warms=False)
    world.launcher.newest.ready.set()
    await switching


async def test_deadlines_stand_where_a_step_fails(
    impatient_world: World, make_target: MakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of ours, as time passes, is not the end of all that time is to bring."""
    world, failures = impatient_world, [KeyError("a fault of ours")]
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)

    def failing_once(before: Snapshot, event: Event) -> tuple[Snapshot, tuple[Command, ...]]:
        if isinstance(event, TimePassed) and failures:
            raise failures.pop()
        return step(before, event)

    monkeypatch.setattr("supervisor.arbiter.arbiter._AFTER_A_FAULT_S", 0.01)
    monkeypatch.setattr("supervisor.arbiter.arbiter.step", failing_once)
    world.launcher.is_slow = True
    switching = asyncio.create_task(world.switch_to(make_target("chat")))
    client = Client(world, make_target("chat"))
    with pytest.raises(RequestRefused) as refusal:
        await client.task
    assert refusal.value.code == "hold_timeout"
    assert not failures
    world.launcher.newest.ready.set()
    assert (await switching).outcome is Outcome.SWITCHED


async def test_what_waits_behind_an_event_that_fails_is_handled_nevertheless(
    world: World, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    applied = SwitchRules(warms=False)
    behind = RulesChanged(at=time.monotonic(), limits=Limits(), rules=applied)

    def failing(before: Snapshot, event: Event) -> tuple[Snapshot, tuple[Command, ...]]:
        if isinstance(event, RequestEnded):
            world.arbiter.post(behind)
            raise KeyError("a fault of ours")
        return step(before, event)

    monkeypatch.setattr("supervisor.arbiter.arbiter._AFTER_A_FAULT_S", 0.01)
    monkeypatch.setattr("supervisor.arbiter.arbiter.step", failing)
    with pytest.raises(KeyError):
        world.arbiter.post(RequestEnded(at=time.monotonic(), request_id="r"))
    await eventually(lambda: world.snapshot.rules == applied)


# Switches


async def test_a_switch_reports_its_phases_and_the_memory_around_it(
    world: World, make_target: MakeTarget, eventually: Eventually
) -> None:
    first = await world.switch_to(make_target("chat"))
    assert (first.outcome, first.epoch, first.requested_by) == (Outcome.SWITCHED, 1, "test")
    second = await world.switch_to(make_target("embed", mode=Mode.EMBEDDING))
    assert [phase for phase, _ in second.phase_seconds] == [
        Phase.PREFLIGHT,
        Phase.WARMING,
        Phase.DRAINING,
        Phase.STOPPING,
        Phase.CONFIRMING,
        Phase.STARTING,
    ]
    assert second.total_s == pytest.approx(sum(seconds for _, seconds in second.phase_seconds))
    assert second.memory.before is not None
    assert second.memory.after is not None
    assert world.snapshot.server_mode() == "embedding"
    await eventually(lambda: [t.model for t in world.launcher.warmed] == ["chat", "embed"])


async def test_the_same_target_again_changes_nothing(world: World, make_target: MakeTarget) -> None:
    await world.switch_to(make_target("chat"))
    report = await world.switch_to(make_target("chat"))
    assert (report.outcome, report.epoch) == (Outcome.UNCHANGED, 1)
    assert list(world.launcher.backends) == [1]


async def test_the_old_backend_is_stopped_with_its_own_grace_after_its_requests(
    world: World, make_target: MakeTarget, eventually: Eventually
) -> None:
    await world.switch_to(
        make_target("chat", patience=Patience(stop_grace_s=7.0, drain_timeout_s=60.0))
    )
    client = Client(world, make_target("chat"))
    await eventually(lambda: in_flight(world) == 1)
    switching = asyncio.create_task(world.switch_to(make_target("embed")))
    await eventually(lambda: phase(world) is Phase.DRAINING)
    assert world.launcher.backends[1].graces == []
    await client.let_go()
    await switching
    assert world.launcher.backends[1].graces == [7.0]
    told = [event for event, *_ in world.observed if getattr(event, "epoch", None) == 1]
    assert [type(event) for event in told[-2:]] == [ReleaseBegun, BackendExited]


async def test_draining_ends_at_its_deadline(
    world: World, make_target: MakeTarget, eventually: Eventually
) -> None:
    await world.switch_to(make_target("chat", patience=Patience(drain_timeout_s=0.05)))
    client = Client(world, make_target("chat"))
    await eventually(lambda: in_flight(world) == 1)
    report = await world.switch_to(make_target("embed"))
    assert dict(report.phase_seconds)[Phase.DRAINING] >= 0.05
    await client.let_go()
    assert in_flight(world) == 0


async def test_the_same_target_while_it_is_being_switched_to_joins_the_switch(
    world: World, make_target: MakeTarget, eventually: Eventually
) -> None:
    world.launcher.is_slow = True
    first_id, first = world.arbiter.request_switch(make_target("chat"), "one")
    await eventually(lambda: world.launcher.backends)
    second_id, second = world.arbiter.request_switch(make_target("chat"), "two")
    assert second_id == first_id
    world.launcher.newest.ready.set()
    assert await first == await second
    assert list(world.launcher.backends) == [1]


async def test_another_target_is_refused_with_the_switch_that_runs(
    world: World, make_target: MakeTarget, eventually: Eventually
) -> None:
    world.launcher.is_slow = True
    running_id, running = world.arbiter.request_switch(make_target("chat"), "one")
    await eventually(lambda: world.launcher.backends)
    with pytest.raises(RequestRefused) as refusal:
        world.arbiter.request_switch(make_target("embed"), "two")
    assert refusal.value.code == "switch_in_progress"
    assert refusal.value.details["switch_id"] == running_id
    assert refusal.value.details["target"] == "chat"
    world.launcher.newest.ready.set()
    await running


async def test_a_caller_that_leaves_ends_neither_the_switch_nor_the_wait_of_others(
    world: World, make_target: MakeTarget, eventually: Eventually
) -> None:
    world.launcher.is_slow = True
    _, left = world.arbiter.request_switch(make_target("chat"), "one")
    await eventually(lambda: world.launcher.backends)
    _, result = world.arbiter.request_switch(make_target("chat"), "two")
    left.cancel()
    world.launcher.newest.ready.set()
    async with asyncio.timeout(PATIENCE_S):
        assert (await result).outcome is Outcome.SWITCHED


async def test_unloading_frees_the_device(world: World, make_target: MakeTarget) -> None:
    await world.switch_to(make_target("chat"))
    report = await world.switch_to(None)
    assert (report.outcome, report.model) == (Outcome.SWITCHED, None)
    assert world.snapshot.backends == ()
    assert (await world.switch_to(None)).outcome is Outcome.UNCHANGED


async def test_memory_is_asked_about_with_the_children_that_run(
    world: World, make_target: MakeTarget
) -> None:
    await world.switch_to(make_target("chat"))
    await world.switch_to(make_target("embed"))
    pids = [asked for _, asked in world.memory.asked]
    assert pids[0] == ()  # the first check
    assert (1001,) in pids  # ready, and the second check
    assert pids[-1] == (1002,)
    assert {device for device, _ in world.memory.asked} == {"gpu0"}


# Failures


@pytest.mark.parametrize("fault", [EngineError("no engine"), ModelFileError("no engine")])
async def test_a_target_that_cannot_start_leaves_the_live_one_alone(
    world: World, make_target: MakeTarget, fault: Exception
) -> None:
    await world.switch_to(make_target("chat"))
    world.launcher.check_fault = fault
    report = await world.switch_to(make_target("embed"))
    assert refusal_of(report) == ("target_cannot_start", "no engine")
    assert world.snapshot.live_models() == ("chat",)
    assert world.launcher.backends[1].graces == []


async def test_a_bug_in_the_check_fails_the_switch_and_the_next_one_works(
    world: World, make_target: MakeTarget
) -> None:
    world.launcher.check_fault = KeyError("a bug")
    code, message = refusal_of(await world.switch_to(make_target("chat")))
    assert code == "target_cannot_start"
    assert "KeyError" in message
    world.launcher.check_fault = None
    assert (await world.switch_to(make_target("chat"))).outcome is Outcome.SWITCHED


@pytest.mark.parametrize("fault", [EngineError("not executable"), OSError("not executable")])
async def test_a_program_that_cannot_be_spawned_fails_the_switch_with_the_reason(
    world: World, make_target: MakeTarget, fault: Exception
) -> None:
    world.launcher.launch_fault = fault
    report = await world.switch_to(make_target("chat"))
    code, message = refusal_of(report)
    assert code == "backend_died"
    assert "'chat'" in message
    assert report.refusal is not None
    [line] = dict(report.refusal.details)["last_lines"]
    assert "not executable" in str(line)
    assert world.snapshot.backends == ()
    world.launcher.launch_fault = None
    assert (await world.switch_to(make_target("chat"))).outcome is Outcome.SWITCHED


async def test_a_server_that_dies_while_loading_fails_the_switch_with_its_last_words(
    world: World, make_target: MakeTarget, eventually: Eventually
) -> None:
    world.launcher.is_slow = True
    _, result = world.arbiter.request_switch(make_target("chat"), "test")
    await eventually(lambda: world.launcher.backends)
    client = Client(world, make_target("chat"))
    await eventually(lambda: world.snapshot.requests.waiting)
    world.launcher.newest.end(exit_code=1)
    report = await result
    code, message = refusal_of(report)
    assert (code, report.epoch) == ("backend_died", 1)
    assert "exit code 1" in message
    assert report.refusal is not None
    assert dict(report.refusal.details)["last_lines"] == ("first words", "last words")
    with pytest.raises(RequestRefused, match="exit code 1"):
        await client.task


async def test_a_fault_of_ours_while_a_server_starts_ends_the_start_and_is_named(
    world: World, make_target: MakeTarget, eventually: Eventually
) -> None:
    world.launcher.is_slow = True
    switching = asyncio.create_task(world.switch_to(make_target("chat")))
    await eventually(lambda: world.launcher.backends)
    world.launcher.newest.ready_fault = RuntimeError("boom")
    with capture_logs() as lines:
        world.launcher.newest.ready.set()
        code, message = refusal_of(await switching)
    assert code == "backend_died"
    assert message.endswith("the controller failed (RuntimeError: boom); its log says where")
    assert [line["event"] for line in lines if line["log_level"] == "error"] == [
        "arbiter.unexpected"
    ]


async def test_a_server_that_can_no_longer_be_watched_is_reported_as_gone(
    world: World, make_target: MakeTarget, eventually: Eventually
) -> None:
    await world.switch_to(make_target("chat"))
    world.launcher.newest.fail_to_watch(OSError("boom"))
    with capture_logs() as lines:
        await eventually(lambda: exits(world))
    (ended,) = exits(world)
    assert ended.signal == 9
    assert "the controller failed (OSError: boom)" in ended.last_lines[-1]
    assert "arbiter.unexpected" in [line["event"] for line in lines]


def exits(world: World) -> list[BackendExited]:
    return [event for event, *_ in world.observed if isinstance(event, BackendExited)]


async def test_a_server_that_never_becomes_ready_is_stopped_and_fails_the_switch(
    world: World, make_target: MakeTarget
) -> None:
    world.launcher.is_slow = True
    report = await world.switch_to(
        make_target("chat", patience=Patience(start_timeout_s=0.05, stop_grace_s=3.0))
    )
    assert refusal_of(report) == (
        "backend_start_timeout",
        "'chat' was not ready 0.05 s after its start",
    )
    assert world.launcher.newest.graces == [3.0]
    assert world.snapshot.backends == ()


async def test_a_server_that_dies_while_serving_is_started_again_for_those_who_wait(
    world: World, make_target: MakeTarget, eventually: Eventually
) -> None:
    await world.switch_to(make_target("chat"))
    client = Client(world, make_target("chat"))
    await eventually(lambda: in_flight(world) == 1)
    world.launcher.newest.end(signal=11)
    await eventually(lambda: world.snapshot.recovery("chat") is not None)
    exit_record = world.snapshot.endings.exit
    assert (exit_record.signal, exit_record.was_wanted) == (11, False)
    assert exit_record.last_lines == ("first words", "last words")
    await client.let_go()  # its lease went with the backend
    async with world.arbiter.lease(make_target("chat")) as lease:
        assert lease.backend.epoch == 2
    assert world.snapshot.recoveries == ()


async def test_memory_that_is_not_released_fails_closed(
    world: World, make_target: MakeTarget
) -> None:
    world.memory.held_after = 1
    code, message = refusal_of(await world.switch_to(make_target("chat")))
    assert code == "memory_not_released"
    assert "0 B free" in message
    assert world.launcher.backends == {}


@pytest.mark.parametrize("fault", [TelemetryError("driver is gone"), ValueError("a bug")])
async def test_memory_that_cannot_be_read_fails_closed_with_the_reason(
    world: World, make_target: MakeTarget, fault: Exception
) -> None:
    world.memory.fault = fault
    code, message = refusal_of(await world.switch_to(make_target("chat")))
    assert code == "telemetry_lost"
    assert str(fault) in message
    assert world.launcher.backends == {}


async def test_memory_that_cannot_be_read_after_the_start_is_left_out_of_the_report(
    world: World, make_target: MakeTarget, eventually: Eventually
) -> None:
    world.launcher.is_slow = True
    _, result = world.arbiter.request_switch(make_target("chat"), "test")
    await eventually(lambda: world.launcher.backends)
    world.memory.fault = TelemetryError("driver is gone")
    world.launcher.newest.ready.set()
    report = await result
    assert report.outcome is Outcome.SWITCHED
    assert report.memory.after == report.memory.confirmed


async def test_a_bug_of_ours_tells_what_led_to_it(make_target: MakeTarget, world: World) -> None:
    backend = Backend(
        epoch=3,
        target=make_target("chat"),
        state=BackendState.STARTING,
        footprint=taking(1),
        started_at=0.0,
    )
    device = Device(name="gpu0", budget_bytes=1000)
    snapshot = Snapshot(devices=Map({"gpu0": device}), backends=(backend,))
    arbiter = Arbiter(
        snapshot=snapshot,
        launcher=world.launcher,
        memory=world.memory,
        observers=(),
    )
    arbiter.post(RequestEnded(at=1.0, request_id="the one before"))
    with pytest.raises(InvalidTransition) as bug:
        arbiter.post(BackendReady(at=2.0, epoch=3, memory=None))
    assert "the one before" in str(bug.value)
    assert "BackendReady(at=2.0" in str(bug.value)
    assert arbiter.snapshot == snapshot
    arbiter.post(BackendExited(at=3.0, epoch=3, exit_code=0))  # it goes on
    assert arbiter.snapshot.backends == ()


# Events and observers


async def test_an_event_posted_by_an_observer_is_handled_behind_the_one_observed(
    world: World,
) -> None:
    order: list[str] = []

    def observe(event: Any, before: Snapshot, after: Snapshot, commands: Any) -> None:
        order.append(type(event).__name__)
        if isinstance(event, DeviceFound):
            arbiter.post(TimePassed(at=event.at))
            order.append("observed")

    arbiter = Arbiter(
        snapshot=Snapshot(devices=Map()),
        launcher=world.launcher,
        memory=world.memory,
        observers=(observe,),
    )
    arbiter.post(DeviceFound(at=0.0, device=Device(name="host", budget_bytes=1)))
    assert order == ["DeviceFound", "observed", "TimePassed"]


async def test_requests_that_move_nothing_are_shown_to_no_observer(
    world: World, make_target: MakeTarget
) -> None:
    target = make_target("chat")
    await world.switch_to(target)
    seen = len(world.observed)
    async with world.arbiter.lease(target):
        assert len(world.observed) == seen
    assert len(world.observed) == seen


async def test_the_request_that_lets_a_server_stop_is_shown(
    world: World, make_target: MakeTarget, eventually: Eventually
) -> None:
    target = make_target("chat")
    await world.switch_to(target)
    async with world.arbiter.lease(target):
        unloading = asyncio.create_task(world.switch_to(None))
        await eventually(lambda: world.snapshot.switch is not None)
    await unloading
    assert any(isinstance(event, RequestEnded) for event, *_ in world.observed)


async def test_the_observer_sees_each_event_with_the_state_before_and_after(
    world: World, make_target: MakeTarget
) -> None:
    await world.switch_to(make_target("chat"))
    events = [event for event, *_ in world.observed]
    assert isinstance(events[0], SwitchRequested)
    assert isinstance(events[-1], BackendReady)
    for (_, _, after, _), (_, before, _, _) in zip(
        world.observed, world.observed[1:], strict=False
    ):
        assert before is after


async def test_an_observer_that_raises_stops_nothing_and_is_named_once(
    world: World, make_target: MakeTarget
) -> None:
    def observe(*_: object) -> None:
        raise OSError(28, "No space left on device")

    world.arbiter._observers = (observe,)
    world.arbiter._impairments = impairments = Impairments()
    with capture_logs() as lines:
        report = await world.switch_to(make_target("chat"))
        assert report.outcome is Outcome.SWITCHED
        lease = world.arbiter.lease_at_once(make_target("chat"))
        assert lease is not None
        lease.end()
        assert (await world.switch_to(None)).outcome is Outcome.SWITCHED
    failed = [line for line in lines if line["event"] == "arbiter.observer_failed"]
    assert len(failed) == 1
    assert "observe" in failed[0]["observer"]
    (sentence,) = impairments.describe()
    assert "(OSError: [Errno 28] No space left on device)" in sentence


async def test_a_command_that_cannot_be_carried_out_takes_no_other_along(
    world: World, make_target: MakeTarget, eventually: Eventually
) -> None:
    warms = world.arbiter._performer._warm
    world.arbiter._performer._warm = lambda _: 1 / 0
    with capture_logs() as lines:
        _, result = world.arbiter.request_switch(make_target("chat"), "test")
        await eventually(lambda: lines)
        warms(WarmFile(switch_id=world.snapshot.switch.switch_id, target=make_target("chat")))
        assert (await result).outcome is Outcome.SWITCHED
    assert (lines[0]["event"], lines[0]["command"]) == ("arbiter.command_failed", "WarmFile")


async def test_an_invariant_that_does_not_hold_is_logged_once_and_stops_nothing(
    world: World, make_target: MakeTarget
) -> None:
    await world.switch_to(make_target("chat"))
    world.arbiter._impairments = impairments = Impairments()
    (backend,) = world.snapshot.backends
    broken = replace(world.snapshot, next_epoch=backend.epoch)
    world.arbiter._snapshot = broken
    with capture_logs() as lines:
        for _ in range(2):
            world.arbiter.post(TimePassed(at=time.monotonic()))
            lease = world.arbiter.lease_at_once(make_target("chat"))
            assert lease is not None
            lease.end()
    told = [line for line in lines if line["event"] == "arbiter.invariant"]
    assert [(line["after"], "not given yet" in line["what"]) for line in told] == [
        ("TimePassed", True)
    ]
    assert "decisions: an invariant does not hold" in impairments.describe()[0]
    world.arbiter._snapshot = replace(world.snapshot, next_epoch=backend.epoch + 1)


# The shutdown


async def test_shutting_down_drains_stops_and_refuses_what_comes(
    world: World, make_target: MakeTarget, eventually: Eventually
) -> None:
    await world.switch_to(make_target("chat", patience=Patience(stop_grace_s=4.0)))
    client = Client(world, make_target("chat"))
    await eventually(lambda: in_flight(world) == 1)
    closing = asyncio.create_task(world.arbiter.shut_down(10 * PATIENCE_S))
    await eventually(lambda: world.snapshot.is_closing)
    with pytest.raises(RequestRefused) as request_refusal:
        async with world.arbiter.lease(make_target("chat")):
            pass
    with pytest.raises(RequestRefused) as switch_refusal:
        world.arbiter.request_switch(make_target("embed"), "test")
    assert request_refusal.value.code == switch_refusal.value.code == "shutting_down"
    assert world.launcher.newest.graces == []
    await client.let_go()
    await closing
    assert world.launcher.newest.graces == [4.0]
    assert world.snapshot.backends == ()


async def test_shutting_down_waits_for_streams_no_longer_than_told(
    world: World, make_target: MakeTarget, eventually: Eventually
) -> None:
    await world.switch_to(make_target("chat"))
    client = Client(world, make_target("chat"))
    await eventually(lambda: in_flight(world) == 1)
    async with asyncio.timeout(PATIENCE_S):
        await world.arbiter.shut_down(0.05)
    assert world.snapshot.backends == ()
    await client.let_go()


async def test_a_second_shutdown_stops_at_once(
    world: World, make_target: MakeTarget, eventually: Eventually
) -> None:
    await world.switch_to(make_target("chat"))
    client = Client(world, make_target("chat"))
    await eventually(lambda: in_flight(world) == 1)
    patient = asyncio.create_task(world.arbiter.shut_down(10 * PATIENCE_S))
    await eventually(lambda: world.snapshot.is_closing)
    async with asyncio.timeout(PATIENCE_S):
        await world.arbiter.shut_down(0)
        await patient
    await client.let_go()


async def test_shutting_down_returns_only_when_every_child_is_reaped(
    world: World, make_target: MakeTarget, eventually: Eventually
) -> None:
    await world.switch_to(make_target("chat"))
    backend = world.launcher.newest
    backend.obeys = False
    closing = asyncio.create_task(world.arbiter.shut_down(0))
    await eventually(lambda: backend.graces)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(closing), 0.05)
    backend.end(signal=9)
    await closing


async def test_shutting_down_ends_the_switch_that_runs(
    world: World, make_target: MakeTarget, eventually: Eventually
) -> None:
    world.launcher.is_slow = True
    _, result = world.arbiter.request_switch(make_target("chat"), "test")
    await eventually(lambda: world.launcher.backends)
    async with asyncio.timeout(PATIENCE_S):
        await world.arbiter.shut_down(0)
    assert refusal_of(await result)[0] == "shutting_down"
    assert world.launcher.newest.graces


async def test_shutting_down_with_nothing_loaded_is_done_at_once(world: World) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await world.arbiter.shut_down(10 * PATIENCE_S)
        await world.arbiter.shut_down(0)


async def test_no_wake_up_outlives_its_reason(
    make_target: MakeTarget, world: World, eventually: Eventually
) -> None:
    world.launcher.is_slow = True
    _, result = world.arbiter.request_switch(
        make_target("chat", patience=Patience(start_timeout_s=3600.0)), "test"
    )
    await eventually(lambda: world.launcher.backends)
    start_deadline = world.arbiter._wakeup
    assert start_deadline is not None
    world.launcher.newest.ready.set()
    await result
    assert start_deadline.cancelled()


async def test_a_timer_that_fires_early_is_set_again(make_target: MakeTarget, world: World) -> None:
    """Event loops round their timers, and the core acts on nothing before its time."""
    began_at = time.monotonic()
    arbiter = Arbiter(
        snapshot=world.snapshot,
        launcher=world.launcher,
        memory=world.memory,
        observers=(),
        clock=lambda: began_at + 0.25 * (time.monotonic() - began_at),
    )
    world.launcher.is_slow = True
    _, result = arbiter.request_switch(
        make_target("chat", patience=Patience(start_timeout_s=0.05)), "test"
    )
    async with asyncio.timeout(PATIENCE_S):
        report = await result
    assert refusal_of(report)[0] == "backend_start_timeout"
    assert dict(report.phase_seconds)[Phase.STARTING] >= 0.05
    assert time.monotonic() - began_at >= 0.2
