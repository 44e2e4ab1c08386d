"""Which backends give way to a target, and to what use the device must return."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from immutables import Map
from msgspec.structs import replace

from supervisor.core.byte_size import MIB
from supervisor.core.machine.commands import Command, ReleaseMemory, SampleMemory, StartBackend
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
from supervisor.core.machine.footprint import Baseline
from supervisor.core.machine.memory import MemoryPolicy, MemorySample, ReleaseQuestion
from supervisor.core.machine.residency import (
    baseline_at_start,
    baselines_after,
    plan_residency,
    without,
)
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.step import step
from supervisor.core.machine.values import Backend, BackendState, Device, Mode, Target, TargetNeed
from tests.core.machine.story import AT_ONCE
from tests.core.machine.surroundings import taking, used_before

GIB = 1024 * MIB

SHARED = Device(name="gpu0", budget_bytes=24 * GIB)
EXCLUSIVE = replace(SHARED, is_exclusive=True)
RERANK = Target(model="rerank", mode=Mode.EMBEDDING, profile="rerank", device="gpu0")


def backend(epoch: int, model: str, need_gib: int, **changes: str | int | None) -> Backend:
    """Build a live backend that started when all of the older ones' 8 GiB were in use."""
    device = str(changes.get("device", "gpu0"))
    target = Target(model=model, mode=Mode.GENERATION, profile=model, device=device)
    return Backend(
        epoch=epoch,
        target=target,
        state=BackendState.READY,
        footprint=taking(need_gib * GIB, device),
        started_at=float(epoch),
        baselines=(Baseline(device=device, used_bytes=(epoch - 1) * 8 * GIB),),
    )


CHAT = backend(1, "chat", 8)
EMBED = backend(2, "embed", 8)
CODE = backend(3, "code", 8)
ELSEWHERE = backend(2, "embed", 8, device="gpu1")


def leaving(
    device: Device, need_gib: int, *backends: Backend, target: Target = RERANK
) -> list[int]:
    snapshot = Snapshot(
        devices=Map({"gpu0": device, "gpu1": replace(device, name="gpu1")}), backends=backends
    )
    return [b.epoch for b in plan_residency(snapshot, target, taking(need_gib * GIB), ()).leaving]


def test_nothing_gives_way_on_an_empty_device() -> None:
    assert leaving(EXCLUSIVE, 24) == []


def test_exclusive_device_is_emptied_although_its_budget_carries_both() -> None:
    assert leaving(EXCLUSIVE, 1, CHAT) == [1]


def test_shared_device_keeps_what_its_budget_just_carries() -> None:
    assert leaving(SHARED, 8, CHAT, EMBED) == []


def test_oldest_give_way_until_the_rest_fits() -> None:
    assert leaving(SHARED, 9, CHAT, EMBED) == [1]
    assert leaving(SHARED, 9, EMBED, CHAT) == [1]
    assert leaving(SHARED, 16, CHAT, EMBED, CODE) == [1, 2]
    assert leaving(SHARED, 24, CHAT, EMBED) == [1, 2]


def test_backends_on_other_devices_stay() -> None:
    assert leaving(EXCLUSIVE, 24, CHAT, ELSEWHERE) == [1]


def test_same_model_with_another_profile_gives_way_before_where_room_for_both_is_unproven() -> None:
    other_profile = replace(EMBED.target, profile="embed-long")

    assert leaving(SHARED, 1, CHAT, EMBED, target=other_profile) == [2]


def used_after(backends: tuple[Backend, ...], leaving: tuple[Backend, ...]) -> dict[str, int]:
    return {b.device: b.used_bytes for b in baselines_after(backends, leaving)}


def test_baseline_is_the_use_before_the_first_that_leaves() -> None:
    everybody = (CHAT, EMBED, CODE)

    assert used_after(everybody, everybody) == {"gpu0": 0}
    assert used_after(everybody, (CODE, EMBED)) == {"gpu0": 8 * GIB}


def test_baseline_has_the_share_of_those_that_started_later_and_stay() -> None:
    assert used_after((CHAT, EMBED, CODE), (CHAT,)) == {"gpu0": 16 * GIB}


def test_each_device_has_a_baseline_of_its_own() -> None:
    everybody = (CHAT, ELSEWHERE)

    assert used_after(everybody, everybody) == {"gpu0": 0, "gpu1": 8 * GIB}


def test_device_whose_use_before_is_unknown_has_no_baseline() -> None:
    unknown = replace(CHAT, baselines=())

    assert used_after((unknown,), (unknown,)) == {}


def baselines_gib(backends: tuple[Backend, ...]) -> dict[int, int]:
    return {b.epoch: (used_before(b) or 0) // GIB for b in backends}


def test_backend_that_is_gone_takes_its_share_out_of_later_baselines() -> None:
    everybody = (CHAT, EMBED, CODE)

    assert baselines_gib(without(everybody, 1)) == {2: 0, 3: 8}
    assert baselines_gib(without(everybody, 2)) == {1: 0, 3: 8}
    assert baselines_gib(without(everybody, 3)) == {1: 0, 2: 8}


def test_order_in_which_backends_leave_does_not_change_the_last_baseline() -> None:
    everybody = (CHAT, EMBED, CODE)

    assert baselines_gib(without(without(everybody, 1), 2)) == {3: 0}
    assert baselines_gib(without(without(everybody, 2), 1)) == {3: 0}


def test_share_is_what_was_measured_and_not_the_estimate() -> None:
    overestimated = replace(CHAT, footprint=taking(20 * GIB))

    assert baselines_gib(without((overestimated, EMBED), 1)) == {2: 0}


def test_baselines_of_other_devices_stay_as_they_are() -> None:
    assert without((CHAT, ELSEWHERE), 1) == (ELSEWHERE,)


def test_foreign_tenant_that_left_in_between_raises_no_baseline() -> None:
    crowded = replace(CHAT, baselines=(Baseline(device="gpu0", used_bytes=12 * GIB),))

    assert baselines_gib(without((crowded, EMBED), 1)) == {2: 8}


def baseline(used: int, *staying: Backend, before: int | None = None) -> int:
    """Return the baseline of a backend that starts when `used` is in use on its device."""
    question = ReleaseQuestion(
        device="gpu0",
        need_bytes=GIB,
        baseline_used_bytes=before,
        policy=MemoryPolicy(tolerance_bytes=64 * MIB),
        asked_at=0.0,
    )
    sample = MemorySample(
        device="gpu0",
        taken_at=0.0,
        total_bytes=24 * GIB,
        used_bytes=used,
        free_bytes=24 * GIB - used,
        source="test",
    )
    there = Snapshot(devices=Map({"gpu0": SHARED}), backends=staying)
    return baseline_at_start(there, question, sample).used_bytes


def test_first_backend_returns_the_device_to_the_use_that_it_found() -> None:
    assert baseline(3 * GIB) == 3 * GIB


def test_memory_that_the_old_backend_still_holds_does_not_raise_the_baseline() -> None:
    """16 GiB free were enough for the new one while the driver still held the old one's 8 GiB."""
    assert baseline(8 * GIB, before=0) == 0
    assert baseline(16 * GIB, CHAT, before=8 * GIB) == 8 * GIB


def test_memory_still_held_does_not_raise_the_baseline_of_one_that_starts_beside_another() -> None:
    """Nothing leaves now, yet what left a moment ago may be held: `chat` accounts for 8 GiB."""
    assert baseline(12 * GIB, CHAT) == 8 * GIB
    assert baseline(8 * GIB, CHAT) == 8 * GIB


def test_baseline_follows_a_slow_drift_and_a_foreign_tenant_that_left() -> None:
    assert baseline(GIB + 64 * MIB, before=GIB) == GIB + 64 * MIB
    assert baseline(0, before=GIB) == 0


@dataclass
class LazyDriver:
    """A device that nobody else uses, whose driver gives memory back some readings later."""

    snapshot: Snapshot = field(
        default_factory=lambda: Snapshot(
            devices=Map({"gpu0": replace(SHARED, budget_bytes=24)}), rules=AT_ONCE
        )
    )
    now: float = 0.0
    lag: int = 0
    used_by: dict[int, int] = field(default_factory=dict)
    residue: list[tuple[int, int]] = field(default_factory=list)

    def used(self) -> int:
        return sum(self.used_by.values()) + sum(size for size, _ in self.residue)

    def switch(self, target: Target, need: int) -> None:
        """Carry out all that the core orders, one order after the other."""
        orders = self.tell(
            SwitchRequested(at=self.now, switch_id="s", target=target, requested_by="test")
        )
        orders += self.tell(
            TargetAccepted(
                at=self.now, switch_id="s", need=TargetNeed(footprint=taking(need)), readings=()
            )
        )
        for _ in range(200):
            if self.snapshot.switch is None:
                return
            if not orders:
                self.now = next_wakeup(self.snapshot) or self.now
                orders += self.tell(TimePassed(at=self.now))
            order = orders.pop(0)
            if isinstance(order, ReleaseMemory):
                self.residue.append((self.used_by.pop(order.epoch), self.lag))
                orders += self.tell(BackendExited(at=self.now, epoch=order.epoch, exit_code=0))
            elif isinstance(order, SampleMemory):
                orders += self.tell(self.reading())
            elif isinstance(order, StartBackend):
                assert self.used() + need <= 24
                self.used_by[order.epoch] = need
                self.tell(BackendReady(at=self.now, epoch=order.epoch, memory=None))
        raise AssertionError("the switch never ends")

    def crash(self, pick: int) -> None:
        """Let a backend die, some seconds later; its memory is free before anybody looks."""
        self.residue.clear()
        if self.used_by:
            epoch = sorted(self.used_by)[pick % len(self.used_by)]
            del self.used_by[epoch]
            self.tell(BackendExited(at=self.now, epoch=epoch, exit_code=None, signal=9))

    def reading(self) -> MemorySampled:
        self.residue = [(size, lag - 1) for size, lag in self.residue if lag > 0]
        sample = MemorySample(
            device="gpu0",
            taken_at=self.now,
            total_bytes=24,
            used_bytes=self.used(),
            free_bytes=24 - self.used(),
            source="test",
        )
        return MemorySampled(at=self.now, switch_id="s", sample=sample)

    def tell(self, event: Event) -> list[Command]:
        self.snapshot, commands = step(self.snapshot, event)
        return list(commands)


switches = st.tuples(st.sampled_from("abcde"), st.sampled_from("xy"), st.integers(1, 24))


@given(
    story=st.lists(st.tuples(switches, st.none() | st.integers(0, 3)), max_size=12),
    lag=st.integers(0, 12),
)
def test_nothing_starts_before_the_memory_of_those_that_gave_way_is_back(
    story: list[tuple[tuple[str, str, int], int | None]], lag: int
) -> None:
    """Exact needs, no foreign tenants: then the gate must be exact, however many are resident."""
    world = LazyDriver(lag=lag)
    for (model, profile, need), crashing in story:
        if crashing is not None:
            world.crash(crashing)
        policy = MemoryPolicy(margin_bytes=0, tolerance_bytes=0, release_timeout_s=60.0)
        world.switch(replace(RERANK, model=model, profile=profile, memory=policy), need)
