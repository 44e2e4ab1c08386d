"""What one run of the benchmark works with."""

import sys
from dataclasses import dataclass
from pathlib import Path

CLIENTS = 8
"""Closed-loop clients of the loaded figures: twice the slots of the generation profile."""

_TURN_SECONDS = 3.0


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
    def turn_seconds(self) -> float:
        """How long a side is under load before the other has its turn.

        Shared machines change their pace by a quarter within tens of seconds, unseen from inside;
        short turns let that meet both sides alike.
        """
        return min(self.seconds, _TURN_SECONDS)

    @property
    def turns(self) -> int:
        """How many turns each side has: `rounds` × `seconds` in all."""
        return max(1, round(self.rounds * self.seconds / self.turn_seconds))

    @property
    def single_client_turn_seconds(self) -> float:
        """How long a turn of one client alone is: a median needs less than a rate."""
        return self.turn_seconds / 3


def say(line: str) -> None:
    """Report progress, apart from the table."""
    print(line, file=sys.stderr, flush=True)
