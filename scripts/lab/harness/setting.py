"""What a run of the bench, or a part of the GPU check, works with."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

CHAT_MODEL, EMBEDDING_MODEL = "bench-chat", "minilm"

CLIENTS = 8
"""Closed-loop clients of the loaded figures: twice the slots of the generation profile."""

_TURN_SECONDS = 3.0


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


def with_changes(setting: Setting, name: str, changes: Mapping[str, Mapping[str, Any]]) -> Setting:
    """Copy the configuration to a folder of that name, and merge values into its files.

    `changes` are by file name; a file that is not there is made. Sections are merged, everything
    else is replaced.
    """
    folder = setting.work_dir / name
    folder.mkdir()
    for path in setting.profiles.glob("*.yaml"):
        shutil.copy(path, folder)
    for file_name, values in changes.items():
        path = folder / file_name
        written = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(yaml.safe_dump(_merged(written, values)), encoding="utf-8")
    return replace(setting, profiles=folder)


def _merged(written: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Put values into nested sections, and leave what stands beside them."""
    return dict(written) | {
        key: _merged(written[key], value)
        if isinstance(value, Mapping) and isinstance(written.get(key), Mapping)
        else value
        for key, value in values.items()
    }
