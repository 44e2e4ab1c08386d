"""Chat and embeddings at once on one machine, with the embedding model's twin and without it.

The device carries one of the two models; the twin is on it beside chat, as it would be on the host
beside a GPU. Without it the models take turns.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

from lab.bench.mixed import LABELS, MS, QUIET_SHARE
from lab.bench.mixed_load import MODELS, WARM_UP_S, Contest, Run, waits_of
from lab.bench.report import Figure, Row, compare
from lab.bench.sides import Side, Sides
from lab.harness.command import say
from lab.harness.servers import Controller
from lab.harness.setting import CHAT_MODEL, EMBEDDING_MODEL, Setting, with_changes

NAME = "twin"

CLIENTS = 4
WITH, WITHOUT = "twin", "turns"
MIB = 1024 * 1024

BUDGET_BYTES, MODEL_BYTES, TWIN_BYTES = 2000 * MIB, 1200 * MIB, 200 * MIB
"""What the device may carry, and what the models and the twin are said to need of it."""


def measure(setting: Setting) -> Figure:
    """Let four clients of each model ask at once, each when it has its answer, in turns."""
    runs: dict[str, list[Run]] = {WITH: [], WITHOUT: []}
    with _running(setting) as sides, ProcessPoolExecutor(2, get_context("spawn")) as pool:
        contest = Contest(sides, pool, {})
        for number in range(setting.rounds):
            for name, taken in runs.items():
                say(f"  {name}, {CLIENTS} clients each, {setting.seconds:g} s …")
                if number == 0:
                    contest.closed(name, CLIENTS, min(WARM_UP_S, setting.seconds))
                taken.append(contest.closed(name, CLIENTS, setting.seconds))
    return figure_of(runs)


def figure_of(runs: Mapping[str, Sequence[Run]]) -> Figure:
    """Judge what the twin changes: no switch is left, and both are served."""
    rows = [
        *(_rate_row(runs, model) for model in MODELS),
        *(_longest_row(runs, model) for model in MODELS),
        _compare("switches", "", {n: [len(r.switches_s) for r in rs] for n, rs in runs.items()}, 0),
        _compare("errors", "", {n: [r.failed for r in rs] for n, rs in runs.items()}, 0),
    ]
    others = max(run.others_share for each in runs.values() for run in each)
    disturbed = f"DISTURBED: other processes took up to {others:.0%} of the machine"
    return Figure(
        name=NAME,
        rows=tuple(rows),
        notes=(
            "direct: without the twin, in turns; controller: with it",
            *([disturbed] if others > QUIET_SHARE else []),
        ),
        samples={name: [_sample(run) for run in each] for name, each in runs.items()},
    )


def _rate_row(runs: Mapping[str, Sequence[Run]], model: str) -> Row:
    rates = {n: [r.by_model[model].answers_per_s for r in each] for n, each in runs.items()}
    return compare(
        f"{LABELS[model]}, {CLIENTS} clients",
        "requests/s",
        direct=rates[WITHOUT],
        controller=rates[WITH],
        judged_as="controller",
        at_least=1.0,
    )


def _longest_row(runs: Mapping[str, Sequence[Run]], model: str) -> Row:
    longest = {
        name: [waits_of(run.by_model[model].latencies_s)["longest"] * MS for run in each]
        for name, each in runs.items()
    }
    return compare(
        f"{LABELS[model]}, longest wait",
        "ms",
        direct=longest[WITHOUT],
        controller=longest[WITH],
        judged_as="ratio",
        at_most=1.0,
    )


def _compare(quantity: str, unit: str, counts: Mapping[str, Sequence[int]], at_most: float) -> Row:
    return compare(quantity, unit, direct=counts[WITHOUT], controller=counts[WITH], at_most=at_most)


def _sample(run: Run) -> dict[str, Any]:
    return {
        **{model: taken.summary() for model, taken in run.by_model.items()},
        "switches_s": run.switches_s,
        "others_share": run.others_share,
    }


@contextmanager
def _running(setting: Setting) -> Iterator[Sides]:
    """Run the product twice; with the twin, once its vectors could be compared."""
    with ExitStack() as stack:
        controllers = {}
        for name in (WITH, WITHOUT):
            work_dir = setting.work_dir / name
            work_dir.mkdir()
            own = replace(setting, work_dir=work_dir)
            own = with_changes(own, "profiles", _changes(has_twin=name == WITH))
            controllers[name] = stack.enter_context(Controller(own))
            controllers[name].load(EMBEDDING_MODEL)
            if name == WITH:
                controllers[name].wait_until_comparable()
            controllers[name].load(CHAT_MODEL)
        pairs = {name: dict.fromkeys(MODELS, Side.of(each)) for name, each in controllers.items()}
        yield Sides(pairs=pairs, controllers=controllers)


def _changes(*, has_twin: bool) -> dict[str, dict[str, Any]]:
    """Return what one of the two is to be run with.

    Beside the twin chat stands for one on a GPU, whose threads leave the processor to others while
    they wait: so must those of this one.
    """

    def needing(size_bytes: int) -> dict[str, Any]:
        return {"memory": {"need_bytes": size_bytes, "margin_bytes": 16 * MIB}}

    spill = {"spill": "embedding-cpu"} if has_twin else {}
    waiting = {"env": {"OMP_WAIT_POLICY": "passive"}} if has_twin else {}
    return {
        "supervisor.yaml": {
            "devices": {"host": {"exclusive": False, "budget_bytes": BUDGET_BYTES}}
        },
        "models.yaml": {"models": {EMBEDDING_MODEL: spill}},
        "generation.yaml": needing(MODEL_BYTES) | waiting,
        "embedding.yaml": needing(MODEL_BYTES),
        "embedding-cpu.yaml": needing(TWIN_BYTES),
    }
