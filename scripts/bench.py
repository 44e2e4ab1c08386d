"""Measure the product against the bare server that it supervises; `scripts/bench` runs this.

    .venv/bin/python scripts/bench.py serve|switch [--only NAME ...] [--rounds N] [--json FILE]

Prints a table and writes the same as JSON, with every sample. Targets that are missed are marked,
and are no error: the exit status tells whether everything could be measured.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from bench_runner import (
    embeddings,
    held,
    listening,
    machine,
    make_before_break,
    prompt_cache,
    streams,
    switching,
    warm_start,
)
from bench_runner.report import Figure, as_json, table
from bench_runner.servers import end_on_sigterm
from bench_runner.setting import BenchError, Setting, say

ROOT = Path(__file__).parents[1]

FIGURES: Mapping[str, Mapping[str, Callable[[Setting], Figure]]] = {
    "serve": {each.NAME: each.measure for each in (listening, switching, embeddings, streams)},
    "switch": {
        "overhead": partial(switching.measure, name="overhead"),
        **{each.NAME: each.measure for each in (make_before_break, prompt_cache, warm_start, held)},
    },
}
"""The figures of each subcommand, in the order of the table."""

AMOUNTS: Mapping[str, tuple[float, tuple[str, ...], str]] = {
    "seconds": (30.0, ("serve",), "of load in a round of a side, in turns of 3 s"),
    "rounds": (3, ("serve", "switch"), "of each side"),
    "starts": (7, ("serve",), "measured"),
    "switches": (20, ("serve", "switch"), "measured for the overhead of one"),
}
"""How much is measured: the default, the subcommands that take it as an option, what it is."""


def main(arguments: list[str] | None = None) -> int:
    """Measure what is asked for. Returns the exit status: 0, or 1 with the reason said."""
    asked = _parse(arguments)
    end_on_sigterm()
    target: Path = asked.json or ROOT / "bench-results" / f"{asked.suite}.json"
    started_at = time.monotonic()
    try:
        context, figures = _measure(asked)
    except BenchError as error:
        say(f"bench: {error}")
        return 1
    except KeyboardInterrupt:
        say("bench: interrupted; nothing was written")
        return 1
    report = as_json(figures, {**context, "took_s": time.monotonic() - started_at})
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(figures))
    say(f"\nwritten to {target}")
    return 0


def _measure(asked: argparse.Namespace) -> tuple[dict[str, object], list[Figure]]:
    chosen = FIGURES[asked.suite]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        setting = Setting(
            profiles=asked.profiles,
            models=asked.models,
            work_dir=Path(folder),
            engine=asked.engine,
            **{name: getattr(asked, name) for name in AMOUNTS},
        )
        offered = [name for name, (_, suites, _) in AMOUNTS.items() if asked.suite in suites]
        options = {name: getattr(setting, name) for name in ("engine", *offered)}
        context = {"suite": asked.suite, "options": options, **machine.describe(setting)}
        figures = []
        for name in asked.only or chosen:
            say(f"{name} …")
            figures.append(chosen[name](setting))
    return context, figures


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.partition("\n")[0])
    suites = parser.add_subparsers(dest="suite", required=True, metavar="SUITE")
    for suite, figures in FIGURES.items():
        options = suites.add_parser(suite, help=f"figures: {', '.join(figures)}")
        _add_options(options, suite, tuple(figures))
    return parser.parse_args(arguments)


def _add_options(parser: argparse.ArgumentParser, suite: str, figures: tuple[str, ...]) -> None:
    add = parser.add_argument
    add("--only", nargs="+", choices=figures, metavar="NAME", help="%(choices)s")
    kinds = {"seconds": _positive, "switches": _at_least(2)}
    for name, (default, suites, meaning) in AMOUNTS.items():
        parser.set_defaults(**{name: default})
        if suite in suites:
            kind = kinds.get(name, _at_least(1))
            add(
                f"--{name}",
                type=kind,
                default=default,
                metavar="N",
                help=f"{meaning} (%(default)s)",
            )
    add("--engine", default="llama-server", choices=("llama-server", "embedded"))
    add("--profiles", type=Path, default=ROOT / "profiles", metavar="DIR")
    add("--models", type=Path, default=ROOT / "models", metavar="DIR")
    add("--json", type=Path, metavar="FILE", help="default: bench-results/SUITE.json")


def _positive(text: str) -> float:
    number = float(text)
    if number <= 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return number


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}")
        return number

    return parse


if __name__ == "__main__":
    sys.exit(main())
