"""The two sides of a comparison: the bare server, and the controller in front of the same server.

Both run side by side, idle while the other is under load: an idle llama-server uses no processor
time, and a model that stays loaded is as warm in every round as in the last. Nothing is pinned to
a processor: server, controller and client share what the machine has, as they do in use.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from bench_runner.cpu import CpuMeter, CpuUse
from bench_runner.load import Load, Tally, run
from bench_runner.report import Row, Target, compare
from bench_runner.servers import Controller, Endpoint, Server
from bench_runner.setting import BenchError, Setting, say

QUIET_SHARE = 0.05
"""Part of the machine that other processes may take in a round without spoiling it."""

WARM_UP_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Two running servers of one model, and the processes whose processor time is told."""

    direct: Server
    controller: Server
    pids: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One side under load once. Latencies are those of the requests begun within the time."""

    units_per_s: float
    requests: int
    failed: int
    failures: Mapping[str, int]
    median_latency_ms: float
    p99_latency_ms: float
    cpu: CpuUse


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """A load's rounds: number n of one side was measured next to number n of the other."""

    direct: Sequence[Round]
    controller: Sequence[Round]

    def samples(self) -> dict[str, Any]:
        """Return every round as values for JSON."""
        return asdict(self)


@contextmanager
def both_sides(setting: Setting, model: str) -> Iterator[Sides]:
    """Run the model under a controller, and once more without one, on loopback ports both."""
    with Controller(setting) as controller:
        command = controller.load(model)
        child_pid = controller.child_pid()
        with command.start(Endpoint.on_free_port(), setting) as bare:
            yield Sides(
                direct=bare,
                controller=controller,
                pids={"bare": bare.pid, "controller": controller.pid, "child": child_pid},
            )


def alternate(load: Load, sides: Sides, rounds: int) -> Rounds:
    """Put the sides under the load in turn, `rounds` times, after a short warm-up of each."""
    servers = {"direct": sides.direct, "controller": sides.controller}
    for server in servers.values():
        run(replace(load, seconds=min(WARM_UP_S, load.seconds)), server.endpoint)
    measured: dict[str, list[Round]] = {side: [] for side in servers}
    for number in range(rounds):
        for side, server in servers.items():
            meter = CpuMeter(sides.pids)
            measured[side].append(_round(run(load, server.endpoint), load.seconds, meter.stop()))
        told = (f"{side} {each[-1].units_per_s:.1f}/s" for side, each in measured.items())
        say(f"  {load.name}, round {number + 1}/{rounds}: {', '.join(told)}")
    return Rounds(direct=measured["direct"], controller=measured["controller"])


def _round(tally: Tally, seconds: float, cpu: CpuUse) -> Round:
    if not tally.latencies_s:
        raise BenchError(f"no request succeeded; failures: {dict(tally.failures)}")
    ordered_s = sorted(tally.latencies_s)
    return Round(
        units_per_s=tally.units / seconds,
        requests=tally.requests,
        failed=sum(tally.failures.values()),
        failures=dict(tally.failures),
        median_latency_ms=median(ordered_s) * 1000,
        p99_latency_ms=ordered_s[len(ordered_s) * 99 // 100] * 1000,
        cpu=cpu,
    )


def rate_row(quantity: str, unit: str, rounds: Rounds, *, least_share: float) -> Row:
    """Judge the controller's rate as a share of the direct one."""
    return compare(
        quantity,
        unit,
        direct=[each.units_per_s for each in rounds.direct],
        controller=[each.units_per_s for each in rounds.controller],
        judged_as="ratio",
        target=Target(sense="at least", bound=least_share),
    )


def failures_row(quantity: str, rounds: Rounds) -> Row:
    """Judge that nothing failed in any round: the worst round counts, not the median."""
    worst = max(each.failed for each in rounds.controller)
    return compare(
        quantity,
        "",
        direct=[max(each.failed for each in rounds.direct)],
        controller=[worst],
        judged_as="controller",
        target=Target(sense="at most", bound=0),
    )


def notes(rounds: Rounds, unit: str, seconds: float) -> tuple[str, ...]:
    """Say what a unit cost the controller's process, and whether other work spoilt the rounds."""
    controller_s = sum(each.cpu.by_role_s["controller"] for each in rounds.controller)
    units = sum(each.units_per_s * seconds for each in rounds.controller)
    cost = f"{controller_s * 1000 / units:.3f} ms" if units else "no measure"
    others = max(each.cpu.others_share for each in (*rounds.direct, *rounds.controller))
    told = (
        f"{cost} of the controller's processor time per {unit}; other processes took up to "
        f"{others:.0%} of the machine in a round"
    )
    return (told,) if others <= QUIET_SHARE else (told, "DISTURBED: measure on a quiet machine")
