"""Measure the product against the bare server that it supervises; `scripts/bench` runs this.

    .venv/bin/python scripts/bench.py serve [--only NAME ...] [--seconds N] [--json FILE]

Prints a table and writes the same as JSON, with every sample. Targets that are missed are marked,
and are no error: the exit status tells whether everything could be measured.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from bench_runner import embeddings, listening, machine, streams, switching
from bench_runner.report import Figure, as_json, table
from bench_runner.servers import end_on_sigterm
from bench_runner.setting import BenchError, Setting, say

ROOT = Path(__file__).parents[1]

FIGURES: Mapping[str, Mapping[str, Callable[[Setting], Figure]]] = {
    "serve": {each.NAME: each.measure for each in (listening, switching, embeddings, streams)}
}
"""The figures of each subcommand, in the order of the table."""


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
            seconds=asked.seconds,
            rounds=asked.rounds,
            starts=asked.starts,
            switches=asked.switches,
        )
        options = {
            name: getattr(setting, name)
            for name in ("engine", "seconds", "rounds", "starts", "switches")
        }
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
        _add_options(options, tuple(figures))
    return parser.parse_args(arguments)


def _add_options(parser: argparse.ArgumentParser, figures: tuple[str, ...]) -> None:
    add = parser.add_argument
    add("--only", nargs="+", choices=figures, metavar="NAME", help="%(choices)s")
    add(
        "--seconds",
        type=_positive,
        default=30.0,
        metavar="N",
        help="of load in a round of a side, in turns of 3 s (%(default)s)",
    )
    add("--rounds", type=_at_least(1), default=3, metavar="N", help="of load (%(default)s)")
    add("--starts", type=_at_least(1), default=7, metavar="N", help="measured (%(default)s)")
    add("--switches", type=_at_least(2), default=20, metavar="N", help="measured (%(default)s)")
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
