"""Faults: servers and controllers are hit, aimed at each phase of a switch in turn."""

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import aiohttp

from lab.chaos import history
from lab.chaos.clients import slow_stream
from lab.chaos.controller import Controller
from lab.chaos.disk import Disk
from lab.chaos.exchange import Exchanger, Temper
from lab.chaos.facts import SERVING
from lab.chaos.known import PROMPTS, Known
from lab.chaos.layout import PROFILES
from lab.chaos.ledger import OF_GPUS, Fault, Ledger, Weapon
from lab.chaos.machine import Machine
from lab.chaos.operators import Operator
from lab.chaos.setting import GENERATION_MODELS, MODELS
from lab.harness import processes
from lab.harness.redis_server import RedisServer
from supervisor.core.machine.values import Phase

PHASES = tuple(phase.value for phase in Phase if phase is not Phase.READY)
"""The phases of a switch, as the product names them; `ready` is its end, and takes no time."""

_WITHOUT_SERVER = {Phase.CONFIRMING}
"""Where nothing runs on an exclusive device, so that only the controller can be hit."""

_AFTER_A_FAILURE = {Phase.ROLLING_BACK, Phase.RESTORING}
"""What comes only where a switch fails, and so must be brought about."""

_BY_HAND = 0.3
_AIM_S = 3.0
_TRIES = 2
_SERVER_WITHIN_S = 1.0
_LONG_STOP_S = 3.0  # longer than the drain and the grace of a stop
_POLL_S = 0.002
_SWEEP_MEETS_S = 0.3  # a server that was being launched just now
_TARGETS = tuple((model, profile) for model in MODELS for profile in PROFILES[model])
_SERVER_WEAPONS = frozenset({Weapon.KILL, Weapon.SEGV, Weapon.STOP})
_SIGNALS = {
    Weapon.KILL: signal.SIGKILL,
    Weapon.SEGV: signal.SIGSEGV,
    Weapon.STOP: signal.SIGSTOP,
    Weapon.WORKER_KILL: signal.SIGKILL,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """A fault to come: with what, at which phase, and of a switch to what.

    `is_by_hand`: that switch is ordered; else one of the scheduler's is waited for.
    """

    weapon: Weapon
    phase: str
    model: str
    profile: str
    prompt: str
    stopped_s: float
    is_exclusive: bool
    is_by_hand: bool
    delay_s: float
    pause_s: float
    device: int


def draw_shots(choices: random.Random, weapons: Sequence[Weapon] = tuple(Weapon)) -> Iterator[Shot]:
    """Yield shots for ever: each weapon at each phase once, in random order, then all again."""
    while weapons:
        aims = [
            (weapon, phase)
            for weapon, phase in product(weapons, (*PHASES, SERVING))
            if phase not in _WITHOUT_SERVER or weapon not in _SERVER_WEAPONS
        ]
        choices.shuffle(aims)
        for weapon, phase in aims:
            model = choices.choice(MODELS)
            yield Shot(
                weapon=weapon,
                phase=phase,
                model=model,
                profile=choices.choice(PROFILES[model]),
                prompt=choices.choice(PROMPTS),
                stopped_s=choices.uniform(0.2, 2.0),
                is_exclusive=choices.random() < 0.65,
                is_by_hand=choices.random() < _BY_HAND,
                delay_s=choices.choice((0.0, 0.0, choices.uniform(0, 0.15))),
                pause_s=choices.uniform(0.1, 1.5),
                device=choices.randrange(2),
            )


class Marksman:
    """Fires one shot after the other. A phase that did not come within a bound is a miss."""

    def __init__(  # noqa: PLR0913 - all of them are what it hits, and who tells it when
        self,
        *,
        controller: Controller,
        disk: Disk,
        queue: RedisServer | None,
        machine: Machine | None,
        ledger: Ledger,
        operator: Operator,
        exchanger: Exchanger,
        known: Known,
    ) -> None:
        self._controller = controller
        self._disk = disk
        self._queue = queue
        self._machine = machine
        self._ledger = ledger
        self._operator = operator
        self._exchanger = exchanger
        self._known = known
        self._tasks: set[asyncio.Task[Any]] = set()

    async def play(self, shots: Iterator[Shot], is_over: Callable[[], bool]) -> None:
        """Fire until the storm is over; then everything that was stopped goes on."""
        async with aiohttp.ClientSession() as client:
            for shot in shots:
                if is_over():
                    break
                if await self._aim(client, shot):
                    await asyncio.sleep(shot.delay_s)
                    await self._fire(client, shot)
                await asyncio.sleep(shot.pause_s)
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _aim(self, client: aiohttp.ClientSession, shot: Shot) -> bool:
        """Begin a switch, and wait for its phase. Returns whether it came.

        A switch that does not come to the phase, because the target is live already or all went
        well, is followed by one to another target.
        """
        deadline = time.monotonic() + _AIM_S
        if shot.phase == SERVING:
            return await self._until_phase(client, SERVING, deadline)
        if not shot.is_by_hand and shot.phase not in _AFTER_A_FAILURE:
            await self._prepare(client, shot)
            return await self._until_phase(client, shot.phase, deadline, follows=True)
        first = _TARGETS.index((shot.model, shot.profile))
        for model, profile in (*_TARGETS[first:], *_TARGETS[:first])[::2][:_TRIES]:
            await self._prepare(client, shot)
            target = {"model_name": model, "profile": profile}
            beginning = asyncio.create_task(self._operator.begin(target, "cancel"), name="begin")
            is_met = await self._is_met(client, shot.phase, deadline, beginning)
            await beginning
            if is_met:
                return True
        self._ledger.note(f"{shot.phase} did not come for {shot.weapon}")
        return False

    async def _prepare(self, client: aiohttp.ClientSession, shot: Shot) -> None:
        """Let phases last that would be over at once: idle servers drain and stop in no time."""
        if shot.phase == Phase.STOPPING:
            for pid in self._controller.servers()[-1:]:
                self._hit(pid, Weapon.STOP, "serving, for a long stop")
                self._continue(pid, _LONG_STOP_S)
        elif shot.phase == Phase.DRAINING:
            for model in GENERATION_MODELS:
                request = slow_stream(self._known, model, shot.prompt)
                stream = self._exchanger.exchange(request, Temper(pause_per_event_s=0.03))
                self._keep(asyncio.create_task(stream, name="drained-stream"))
            await self._until_in_flight(client)

    async def _is_met(
        self,
        client: aiohttp.ClientSession,
        phase: str,
        deadline: float,
        beginning: asyncio.Task[str | None],
    ) -> bool:
        """Wait for a phase of the switch that begins; a rollback is brought about."""
        if phase == Phase.ROLLING_BACK:
            if not await self._until_phase(client, Phase.STARTING, deadline, beginning):
                return False
            for pid in await self._await_servers():
                self._hit(pid, Weapon.KILL, "starting, for a rollback")
        return await self._until_phase(client, phase, deadline, beginning)

    async def _until_phase(
        self,
        client: aiohttp.ClientSession,
        phase: str,
        deadline: float,
        beginning: asyncio.Task[str | None] | None = None,
        *,
        follows: bool = False,
    ) -> bool:
        """Poll until a switch is in the phase; give up when it has begun, and runs no more.

        The short phases are over when the order is answered, so that it cannot be awaited first.
        With `follows`, one switch after the other is looked at, whoever wants them.
        """
        while time.monotonic() < deadline:
            switch_id = None
            if beginning is not None and beginning.done():
                switch_id = beginning.result()
            is_last = not follows and (beginning is None or beginning.done())
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                now = await self._phase(client, switch_id)
                if now == phase or (now == SERVING and is_last):
                    return now == phase
            await asyncio.sleep(_POLL_S)
        return False

    async def _phase(self, client: aiohttp.ClientSession, switch_id: str | None) -> str:
        """Read the phase of a switch, or of the one that runs, whichever it is.

        /switches/ID is answered several times as fast as /status, which reads the memory.
        """
        if switch_id is None:
            switch = (await self._get(client, "/status")).get("switch")
        else:
            switch = await self._get(client, f"/switches/{switch_id}")
        return str(switch["phase"]) if switch and "phase" in switch else SERVING

    async def _until_in_flight(self, client: aiohttp.ClientSession) -> None:
        """Wait until a server has something to do, if that comes soon."""
        deadline = time.monotonic() + _SERVER_WITHIN_S
        while time.monotonic() < deadline:
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                requests = (await self._get(client, "/status")).get("requests", {})
                if requests.get("in_flight"):
                    return
            await asyncio.sleep(_POLL_S)

    async def _get(self, client: aiohttp.ClientSession, path: str) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=2)
        async with client.get(self._controller.url + path, timeout=timeout) as answer:
            content: dict[str, Any] = await answer.json()
            return content

    async def _fire(self, client: aiohttp.ClientSession, shot: Shot) -> None:
        match shot.weapon:
            case Weapon.DISK_FULL:
                await self._fill_disk(shot)
            case Weapon.SWEEP:
                await self._sweep(shot)
            case Weapon.QUEUE_KILL:
                await self._restart_queue(shot)
            case Weapon.WORKER_KILL:
                self._kill_workers(shot)
            case _ if shot.weapon in OF_GPUS:
                await self._strike_gpus(shot)
            case Weapon.CONTROLLER_KILL | Weapon.CONTROLLER_TERM:
                await self._replace_controller(client, shot)
            case _:
                await self._signal(shot)

    async def _fill_disk(self, shot: Shot) -> None:
        """Leave no room on the disk for a while; what runs must go on."""
        at = time.time()
        self._note_fault(at, shot.weapon, self._controller.pid, shot.phase)
        try:
            self._disk.fill()
            await asyncio.sleep(shot.stopped_s)
        finally:
            self._disk.free()
            self._ledger.full_disks.append((at, time.time()))

    async def _restart_queue(self, shot: Shot) -> None:
        """Kill the server of the queue, and start it again on what it has on its disk."""
        if self._queue is not None:
            self._note_fault(time.time(), shot.weapon, self._controller.pid, shot.phase)
            self._queue.kill()
            await asyncio.sleep(shot.stopped_s)
            await asyncio.to_thread(self._queue.start)

    def _kill_workers(self, shot: Shot) -> None:
        """Kill what keeps the vectors and what reads documents, where they run."""
        for pid in processes.workers_of(self._controller.pid):
            self._hit(pid, shot.weapon, shot.phase)

    async def _strike_gpus(self, shot: Shot) -> None:
        """Hang or kill what reads the GPUs, lose one, give one to a tenant, or free it late."""
        if self._machine is not None:
            pids = (self._controller.pid, *self._controller.servers())
            self._note_fault(time.time(), shot.weapon, pids[0], shot.phase)
            await self._machine.strike(shot.weapon, shot.device, shot.stopped_s, pids)

    async def _sweep(self, shot: Shot) -> None:
        """Take the sockets away from the servers, and from one that is about to listen."""
        hit, at = set[int](), time.time()
        self._disk.sweep_sockets()
        while time.time() < at + _SWEEP_MEETS_S:
            for pid in set(self._controller.servers()) - hit:
                hit.add(pid)
                self._note_fault(at, shot.weapon, pid, shot.phase)
            await asyncio.sleep(_POLL_S)

    async def _signal(self, shot: Shot) -> None:
        for pid in await self._await_servers():
            self._hit(pid, shot.weapon, shot.phase)
            if shot.weapon is Weapon.STOP:
                self._continue(pid, shot.stopped_s)

    def _continue(self, pid: int, after_s: float) -> None:
        self._keep(asyncio.create_task(_continue_later(pid, after_s), name=f"continue-{pid}"))

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _await_servers(self) -> Sequence[int]:
        """Return the newest server, as soon as there is one."""
        deadline = time.monotonic() + _SERVER_WITHIN_S
        while not (servers := self._controller.servers()):
            if time.monotonic() > deadline:
                return ()
            await asyncio.sleep(_POLL_S)
        return servers[-1:]

    def _hit(self, pid: int, weapon: Weapon, aimed_at: str) -> None:
        at = time.time()
        if processes.send(pid, _SIGNALS[weapon]):
            self._note_fault(at, weapon, pid, aimed_at)

    def _note_fault(self, at: float, weapon: Weapon, pid: int, aimed_at: str) -> None:
        self._ledger.faults.append(Fault(at=at, weapon=weapon, pid=pid, aimed_at=aimed_at))

    async def _replace_controller(self, client: aiohttp.ClientSession, shot: Shot) -> None:
        """End the controller; its successor must know the history of switches."""
        before = await self._history(client)
        ended_at = time.time()
        await self._controller.restart(shot.weapon, shot.phase, is_exclusive=shot.is_exclusive)
        after = await self._history(client)
        for problem in history.forgotten(before, after, ended_at, self._ledger.may_be_unwritten):
            self._ledger.violate("history", problem)

    async def _history(self, client: aiohttp.ClientSession) -> list[dict[str, Any]]:
        try:
            return list((await self._get(client, "/switches")).get("switches", ()))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self._ledger.note(f"the history could not be read: {error!r}")
            return []


async def _continue_later(pid: int, after_s: float) -> None:
    try:
        await asyncio.sleep(after_s)
    finally:
        processes.send(pid, signal.SIGCONT)
