"""Which device a target goes to that has a choice, and what that means for everybody else."""

from hypothesis import given, settings
from hypothesis import strategies as st
from immutables import Map
from msgspec.structs import replace

from supervisor.core.machine.commands import CheckTarget, Command, StartBackend
from supervisor.core.machine.events import RequestArrived, TargetAccepted
from supervisor.core.machine.memory import MemorySample
from supervisor.core.machine.placing import choose_place
from supervisor.core.machine.rules import ModelRules, SwitchRules
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.step import step
from supervisor.core.machine.switch import SCHEDULER, Order
from supervisor.core.machine.values import Backend, BackendState, Target, TargetNeed
from tests.core.machine.story import (
    CHAT,
    EMBED,
    GIB,
    RERANK,
    SHARED,
    TOTAL_BYTES,
    Story,
    failure_in,
)
from tests.core.machine.surroundings import taking

GPUS = (SHARED, replace(SHARED, name="gpu1"))
NAMES = ("gpu0", "gpu1")


def anywhere(target: Target) -> Target:
    return replace(target, candidates=NAMES)


def live(epoch: int, model: str, device: str, gib: int, *, in_flight: int = 0) -> Backend:
    return Backend(
        epoch=epoch,
        target=replace(CHAT, model=model, device=device),
        state=BackendState.READY,
        footprint=taking(gib * GIB, device),
        started_at=0.0,
        in_flight=in_flight,
    )


def reading(device: str, free_gib: int) -> MemorySample:
    return MemorySample(
        device=device,
        taken_at=0.0,
        total_bytes=TOTAL_BYTES,
        used_bytes=TOTAL_BYTES - free_gib * GIB,
        free_bytes=free_gib * GIB,
        source="test",
    )


def accepted(gib: int, *readings: MemorySample, problem: str | None = None) -> TargetAccepted:
    return TargetAccepted(
        at=0.0,
        switch_id="s1",
        need=TargetNeed(footprint=taking(gib * GIB, "gpu0")),
        elsewhere=(("gpu1", TargetNeed(footprint=taking(gib * GIB, "gpu1"))),),
        readings=readings,
        memory_problem=problem,
    )


def placed(
    *backends: Backend,
    gib: int = 8,
    free: tuple[int, int] = (24, 24),
    target: Target = EMBED,
    requested_by: str = "ops",
    held_until: float = 0.0,
    gives_way: bool = False,
) -> tuple[str, list[int], str | None]:
    """Return where a target goes, who leaves for it, and the code of a refusal."""
    snapshot = Snapshot(devices=Map({d.name: d for d in GPUS}), backends=backends, next_epoch=9)
    held = replace(snapshot.scheduling, held_until=Map({"gpu0": held_until}))
    order = Order(
        switch_id="s1",
        target=anywhere(target),
        requested_by=requested_by,
        started_at=0.0,
        gives_way=gives_way,
    )
    readings = [reading(name, gib) for name, gib in zip(NAMES, free, strict=True)]
    place, refusal = choose_place(
        replace(snapshot, scheduling=held), order, accepted(gib, *readings), 1.0
    )
    leaving = [backend.epoch for backend in place.giving_way]
    return place.target.device, leaving, refusal.code if refusal else None


def test_the_first_takes_the_gpu_with_the_most_room() -> None:
    assert placed() == ("gpu0", [], None)
    assert placed(free=(20, 24)) == ("gpu1", [], None)


def test_nobody_leaves_where_another_gpu_has_room() -> None:
    assert placed(live(1, "a", "gpu0", 20), free=(4, 10)) == ("gpu1", [], None)


def test_the_idle_one_leaves_and_not_the_one_that_works() -> None:
    both = (live(1, "a", "gpu0", 20, in_flight=2), live(2, "b", "gpu1", 20))
    assert placed(*both, free=(4, 4)) == ("gpu1", [2], None)


def test_what_is_replaced_serves_on_where_another_gpu_has_room() -> None:
    other_profile = replace(EMBED, profile="long")
    there = live(1, "embed", "gpu0", 20)
    assert placed(there, free=(4, 24), target=other_profile) == ("gpu1", [1], None)


def test_gpu_that_cannot_carry_it_is_passed_over() -> None:
    assert placed(live(1, "a", "gpu1", 20), gib=20, free=(10, 4)) == ("gpu1", [1], None)


def test_controller_leaves_a_gpu_alone_that_a_hand_has_set() -> None:
    both = (live(1, "a", "gpu0", 20), live(2, "b", "gpu1", 20, in_flight=2))
    assert placed(*both, free=(4, 4), held_until=5.0)[0] == "gpu0"
    assert placed(*both, free=(4, 4), held_until=5.0, requested_by=SCHEDULER)[0] == "gpu1"


def test_switch_that_gives_way_takes_nobodys_place() -> None:
    both = (live(1, "a", "gpu0", 20), live(2, "b", "gpu1", 20))
    assert placed(*both, free=(4, 4), gives_way=True)[2] == "place_is_taken"
    assert placed(both[0], free=(4, 24), gives_way=True) == ("gpu1", [], None)


def test_gpu_that_cannot_be_read_is_passed_over() -> None:
    snapshot = Snapshot(devices=Map({d.name: d for d in GPUS}))
    order = Order(switch_id="s1", target=anywhere(EMBED), requested_by="ops", started_at=0.0)
    one = accepted(8, reading("gpu1", 24), problem="gpu0: lost")
    place, refusal = choose_place(snapshot, order, one, 1.0)
    assert (place.target.device, refusal) == ("gpu1", None)

    _, refusal = choose_place(snapshot, order, accepted(8, problem="lost"), 1.0)
    assert refusal is not None
    assert refusal.code == "telemetry_lost"
    assert refusal.message.endswith("none of gpu0, gpu1 can take it")


def two_gpus() -> Story:
    return Story(*GPUS)


def accept_on_both(story: Story, gib: int, *free: tuple[str, int]) -> tuple[Command, ...]:
    assert story.snapshot.switch is not None
    readings = [replace(reading(name, gib_free), taken_at=story.now) for name, gib_free in free]
    event = replace(accepted(gib, *readings), at=story.now, switch_id=story.running)
    story.snapshot, commands = step(story.snapshot, event)
    return commands


def ask(story: Story, request_id: str, target: Target) -> tuple[Command, ...]:
    return story.tell(RequestArrived, request_id=request_id, target=target, may_switch=True)


def test_second_model_starts_on_the_empty_gpu_though_the_first_has_not_served_yet() -> None:
    """Its need is not known, and nobody's turn has to end."""
    story = two_gpus()
    ask(story, "r1", anywhere(CHAT))
    accept_on_both(story, 20, ("gpu0", 24), ("gpu1", 24))
    story.start(device="gpu0")

    (check,) = ask(story, "r2", anywhere(EMBED))
    assert isinstance(check, CheckTarget)
    accept_on_both(story, 20, ("gpu0", 4), ("gpu1", 24))
    *_, start = story.confirm(device="gpu1")
    assert isinstance(start, StartBackend)
    assert start.target.device == "gpu1"
    assert [b.target.model for b in story.snapshot.ready_backends()] == ["chat"]


def test_gpu_that_only_looked_free_costs_nobody_his_turn() -> None:
    """Others fill it, which nobody could know: the switch ends, and who waits waits on."""
    story = two_gpus()
    ask(story, "r1", anywhere(CHAT))
    accept_on_both(story, 20, ("gpu0", 24), ("gpu1", 2))
    story.start(device="gpu0")
    ask(story, "r2", anywhere(EMBED))

    commands = accept_on_both(story, 20, ("gpu0", 4), ("gpu1", 2))

    assert failure_in(commands)[0] == "place_is_taken"
    assert story.snapshot.requests.waiting_for("embed") == 1
    story.end("r1")
    while story.snapshot.switch is None:
        story.wake()
    accept_on_both(story, 20, ("gpu0", 4), ("gpu1", 2))
    assert story.snapshot.live_models() == ()  # chat leaves in its turn


def test_rollback_goes_back_to_where_it_was() -> None:
    story = two_gpus()
    story.ask_for(anywhere(CHAT))
    accept_on_both(story, 20, ("gpu0", 4), ("gpu1", 24))
    epoch = story.start(device="gpu1")
    story.ask_for(replace(RERANK, device="gpu1"))
    story.accept(20 * GIB, used_bytes=20 * GIB)
    story.reap(epoch)
    *_, start = story.confirm(device="gpu1")
    assert isinstance(start, StartBackend)
    story.reap(start.epoch, exit_code=1)
    *_, again = story.confirm(device="gpu1")
    assert isinstance(again, StartBackend)
    assert (again.target.model, again.target.device) == ("chat", "gpu1")


@settings(max_examples=200)
@given(
    there=st.lists(
        st.tuples(st.sampled_from(NAMES), st.integers(1, 12), st.booleans(), st.booleans()),
        max_size=5,
    ),
    foreign=st.tuples(st.integers(0, 24), st.integers(0, 24)),
    gib=st.integers(1, 24),
)
def test_place_is_the_cheapest_that_can_carry_it_and_holds_what_stays(
    there: list[tuple[str, int, bool, bool]], foreign: tuple[int, int], gib: int
) -> None:
    """Budgets hold, pinned ones and others' memory are never counted on, and nobody leaves for
    nothing."""
    backends = tuple(
        live(number, f"m{number}", device, size, in_flight=int(works))
        for number, (device, size, works, _) in enumerate(there, start=1)
    )
    pinned = {f"m{n}" for n, (*_, is_pinned) in enumerate(there, start=1) if is_pinned}
    rules = SwitchRules(models=Map({name: ModelRules(is_pinned=True) for name in pinned}))
    devices = Map({d.name: d for d in GPUS})
    snapshot = Snapshot(devices=devices, backends=backends, rules=rules, next_epoch=9)
    used = {name: sum(b.footprint.on(name) for b in backends) // GIB for name in NAMES}
    free = {n: max(0, 24 - used[n] - held) for n, held in zip(NAMES, foreign, strict=True)}
    readings = [reading(name, free[name]) for name in NAMES]
    order = Order(switch_id="s1", target=anywhere(EMBED), requested_by="ops", started_at=0.0)

    place, refusal = choose_place(snapshot, order, accepted(gib, *readings), 1.0)

    name, leaving = place.target.device, place.giving_way
    room = {n: free[n] - gib for n in NAMES}
    if refusal is None:
        assert pinned.isdisjoint(b.target.model for b in leaving)
        assert all(b.target.device == name for b in leaving)
        freed = sum(b.footprint.on(name) for b in leaving) // GIB
        assert free[name] + freed >= gib
        if leaving:  # beside others a margin stays free, which takes a GiB here
            assert all(room[n] < (1 if used[n] else 0) for n in NAMES)
    else:
        assert all(room[n] < 1 for n in NAMES)
