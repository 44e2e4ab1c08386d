"""One run: known answers, the storm, the calm after it, and the balance."""

import asyncio
import random
import shutil
import time
from collections.abc import Callable
from typing import Any

import psutil

from lab.chaos import clients, history
from lab.chaos.balance import Balance, draw_balance, policies_of
from lab.chaos.batches import BatchClient
from lab.chaos.controller import Controller
from lab.chaos.documents import DocumentClient
from lab.chaos.exchange import Exchanger, Request
from lab.chaos.facts import read_facts
from lab.chaos.faults import Marksman, draw_shots
from lab.chaos.heads import judge_all
from lab.chaos.judging import Scene
from lab.chaos.known import PROMPTS, TEXTS, Known
from lab.chaos.layout import PROFILES, Layout, ModelFiles
from lab.chaos.ledger import OF_GPUS, Ledger, Violation, Weapon
from lab.chaos.machine import Machine, refused_for_nothing
from lab.chaos.operators import Operator
from lab.chaos.setting import (
    CALM_BOUND_S,
    DRAIN_TIMEOUT_S,
    EMBEDDING_MODEL,
    MODELS,
    REQUEST_BOUND_S,
    Setting,
)
from lab.harness.command import say
from supervisor.gateway.error_responses import STATUS_BY_CODE

RESIDENT_BOUND_MB = 150
"""What the controller may hold after the storm; it holds about half of it."""

DESCRIPTORS_BOUND = 100
"""Files and sockets that it may have open when nobody asks for anything."""

_CALM_PAUSE_S = 0.2
_WATCH_PAUSE_S = 0.02
_BOUNDS_PAUSE_S = 0.3


class Storm:
    """One run with its parts; `run()` makes it."""

    def __init__(self, setting: Setting, known: Known) -> None:
        self._setting = setting
        self._known = known
        self.ledger = Ledger()
        self._layout = Layout(setting)
        self._machine = Machine(setting) if setting.devices else None
        self.controller = Controller(setting, self._layout, self.ledger, self._machine)
        self._exchanger = Exchanger(self.controller.url, self.ledger)
        self._batches = BatchClient(self._exchanger, self.controller, self.ledger, known)
        self._documents = DocumentClient(self._exchanger, self.controller, self.ledger)
        self._operator = Operator(self._exchanger, self.controller, self.ledger, self._layout.files)

    async def run(self) -> Balance:
        """Make the run. Raises LabError when it cannot be made. Leaves no process."""
        try:
            if self._layout.queue is not None:
                await asyncio.to_thread(self._layout.queue.start)
            await self.controller.start(is_exclusive=True)
            say(f"storm of {self._setting.seconds:g} s …")
            await self._rage()
            say("calm …")
            figures = await self._batches.settle() | await self._documents.settle()
            figures |= await self._calm()
            records = await self._records()
            await self._end()
        finally:
            self.controller.kill_all()
            self._layout.disk.close()
            if self._layout.queue is not None:
                self._layout.queue.kill()
            if self._machine is not None:
                self._machine.close()
        return self._draw(figures, records)

    async def _rage(self) -> None:
        """Let everybody act until the time is over, and let what is in flight come to its end."""
        ends_at = time.monotonic() + self._setting.seconds

        def is_over() -> bool:
            return time.monotonic() >= ends_at

        marksman = Marksman(
            controller=self.controller,
            disk=self._layout.disk,
            queue=self._layout.queue,
            machine=self._machine,
            ledger=self.ledger,
            operator=self._operator,
            exchanger=self._exchanger,
            known=self._known,
        )
        choose = self._setting.choices
        weapons = [weapon for weapon in Weapon if weapon.kind in self._setting.faults]
        if self._machine is None:
            weapons = [weapon for weapon in weapons if weapon not in OF_GPUS]
        if not self._layout.disk.can_be_full and Weapon.DISK_FULL in weapons:
            weapons.remove(Weapon.DISK_FULL)
            say("  the disk is never full: this user can neither mount one nor be refused")
        if self._layout.queue is None and Weapon.QUEUE_KILL in weapons:
            weapons.remove(Weapon.QUEUE_KILL)
        shots = draw_shots(choose("marksman"), weapons)
        async with asyncio.timeout(self._setting.seconds + 2 * REQUEST_BOUND_S):
            async with asyncio.TaskGroup() as group:
                for name, steps in clients.crowd(self._known, self._setting).items():
                    group.create_task(
                        clients.play(steps, self._exchanger, self.controller, is_over), name=name
                    )
                group.create_task(self._batches.play(choose("batches"), is_over))
                group.create_task(self._documents.play(choose("documents"), is_over))
                group.create_task(self._operator.play(choose("operator"), is_over))
                group.create_task(marksman.play(shots, is_over))
                group.create_task(change_files(self._layout.files, self.ledger, choose, is_over))
                group.create_task(
                    watch_servers(self.controller, self._machine, self.ledger, is_over)
                )
                group.create_task(self._watch_bounds(is_over))
        await self.controller.settle()

    async def _watch_bounds(self, is_over: Callable[[], bool]) -> None:
        """Note what /status promises to the heads of the queues until the storm is over."""
        while not is_over():
            await self.controller.is_up.wait()
            _, content = await self._exchanger.exchange(
                Request(kind="state", path="/status", method="GET")
            )
            if isinstance(content, dict) and "scheduling" in content:
                models = content["scheduling"]["models"]
                waits_s = {name: each["longest_wait_s"] for name, each in models.items()}
                self.ledger.bounds.append((time.time(), waits_s))
            await asyncio.sleep(_BOUNDS_PAUSE_S)

    async def _calm(self) -> dict[str, float]:
        """Each model must be served once more; then the controller must be as small as before."""
        for model in MODELS:
            began_at = time.monotonic()
            if not await self._serve_once(model, began_at + CALM_BOUND_S):
                self.ledger.violate("calm", f"{model} was not served within {CALM_BOUND_S:g} s")
            say(f"  {model} served after {time.monotonic() - began_at:.1f} s")
        process = psutil.Process(self.controller.pid)
        figures = {
            "resident_mb": round(process.memory_info().rss / 1e6, 1),
            "descriptors": float(process.num_fds()),
            "controllers": float(len(self.controller.lives)),
        }
        if figures["resident_mb"] > RESIDENT_BOUND_MB:
            self.ledger.violate("memory", f"the controller holds {figures['resident_mb']} MB")
        if figures["descriptors"] > DESCRIPTORS_BOUND:
            self.ledger.violate("memory", f"{figures['descriptors']:g} descriptors are open")
        return figures

    async def _serve_once(self, model: str, deadline: float) -> bool:
        if model == EMBEDDING_MODEL:
            request = clients.embedding(self._known, TEXTS[0])
        else:
            request = clients.chat(self._known, model, PROMPTS[0], "chat")
        target = {"model_name": model, "profile": PROFILES[model][0]}
        while time.monotonic() < deadline:
            entry, _ = await self._operator.order(target, None, does_wait=True)
            if entry.seen.status == 200:
                served, _ = await self._exchanger.exchange(request)
                if served.seen.status == 200:
                    return True
            await asyncio.sleep(_CALM_PAUSE_S)
        return False

    async def _records(self) -> list[dict[str, Any]]:
        """Read the history, and hold it against itself."""
        _, content = await self._exchanger.exchange(
            Request(kind="state", path="/switches", method="GET")
        )
        records: list[dict[str, Any]] = content["switches"] if content else []
        for problem in history.problems_of(records):
            self.ledger.violate("history", problem)
        return records

    async def _end(self) -> None:
        """SIGTERM ends the controller and all that is its own; nothing is left in its folders."""
        await self.controller.end(Weapon.CONTROLLER_TERM)
        code = self.controller.life.server.process.returncode
        if code != 0:
            self.ledger.violate("exit", f"SIGTERM ended it with {code}")
        await self.controller.find_orphans()
        left = [*self._layout.data.glob("run-*"), *self._layout.temporary.iterdir()]
        left += self._layout.data.glob("children.json")
        if left:
            self.ledger.violate("files", f"left behind: {', '.join(p.name for p in left)}")

    def _draw(self, figures: dict[str, float], records: list[dict[str, Any]]) -> Balance:
        lives = self.controller.lives
        facts = [
            read_facts(life.server.log, life.began_at, life.ended_at or time.time())
            for life in lives
        ]
        for problem in history.unlisted(facts, records, self.ledger.may_be_unwritten):
            self.ledger.violate("history", problem)
        if self._machine is not None:
            self.ledger.faults.extend(self._machine.starved())
            figures["shares_taken"] = float(self._machine.starts())
            runs = [run for each in facts for run in each.switches]
            for rule, broken in (
                ("no room", self._machine.overcommitted()),
                ("false refusal", refused_for_nothing(runs, self.ledger.faults)),
            ):
                found = [Violation(at=at, rule=rule, what=what) for at, what in broken]
                self.ledger.violations.extend(found)
        is_one_device = self._machine is None  # with two, a head waits for more than one turn
        alone = [
            each
            for each, life in zip(facts, lives, strict=True)
            if life.is_exclusive and is_one_device
        ]
        promise = judge_all(self.ledger.entries, alone, self.ledger.faults, self.ledger.bounds)
        self.ledger.violations.extend(promise.violations)
        figures |= {"heads": promise.heads, "heads_held_by_faults": promise.held}
        scene = Scene(
            facts=facts,
            faults=self.ledger.faults,
            outages=self.controller.outages,
            policies=policies_of(self.ledger, facts),
            statuses=STATUS_BY_CODE,
            drain_timeout_s=DRAIN_TIMEOUT_S,
        )
        return draw_balance(self.ledger, scene, figures)

    def keep_logs(self, folder: Any) -> None:
        """Copy the controllers' logs out of the temporary folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for life in self.controller.lives:
            shutil.copy(life.server.log, folder)


async def change_files(
    files: ModelFiles,
    ledger: Ledger,
    choose: Callable[[str], random.Random],
    is_over: Callable[[], bool],
) -> None:
    """Swap and corrupt model files until the storm is over."""
    choices = choose("files")
    while not is_over():
        files.change(choices, ledger)
        await asyncio.sleep(choices.uniform(0.1, 0.8))


async def watch_servers(
    controller: Controller, machine: Machine | None, ledger: Ledger, is_over: Callable[[], bool]
) -> None:
    """Look at the controller's servers until the storm is over; each pair of them is noted once."""
    seen: set[frozenset[int]] = set()
    while not is_over():
        servers = frozenset(controller.servers())
        on_devices = [servers]
        if machine is not None:
            on_devices = [servers & machine.holders(device) for device in range(machine.count)]
        for together in on_devices:
            if controller.life.is_exclusive and len(together) > 1 and together not in seen:
                seen.add(together)
                ledger.violate("two servers", f"{set(together)} are on an exclusive device at once")
        await asyncio.sleep(_WATCH_PAUSE_S)
