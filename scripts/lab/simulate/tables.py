"""The experiments of a run, a table each."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from lab.harness.command import in_columns
from lab.simulate.knowledge import Known
from lab.simulate.loops import CROWDS, SECONDS, Crowd, beside_greedy, shares
from lab.simulate.open_traces import (
    CLAIRVOYANT,
    EQUAL,
    IN_BURSTS,
    OVER_STATIONARY,
    PRACTISED,
    STATIONARY,
    UNEQUAL,
    VERY_UNEQUAL,
    Setting,
    learned_over_known,
    optimum_s,
    tails,
    total_waits_s,
)
from lab.simulate.simulation import Simulation
from lab.simulate.workload import poisson, two_models
from supervisor.core.scheduling.policies import POLICIES
from supervisor.core.scheduling.values import Priority

LOADS = (0.3, 0.6, 0.9)
SETTINGS = (*EQUAL, *UNEQUAL, VERY_UNEQUAL, IN_BURSTS)
MILLION = 1_000_000

TAIL_SETTING, TAIL_REQUESTS = Setting(chat_s=0.0103, embedding_s=0.0058, switch_s=0.14), 300
"""What the demo models take, and so many requests that the 99th percentile is one of them."""

_COMPARED = (*PRACTISED, STATIONARY)
_TAILED = ("exhaustive", "turns", CLAIRVOYANT)

Cell = str | float


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of figures below their heads; the first column names what the row is of."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def text(self) -> str:
        """Write it for people."""
        cells = [self.heads, *(tuple(map(_written, row)) for row in self.rows)]
        return "\n".join((self.title, *in_columns(cells, frozenset({0}))))

    def as_json(self) -> list[dict[str, Cell]]:
        """Write it for machines."""
        return [dict(zip(self.heads, row, strict=True)) for row in self.rows]


def _written(cell: Cell) -> str:
    return cell if isinstance(cell, str) else f"{cell:.2f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is run: which seeds, which settings of open traces, which crowds of clients."""

    seeds: Sequence[int]
    settings: Sequence[Setting] = SETTINGS
    crowds: Sequence[Crowd] = CROWDS


def open_traces(plan: Plan) -> Table:
    """Total waits over the clairvoyant's, and what `turns` has to reach."""
    rows = [_open_row(plan, setting, load) for setting in plan.settings for load in LOADS]
    return Table(
        title="Open traces: total wait over the clairvoyant's, all rates known",
        heads=("setting", "load", *_COMPARED, "not ahead", "turns over it", "to reach"),
        rows=tuple(rows),
    )


def _open_row(plan: Plan, setting: Setting, load: float) -> tuple[Cell, ...]:
    waits_s = total_waits_s(setting, load, plan.seeds)
    best_s = optimum_s(setting, load, plan.seeds)
    not_ahead_s = optimum_s(setting, load, plan.seeds, may_switch_ahead=False)
    over_best = [waits_s[name] / best_s if name in waits_s else "–" for name in _COMPARED]
    judged: tuple[Cell, Cell] = ("–", "")
    if STATIONARY in waits_s:
        aim = OVER_STATIONARY.get(setting)
        judged = (waits_s["turns"] / waits_s[STATIONARY], f"≤ {aim:.2f}" if aim else "")
    return (str(setting), load, *over_best, not_ahead_s / best_s, *judged)


def learning(plan: Plan) -> Table:
    """What `turns` waits once it has seen 200 requests, over what it waits with rates known."""
    rows: list[tuple[Cell, ...]] = [
        (str(setting), *(learned_over_known(setting, load, plan.seeds) for load in LOADS))
        for setting in plan.settings
    ]
    return Table(
        title="Learned after 200 requests: total wait of turns over its own with rates known",
        heads=("setting", *(f"load {load:g}" for load in LOADS)),
        rows=tuple(rows),
    )


def tails_of_open(plan: Plan) -> Table:
    """The longest waits beside the least that any schedule has; of a trace a row."""
    seeds = plan.seeds[:3]
    rows = [_tail_row(load, seed) for load in LOADS[:2] for seed in seeds]
    kinds = ("mean", "p99", "longest")
    heads = [f"{name}, {kind}" for kind in kinds for name in _TAILED]
    return Table(
        title=f"Waits of {TAIL_REQUESTS} requests in seconds ({TAIL_SETTING})",
        heads=("load", "seed", *heads),
        rows=tuple(rows),
    )


def _tail_row(load: float, seed: int) -> tuple[Cell, ...]:
    models = TAIL_SETTING.models(load)
    found = tails(models, TAIL_SETTING.trace(load, seed, TAIL_REQUESTS))
    waits_s = [
        value(found[name])
        for value in (attrgetter("mean_s"), attrgetter("p99_s"), attrgetter("longest_s"))
        for name in _TAILED
    ]
    return (load, str(seed), *waits_s)


def closed_loops(plan: Plan) -> Table:
    """What each model's clients get of what they get alone."""
    rows = []
    for crowd in plan.crowds:
        for name, policy in PRACTISED.items():
            got = shares(crowd, policy)
            rows.append((str(crowd), name, *got.cells()))
        got = shares(crowd, POLICIES["turns"], switching_share=0.1)
        rows.append((str(crowd), "turns, f = 10 %", *got.cells()))
    return Table(
        title=f"Closed loops of {SECONDS:g} s: share of what each gets alone, longest wait",
        heads=("clients", "policy", "chat", "embedding", "longest wait, s", "switching"),
        rows=tuple(rows),
    )


def greedy(_: Plan) -> Table:
    """A chat now and then beside one client that keeps 64 embeddings waiting."""
    outcomes = {name: beside_greedy(policy) for name, policy in PRACTISED.items()}
    batch = beside_greedy(POLICIES["turns"], priority=Priority.BATCH)
    rows: list[tuple[Cell, ...]] = []
    for name, outcome in {**outcomes, "turns, embeddings as batch": batch}.items():
        chats, embeddings = (outcome.waits_s[model] for model in ("chat", "embedding"))
        mean_s = sum(chats) / len(chats) if chats else "–"
        rows.append((name, str(len(chats)), mean_s, str(len(embeddings)), outcome.longest_wait_s))
    return Table(
        title=f"One greedy client, {SECONDS:g} s: chats at 0.2/s beside 64 embeddings that wait",
        heads=("policy", "chats", "mean wait, s", "embeddings", "longest wait, s"),
        rows=tuple(rows),
    )


def speed(_: Plan) -> Table:
    """The processor time of a million requests on the virtual clock, by policy."""
    models = two_models(0.02, 0.005, 0.4, load=0.6)
    trace = poisson(models, MILLION, seed=1)
    rows = []
    for name, policy in POLICIES.items():
        began_s = time.process_time()
        outcome = Simulation(models, policy, Known(models)).run(trace)
        took_s = time.process_time() - began_s
        rows.append((name, str(outcome.decisions), took_s, took_s / outcome.decisions * 1e6))
    return Table(
        title="A million requests: processor time, the clock's own share included",
        heads=("policy", "decisions", "seconds", "µs for each"),
        rows=tuple(rows),
    )


EXPERIMENTS: Mapping[str, Callable[[Plan], Table]] = {
    "open": open_traces,
    "tails": tails_of_open,
    "learning": learning,
    "closed": closed_loops,
    "greedy": greedy,
    "speed": speed,
}
