"""Switches on two GPUs with random faults: no start without room, no refusal for less.

Some models share a GPU, one is pinned there, two are parked, and one has a twin on the host. After
each switch the driver's own books say whether it was right. A failure names the seed, which
SIMULATED_SWITCHES_SEED brings back: the same faults, though the machine's timing may differ.
"""

import asyncio
import os
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from lab.drivers.nvidia import GIB, NEVER_S

from supervisor.core.machine.memory import OnUnconfirmed
from supervisor.core.machine.switch import SwitchReport
from supervisor.core.machine.values import Outcome, Refusal
from supervisor.errors import RequestRefused
from tests.patience import PATIENCE_S
from tests.telemetry.gated_world import (
    MODELS,
    PINNED,
    SPILLING,
    World,
    open_world,
    target_of,
)
from tests.telemetry.holders import GPUS, HoldingBackend, NextStart, Sleep
from tests.telemetry.sampling import until_sampled

SWITCHES, MACHINES = 1000, 20
TENANT = tuple(gib * GIB for gib in (0, 0, 0, 0, 10, 35, 60))
"""What a tenant holds; the same again and again, for one that comes back is the worst."""

Sabotage = Callable[[World, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """What the tenant of a GPU holds before a switch, and from some time after its order on."""

    before_bytes: int
    later_bytes: int | None
    after_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One switch, and what goes wrong meanwhile. Times count from its order."""

    model: str
    on_unconfirmed: OnUnconfirmed
    release_after_s: float
    release_steps: int
    visits: tuple[Visit, ...]
    driver: str | None  # of DRIVER_FAULTS
    driver_device: int
    driver_after_s: float
    driver_for_s: float  # NEVER_S: it is not healed
    crash_after_s: float | None  # of one of the servers, whichever; 0: before the order
    crash_choice: int
    parked_dies_after_s: float | None  # one that is parked; 0: before the order
    sleep: Sleep
    start: NextStart


DRIVER_FAULTS: Mapping[str, Sabotage] = {
    "lost": lambda world, device: world.gpu.lose(device),
    "unreadable": lambda world, device: world.gpu.fail(
        world.calls.memory, world.calls.failed, device
    ),
    "hung": lambda world, device: world.gpu.hang(world.calls.memory, device),
    "sampler dies": lambda world, _: world.kill_sampler(),
    "lists no processes": lambda world, _: world.gpu.fail(
        world.calls.processes, world.calls.not_supported
    ),
}
SLEEP_FAULTS = ("cannot sleep", "keeps all", "cannot wake")
AGAIN = ("place_is_taken", "telemetry_lost", "target_does_not_fit")
"""Why a restart may fail though all is right: by a reading from before, or that a busy machine has
not got in time."""
BLINDING = DRIVER_FAULTS.keys() - {"lists no processes"}


def draw(chance: random.Random, live: Sequence[str]) -> Trial:
    """Make up a trial; about half of them have nothing go wrong but a late release."""
    model = chance.choice([name for name in MODELS if name not in live])
    late_s = chance.choice([0.0, chance.uniform(0.01, 0.15), chance.uniform(0.01, 0.15)])
    crash_after_s = chance.choice([0.0, chance.uniform(0, 0.1)])
    return Trial(
        model=model,
        on_unconfirmed=chance.choice([*[OnUnconfirmed.REFUSE] * 12, OnUnconfirmed.PROCEED]),
        release_after_s=NEVER_S if chance.random() < 0.06 else late_s,
        release_steps=chance.choice([1, 1, 2, 5]),
        visits=tuple(
            Visit(
                before_bytes=chance.choice(TENANT),
                later_bytes=chance.choice(TENANT) if chance.random() < 0.25 else None,
                after_s=chance.uniform(0, 0.1),
            )
            for _ in GPUS
        ),
        driver=chance.choice(list(DRIVER_FAULTS)) if chance.random() < 0.12 else None,
        driver_device=chance.randrange(len(GPUS)),
        driver_after_s=chance.choice([0.0, chance.uniform(0, 0.05)]),
        driver_for_s=chance.choice([NEVER_S, chance.uniform(0.0, 0.1)]),
        crash_after_s=crash_after_s if chance.random() < 0.08 else None,
        crash_choice=chance.randrange(100),
        parked_dies_after_s=chance.choice([0.0, chance.uniform(0, 0.1)])
        if chance.random() < 0.08
        else None,
        sleep=Sleep(
            after_s=late_s,
            fault=chance.choice(SLEEP_FAULTS) if chance.random() < 0.2 else None,
        ),
        start=NextStart(
            share=chance.choice([1.0, chance.uniform(0.8, 1.0)]),
            left_bytes=chance.randrange(1, 10) * GIB if chance.random() < 0.04 else 0,
            failing=model if chance.random() < 0.05 else None,
        ),
    )


async def test_a_thousand_switches_with_faults_start_nothing_without_room(
    tmp_path: Path, nvml_library: Path, amd_library: Path
) -> None:
    """Half of the machines have NVIDIA's driver, half AMD's; on half of each, servers share."""
    libraries = {"NVIDIA": nvml_library, "AMD": amd_library}
    seed = int(os.environ.get("SIMULATED_SWITCHES_SEED") or random.randrange(10**9))
    told, seen = Counter[str](), Counter[str]()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(MACHINES):
                vendor = [*libraries][number % 2]
                work = switch_at_random(
                    tmp_path / f"machine-{number}",
                    vendor,
                    libraries[vendor],
                    is_exclusive=number % 4 < 2,
                    chance=random.Random(f"{seed}-{number}"),
                    told=told,
                    seen=seen,
                )
                group.create_task(work, name=f"machine {number}")
    except* AssertionError as failures:
        words = "\n".join(str(error) for error in failures.exceptions)
        raise AssertionError(f"SIMULATED_SWITCHES_SEED={seed}: {words}") from failures
    finally:
        structlog.reset_defaults()
    print(dict(told), dict(seen))  # noqa: T201 - how often each end came
    assert told.total() == SWITCHES
    assert told["switched"] > SWITCHES // 2, f"seed {seed}: {dict(told)}"
    for end in ("memory_not_released", "target_does_not_fit", "telemetry_lost", "backend_died"):
        assert told[end] > 0, f"seed {seed}: no switch ended with {end}: {dict(told)}"
    for event in ("parked", "woken", "served by the twin"):
        assert seen[event] > 0, f"seed {seed}: never {event}: {dict(seen)}"


async def switch_at_random(
    folder: Path,
    vendor: str,
    library: Path,
    *,
    is_exclusive: bool,
    chance: random.Random,
    told: Counter[str],
    seen: Counter[str],
) -> None:
    async with open_world(folder, vendor, library, is_exclusive=is_exclusive) as world:
        for model in (SPILLING, PINNED):  # a twin serves once its model's vectors are known
            await world.switch_to(model)
        for number in range(SWITCHES // MACHINES):
            trial = draw(chance, world.arbiter.snapshot.live_models())
            try:
                attempt = Attempt(world, trial)
                told[await attempt.make()] += 1
                seen.update(attempt.seen)
                await settle(world)
                seen["served by the twin"] += await ask_for_vectors(world)
            except Exception as error:
                place = f"{folder.name} ({vendor}, exclusive: {is_exclusive}), switch {number}"
                raise AssertionError(f"{place}: {type(error).__name__}: {error}") from error


class Attempt:
    """One trial, carried out and judged."""

    def __init__(self, world: World, trial: Trial) -> None:
        self.world, self.trial = world, trial
        self.old, self.there, self.twin = world.live(), world.there(), world.twin()
        self.crashed: HoldingBackend | None = None
        self.died_parked: HoldingBackend | None = None
        self.seen: Counter[str] = Counter()

    async def make(self) -> str:
        """Give how it ended."""
        world, trial = self.world, self.trial
        for tenant, visit in zip(world.tenants, trial.visits, strict=True):
            tenant.hold(visit.before_bytes)
            tenant.most_bytes = tenant.held_bytes
        world.next_start = trial.start
        for each in self.there:
            world.set_release(each.process.pid, trial.release_after_s, trial.release_steps)
            each.sleep = trial.sleep
        if trial.parked_dies_after_s == 0:
            await self._end_a_parked_one()
        if trial.crash_after_s == 0:
            await self._crash()
        hands = [asyncio.create_task(self._crash_later()), asyncio.create_task(self._sabotage())]
        hands.append(asyncio.create_task(self._end_a_parked_one_later()))
        hands += [asyncio.create_task(self._visit(device)) for device in range(len(GPUS))]
        report = await world.switch_to(trial.model, trial.on_unconfirmed)
        for hand in hands:
            hand.cancel()
        await asyncio.wait(hands)
        context = f"{trial}\n{report.outcome}, {report.phase_seconds}: {report.refusal}"
        context += f"\n{world.books()}"
        assert world.faults == [], f"{world.faults}\n{context}"
        self._judge_bystanders(context)
        self.seen["parked"] += len(report.notes.parked)
        if report.outcome is not Outcome.SWITCHED:
            self._judge_refusal(report, context)
            assert report.refusal is not None
            return report.refusal.code
        is_there = trial.model in world.arbiter.snapshot.live_models()
        assert is_there or trial.model in self._dead(), context
        self.seen["woken"] += report.notes.was_parked
        return "switched"

    def _judge_bystanders(self, context: str) -> None:
        """See that nobody stopped the pinned model or the twin, which is not on a GPU at all."""
        kept = [self.twin] if self.twin else []
        if self.world.pins:
            kept += [each for each in self.old if each.model == PINNED]
        for each in kept:
            assert each is self.crashed or each.process.is_alive, f"{each.model} left: {context}"
        if self.twin and self.twin is not self.crashed:
            lease = self.world.arbiter.lease_at_once(target_of(SPILLING), may_spill=True)
            assert lease is not None, f"no twin serves: {context}"
            lease.end()

    async def _crash(self) -> None:
        """End a server that nobody ends."""
        parked = [b.epoch for b in self.world.arbiter.snapshot.parked()]
        alive = [b for b in self.world.backends if b.process.is_alive and b.epoch not in parked]
        if alive:
            self.crashed = alive[self.trial.crash_choice % len(alive)]
            self.crashed.end()
            await self.crashed.wait()

    async def _end_a_parked_one(self) -> None:
        parked = [b.epoch for b in self.world.arbiter.snapshot.parked()]
        for each in self.world.backends:
            if each.epoch in parked:
                self.died_parked = each
                each.end()
                await each.wait()
                return

    async def _end_a_parked_one_later(self) -> None:
        if self.trial.parked_dies_after_s:
            await asyncio.sleep(self.trial.parked_dies_after_s)
            await self._end_a_parked_one()

    def _dead(self) -> list[str]:
        """The models whose server was ended by nobody of ours."""
        return [each.model for each in (self.crashed, self.died_parked) if each is not None]

    def _was_parked(self) -> bool:
        """Whether a parked server of the model was there to be woken."""
        ready = {each.epoch for each in self.old}
        return any(b.model == self.trial.model and b.epoch not in ready for b in self.there)

    async def _crash_later(self) -> None:
        if self.trial.crash_after_s:
            await asyncio.sleep(self.trial.crash_after_s)
            await self._crash()

    async def _visit(self, device: int) -> None:
        visit = self.trial.visits[device]
        if visit.later_bytes is not None:
            await asyncio.sleep(visit.after_s)
            self.world.tenants[device].hold(visit.later_bytes)

    async def _sabotage(self) -> None:
        trial = self.trial
        if trial.driver is None:
            return
        if trial.driver_after_s:
            await asyncio.sleep(trial.driver_after_s)
        DRIVER_FAULTS[trial.driver](self.world, trial.driver_device)
        if trial.driver_for_s is not NEVER_S:
            await asyncio.sleep(trial.driver_for_s)
            self.world.gpu.heal()

    def _judge_refusal(self, report: SwitchReport, context: str) -> None:
        """See that there was cause for it, and that the reason names the cause."""
        trial, refusal = self.trial, report.refusal
        assert refusal is not None, context
        is_left = any(each.process.left_pid for each in self.there)
        has_room = any(map(self.world.room_for, target_of(trial.model).places))
        is_late = bool(self.there) and trial.release_after_s is NEVER_S
        is_blind = trial.driver in BLINDING
        is_hindered = is_late or is_blind or is_left
        match refusal.code:
            case "backend_died":
                does_not_wake = trial.sleep.fault == "cannot wake" and self._was_parked()
                is_known = trial.model in {trial.start.failing, *self._dead()}
                assert does_not_wake or is_known, context
            case "pinned_in_the_way":
                # Right after a death others' part is not always known: then it is taken as it was.
                is_excused = is_late or self.crashed is not None or self.died_parked is not None
                assert not has_room or is_excused or is_blind, f"refused for nothing: {context}"
            case "telemetry_lost":
                assert is_blind, context
            case "target_does_not_fit":
                is_kept = is_late and self.crashed is not None
                assert not has_room or is_left or is_kept, f"refused for nothing: {context}"
            case "memory_not_released":
                # Where it goes is chosen once, by what is known then.
                places, reason = target_of(trial.model).places, refusal.message.split("; and ")[0]
                tried = [p for p in places if len(places) == 1 or f"{p.device}:" in reason]
                has_room = any(map(self.world.room_for, tried))
                assert is_hindered or not has_room, f"refused for nothing: {context}"
                assert dict(report.phase_seconds).keys().isdisjoint({"starting"}), context
                wanted = self._causes(refusal.message)
                assert any(words in refusal.message for words in wanted), f"{wanted}: {context}"
            case _:
                raise AssertionError(f"no such refusal was to be expected: {context}")
        if self.crashed is None:
            is_asleep = trial.sleep.fault == "cannot wake"
            self._judge_return(refusal, context, is_hindered=is_hindered or is_asleep)

    def _judge_return(self, refusal: Refusal, context: str, *, is_hindered: bool) -> None:
        """See that what was stopped is back, where it can be, and that this is said."""
        old = {each.model for each in self.old}
        is_back = old <= set(self.world.arbiter.snapshot.live_models())
        assert dict(refusal.details).get("rolled_back", is_back) is is_back, context
        had_room = self.world.room_for(*(each.target for each in self.old))
        is_crowded = self.trial.start.left_bytes > 0  # by what the first that came back left
        assert is_back or is_hindered or is_crowded or not had_room, context

    def _causes(self, message: str) -> list[str]:
        """Give what a refusal must say one of: `not confirmed within 1.0 s: gpu1: …`."""
        if self.trial.driver is not None:
            # A driver that comes back late leaves too few samples, though all of them are good.
            return ["memory cannot be read", "GiB used", "still held by", "stable samples"]
        left = [each.process.left_pid for each in self.there if each.process.left_pid]
        if left:  # also by one that stays: then it is no stranger's
            return ["GiB used", *(f"(pid {pid})" for pid in left)]
        tenant = self.world.tenants[GPUS.index(str(message.split("s: ")[1][:4]))]
        return [f"sleep (pid {tenant.pid})" if tenant.held_bytes else "GiB used"]


async def settle(world: World) -> None:
    """Put everything right, and let what should be live come back: it must, now."""
    world.gpu.heal()
    if world.arbiter.snapshot.recoveries:
        for tenant in world.tenants:
            tenant.hold(0)
    world.next_start = NextStart()
    for backend in world.backends:
        backend.sleep = Sleep()
    clear_away(world)
    for name in GPUS:
        await until_sampled(world.telemetry, name)
    async with asyncio.timeout(PATIENCE_S):
        while (snapshot := world.arbiter.snapshot).switch or snapshot.recoveries:
            try:
                report = await world.arbiter.request_restart()[1]
            except RequestRefused:
                await asyncio.sleep(0.01)
                continue
            if clear_away(world):
                continue
            code = report.refusal.code if report.refusal else None
            assert code in AGAIN or report.outcome is Outcome.SWITCHED, report
    assert world.faults == []
    assert all(each.process.is_alive for each in world.there())


def clear_away(world: World) -> bool:
    """End what those left who are gone, and forget them; whether there was any such process."""
    there, is_left = world.there(), False
    for backend in world.backends:
        if backend not in there:
            left_pid = backend.process.end_what_it_left()
            is_left = is_left or left_pid is not None
            for pid in (backend.process.pid, left_pid):
                if pid is not None:
                    world.gpu.remove_process(pid)
    return is_left


async def ask_for_vectors(world: World) -> bool:
    """Ask for what a twin may serve while its model is not live; whether it was the twin."""
    async with asyncio.timeout(PATIENCE_S):
        async with world.arbiter.lease(target_of(SPILLING), may_spill=True) as lease:
            assert lease.backend.epoch in {b.epoch for b in world.there()}
            is_live = SPILLING in world.arbiter.snapshot.live_models()
            assert is_live is (lease.backend.model == SPILLING), lease.backend.model
            return not is_live
