"""Two models, one device, many clients: what each class gets, and how long anybody waits.

Measured side by side: the product as it is shipped (`controller`) and with its `fifo` policy,
llama.cpp's own router with the same binary and arguments, and peers that somebody has started. Each
side runs from beginning to end, and has the machine for itself while it is under load. A wait
counts from when a request was sent, or due, until its answer is whole, so that it contains the
computing, too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from lab.bench.mixed_load import (
    ALONE_PART,
    MODELS,
    WARM_UP_S,
    Contest,
    Run,
    Taken,
    contest_of,
    waits_of,
)
from lab.bench.report import Figure, Row, compare
from lab.bench.sides import TURNS
from lab.harness.command import say
from lab.harness.setting import CHAT_MODEL, EMBEDDING_MODEL, Setting
from supervisor.core.scheduling.values import SchedulingRules

SHARE = SchedulingRules().switching_share
"""The largest share of the time that switches may take, as it is set by default."""

OF_ALONE = 0.40
"""Share of what it reaches alone that each class is to have."""

LONGEST_S = 2.0
OVER_THE_BOUND_S = 0.2
OF_PEERS_MEAN, OF_PEERS_LONGEST = 1.05, 0.5
QUIET_SHARE = 0.05
"""Part of the machine that other processes may take in a run without spoiling it."""

OPEN_CLIENTS = 4
"""With so many clients it is measured what a model can serve in a second, for the loads' sizes."""

SEED = 11
LABELS = {CHAT_MODEL: "chat", EMBEDDING_MODEL: "embedding"}
MS, PERCENT = 1000, 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Contested:
    """All runs of a figure: by side, and by round what each model reached alone.

    `others` are those that are not ours. `probed_s`: what a switch takes with each side, from the
    request to the answer.
    """

    others: Sequence[str]
    probed_s: Mapping[str, float]
    alone: Sequence[Mapping[str, Taken]]
    runs: Mapping[str, Sequence[Run]]

    def of_peers(self, value: Callable[[Run], float]) -> dict[str, list[float]]:
        """Return a value of every run by side, but for the product as it is shipped."""
        return {
            name: [value(run) for run in runs] for name, runs in self.runs.items() if name != TURNS
        }

    def switch_s(self) -> float:
        """Return what a switch of the product took in these runs, in the median."""
        took_s = [each for run in self.runs[TURNS] for each in run.switches_s]
        return median(took_s) if took_s else 0.0

    def drain_s(self) -> float:
        """Return the longest drain of a switch of the product."""
        return max((each for run in self.runs[TURNS] for each in run.drains_s), default=0.0)

    def bound_s(self) -> float:
        """Return how long the head of a queue may wait: 2s + Q + D, with Q = s(1 - f)/f."""
        return 2 * self.switch_s() + turn_of(self.switch_s()) + self.drain_s()


def turn_of(switch_s: float) -> float:
    """Return Q, the shortest turn with which two models' switches take the share f of the time."""
    return switch_s * (1 - SHARE) / SHARE


def closed(setting: Setting, clients: int) -> Figure:
    """Let so many clients of each model ask at once, each when it has its answer."""
    with contest_of(setting) as contest:
        contested = _take_turns(
            contest,
            setting,
            clients,
            lambda name, _, seconds: contest.closed(name, clients, seconds),
        )
    return closed_figure(contested, clients)


def closed_figure(contested: Contested, clients: int) -> Figure:
    """Judge what each class got of what it reaches alone, and how long anybody waited."""
    rows = _closed_rows(contested, clients)
    return _figure(f"closed_{clients}", contested, *rows, notes=(_bound_note(contested),))


def open_traffic(setting: Setting, percent: int) -> Figure:
    """Let both models be asked at random, each for half of a load in percent of what it serves."""
    with contest_of(setting) as contest:
        rates: dict[str, float] = {}

        def run(name: str, number: int, seconds: float) -> Run:
            return contest.open(name, rates, seconds, f"{SEED}:{number}")

        def choose_rates(alone: Mapping[str, Taken]) -> None:
            share = percent / PERCENT / len(MODELS)
            rates.update({model: share * alone[model].answers_per_s for model in MODELS})

        contested = _take_turns(contest, setting, OPEN_CLIENTS, run, choose_rates)
    return open_figure(contested, percent, rates)


def open_figure(contested: Contested, percent: int, rates: Mapping[str, float]) -> Figure:
    """Judge the waits of both classes together."""
    asked = ", ".join(f"{LABELS[model]} {rate:.1f}/s" for model, rate in rates.items())
    rows = _open_rows(contested)
    return _figure(f"open_{percent}", contested, *rows, notes=(f"seed {SEED}; {asked}",))


def _take_turns(
    contest: Contest,
    setting: Setting,
    clients: int,
    run: Callable[[str, int, float], Run],
    note_alone: Callable[[Mapping[str, Taken]], None] = lambda _: None,
) -> Contested:
    """Measure every side in turn, `rounds` times, after a warm-up of each.

    What each model reaches alone is measured before and after the product's run: the machine may
    be a tenth faster in one minute than in the next.
    """
    seconds, names = setting.seconds, tuple(contest.sides.pairs)
    alone: list[Mapping[str, Taken]] = []
    runs: dict[str, list[Run]] = {name: [] for name in names}

    def measure_alone() -> Mapping[str, Taken]:
        alone_s = seconds * ALONE_PART / 2
        say(f"  alone, {clients} clients each, {alone_s:g} s …")
        return contest.alone(TURNS, clients, alone_s)

    for number in range(setting.rounds):
        before = measure_alone()
        if number == 0:
            note_alone(before)
        for name in names:
            say(f"  {name}, {seconds:g} s …")
            if number == 0:
                run(name, -1, min(WARM_UP_S, seconds))
            runs[name].append(run(name, number, seconds))
            if name == TURNS:
                after = measure_alone()
                alone.append({model: before[model].and_as_long(after[model]) for model in MODELS})
    others, probed_s = contest.sides.others, contest.probed_s
    return Contested(others=others, probed_s=probed_s, alone=alone, runs=runs)


def _closed_rows(contested: Contested, clients: int) -> list[Row]:
    turns = contested.runs[TURNS]
    return [
        *(_rate_row(contested, model, clients) for model in MODELS),
        *(_longest_row(contested, model) for model in MODELS),
        compare(
            "longest wait over 2s + Q + D",
            "s",
            direct=[contested.bound_s()],
            controller=[max(waits_of(run.latencies_s)["longest"] for run in turns)],
            judged_as="difference",
            at_most=OVER_THE_BOUND_S,
        ),
    ]


def _rate_row(contested: Contested, model: str, clients: int) -> Row:
    def rate(run: Run) -> float:
        return run.by_model[model].answers_per_s

    return compare(
        f"{LABELS[model]}, {clients} client{'s' if clients > 1 else ''}",
        "requests/s",
        direct=[each[model].answers_per_s for each in contested.alone],
        controller=list(map(rate, contested.runs[TURNS])),
        peers=contested.of_peers(rate),
        judged_as="ratio",
        at_least=OF_ALONE,
    )


def _bound_note(contested: Contested) -> str:
    """Show the arithmetic of the bound, from what was measured in the same runs."""
    switch_s, drain_s = contested.switch_s(), contested.drain_s()
    return (
        f"2s + Q + D = 2 × {switch_s:.3f} + {turn_of(switch_s):.3f} + {drain_s:.3f} "
        f"= {contested.bound_s():.3f} s, with Q for {SHARE:.0%} of the time"
    )


def _longest_row(contested: Contested, model: str) -> Row:
    def longest_s(run: Run) -> float:
        return waits_of(run.by_model[model].latencies_s)["longest"]

    return compare(
        f"{LABELS[model]}, longest wait",
        "s",
        direct=[max(waits_of(each[model].latencies_s)["longest"] for each in contested.alone)],
        controller=[max(map(longest_s, contested.runs[TURNS]))],
        peers={name: [max(each)] for name, each in contested.of_peers(longest_s).items()},
        at_most=LONGEST_S,
    )


def _open_rows(contested: Contested) -> list[Row]:
    """Hold each kind of wait against the better of those that are not ours."""
    rows = []
    for kind, bound in (
        ("mean", OF_PEERS_MEAN),
        ("p99", OF_PEERS_LONGEST),
        ("longest", OF_PEERS_LONGEST),
    ):

        def value(run: Run, kind: str = kind) -> float:
            return waits_of(run.latencies_s)[kind] * MS

        peers = contested.of_peers(value)
        better = min(contested.others, key=lambda name: median(peers[name]))
        rows.append(
            compare(
                f"{kind} wait, over {better}",
                "ms",
                direct=peers[better],
                controller=[value(run) for run in contested.runs[TURNS]],
                peers=peers,
                judged_as="ratio",
                at_most=bound,
            )
        )
    return rows


def _figure(name: str, contested: Contested, *rows: Row, notes: Sequence[str] = ()) -> Figure:
    """Put a figure together with the rows that all have: the time spent switching, and errors."""
    all_runs = [run for runs in contested.runs.values() for run in runs]
    spoilt = sum(run.others_share > QUIET_SHARE for run in all_runs)
    disturbed = (
        f"DISTURBED: other processes took up to {max(r.others_share for r in all_runs):.0%} of the "
        f"machine, more than {QUIET_SHARE:.0%} in {spoilt} of {len(all_runs)} runs; measure again "
        "on a quiet machine"
    )
    return Figure(
        name=name,
        rows=(*rows, *_common_rows(contested, is_saturated=name.startswith("closed"))),
        notes=(*notes, *map(_note_of(contested), contested.runs), *([disturbed] if spoilt else [])),
        samples=_samples(contested),
    )


def _common_rows(contested: Contested, *, is_saturated: bool) -> list[Row]:
    """Switching is bounded only while both models have work all the time."""
    failed = contested.of_peers(lambda run: run.failed)
    errors = compare(
        "errors",
        "",
        direct=[sum(taken.failed for each in contested.alone for taken in each.values())],
        controller=[sum(run.failed for run in contested.runs[TURNS])],
        peers={name: [sum(each)] for name, each in failed.items()},
        at_most=0,
    )
    return [_switching_row(contested), errors] if is_saturated else [errors]


def _switching_row(contested: Contested) -> Row:
    def switching(name: str) -> list[float]:
        runs, probed_s = contested.runs[name], contested.probed_s[name]
        return [run.switching_s(probed_s) / run.took_s * PERCENT for run in runs]

    return compare(
        "time spent switching",
        "%",
        direct=[0.0] * len(contested.alone),
        controller=switching(TURNS),
        peers={name: switching(name) for name in contested.runs if name != TURNS},
        at_most=SHARE * PERCENT,
    )


def _note_of(contested: Contested) -> Callable[[str], str]:
    """Return what describes a side: per class its rate, its waits and its errors; its switches."""

    def note(name: str) -> str:
        runs = contested.runs[name]
        classes = "; ".join(_class_note(contested, model, runs) for model in MODELS)
        switches = sum(run.switches for run in runs)
        probed = f"{contested.probed_s[name] * MS:.0f} ms from request to answer"
        own_s = [each for run in runs for each in run.switches_s]
        own = f", {median(own_s) * MS:.0f} ms by its own count without drains" if own_s else ""
        return f"{name}: {classes}; {switches} switches, {probed}{own}"

    return note


def _class_note(contested: Contested, model: str, runs: Sequence[Run]) -> str:
    alone = median(each[model].answers_per_s for each in contested.alone)
    taken = [run.by_model[model] for run in runs]
    waits = waits_of([each for one in taken for each in one.latencies_s])
    share = median(one.answers_per_s for one in taken) / alone
    failures = [f"{count} × {what}" for one in taken for what, count in one.failures.items()]
    return ", ".join(
        (
            f"{LABELS[model]} {share:.2f} of alone",
            *(f"{kind} {waits[kind] * MS:.0f} ms" for kind in ("median", "p99", "longest")),
            *failures,
        )
    )


def _samples(contested: Contested) -> dict[str, Any]:
    return {
        "alone": [
            {model: taken.summary() for model, taken in each.items()} for each in contested.alone
        ],
        "switch_from_request_to_answer_s": contested.probed_s,
        "runs": {
            name: [
                {
                    **{model: taken.summary() for model, taken in run.by_model.items()},
                    "took_s": run.took_s,
                    "switches": run.switches,
                    "switches_s": run.switches_s,
                    "drains_s": run.drains_s,
                    "others_share": run.others_share,
                }
                for run in runs
            ]
            for name, runs in contested.runs.items()
        },
    }
