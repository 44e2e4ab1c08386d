"""Run the scheduling policies on a virtual clock; `scripts/simulate` runs this.

    python -m lab.simulate [--only NAME ...] [--seeds N] [--costs CHAT EMBEDDING SWITCH]

Prints a table for each experiment, and writes the same as JSON; `--plot` draws the picture of
docs/explanation/scheduling.md instead.
"""

import argparse
import sys
import time
from pathlib import Path

from lab.harness import command
from lab.harness.command import ROOT, at_least, positive, say, write_json
from lab.simulate.drawing import draw
from lab.simulate.loops import Crowd
from lab.simulate.open_traces import Setting
from lab.simulate.tables import EXPERIMENTS, Plan

PICTURE = ROOT / "docs" / "explanation" / "scheduling.svg"


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for. Returns the exit status: 0, or 1 with the reason said."""
    asked = _parse(arguments)
    return command.run("simulate", lambda: _draw(asked) if asked.plot else _simulate(asked))


def _draw(asked: argparse.Namespace) -> int:
    asked.plot.write_text(draw(range(1, asked.seeds + 1)), encoding="utf-8")
    say(f"written to {asked.plot}")
    return 0


def _simulate(asked: argparse.Namespace) -> int:
    plan, started_at = _plan(asked), time.monotonic()
    tables = {}
    for name in asked.only:
        say(f"{name} …")
        tables[name] = EXPERIMENTS[name](plan)
        print(tables[name].text(), end="\n\n", flush=True)
    took_s = round(time.monotonic() - started_at, 1)
    content = {name: table.as_json() for name, table in tables.items()}
    write_json(asked.json, {"seeds": asked.seeds, "took_s": took_s, **content})
    say(f"written to {asked.json}")
    return 0


def _plan(asked: argparse.Namespace) -> Plan:
    seeds = range(1, asked.seeds + 1)
    if asked.costs is None:
        return Plan(seeds=seeds)
    chat_s, embedding_s, switch_s = asked.costs
    setting = Setting(chat_s=chat_s, embedding_s=embedding_s, switch_s=switch_s)
    crowds = [
        Crowd(clients=clients, chat_s=chat_s, embedding_s=embedding_s, switch_s=switch_s)
        for clients in (1, 4)
    ]
    return Plan(seeds=seeds, settings=[setting], crowds=crowds)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="simulate", description=summary)
    add = parser.add_argument
    names, results = list(EXPERIMENTS), ROOT / "bench-results" / "simulate.json"
    add("--only", nargs="+", choices=names, default=names, metavar="NAME", help="%(choices)s")
    add("--seeds", type=at_least(1), default=20, metavar="N", help="traces of each (%(default)s)")
    what = "measured seconds of a chat, an embedding and a switch, in place of the usual settings"
    add("--costs", nargs=3, type=positive, metavar=("CHAT", "EMBEDDING", "SWITCH"), help=what)
    add("--json", type=Path, default=results, metavar="FILE", help="default: %(default)s")
    drawn = "draw the picture of the docs there, and run nothing else (%(const)s)"
    add("--plot", type=Path, nargs="?", const=PICTURE, metavar="FILE", help=drawn)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
