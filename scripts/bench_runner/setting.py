"""What one run of the benchmark works with."""

import sys
from dataclasses import dataclass
from pathlib import Path

CLIENTS = 8
"""Closed-loop clients of the loaded figures: twice the slots of the generation profile."""


class BenchError(Exception):
    """A figure cannot be measured. The message says why, with the server's last log lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Options of the command line and the folders; `work_dir` is temporary and ours alone."""

    profiles: Path
    models: Path
    work_dir: Path
    engine: str
    seconds: float
    rounds: int
    starts: int
    switches: int

    @property
    def single_client_seconds(self) -> float:
        """How long one client alone is measured: a median needs fewer seconds than a rate."""
        return max(self.seconds / 3, min(self.seconds, 1.0))


def say(line: str) -> None:
    """Report progress, apart from the table."""
    print(line, file=sys.stderr, flush=True)
