"""Switches with random faults: nothing starts without room, nothing is refused for less.

After each switch the driver's own books say whether it was right. A failure names the seed, which
SIMULATED_SWITCHES_SEED brings back: the same faults, though the machine's timing may differ.
"""

import asyncio
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
from lab.drivers.nvidia import GIB, NEVER_S

from supervisor.core.machine.memory import OnUnconfirmed
from supervisor.core.machine.switch import SwitchReport
from supervisor.core.machine.values import Outcome
from supervisor.errors import RequestRefused
from tests.telemetry.gated_world import (
    MARGIN_BYTES,
    NEEDS,
    RELEASE_TIMEOUT_S,
    TOTAL_BYTES,
    HoldingBackend,
    NextStart,
    World,
    open_world,
)
from tests.telemetry.sampling import MEMORY_CALL, until_sampled

SWITCHES, MACHINES = 400, 10
GPU_IS_LOST, NOT_SUPPORTED = 15, 3
PROCESSES_CALL = "nvmlDeviceGetComputeRunningProcesses_v3"
TENANT = tuple(gib * GIB for gib in (0, 0, 0, 10, 35, 60))
"""What the tenant holds; the same again and again, for one that comes back is the worst."""

Sabotage = Callable[[World], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One switch, and what goes wrong meanwhile. Times count from its order."""

    model: str
    on_unconfirmed: OnUnconfirmed
    release_after_s: float
    release_steps: int
    tenant_bytes: int  # before
    tenant_later_bytes: int | None
    tenant_after_s: float
    driver: str | None  # of DRIVER_FAULTS
    driver_after_s: float
    driver_for_s: float  # NEVER_S: it is not healed
    crashes: bool
    start: NextStart


DRIVER_FAULTS: dict[str, Sabotage] = {
    "lost": lambda world: world.gpu.lose(0),
    "unreadable": lambda world: world.gpu.fail(MEMORY_CALL, GPU_IS_LOST),
    "hung": lambda world: world.gpu.hang(MEMORY_CALL),
    "lists no processes": lambda world: world.gpu.fail(PROCESSES_CALL, NOT_SUPPORTED),
}


def draw(chance: random.Random, live: str | None) -> Trial:
    """Make up a trial; about half of them have nothing go wrong but a late release."""
    model = chance.choice([name for name in NEEDS if name != live])
    driver = chance.choice(list(DRIVER_FAULTS)) if chance.random() < 0.12 else None
    policies = [*[OnUnconfirmed.REFUSE] * 12, OnUnconfirmed.PROCEED]
    late_s = chance.choice([0.0, chance.uniform(0.01, 0.15), chance.uniform(0.01, 0.15)])
    return Trial(
        model=model,
        on_unconfirmed=chance.choice(policies),
        release_after_s=NEVER_S if chance.random() < 0.08 else late_s,
        release_steps=chance.choice([1, 1, 2, 5]),
        tenant_bytes=chance.choice(TENANT),
        tenant_later_bytes=chance.choice(TENANT) if chance.random() < 0.4 else None,
        tenant_after_s=chance.uniform(0, 0.1),
        driver=driver,
        driver_after_s=chance.choice([0.0, chance.uniform(0, 0.05)]),
        driver_for_s=chance.choice([NEVER_S, chance.uniform(0.0, 0.1)]),
        crashes=chance.random() < 0.05,
        start=NextStart(
            share=chance.choice([1.0, chance.uniform(0.8, 1.0)]),
            left_bytes=chance.randrange(1, 10) * GIB if chance.random() < 0.04 else 0,
            failing=model if chance.random() < 0.05 else None,
        ),
    )


async def test_hundreds_of_switches_with_faults_start_nothing_without_room(
    tmp_path: Path, nvml_library: Path
) -> None:
    seed = int(os.environ.get("SIMULATED_SWITCHES_SEED") or random.randrange(10**9))
    told: Counter[str] = Counter()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(MACHINES):
                folder = tmp_path / f"machine-{number}"
                work = switch_at_random(folder, nvml_library, f"{seed}-{number}", told)
                group.create_task(work)
    except* AssertionError as failures:
        words = "\n".join(str(error) for error in failures.exceptions)
        raise AssertionError(f"SIMULATED_SWITCHES_SEED={seed}: {words}") from failures
    finally:
        structlog.reset_defaults()
    print(dict(told))  # noqa: T201 - how often each end came
    assert told.total() == SWITCHES
    assert told["switched"] > SWITCHES // 2
    for end in ("memory_not_released", "target_does_not_fit", "telemetry_lost", "backend_died"):
        assert told[end] > 0, f"seed {seed}: no switch ended with {end}: {dict(told)}"


async def switch_at_random(folder: Path, library: Path, seed: str, told: Counter[str]) -> None:
    chance = random.Random(seed)
    async with open_world(folder, library) as world:
        for number in range(SWITCHES // MACHINES):
            old = world.live()
            trial = draw(chance, old.model if old else None)
            try:
                told[await attempt(world, old, trial)] += 1
            except AssertionError as error:
                raise AssertionError(f"machine {seed}, switch {number}: {error}") from error
            await settle(world)


async def attempt(world: World, old: HoldingBackend | None, trial: Trial) -> str:
    """Run one trial and judge it; give how it ended."""
    world.set_tenant(trial.tenant_bytes)
    world.next_start = trial.start
    if old is not None:
        world.set_release(old.process.pid, trial.release_after_s, trial.release_steps)
        if trial.crashes:
            old.end()
            await old.is_gone.wait()
    most_held = Most(world)
    saboteurs = [
        asyncio.create_task(bring_tenant(most_held, trial)),
        asyncio.create_task(sabotage(world, trial)),
    ]
    report = await world.switch_to(trial.model, trial.on_unconfirmed)
    for saboteur in saboteurs:
        saboteur.cancel()
    await asyncio.wait(saboteurs)
    context = f"{trial}\n{report}"
    assert world.faults == [], f"{world.faults}\n{context}"
    if report.outcome is Outcome.SWITCHED:
        assert world.arbiter.snapshot.live_models() == (trial.model,), context
        return "switched"
    assert report.refusal is not None, context
    judge_refusal(world, old, trial, report, most_held)
    return report.refusal.code


class Most:
    """The most that the tenant has held since the switch was ordered."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.tenant_bytes = world.tenant_bytes

    def set_tenant(self, wanted_bytes: int) -> None:
        held_bytes = self.world.set_tenant(wanted_bytes)
        self.tenant_bytes = max(self.tenant_bytes, held_bytes)


async def bring_tenant(most_held: Most, trial: Trial) -> None:
    if trial.tenant_later_bytes is not None:
        await asyncio.sleep(trial.tenant_after_s)
        most_held.set_tenant(trial.tenant_later_bytes)


async def sabotage(world: World, trial: Trial) -> None:
    if trial.driver is None:
        return
    if trial.driver_after_s:
        await asyncio.sleep(trial.driver_after_s)
    DRIVER_FAULTS[trial.driver](world)
    if trial.driver_for_s is not NEVER_S:
        await asyncio.sleep(trial.driver_for_s)
        world.gpu.heal()


def judge_refusal(
    world: World,
    old: HoldingBackend | None,
    trial: Trial,
    report: SwitchReport,
    most_held: Most,
) -> None:
    """See that there was cause for it, and that the reason names the cause."""
    refusal = report.refusal
    assert refusal is not None
    context = f"{trial}\n{report}"
    left_pid = old.process.left_pid if old else None
    has_room = NEEDS[trial.model] + MARGIN_BYTES <= TOTAL_BYTES - most_held.tenant_bytes
    is_late = old is not None and trial.release_after_s is NEVER_S
    is_blind = trial.driver in {"lost", "unreadable", "hung"}
    is_hindered = is_late or is_blind or left_pid is not None
    match refusal.code:
        case "backend_died":
            assert trial.start.failing == trial.model, context
        case "telemetry_lost":
            assert is_blind, context
        case "target_does_not_fit":
            assert not has_room or left_pid, context
        case "memory_not_released":
            assert is_hindered or not has_room, f"refused for nothing: {context}"
            assert dict(report.phase_seconds).keys().isdisjoint({"starting"}), context
            wanted = causes(world, trial, left_pid)
            assert any(words in refusal.message for words in wanted), f"{wanted}: {context}"
        case _:
            raise AssertionError(f"no such refusal was to be expected: {context}")
    is_back = world.live() is not None
    assert dict(refusal.details).get("rolled_back", is_back) is is_back, context
    if old is not None and not (trial.crashes or is_hindered):
        needed_bytes = NEEDS[old.model] + MARGIN_BYTES
        assert is_back or needed_bytes > TOTAL_BYTES - most_held.tenant_bytes, context
    assert report.total_s < 2 * RELEASE_TIMEOUT_S + 5, context


def causes(world: World, trial: Trial, left_pid: int | None) -> list[str]:
    """Give what a refusal must say one of."""
    if left_pid is not None and trial.driver is None:
        return [f"(pid {left_pid})"]
    if trial.driver is not None:
        # A driver that comes back late leaves too few samples, though all of them are good.
        return ["memory cannot be read", "GiB used", "still held by", "stable samples"]
    return [f"sleep (pid {world.tenant.pid})"] if world.tenant_bytes else ["GiB used"]


async def settle(world: World) -> None:
    """Put everything right, and let what should be live come back: it must, now."""
    world.gpu.heal()
    if world.arbiter.snapshot.recoveries:
        world.set_tenant(0)
    world.next_start = NextStart()
    alive = world.live()
    for backend in world.backends:
        if backend is not alive:
            backend.process.end_what_it_left()
            for pid in (backend.process.pid, backend.process.left_pid):
                if pid is not None:
                    world.gpu.remove_process(pid)
    await until_sampled(world.telemetry)
    async with asyncio.timeout(20):
        while (snapshot := world.arbiter.snapshot).switch or snapshot.recoveries:
            try:
                report = await world.arbiter.request_restart()[1]
            except RequestRefused:
                await asyncio.sleep(0.01)
                continue
            assert report.outcome is Outcome.SWITCHED, report
    assert world.faults == []
