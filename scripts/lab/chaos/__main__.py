"""Storm over the real controller and draw the balance; `scripts/chaos` runs it.

    python -m lab.chaos [--seconds N] [--seed N] [--devices N] [--json FILE] [--logs DIR]

Prints the balance as tables. The exit status is 0 when every request was accounted for and no rule
was broken, 1 when one was, with the story that led to it, and 2 when the run could not be made.
"""

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from lab.chaos.balance import Balance, as_json, tables
from lab.chaos.facts import SERVING
from lab.chaos.faults import PHASES
from lab.chaos.known import Known, learn
from lab.chaos.setting import FAULTS, MODELS, Setting
from lab.chaos.storm import Storm
from lab.harness import command
from lab.harness.command import LabError, say, write_json
from supervisor.engine.kinds.cached_build import cached_llama_server

EXIT_VIOLATED = 1
EXIT_NOT_MADE = 2

_STORIES = 4
_STORY_LINES = 30
_SHOWN_VIOLATIONS = 25


def main(arguments: list[str] | None = None) -> int:
    """Make one run. Returns the exit status."""
    asked = _parse(arguments)
    say(f"chaos: seed {asked.seed}, {asked.seconds:g} s, queue of jobs: {asked.queue}")
    name = f"chaos (seed {asked.seed})"
    return command.run(name, lambda: _storm(asked), when_not_made=EXIT_NOT_MADE)


def _storm(asked: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        setting = Setting(
            seed=asked.seed,
            seconds=asked.seconds,
            models=_models(asked.models),
            work_dir=Path(folder),
            llama_server=_llama_server(),
            faults=frozenset(asked.faults),
            fast_lane=None if asked.fast_lane is None else asked.fast_lane == "on",
            shares_queue=asked.queue == "redis",
            devices=asked.devices,
        )
        say("right answers from the bare servers …")
        return asyncio.run(_rage(setting, learn(setting), asked))


async def _rage(setting: Setting, known: Known, asked: argparse.Namespace) -> int:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    began_at = time.monotonic()
    storm = Storm(setting, known)
    try:
        balance = await storm.run()
    finally:
        if asked.logs:
            storm.keep_logs(asked.logs)
    took_s = round(time.monotonic() - began_at, 1)
    print(tables(balance, (*PHASES, SERVING)))
    if asked.json:
        context = {"seed": asked.seed, "seconds": asked.seconds, "took_s": took_s}
        write_json(asked.json, as_json(balance, context))
    _explain(storm, balance)
    word = "clean" if balance.is_clean else "NOT CLEAN"
    print(f"\nchaos: seed {asked.seed}, {asked.seconds:g} s, took {took_s:g} s: {word}")
    return 0 if balance.is_clean else EXIT_VIOLATED


def _explain(storm: Storm, balance: Balance) -> None:
    """Print what was violated, and for the first ones how it came about."""
    for each in balance.violations[:_SHOWN_VIOLATIONS]:
        print(f"\nVIOLATED {each.rule}: {each.what}")
    for each in balance.violations[:_STORIES]:
        print(f"\nThe story of {each.rule}: {each.what[:200]}")
        print(*storm.ledger.story(each.at + 0.3, _STORY_LINES), sep="\n")
        print(*storm.controller.log_around(each.at + 0.3, _STORY_LINES), sep="\n")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chaos", description=(__doc__ or "").partition("\n")[0])
    add, seconds = parser.add_argument, command.positive
    add("--seconds", type=seconds, default=120.0, metavar="N", help="of storm (%(default)s)")
    add("--seed", type=int, default=random.randrange(1_000_000), metavar="N", help="of all choices")
    add("--models", type=Path, default=command.MODELS, metavar="DIR", help="the demo models")
    faults = sorted(FAULTS)
    named = "%(choices)s; default: all"
    add("--faults", nargs="+", choices=faults, default=faults, metavar="NAME", help=named)
    add("--fast-lane", choices=("on", "off"), help="server.fast_lane (default: not written)")
    told = "simulated GPUs that the servers share (0, the default: the host's memory)"
    add("--devices", type=int, choices=(0, 2), default=0, help=told)
    queues = ("file", "redis")
    add("--queue", choices=queues, help="where jobs stand (default: chosen by the seed)")
    add("--json", type=Path, metavar="FILE", help="write the balance there, too")
    add("--logs", type=Path, metavar="DIR", help="keep the controllers' logs there")
    asked = parser.parse_args(arguments)
    asked.queue = asked.queue or random.Random(f"{asked.seed}:queue").choice(queues)
    return asked


def _models(folder: Path) -> Path:
    """Return the folder with the demo models. Raises LabError when one is not there."""
    for name in MODELS:
        if not (folder / f"{name}.gguf").is_file():
            raise LabError(f"there is no {name}.gguf in {folder}; run scripts/make_demo_models.py")
    return folder


def _llama_server() -> Path:
    """Return the native server. Raises LabError when it is not built."""
    named = os.environ.get("LLAMA_SERVER_BIN")
    found = Path(named) if named else cached_llama_server()
    if found is None:
        raise LabError("there is no llama-server; run scripts/build_llama_server.py")
    return found


if __name__ == "__main__":
    sys.exit(main())
