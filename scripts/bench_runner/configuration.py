"""The shipped configuration with what a figure changes in it."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import yaml

from bench_runner.setting import Setting


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
        path.write_text(yaml.safe_dump(merged(written, values)), encoding="utf-8")
    return replace(setting, profiles=folder)


def merged(written: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Put values into nested sections, and leave what stands beside them."""
    return dict(written) | {
        key: merged(written[key], value)
        if isinstance(value, Mapping) and isinstance(written.get(key), Mapping)
        else value
        for key, value in values.items()
    }
