"""What one run of the benchmark works with."""

import sys
from dataclasses import dataclass
from pathlib import Path

CLIENTS = 8
"""Closed-loop clients of the loaded figures: twice the slots of the generation profile."""


_SHORT_ROUNDS = 5


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
    def single_client_rounds(self) -> int:
        """Rounds of one client alone: many and short, since tenths of a millisecond are compared.

        What drifts on the machine from second to second then meets both sides alike.
        """
        return self.rounds * _SHORT_ROUNDS

    @property
    def single_client_seconds(self) -> float:
        """Seconds of each of them: a third of a loaded round in all, for a median needs less."""
        return max(self.seconds / 3 / _SHORT_ROUNDS, 0.1)


def say(line: str) -> None:
    """Report progress, apart from the table."""
    print(line, file=sys.stderr, flush=True)
