"""What a run of the bench, or a part of the GPU check, works with."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

CHAT_MODEL, EMBEDDING_MODEL = "bench-chat", "minilm"

CLIENTS = 8
"""Closed-loop clients of the loaded figures: twice the slots of the generation profile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Options of the command line and the folders; `work_dir` is temporary and ours alone.

    `peers` are the URLs of further supervisors by their names (`lab.bench.sides.Side.peer`);
    `sentence_transformers` is a Python that has that package.
    """

    profiles: Path
    models: Path
    work_dir: Path
    engine: str
    seconds: float
    rounds: int
    starts: int
    switches: int
    texts: int = 0
    pages: int = 0
    points: int = 0
    indexed: int = 0
    peers: Mapping[str, str] = field(default_factory=dict)
    sentence_transformers: Path | None = None


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
