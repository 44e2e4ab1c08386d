"""The two sides of a comparison: the bare server, and the controller in front of the same server.

Both run side by side, idle while the other is under load: an idle llama-server uses no processor
time, and a model that stays loaded is as warm in every turn as in the last. Nothing is pinned to
a processor: server, controller and client share what the machine has, as they do in use.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from lab.bench.report import Row, compare
from lab.harness.command import LabError, say
from lab.harness.cpu import CpuMeter, CpuUse
from lab.harness.load import Load, run
from lab.harness.servers import Controller, Endpoint, Server
from lab.harness.setting import Setting

QUIET_SHARE = 0.05
"""Part of the machine that other processes may take in a turn without spoiling it."""

WARM_UP_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Two running servers of one model, and the processes whose processor time is told."""

    direct: Server
    controller: Server
    pids: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One side under load once. Latencies are those of the requests begun within the time."""

    units_per_s: float
    requests: int
    failed: int
    failures: Mapping[str, int]
    median_latency_ms: float
    p99_latency_ms: float
    cpu: CpuUse


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """A load's turns: number n of one side was measured next to number n of the other."""

    direct: Sequence[Turn]
    controller: Sequence[Turn]

    def samples(self) -> dict[str, Any]:
        """Return every turn as values for JSON."""
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


def alternate(load: Load, sides: Sides, turns: int) -> Turns:
    """Put the sides under the load in turn, `turns` times, after a short warm-up of each."""
    servers = {"direct": sides.direct, "controller": sides.controller}
    say(f"  {load.name}: {turns} turns of {load.seconds:g} s for each side …")
    for server in servers.values():
        run(replace(load, seconds=min(WARM_UP_S, load.seconds)), server.endpoint)
    measured: dict[str, list[Turn]] = {side: [] for side in servers}
    for _ in range(turns):
        for side, server in servers.items():
            measured[side].append(_take_turn(load, server, sides.pids))
    return Turns(direct=measured["direct"], controller=measured["controller"])


def sustain(load: Load, sides: Sides, seconds: float) -> Turn:
    """Put the controller alone under the load, without a pause."""
    say(f"  {load.name}: {seconds:g} s without a pause …")
    return _take_turn(replace(load, seconds=seconds), sides.controller, sides.pids)


def _take_turn(load: Load, server: Server, pids: Mapping[str, int]) -> Turn:
    meter = CpuMeter(pids)
    tally = run(load, server.endpoint)
    cpu = meter.stop()
    if not tally.latencies_s:
        raise LabError(f"no request succeeded; failures: {dict(tally.failures)}")
    ordered_s = sorted(tally.latencies_s)
    return Turn(
        units_per_s=tally.units / load.seconds,
        requests=tally.requests,
        failed=sum(tally.failures.values()),
        failures=dict(tally.failures),
        median_latency_ms=median(ordered_s) * 1000,
        p99_latency_ms=ordered_s[len(ordered_s) * 99 // 100] * 1000,
        cpu=cpu,
    )


def rate_row(quantity: str, unit: str, turns: Turns, *, least_share: float) -> Row:
    """Judge the controller's rate as a share of the direct one."""
    return compare(
        quantity,
        unit,
        direct=[each.units_per_s for each in turns.direct],
        controller=[each.units_per_s for each in turns.controller],
        judged_as="ratio",
        at_least=least_share,
    )


def failures_row(quantity: str, turns: Turns, *sustained: Turn) -> Row:
    """Judge that nothing failed: all failures count, in every turn and in the sustained load."""
    return compare(
        quantity,
        "",
        direct=[sum(each.failed for each in turns.direct)],
        controller=[sum(each.failed for each in (*turns.controller, *sustained))],
        at_most=0,
    )


def notes(turns: Turns, unit: str, turn_seconds: float) -> tuple[str, ...]:
    """Say what a unit cost the controller's process, and whether other work spoilt the turns."""
    controller_s = sum(each.cpu.by_role_s["controller"] for each in turns.controller)
    units = sum(each.units_per_s * turn_seconds for each in turns.controller)
    cost = f"{controller_s * 1000 / units:.3f} ms" if units else "no measure"
    shares = [each.cpu.others_share for each in (*turns.direct, *turns.controller)]
    spoilt = sum(share > QUIET_SHARE for share in shares)
    told = f"{cost} of the controller's processor time per {unit}"
    disturbed = (
        f"DISTURBED: other processes took more than {QUIET_SHARE:.0%} of the machine in {spoilt} "
        f"of {len(shares)} turns; measure again on a quiet machine"
    )
    return (told, disturbed) if spoilt else (told,)
