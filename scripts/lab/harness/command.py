"""The command line of a runner: its options, its progress, its report and its exit status."""

import argparse
import json
import signal
import sys
from asyncio import CancelledError
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from supervisor.errors import SupervisorError

SCRIPTS = Path(__file__).parents[2]
ROOT = SCRIPTS.parent
MODELS = ROOT / "models"
PROFILES = ROOT / "profiles"


class LabError(Exception):
    """Something cannot be measured. The message says why, with a server's last log lines."""


def say(line: str) -> None:
    """Report progress, apart from the result on standard output."""
    print(line, file=sys.stderr, flush=True)


def run(name: str, body: Callable[[], int], *, when_not_made: int = 1) -> int:
    """Run the body and return its exit status, or `when_not_made` with the reason said.

    SIGTERM is taken as an interrupt, so that the servers that were started are ended.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return body()
    except (LabError, SupervisorError) as error:
        say(f"{name}: {error}")
    except (KeyboardInterrupt, CancelledError):
        say(f"{name}: interrupted")
    return when_not_made


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a report where it is wanted; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def positive(text: str) -> float:
    """Read an option that is more than 0."""
    number = float(text)
    if number <= 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return number


def at_least(minimum: int) -> Callable[[str], int]:
    """Return what reads an option that has a minimum."""

    def parse(text: str) -> int:
        number = int(text)
        if number < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}")
        return number

    return parse


def in_columns(lines: Sequence[Sequence[str]], left: frozenset[int]) -> list[str]:
    """Align cells in columns: to the left in the columns named, to the right in all others."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in lines
    ]
