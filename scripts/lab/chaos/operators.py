"""Operators: they switch at random, also to corrupt files, and follow what they began."""

import asyncio
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lab.chaos.controller import Controller
from lab.chaos.exchange import PATIENT, Answer, Exchanger, Request, Temper
from lab.chaos.layout import CORRUPT, PROFILES, SWAPPED, ModelFiles
from lab.chaos.ledger import Entry, Ledger, Order
from lab.chaos.setting import MODELS

SWITCH_REFUSALS = frozenset(
    {
        "switch_in_progress",
        "drain_refused",
        "shutting_down",
        "backend_died",
        "backend_start_timeout",
        "memory_not_released",
        "telemetry_lost",
        "target_does_not_fit",
    }
)
"""What an operator may be told in a storm. That a server died by itself is found in the log, and so
is a refusal for want of memory that nothing had taken."""

_FOLLOW_BOUND_S = 40.0
_UNTOUCHED = {"preflight", "total"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What an operator wants next."""

    action: str
    model: str
    profile: str
    corrupt: str
    does_wait: bool
    policy: str | None
    leaves_after_s: float | None
    pause_s: float


def draw_wish(choices: random.Random) -> Wish:
    """Draw the next wish: always the same number of choices, whatever is wanted."""
    action = choices.choices(
        ("switch", "corrupt", "swapped", "unload", "restart"), (70, 10, 8, 4, 8)
    )[0]
    model = choices.choice(MODELS)
    leaves_after_s = choices.uniform(0.01, 0.5)
    return Wish(
        action=action,
        model=model,
        profile=choices.choice(PROFILES[model]),
        corrupt=choices.choice(CORRUPT),
        does_wait=choices.random() < 0.75,
        policy=choices.choice((None, "wait", "cancel", "refuse")),
        leaves_after_s=leaves_after_s if choices.random() < 0.1 else None,
        pause_s=choices.uniform(0.5, 4.0),
    )


class Operator:
    """Orders switches, and notes each with its drain policy."""

    def __init__(
        self, exchanger: Exchanger, controller: Controller, ledger: Ledger, files: ModelFiles
    ) -> None:
        self._exchanger = exchanger
        self._controller = controller
        self._ledger = ledger
        self._files = files

    async def play(self, choices: random.Random, is_over: Callable[[], bool]) -> None:
        """Fulfil one wish after the other until the storm is over."""
        while True:
            wish = draw_wish(choices)
            await self._controller.is_up.wait()
            if is_over():
                return
            await self._fulfil(wish)
            await asyncio.sleep(wish.pause_s)

    async def _fulfil(self, wish: Wish) -> None:
        match wish.action:
            case "switch":
                temper = Temper(leave_after_s=wish.leaves_after_s)
                order = {"model_name": wish.model, "profile": wish.profile}
                await self.order(order, wish.policy, temper, does_wait=wish.does_wait)
            case "corrupt":
                await self._ask(wish.corrupt, None, frozenset({200, 422}), _corrupt_fault)
            case "swapped":
                statuses = frozenset({200, 422})
                await self._ask(SWAPPED, wish.policy, statuses, self._swapped_fault())
            case _:
                path = "/unload" if wish.action == "unload" else "/backend/restart"
                may_refuse = SWITCH_REFUSALS | {"nothing_is_down", "place_is_taken"}
                if wish.action == "restart":
                    may_refuse |= {"target_cannot_start"}  # the swapped file may be cut short now
                await self._exchanger.exchange(
                    Request(kind=wish.action, path=path, may_refuse=may_refuse)
                )

    async def order(
        self,
        target: dict[str, str],
        policy: str | None,
        temper: Temper = PATIENT,
        *,
        does_wait: bool,
    ) -> tuple[Entry, Any]:
        """Order a switch between whole models; without waiting, follow it to its end apart."""

        def find_fault(answer: Answer) -> str | None:
            return order_fault(target, answer)

        body: dict[str, Any] = {**target, "wait": does_wait}
        entry, content = await self._send(
            Request(
                kind="switch",
                path="/switch-backend",
                model=target["model_name"],
                body=json.dumps(body | ({"drain_policy": policy} if policy else {})).encode(),
                right_statuses=frozenset({200}) if does_wait else frozenset({202}),
                may_refuse=SWITCH_REFUSALS,
                find_fault=find_fault,
            ),
            policy,
            temper,
        )
        if entry.seen.status == 202:
            await self._follow(content["switch_id"])
        return entry, content

    async def begin(self, target: dict[str, str], policy: str) -> str | None:
        """Order a switch without waiting; returns its id, or that of the one that runs instead."""
        body = json.dumps({**target, "wait": False, "drain_policy": policy}).encode()
        _, content = await self._send(
            Request(
                kind="switch",
                path="/switch-backend",
                model=target["model_name"],
                body=body,
                right_statuses=frozenset({202}),
                may_refuse=SWITCH_REFUSALS,
            ),
            policy,
            PATIENT,
        )
        if not isinstance(content, dict):
            return None
        found = content.get("switch_id") or content.get("error", {}).get("switch_id")
        return str(found) if found else None

    async def _ask(
        self,
        model: str,
        policy: str | None,
        statuses: frozenset[int],
        find_fault: Callable[[Answer], str | None],
    ) -> None:
        order = {"model_name": model} | ({"drain_policy": policy} if policy else {})
        request = Request(
            kind="corrupt file",
            path="/switch-backend",
            model=model,
            body=json.dumps(order).encode(),
            right_statuses=statuses,
            may_refuse=SWITCH_REFUSALS,
            find_fault=find_fault,
        )
        await self._send(request, policy, PATIENT)

    async def _send(
        self, request: Request, policy: str | None, temper: Temper
    ) -> tuple[Entry, Any]:
        sent_at = time.time()
        entry, content = await self._exchanger.exchange(request, temper)
        if switch_id := _switch_id(content):
            self._ledger.orders.append(Order(switch_id=switch_id, policy=policy, sent_at=sent_at))
        return entry, content

    async def _follow(self, switch_id: str) -> None:
        """Poll a switch until it has ended; its controller must not forget it."""
        pid, deadline = self._controller.pid, time.monotonic() + _FOLLOW_BOUND_S
        request = Request(
            kind="follow",
            path=f"/switches/{switch_id}",
            method="GET",
            right_statuses=frozenset({200}),
            may_refuse=frozenset({"switch_not_found"}),
        )
        while time.monotonic() < deadline and self._controller.pid == pid:
            entry, content = await self._exchanger.exchange(request)
            if entry.seen.code == "switch_not_found" and self._controller.pid == pid:
                self._ledger.violate("history", f"{switch_id} was accepted (202) and is not found")
                return
            if entry.seen.status != 200 or content["outcome"] != "running":
                return
            await asyncio.sleep(0.2)
        if self._controller.pid == pid:
            self._ledger.violate("lost", f"{switch_id} has not ended in {_FOLLOW_BOUND_S:g} s")

    def _swapped_fault(self) -> Callable[[Answer], str | None]:
        """Return what judges a switch to the swapped model; its file must stay meanwhile."""
        swaps, is_whole = self._files.swaps, self._files.is_whole

        def find_fault(answer: Answer) -> str | None:
            if self._files.swaps != swaps:
                return None
            if answer.status == 422 and is_whole:
                code = answer.content["error"]["code"]
                return "a whole file was refused" if code == "target_cannot_start" else None
            is_start = answer.status == 200 and answer.content["outcome"] == "switched"
            return "a corrupt file was switched to" if is_start and not is_whole else None

        return find_fault


def order_fault(target: dict[str, str], answer: Answer) -> str | None:
    """Say what is wrong with the report of a switch that succeeded."""
    if answer.status != 200:
        return None
    report = answer.content
    if report["outcome"] not in {"switched", "unchanged"}:
        return f"200 with the outcome {report['outcome']!r}"
    got = (report["model"], report["profile"])
    wanted = (target["model_name"], target.get("profile", got[1]))
    return None if got == wanted else f"asked for {wanted}, switched to {got}"


def _corrupt_fault(answer: Answer) -> str | None:
    """A corrupt file is refused before anything is touched."""
    if answer.status == 200:
        return "a corrupt file was switched to"
    touched = set(answer.content["error"]["switch"]["seconds"]) - _UNTOUCHED
    if touched:
        return f"refused only after the phases {sorted(touched)}"
    code = answer.content["error"]["code"]
    return None if code == "target_cannot_start" else f"refused as {code}"


def _switch_id(content: Any) -> str | None:
    if not isinstance(content, dict):
        return None
    if content.get("error"):
        content = content["error"].get("switch") if isinstance(content["error"], dict) else None
    found = content.get("switch_id") if isinstance(content, dict) else None
    return str(found) if found else None
