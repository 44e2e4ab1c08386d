"""What a switch takes beyond what the servers themselves take to stop and to start."""

import time
from collections import defaultdict
from statistics import median
from typing import Any

from lab.bench.report import Figure, compare
from lab.harness.command import say
from lab.harness.servers import ChildCommand, Controller, Endpoint
from lab.harness.setting import EMBEDDING_MODEL, Setting

NAME = "switch"
MODELS = ("demo-chat", EMBEDDING_MODEL)

DWELL_S = 0.2
"""How long a bare server runs before it is stopped, so that its start-up work is over."""

MS = 1000


def measure(setting: Setting, name: str = NAME, at_most_ms: float = 60) -> Figure:
    """Switch to and fro; before each switch, start and stop the bare server that will leave.

    The bare server listens on a unix socket, as the controller's child does, so that only the
    path differs between both command lines. It is looked at every millisecond.
    """
    starts_s, stops_s = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    switches: list[tuple[str, str, float, dict[str, Any]]] = []
    with Controller(setting) as controller:
        commands = {model: controller.load(model) for model in (*MODELS[1:], MODELS[0])}
        for number in range(setting.switches):
            leaving, coming = MODELS[number % 2], MODELS[(number + 1) % 2]
            start_s, stop_s = _start_and_stop(commands[leaving], setting)
            starts_s[leaving].append(start_s)
            stops_s[leaving].append(stop_s)
            started_at = time.monotonic()
            report = controller.switch_to(coming)
            switches.append((leaving, coming, time.monotonic() - started_at, report["seconds"]))
    say(f"  switch: {len(switches)} switches")
    bare_s = [
        median(stops_s[leaving]) + median(starts_s[coming]) for leaving, coming, _, _ in switches
    ]
    seen_s = [seen for _, _, seen, _ in switches]
    return Figure(
        name=name,
        rows=(
            compare(
                "stop and start, seen by the caller",
                "ms",
                direct=[each * MS for each in bare_s],
                controller=[each * MS for each in seen_s],
                judged_as="difference",
                at_most=at_most_ms,
            ),
        ),
        notes=(
            _bare_note(starts_s, stops_s),
            _confirming_note(switches),
            *_phase_notes(switches),
        ),
        samples={
            "bare_start_s": starts_s,
            "bare_stop_s": stops_s,
            "switches": [
                {"from": leaving, "to": coming, "seen_s": seen, "phases_s": phases}
                for leaving, coming, seen, phases in switches
            ],
        },
    )


def _start_and_stop(command: ChildCommand, setting: Setting) -> tuple[float, float]:
    socket_path = setting.work_dir / "bare.sock"
    socket_path.unlink(missing_ok=True)
    with command.start(Endpoint(socket_path=socket_path), setting) as bare:
        time.sleep(DWELL_S)
        return bare.start_s, bare.stop()


def _bare_note(starts_s: dict[str, list[float]], stops_s: dict[str, list[float]]) -> str:
    parts = (
        f"{model} starts in {median(starts_s[model]) * MS:.1f} ms and stops in "
        f"{median(stops_s[model]) * MS:.1f} ms"
        for model in starts_s
    )
    return f"bare: {'; '.join(parts)}"


def _confirming_note(switches: list[tuple[str, str, float, dict[str, Any]]]) -> str:
    confirming_s = median(phases["confirming"] for _, _, _, phases in switches)
    seen_s = median(seen for _, _, seen, _ in switches)
    return (
        f"a switch takes {seen_s * MS:.1f} ms; {confirming_s * MS:.1f} ms of them "
        f"({confirming_s / seen_s:.0%}) confirm that memory is released"
    )


def _phase_notes(switches: list[tuple[str, str, float, dict[str, Any]]]) -> list[str]:
    """Give the medians of the phases that the reports tell, by direction."""
    by_direction = defaultdict[str, list[dict[str, float]]](list)
    for leaving, coming, _, phases in switches:
        by_direction[f"{leaving} → {coming}"].append(phases)
    return [
        f"{direction}, ms: "
        + ", ".join(
            f"{phase} {median(each[phase] for each in reports) * MS:.1f}" for phase in reports[0]
        )
        for direction, reports in by_direction.items()
    ]
