"""Storm over the real controller and draw the balance; `scripts/chaos` runs it.

    python -m chaos_runner [--seconds N] [--seed N] [--json FILE] [--logs DIR]

Prints the balance as tables. The exit status is 0 when every request was accounted for and no rule
was broken, 1 when one was, with the story that led to it, and 2 when the run could not be made.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from chaos_runner.balance import Balance, as_json, tables
from chaos_runner.facts import SERVING
from chaos_runner.faults import PHASES
from chaos_runner.setting import MODELS, ChaosError, Setting, say
from chaos_runner.storm import Storm
from supervisor.engine.kinds.cached_build import cached_llama_server

ROOT = Path(__file__).parents[2]
EXIT_VIOLATED = 1
EXIT_NOT_MADE = 2

_STORIES = 4
_STORY_LINES = 30
_TOLD_VIOLATIONS = 25


def main(arguments: list[str] | None = None) -> int:
    """Make one run. Returns the exit status."""
    asked = _parse(arguments)
    say(f"chaos: seed {asked.seed}, {asked.seconds:g} s")
    try:
        with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
            setting = Setting(
                seed=asked.seed,
                seconds=asked.seconds,
                models=_models(asked.models),
                work_dir=Path(folder),
                llama_server=_llama_server(),
            )
            return asyncio.run(_run(setting, asked))
    except ChaosError as error:
        say(f"chaos: {error} (seed {asked.seed})")
        return EXIT_NOT_MADE
    except (KeyboardInterrupt, asyncio.CancelledError):
        say(f"chaos: interrupted (seed {asked.seed})")
        return EXIT_NOT_MADE


async def _run(setting: Setting, asked: argparse.Namespace) -> int:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    began_at = time.monotonic()
    storm = Storm(setting)
    try:
        balance = await storm.run()
    finally:
        if asked.logs:
            storm.keep_logs(asked.logs)
    took_s = round(time.monotonic() - began_at, 1)
    print(tables(balance, (*PHASES, SERVING)))
    if asked.json:
        context = {"seed": asked.seed, "seconds": asked.seconds, "took_s": took_s}
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps(as_json(balance, context), indent=1, ensure_ascii=False)
        asked.json.write_text(content + "\n", encoding="utf-8")
    _tell(storm, balance)
    word = "clean" if balance.is_clean else "NOT CLEAN"
    print(f"\nchaos: seed {asked.seed}, {asked.seconds:g} s, took {took_s:g} s: {word}")
    return 0 if balance.is_clean else EXIT_VIOLATED


def _tell(storm: Storm, balance: Balance) -> None:
    """Print what was violated, and for the first ones how it came about."""
    for each in balance.violations[:_TOLD_VIOLATIONS]:
        print(f"\nVIOLATED {each.rule}: {each.what}")
    for each in balance.violations[:_STORIES]:
        print(f"\nThe story of {each.rule}: {each.what[:200]}")
        print(*storm.ledger.story(each.at + 0.3, _STORY_LINES), sep="\n")
        print(*storm.controller.log_around(each.at + 0.3, _STORY_LINES), sep="\n")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chaos", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--seconds", type=_positive, default=120.0, metavar="N", help="of storm (%(default)s)")
    add("--seed", type=int, default=random.randrange(1_000_000), metavar="N", help="of all choices")
    add("--models", type=Path, default=ROOT / "models", metavar="DIR", help="the demo models")
    add("--json", type=Path, metavar="FILE", help="write the balance there, too")
    add("--logs", type=Path, metavar="DIR", help="keep the controllers' logs there")
    return parser.parse_args(arguments)


def _positive(text: str) -> float:
    number = float(text)
    if number <= 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return number


def _models(folder: Path) -> Path:
    """Return the folder with the demo models. Raises ChaosError when one is not there."""
    for name in MODELS:
        if not (folder / f"{name}.gguf").is_file():
            raise ChaosError(
                f"there is no {name}.gguf in {folder}; run scripts/make_demo_models.py"
            )
    return folder


def _llama_server() -> Path:
    """Return the native server. Raises ChaosError when it is not built."""
    named = os.environ.get("LLAMA_SERVER_BIN")
    found = Path(named) if named else cached_llama_server()
    if found is None:
        raise ChaosError("there is no llama-server; run scripts/build_llama_server.py")
    return found


if __name__ == "__main__":
    sys.exit(main())
