"""A backend that is on several devices: each is planned, refused, confirmed and given back."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from immutables import Map
from msgspec.structs import replace

from supervisor.core.machine.commands import Command, ReleaseMemory, SampleMemory, StartBackend
from supervisor.core.machine.confirming import READ_AGAIN_AFTER_S
from supervisor.core.machine.deadlines import next_wakeup
from supervisor.core.machine.events import (
    BackendExited,
    BackendReady,
    Event,
    MemorySampled,
    SwitchRequested,
    TargetAccepted,
    TimePassed,
)
from supervisor.core.machine.footprint import Baseline, Footprint
from supervisor.core.machine.invariants import violations
from supervisor.core.machine.memory import MemoryPolicy, MemorySample
from supervisor.core.machine.residency import baselines_after, plan_residency, without
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.step import step
from supervisor.core.machine.values import Backend, BackendState, Device, Phase, Target, TargetNeed
from tests.core.machine.story import AT_ONCE, CHAT, EMBED, GIB, SHARED, Story, failure_in

HOST = Device(name="host", budget_bytes=16 * GIB, is_host_memory=True)
GPUS = (SHARED, replace(SHARED, name="gpu1"))
SPLIT = Footprint.of({"gpu0": 8 * GIB, "host": 4 * GIB})


def backend(epoch: int, model: str, **gib: int) -> Backend:
    footprint = Footprint.of({device: size * GIB for device, size in gib.items()})
    return Backend(
        epoch=epoch,
        target=replace(CHAT, model=model, profile=model),
        state=BackendState.READY,
        footprint=footprint,
        started_at=0.0,
        baselines=tuple(Baseline(device=d, used_bytes=epoch * GIB) for d in footprint.devices),
    )


def leaving(snapshot: Snapshot, **gib: int) -> list[int]:
    footprint = Footprint.of({device: size * GIB for device, size in gib.items()})
    return [b.epoch for b in plan_residency(snapshot, EMBED, footprint, (), 1e3).leaving]


def holding(*backends: Backend) -> Snapshot:
    devices = {device.name: device for device in (*GPUS, HOST)}
    return Snapshot(devices=Map(devices), backends=backends, next_epoch=99)


def test_only_those_give_way_that_are_in_the_way_on_a_device_that_is_full() -> None:
    there = holding(backend(1, "a", gpu0=8), backend(2, "b", gpu1=20), backend(3, "c", host=10))
    assert leaving(there, gpu0=15, gpu1=3) == []
    assert leaving(there, gpu0=16, gpu1=3) == [1]
    assert leaving(there, gpu0=15, gpu1=4) == [2]
    assert leaving(there, gpu0=8, host=6) == [3]
    assert leaving(there, gpu0=16, gpu1=4, host=6) == [1, 2, 3]


def test_one_on_two_devices_gives_way_where_either_is_needed() -> None:
    there = holding(backend(1, "a", gpu0=12, gpu1=12))
    assert leaving(there, gpu1=12) == [1]
    assert leaving(there, gpu1=11) == []


def test_each_device_has_its_baseline_and_gets_its_share_back() -> None:
    split, later = backend(1, "a", gpu0=8, gpu1=8), backend(2, "b", gpu1=4)
    after = {b.device: b.used_bytes // GIB for b in baselines_after((split, later), (split,))}
    assert after == {"gpu0": 1, "gpu1": 1 + 4}
    (left,) = without((split, later), 1)
    assert left.baselines == (Baseline(device="gpu1", used_bytes=1 * GIB, exits=1),)


def accept(story: Story, footprint: Footprint, **used_gib: int) -> tuple[Command, ...]:
    return story.tell(
        TargetAccepted,
        switch_id=story.running,
        need=TargetNeed(footprint=footprint),
        readings=tuple(story.reading(used * GIB, device) for device, used in used_gib.items()),
    )


def test_target_is_refused_for_each_device_that_has_no_room() -> None:
    story = Story(SHARED, HOST)
    story.ask_for(CHAT)
    code, message = failure_in(accept(story, SPLIT, gpu0=0, host=21))
    assert code == "target_does_not_fit"
    assert "needs about 4.0 GiB of host, and host has 3.0 GiB free; put less of it" in message
    story.ask_for(CHAT)
    much = Footprint.of({"gpu0": 8 * GIB, "host": 17 * GIB})
    assert "devices.host.budget_bytes" in failure_in(accept(story, much, gpu0=0, host=0))[1]


def test_a_device_that_cannot_be_read_is_named() -> None:
    story = Story(SHARED, HOST)
    story.ask_for(CHAT)
    commands = story.tell(
        TargetAccepted,
        switch_id=story.running,
        need=TargetNeed(footprint=SPLIT),
        readings=(story.reading(0),),
        memory_problem="it hangs",
    )
    code, message = failure_in(commands)
    assert (code, message.partition(":")[0]) == ("telemetry_lost", "host cannot be read")


def test_nothing_starts_before_each_device_is_confirmed() -> None:
    story = Story(SHARED, HOST)
    story.ask_for(CHAT)
    asks_host = (SampleMemory(switch_id="s1", device="host"),)
    assert accept(story, SPLIT, gpu0=0, host=0) == asks_host
    assert story.confirm(2 * GIB, "host") == (SampleMemory(switch_id="s1", device="gpu0"),)
    assert story.confirm(1 * GIB) == (StartBackend(epoch=1, target=CHAT),)
    (started,) = story.snapshot.backends
    assert started.footprint == SPLIT
    assert {b.device: b.used_bytes // GIB for b in started.baselines} == {"host": 2, "gpu0": 1}


def test_what_a_rollback_brings_back_is_confirmed_on_each_device_too() -> None:
    story = Story(replace(SHARED, is_exclusive=True), HOST)
    story.ask_for(CHAT)
    accept(story, SPLIT, gpu0=0, host=0)
    story.confirm(0, "host")
    story.start()
    story.ask_for(EMBED)
    story.accept()
    story.reap(1)
    story.confirm()
    assert story.reap(2, exit_code=1) == (SampleMemory(switch_id="s2", device="host"),)
    assert story.phase is Phase.ROLLING_BACK
    assert story.confirm(0, "host") == (SampleMemory(switch_id="s2", device="gpu0"),)
    assert story.confirm() == (StartBackend(epoch=3, target=CHAT),)


def test_a_device_is_read_again_when_another_was_long_in_coming() -> None:
    """Somebody may have come to it meanwhile; what has just been read is not asked for again."""
    story = Story(*GPUS)
    story.ask_for(replace(CHAT, device="gpu1", split_over=("gpu1", "gpu0")))
    accept(story, Footprint.of({"gpu0": 8 * GIB, "gpu1": 8 * GIB}), gpu0=0, gpu1=0)
    assert story.confirm(0, "gpu0") == (SampleMemory(switch_id="s1", device="gpu1"),)
    asked_at = story.now
    while story.now < asked_at + 2 * READ_AGAIN_AFTER_S:
        story.show(20 * GIB, "gpu1")
        story.wake()

    assert story.confirm(0, "gpu1") == (SampleMemory(switch_id="s1", device="gpu0"),)
    assert story.show(20 * GIB, "gpu0") == ()
    story.wake()
    (start,) = story.confirm(0, "gpu0")
    assert isinstance(start, StartBackend)


def test_what_died_on_two_gpus_stays_down_once_one_of_them_is_another_models_alone() -> None:
    alone = tuple(replace(gpu, is_exclusive=True) for gpu in GPUS)
    story = Story(*alone)
    story.ask_for(replace(CHAT, split_over=("gpu0", "gpu1")))
    accept(story, Footprint.of({"gpu0": 8 * GIB, "gpu1": 8 * GIB}), gpu0=0, gpu1=0)
    story.confirm(0, "gpu1")
    story.start()
    story.reap(1, exit_code=1)
    assert [down.target.model for down in story.snapshot.recoveries] == [CHAT.model]

    story.ask_for(replace(EMBED, device="gpu1"))
    accept(story, Footprint.of({"gpu1": 8 * GIB}), gpu1=0)
    story.start(device="gpu1")
    assert story.snapshot.recoveries == ()


def test_an_unload_confirms_each_device_of_what_it_stops() -> None:
    story = Story(SHARED, HOST)
    story.ask_for(CHAT)
    accept(story, SPLIT, gpu0=0, host=0)
    story.confirm(0, "host")
    story.start()
    story.ask_for(None)
    assert story.reap(1) == (SampleMemory(switch_id="s2", device="gpu0"),)
    assert story.confirm() == (SampleMemory(switch_id="s2", device="host"),)
    story.confirm(0, "host")
    assert story.snapshot.switch is None


def test_what_is_on_a_device_that_the_core_does_not_know_is_held_against_nothing() -> None:
    story = Story(SHARED)
    story.ask_for(CHAT)
    assert accept(story, SPLIT, gpu0=0) == (SampleMemory(switch_id="s1", device="gpu0"),)


TOTAL = 24


@dataclass
class LazyDrivers:
    """Two devices that nobody else uses, whose drivers give memory back some readings later."""

    lag: int
    snapshot: Snapshot = field(
        default_factory=lambda: Snapshot(
            devices=Map({d.name: replace(d, budget_bytes=TOTAL) for d in GPUS}), rules=AT_ONCE
        )
    )
    now: float = 0.0
    taken: dict[int, dict[str, int]] = field(default_factory=dict)
    residue: list[tuple[str, int, int]] = field(default_factory=list)

    def used(self, device: str) -> int:
        held = sum(size for name, size, _ in self.residue if name == device)
        return held + sum(shares.get(device, 0) for shares in self.taken.values())

    def tell(self, event: Event) -> list[Command]:
        self.snapshot, commands = step(self.snapshot, event)
        assert violations(self.snapshot) == ()
        return list(commands)

    def switch(self, target: Target, shares: dict[str, int]) -> None:
        """Carry out all that the core orders, one order after the other."""
        asked = SwitchRequested(at=self.now, switch_id="s", target=target, requested_by="test")
        need = TargetNeed(footprint=Footprint.of(shares))
        orders = self.tell(asked)
        orders += self.tell(TargetAccepted(at=self.now, switch_id="s", need=need, readings=()))
        for _ in range(400):
            if self.snapshot.switch is None:
                return
            if not orders:
                self.now = next_wakeup(self.snapshot) or self.now
                orders += self.tell(TimePassed(at=self.now))
                continue
            orders += self.perform(orders.pop(0), shares)
        raise AssertionError("the switch never ends")

    def perform(self, order: Command, shares: dict[str, int]) -> list[Command]:
        match order:
            case ReleaseMemory(epoch=epoch):
                gone = self.taken.pop(epoch)
                self.residue += [(device, size, self.lag) for device, size in gone.items()]
                return self.tell(BackendExited(at=self.now, epoch=epoch, exit_code=0))
            case SampleMemory(device=device):
                self.now += 0.001
                return self.tell(
                    MemorySampled(at=self.now, switch_id="s", sample=self.reading(device))
                )
            case StartBackend(epoch=epoch):
                for device, size in shares.items():
                    assert self.used(device) + size <= TOTAL
                self.taken[epoch] = shares
                return self.tell(BackendReady(at=self.now, epoch=epoch, memory=None))
        return []

    def reading(self, device: str) -> MemorySample:
        self.residue = [
            (name, size, lag - (name == device))
            for name, size, lag in self.residue
            if lag > 0 or name != device
        ]
        used = self.used(device)
        return MemorySample(
            device=device,
            taken_at=self.now,
            total_bytes=TOTAL,
            used_bytes=used,
            free_bytes=TOTAL - used,
            source="test",
        )


sizes = st.integers(1, TOTAL)
footprints = st.fixed_dictionaries({"gpu0": sizes}, optional={"gpu1": sizes})


@settings(deadline=None)
@given(
    story=st.lists(
        st.tuples(st.sampled_from("abcde"), st.sampled_from("xy"), footprints), max_size=10
    ),
    lag=st.integers(0, 12),
)
def test_nothing_starts_before_the_memory_is_back_on_every_device(
    story: list[tuple[str, str, dict[str, int]]], lag: int
) -> None:
    """Exact needs, no foreign tenants: then the gate must be exact on each device."""
    world = LazyDrivers(lag=lag)
    policy = MemoryPolicy(margin_bytes=0, tolerance_bytes=0, release_timeout_s=60.0)
    for model, profile, shares in story:
        target = replace(CHAT, model=model, profile=profile, memory=policy)
        world.switch(target, shares)
    for device in ("gpu0", "gpu1"):
        resident = sum(b.footprint.on(device) for b in world.snapshot.backends)
        assert resident <= TOTAL


@pytest.mark.parametrize("devices", [("gpu0",), ("gpu1", "gpu0")])
def test_a_footprint_says_what_is_where(devices: tuple[str, ...]) -> None:
    split = Footprint.of({"gpu0": 3, "gpu1": 4})
    assert (split.devices, split.total_bytes) == (("gpu0", "gpu1"), 7)
    assert split.on(*devices) == sum(size for device, size in split.shares if device in devices)
    assert split.among(devices).devices == tuple(d for d in split.devices if d in devices)
