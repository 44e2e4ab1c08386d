"""What the controller's log tells of one run of it: servers, phases, requests, errors."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

SERVING = "serving"
"""Any time without a switch, beside the phases of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseBegun:
    """A switch entered a phase; `phase` is `ended` when it is over."""

    at: float
    switch_id: str
    phase: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchRun:
    """A switch that has ended; `model` is its target, None for an unload.

    `reason`: why it failed, where it did.
    """

    model: str | None
    requested_by: str
    outcome: str
    began_at: float
    ended_at: float
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """How long a request waited for its model: until it was let in, or was over without that."""

    arrived_at: float
    over_at: float
    was_let_in: bool


@dataclass(slots=True, kw_only=True)
class Facts:
    """One controller process.

    `request_epochs`: the server that a request was given to last. `waits`: by request. `died`: when
    one died by itself, its epoch and its model. `retiring`: since when a server ends its last
    requests behind its successor, and the switch that replaced it.
    `troubles`: log events of level error, and lines that are not log events, such as tracebacks.
    """

    began_at: float
    ended_at: float
    pid_by_epoch: dict[int, int] = field(default_factory=dict)
    died: list[tuple[float, int, str]] = field(default_factory=list)
    retiring: dict[int, tuple[float, str]] = field(default_factory=dict)
    phases: list[PhaseBegun] = field(default_factory=list)
    switches: list[SwitchRun] = field(default_factory=list)
    waits: dict[str, Wait] = field(default_factory=dict)
    request_epochs: dict[str, int] = field(default_factory=dict)
    troubles: list[tuple[float, str]] = field(default_factory=list)

    def phase_at(self, at: float) -> str:
        """Return the phase of the switch that ran at a moment; `serving` when none did."""
        phase = SERVING
        for begun in self.phases:
            if begun.at > at:
                break
            phase = begun.phase
        return SERVING if phase == "ended" else phase


def read_facts(log: Path, began_at: float, ended_at: float) -> Facts:
    """Read the log of one controller process."""
    facts = Facts(began_at=began_at, ended_at=ended_at)
    with log.open(encoding="utf-8", errors="replace") as lines:
        add_lines(facts, lines)
    return facts


def add_lines(facts: Facts, lines: Iterable[str]) -> None:
    """Take what log lines tell into the facts. Half a line at the end is that of a killed one."""
    at, was_trouble = facts.began_at, False
    for line in lines:
        try:
            event = json.loads(line)
            at = datetime.fromisoformat(event["timestamp"]).timestamp()
        except (ValueError, KeyError, TypeError):
            if line.endswith("\n") and line.strip():
                _add_trouble(facts, at, line.rstrip(), goes_on=was_trouble)
                was_trouble = True
            continue
        was_trouble = False
        _add_event(facts, at, event)


def _add_event(facts: Facts, at: float, event: Mapping[str, Any]) -> None:
    kind, _, _ = event["event"].partition(".")
    is_error = event.get("level") in {"error", "critical"}
    if is_error and event["event"] != "backend.lost":  # a death follows, and is judged as one
        facts.troubles.append((at, json.dumps(event)))
    elif kind == "backend":
        _add_server(facts, at, event)
    elif kind == "switch":
        _add_switch(facts, at, event)
    elif event["event"] == "request.done" and event.get("request_id") is not None:
        _add_request(facts, at, event)


def _add_request(facts: Facts, at: float, event: Mapping[str, Any]) -> None:
    request_id, epoch = event["request_id"], event.get("epoch")
    if epoch is not None:
        facts.request_epochs[request_id] = epoch
    arrived_at = at - event.get("took_s", 0.0)
    over_at = at if epoch is None else arrived_at + event.get("waited_s", 0.0)
    facts.waits[request_id] = Wait(
        arrived_at=arrived_at, over_at=over_at, was_let_in=epoch is not None
    )


def _add_server(facts: Facts, at: float, event: Mapping[str, Any]) -> None:
    match event["event"]:
        case "backend.spawned":
            facts.pid_by_epoch[event["epoch"]] = event["pid"]
        case "backend.retiring":  # told right behind the end of the switch
            facts.retiring[event["epoch"]] = (at, facts.phases[-1].switch_id)
        case "backend.died":
            facts.died.append((at, event["epoch"], event["model"]))


def _add_switch(facts: Facts, at: float, event: Mapping[str, Any]) -> None:
    match event["event"]:
        case "switch.phase":
            phase = event["phase"]
        case "switch.finished" | "switch.failed" if event["outcome"] != "unchanged":
            phase = "ended"
            _add_run(facts, at, event)
        case _:  # it changed nothing, and never ran
            return
    facts.phases.append(PhaseBegun(at=at, switch_id=event["switch_id"], phase=phase))


def _add_run(facts: Facts, at: float, event: Mapping[str, Any]) -> None:
    began_at = next(
        (begun.at for begun in facts.phases if begun.switch_id == event["switch_id"]), at
    )
    facts.switches.append(
        SwitchRun(
            model=event.get("model"),
            requested_by=event.get("requested_by", ""),
            outcome=event["outcome"],
            began_at=began_at,
            ended_at=at,
            reason=str(event.get("reason") or "") if event["outcome"] == "failed" else "",
        )
    )


def _add_trouble(facts: Facts, at: float, line: str, *, goes_on: bool) -> None:
    """Note a line that is not a log event; those of one traceback are one trouble."""
    if goes_on:
        at, line = facts.troubles[-1][0], f"{facts.troubles.pop()[1]}\n{line}"
    facts.troubles.append((at, line))


def interleaved(facts: Facts) -> list[tuple[float, str]]:
    """Return where a switch began or went on while another one ran: two at once."""
    found = []
    running: str | None = None
    for begun in facts.phases:
        if running is not None and begun.switch_id != running:
            found.append(
                (begun.at, f"{begun.switch_id} is {begun.phase} while {running} has not ended")
            )
        running = None if begun.phase == "ended" else begun.switch_id
    return found


def unexpected_deaths(
    facts: Facts, ended_pids: frozenset[int], doomed: str
) -> list[tuple[float, str]]:
    """Return the servers that died although nobody ended them.

    `doomed` is the model that may die, for its file is cut short between the check and the load.
    """
    return [
        (at, f"the server of '{model}' (epoch {epoch}, pid {facts.pid_by_epoch.get(epoch)}) died")
        for at, epoch, model in facts.died
        if facts.pid_by_epoch.get(epoch) not in ended_pids and model != doomed
    ]
