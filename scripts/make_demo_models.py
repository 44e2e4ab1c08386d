"""Make the models that the demo, the tests and the benchmarks run on.

    python scripts/make_demo_models.py [--models DIR] [--only NAME ...] [--wheel-dir DIR]

A file that is already there is left alone; delete it to have it made again.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from demo_models.bench_chat import write_bench_chat
from demo_models.demo_chat import write_demo_chat
from demo_models.minilm import write_minilm, write_tokenizer

from supervisor.errors import ModelFileError

Write = Callable[[Path], None]

MODELS_DIR = Path(__file__).parents[1] / "models"


def main(arguments: list[str] | None = None) -> int:
    """Make the models asked for and print a line about each. Returns the exit status."""
    asked = _parse(arguments)
    recipes = _recipes(asked.wheel_dir)
    try:
        asked.models.mkdir(parents=True, exist_ok=True)
        for name in asked.only or recipes:
            for file_name, write in recipes[name].items():
                _make(asked.models / file_name, write)
    except ModelFileError as exc:
        print(f"make_demo_models: {exc}", file=sys.stderr)
        return 1
    except OSError as exc:
        print(
            f"make_demo_models: {asked.models} could not be written ({exc}). No unfinished model "
            "is left there. Check its free space and its owner, then run this again.",
            file=sys.stderr,
        )
        return 1
    return 0


def _recipes(wheel_dir: Path | None) -> Mapping[str, Mapping[str, Write]]:
    """Return what writes each file of each model."""
    return {
        "demo-chat": {"demo-chat.gguf": write_demo_chat},
        "bench-chat": {"bench-chat.gguf": write_bench_chat},
        "minilm": {
            "minilm.gguf": lambda path: write_minilm(path, wheel_dir),
            "minilm.tokenizer.json": lambda path: write_tokenizer(path, wheel_dir),
        },
    }


def _make(path: Path, write: Write) -> None:
    if path.exists():
        print(f"{path}: already there")
        return
    started_s = time.monotonic()
    write(path)
    took_s = time.monotonic() - started_s
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB in {took_s:.1f} s")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make the demo models.")
    parser.add_argument("--models", type=Path, default=MODELS_DIR, metavar="DIR")
    parser.add_argument(
        "--only", nargs="+", choices=tuple(_recipes(None)), metavar="NAME", help="%(choices)s"
    )
    parser.add_argument(
        "--wheel-dir", type=Path, metavar="DIR", help="keep the downloaded wheel here"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
