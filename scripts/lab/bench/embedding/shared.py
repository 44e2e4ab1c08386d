"""Batches on a queue that supervisors share: what it costs one, and what a second one adds.

Each supervisor's server computes on one thread, so that two have room on a machine of two cores; on
one GPU a second one adds nothing. All sides run all the time, each on a queue of its own.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from statistics import quantiles
from typing import Any

from lab.bench.embedding.batches import LOOK_PAUSE_S, run_batch
from lab.bench.report import Figure, compare
from lab.harness.command import say
from lab.harness.redis_server import RedisServer
from lab.harness.servers import Controller
from lab.harness.setting import EMBEDDING_MODEL, Setting, with_changes

NAME = "shared"

OWN, ONE, TWO = "own queue", "one on Redis", "two on Redis"

SIZES = {OWN: 1, ONE: 1, TWO: 2}
"""How many supervisors each side has."""

SMALL, SMALLS = 16, 20
"""Lines of a small batch, and how many of them are handed in, one after the other."""

FORM = "base64"


def measure(setting: Setting) -> Figure:
    """Hand the same batches to each side, in turns."""
    rates: dict[str, list[float]] = {side: [] for side in SIZES}
    p95s: dict[str, list[float]] = {side: [] for side in SIZES}
    wrong = 0
    count = max(SMALL, setting.texts // 4)
    with ExitStack() as stack:
        folder = setting.work_dir / "redis"
        folder.mkdir()
        server = stack.enter_context(RedisServer(folder))
        sides = {side: _started(side, setting, server, stack) for side in SIZES}
        for number in range(1, setting.rounds + 1):
            for side, controllers in sides.items():
                say(f"  {side}, turn {number} of {setting.rounds} …")
                rate, faults = run_batch(controllers[0], count, FORM)
                rates[side].append(rate)
                wrong += faults
                p95s[side].append(_p95_s(controllers))
    return _figure(count, rates, p95s, wrong)


def _started(
    side: str, setting: Setting, server: RedisServer, stack: ExitStack
) -> Sequence[Controller]:
    """Start the supervisors of a side, with the model live."""
    jobs = (
        {}
        if side == OWN
        else {"queue_url": f"{server.url.removesuffix('0')}{list(SIZES).index(side)}"}
    )
    changes: Mapping[str, Mapping[str, Any]] = {
        "supervisor.yaml": {"jobs": jobs},
        "embedding.yaml": {"threads": 1},
    }
    configured = with_changes(setting, f"profiles of {side}", changes)
    controllers = []
    for number in range(SIZES[side]):
        work_dir = setting.work_dir / f"{side} {number}"
        work_dir.mkdir()
        controllers.append(stack.enter_context(Controller(replace(configured, work_dir=work_dir))))
        controllers[-1].load(EMBEDDING_MODEL)
    return controllers


def _p95_s(controllers: Sequence[Controller]) -> float:
    """Return the p95 of how long a small batch takes, from its upload until its files are there."""
    took_s = []
    for number in range(SMALLS):
        rate, _ = run_batch(controllers[number % len(controllers)], SMALL, FORM)
        took_s.append(SMALL / rate)
    return quantiles(took_s, n=20, method="inclusive")[-1]


def _figure(
    count: int,
    rates: Mapping[str, Sequence[float]],
    p95s: Mapping[str, Sequence[float]],
    wrong: int,
) -> Figure:
    small = f"a batch of {SMALL} lines, p95"
    rows = (
        compare(
            f"{count} texts, one on Redis over its own queue",
            "texts/s",
            direct=rates[OWN],
            controller=rates[ONE],
            judged_as="ratio",
            at_least=0.9,
        ),
        compare(
            f"{count} texts, two on Redis over one",
            "texts/s",
            direct=rates[ONE],
            controller=rates[TWO],
            judged_as="ratio",
            at_least=1.0,
        ),
        compare(
            f"{small}, one on Redis over its own queue",
            "s",
            direct=p95s[OWN],
            controller=p95s[ONE],
            judged_as="ratio",
            at_most=1.5,
        ),
        compare(
            f"{small}, two on Redis over one",
            "s",
            direct=p95s[ONE],
            controller=p95s[TWO],
            judged_as="ratio",
            at_most=1.5,
        ),
        compare("lines lost or twice", "", direct=[0], controller=[wrong], at_most=0),
    )
    note = f"whoever waits looks every {LOOK_PAUSE_S:g} s; `direct` is what stands behind `over`"
    return Figure(
        name=NAME, rows=rows, notes=(note,), samples={"texts_per_s": rates, "p95_s": p95s}
    )
