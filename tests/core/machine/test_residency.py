"""Which backends give way to a target, and to what use the device must return."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from immutables import Map
from msgspec.structs import replace

from supervisor.core.byte_size import MIB
from supervisor.core.machine import packing
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
from supervisor.core.machine.packing import SEARCHED, Cost, cost_of, total_cost
from supervisor.core.machine.residency import (
    Plan,
    baseline_at_start,
    baselines_after,
    plan_residency,
    without,
)
from supervisor.core.machine.rules import ModelRules, SwitchRules
from supervisor.core.machine.snapshot import Scheduling, Snapshot
from supervisor.core.machine.step import step
from supervisor.core.machine.values import (
    Backend,
    BackendState,
    Device,
    Mode,
    Target,
    TargetNeed,
    Work,
)
from supervisor.core.scheduling.estimates import Estimates, ModelEstimates, StaySeen
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
    device: Device, need_gib: float, *backends: Backend, target: Target = RERANK
) -> list[int]:
    snapshot = Snapshot(
        devices=Map({"gpu0": device, "gpu1": replace(device, name="gpu1")}), backends=backends
    )
    return [
        b.epoch
        for b in plan_residency(snapshot, target, taking(int(need_gib * GIB)), (), 1e3).leaving
    ]


def test_nothing_gives_way_on_an_empty_device() -> None:
    assert leaving(EXCLUSIVE, 24) == []


def test_exclusive_device_is_emptied_although_its_budget_carries_both() -> None:
    assert leaving(EXCLUSIVE, 1, CHAT) == [1]


def test_shared_device_keeps_what_its_budget_just_carries_with_the_margin() -> None:
    assert leaving(SHARED, 7.75, CHAT, EMBED) == []
    assert leaving(SHARED, 7.76, CHAT, EMBED) == [1]


def test_as_many_give_way_as_must_the_older_of_those_that_are_alike() -> None:
    assert leaving(SHARED, 9, CHAT, EMBED) == [1]
    assert leaving(SHARED, 9, EMBED, CHAT) == [1]
    assert leaving(SHARED, 15, CHAT, EMBED, CODE) == [1, 2]
    assert leaving(SHARED, 16, CHAT, EMBED, CODE) == [1, 2, 3]
    assert leaving(SHARED, 24, CHAT, EMBED) == [1, 2]


def test_backends_on_other_devices_stay() -> None:
    assert leaving(EXCLUSIVE, 24, CHAT, ELSEWHERE) == [1]


def test_same_model_with_another_profile_gives_way_before_where_room_for_both_is_unproven() -> None:
    other_profile = replace(EMBED.target, profile="embed-long")

    assert leaving(SHARED, 1, CHAT, EMBED, target=other_profile) == [2]


def idle(epoch: int, model: str, need_gib: int, *, idle_s: float = 60.0) -> Backend:
    """Build a live backend without work, at the time 1000."""
    work = Work(since=0.0, granted=1, empty_since=1000.0 - idle_s)
    return replace(backend(epoch, model, need_gib), work=work)


def at_work(epoch: int, model: str, need_gib: int) -> Backend:
    """Build a live backend that works on a request."""
    work = Work(since=0.0, granted=1, interactive_in_flight=1)
    return replace(backend(epoch, model, need_gib), in_flight=1, work=work)


def known(**learned: tuple[float, float]) -> Estimates:
    """Build estimates: seconds to load, and requests a second, by model."""
    return Estimates(
        models={
            model: ModelEstimates(
                switches_s=(load_s,), stays=(StaySeen(arrived=1000, elapsed_s=1000.0 / rate),)
            )
            for model, (load_s, rate) in learned.items()
        }
    )


def plan(
    need_gib: float,
    *backends: Backend,
    estimates: Estimates | None = None,
    rules: SwitchRules | None = None,
    used_gib: float | None = None,
    target: Target = RERANK,
) -> Plan:
    """Plan for what takes so much, at the time 1000; `used_gib`: as a reading shows."""
    snapshot = Snapshot(
        devices=Map({"gpu0": SHARED}),
        backends=backends,
        rules=rules or SwitchRules(),
        scheduling=Scheduling(estimates=estimates or Estimates()),
    )
    used_bytes = int((used_gib or 0) * GIB)
    reading = MemorySample(
        device="gpu0",
        taken_at=1000.0,
        total_bytes=24 * GIB,
        used_bytes=used_bytes,
        free_bytes=24 * GIB - used_bytes,
        source="test",
    )
    readings = () if used_gib is None else (reading,)
    return plan_residency(snapshot, target, taking(int(need_gib * GIB)), readings, 1000.0)


def names(backends: Sequence[Backend]) -> set[str]:
    return {b.target.model for b in backends}


def test_one_that_loads_fast_gives_way_before_one_that_loads_slowly() -> None:
    estimates = known(chat=(9.0, 1.0), embed=(1.0, 1.0))
    assert names(
        plan(12, idle(1, "chat", 8), idle(2, "embed", 8), estimates=estimates).leaving
    ) == {"embed"}


def test_one_that_is_seldom_asked_for_gives_way_before_one_that_returns_soon() -> None:
    estimates = known(chat=(9.0, 1e-6), embed=(1.0, 1.0))
    chosen = plan(12, idle(1, "chat", 8), idle(2, "embed", 8), estimates=estimates)
    assert names(chosen.leaving) == {"chat"}
    assert chosen.cost.seconds == pytest.approx(9.0 * 600 * 1e-6, rel=0.01)


def test_of_those_of_which_nothing_is_known_the_longest_idle_gives_way() -> None:
    residents = idle(1, "chat", 8, idle_s=60.0), idle(2, "embed", 8, idle_s=900.0)
    assert names(plan(12, *residents).leaving) == {"embed"}


def test_a_set_of_cheap_ones_gives_way_before_one_that_is_dear() -> None:
    estimates = known(chat=(20.0, 1.0), embed=(1.0, 1.0), rank=(2.0, 1.0))
    residents = idle(1, "chat", 12), idle(2, "embed", 6), idle(3, "rank", 5)
    assert names(plan(11, *residents, estimates=estimates).leaving) == {"embed", "rank"}
    assert names(plan(6, *residents, estimates=estimates).leaving) == {"embed"}


def test_idle_ones_give_way_before_one_that_works_however_dear_they_are() -> None:
    estimates = known(chat=(0.1, 1.0), embed=(60.0, 1.0), rank=(60.0, 1.0))
    residents = at_work(1, "chat", 12), idle(2, "embed", 6), idle(3, "rank", 6)
    assert names(plan(11, *residents, estimates=estimates).leaving) == {"embed", "rank"}
    assert names(plan(13, *residents, estimates=estimates).leaving) >= {"chat"}


def test_nobody_gives_way_costs_nothing_and_one_at_work_costs_more_than_any_idle_one() -> None:
    costly = plan(12, idle(1, "chat", 16), estimates=known(chat=(900.0, 9.0)))
    assert plan(4, idle(1, "chat", 16)).cost < costly.cost
    assert costly.cost < plan(12, at_work(1, "chat", 16), estimates=known(chat=(0.1, 0.1))).cost


def test_what_others_hold_is_room_that_somebody_has_to_give() -> None:
    """The budget would carry both, but 10 GiB are in use by somebody else."""
    assert names(plan(8, idle(1, "chat", 8), used_gib=8).leaving) == set()
    assert names(plan(8, idle(1, "chat", 8), used_gib=18).leaving) == {"chat"}


PINNED = SwitchRules(models={"embed": ModelRules(is_pinned=True)})


def test_pinned_one_never_gives_way_and_is_named_where_that_leaves_no_room() -> None:
    residents = idle(1, "chat", 8), idle(2, "embed", 8, idle_s=1e3)
    assert names(plan(12, *residents, rules=PINNED).leaving) == {"chat"}
    blocked = plan(17, *residents, rules=PINNED)
    assert names(blocked.in_the_way) == {"embed"}
    assert blocked.leaving == blocked.retiring == ()


def test_pinned_one_stays_where_a_switch_leaves_only_its_target_live() -> None:
    residents = idle(1, "chat", 4), idle(2, "embed", 4)
    chosen = plan(4, *residents, rules=replace(PINNED, replaces=True), used_gib=8)
    assert names(chosen.retiring) == {"chat"}


def test_pinned_one_is_replaced_by_itself_with_another_profile() -> None:
    other = replace(backend(2, "embed", 8).target, profile="embed-long")
    assert names(plan(20, idle(2, "embed", 8), rules=PINNED, target=other).leaving) == {"embed"}


residents = st.lists(
    st.tuples(
        st.integers(1, 8), st.booleans(), st.booleans(), st.floats(0.1, 30.0), st.floats(0, 2000)
    ),
    max_size=11,
)


@given(there=residents, need=st.integers(1, 24))
def test_what_stays_fits_the_budget_and_no_cheaper_set_would_do(
    there: list[tuple[int, bool, bool, float, float]], need: int
) -> None:
    """Of up to eight that may go each set was looked at; of more the result fits all the same."""
    backends, rules, loads = [], {}, {}
    for epoch, (size, works, is_pinned, load_s, idle_s) in enumerate(there, start=1):
        name = f"m{epoch}"
        made = at_work(epoch, name, size) if works else idle(epoch, name, size, idle_s=idle_s)
        backends.append(made)
        rules[name] = ModelRules(is_pinned=is_pinned)
        loads[name] = (load_s, 1.0)
    snapshot = Snapshot(
        devices=Map({"gpu0": SHARED}),
        backends=tuple(backends),
        rules=SwitchRules(models=rules),
        scheduling=Scheduling(estimates=known(**loads)),
    )
    margin = RERANK.memory.margin_bytes

    def fits(staying: Sequence[Backend]) -> bool:
        taken = sum(b.footprint.total_bytes for b in staying) + need * GIB
        return not staying or taken + margin <= SHARED.budget_bytes

    chosen = plan_residency(snapshot, RERANK, taking(need * GIB), (), 1000.0)
    pinned = [b for b in backends if rules[b.target.model].is_pinned]
    movable = [b for b in backends if b not in pinned]
    assert names(chosen.leaving).isdisjoint(names(pinned))
    if not fits(pinned):
        assert chosen.in_the_way == tuple(pinned)
        assert chosen.leaving == ()
        return
    assert fits([b for b in backends if b not in chosen.leaving])
    if len(movable) > SEARCHED:
        return
    for n in range(len(movable) + 1):
        for some in combinations(movable, n):
            if fits([b for b in backends if b not in some]):
                costs = [cost_of(snapshot, b, 1000.0) for b in some]
                price = (sum(c.working for c in costs), sum(c.seconds for c in costs) + 1e-9)
                assert (chosen.cost.working, chosen.cost.seconds) <= price


def test_sets_are_priced_only_until_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for with each event while models contend, and of eight there are 256 sets."""
    there = [idle(epoch, f"m{epoch}", 2, idle_s=10.0 * epoch) for epoch in range(1, 9)]
    snapshot = Snapshot(devices=Map({"gpu0": SHARED}), backends=tuple(there))
    priced: list[int] = []

    def price(costs: Sequence[Cost]) -> Cost:
        priced.append(len(costs))
        return total_cost(costs)

    monkeypatch.setattr(packing, "total_cost", price)
    chosen = packing.cheapest_to_leave(snapshot, there, lambda staying: len(staying) < 8, 1000.0)
    assert chosen is not None
    assert chosen[0] == (there[-1],)  # nobody has asked for it for longest
    assert len(priced) < 8


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
