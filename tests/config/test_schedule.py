"""What is wrong with a schedule is said with its place, and what to write."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from supervisor.config.load import load
from supervisor.errors import ConfigError
from tests.conftest import ROOT, write_configuration

NIGHT: Mapping[str, Any] = {"cron": "0 2 * * *", "mode": "embedding"}
DAY: Mapping[str, Any] = {"from": "08:00", "to": "18:00", "mode": "generation"}


def load_schedule(folder: Path, catalogue: Mapping[str, Any] | None = None, **schedule: Any) -> Any:
    """Load the shipped configuration with a schedule."""
    written = {"time_zone": "Asia/Seoul", "baseline": {"mode": "generation"}} | schedule
    models = yaml.safe_load((ROOT / "profiles/models.yaml").read_text())
    files = {
        "supervisor.yaml": {"schedule": written},
        "models.yaml": models | dict(catalogue or {}),
    }
    write_configuration(folder, ROOT / "profiles", None, files)
    return load(folder, ROOT / "models", {}).settings.schedule


def problems_of(folder: Path, **schedule: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        load_schedule(folder, **schedule)
    return "\n".join(raised.value.problems)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"time_zone": "Asia/Soul"}, "time_zone: there is no time zone 'Asia/Soul'; did you mean"),
        ({"time_zone": "../etc"}, "time_zone: there is no time zone '../etc'; write one such as"),
        ({"baseline": {}}, "baseline: must have either `mode` or `model`"),
        ({"baseline": {"model": "demo-chap"}}, "no model 'demo-chap'; did you mean 'demo-chat'?"),
        ({"baseline": {"mode": "night"}}, "mode: must be 'generation', 'embedding' or 'mixed'"),
        ({"entries": [{**NIGHT, "cron": "0 2 * *"}]}, "entries.0.cron: must be a cron expression"),
        ({"entries": [{**NIGHT, "cron": "0 25 * * *"}]}, "is no cron expression (Bad hour)"),
        ({"entries": [{**NIGHT, "cron": "0 0 30 2 *"}]}, "(Bad day-of-month)"),
        ({"entries": [{**NIGHT, **DAY}]}, "must have either `cron`, or `from` and `to`"),
        ({"entries": [{"from": "08:00", "mode": "mixed"}]}, "must have both `from` and `to`"),
        ({"entries": [{**DAY, "to": "08:00"}]}, "a whole day is 00:00 to 24:00"),
        ({"entries": [{**DAY, "to": 1080}]}, 'to: must be a time of day in quotes, from "00:00"'),
        ({"entries": [{**DAY, "to": "24:01"}]}, "to: must be a time of day in quotes"),
        ({"entries": [{**DAY, "from": "24:00"}]}, "`from` is 24:00, the end of a day; write 00:00"),
        ({"entries": [{**DAY, "until_done": True}]}, "`until_done` is for entries with `cron`"),
        ({"entries": [{**NIGHT, "days": ["mon"]}]}, "`days` is for windows"),
        (
            {"entries": [{**DAY, "form": "08:00"}]},
            "form: is not a known field; did you mean 'from'",
        ),
    ],
)
def test_problem_is_named_at_its_place(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    problems = problems_of(tmp_path, **changes)

    assert problem in problems
    assert problems.startswith(str(tmp_path / "supervisor.yaml:"))


def test_mode_needs_a_model_and_where_there_are_several_a_default(tmp_path: Path) -> None:
    only_chats = {"models": {name: {"path": f"{name}.gguf"} for name in ("one", "two")}}
    problems = problems_of(
        tmp_path, catalogue={**only_chats, "default_models": {}}, entries=[NIGHT]
    )

    assert "schedule.entries.0.mode: there is no model for embedding" in problems
    assert "schedule.baseline.mode: several models are for generation (one, two)" in problems
    assert "set default_models.generation" in problems


def test_the_shipped_example_is_sound(tmp_path: Path) -> None:
    example = yaml.safe_load((ROOT / "docs/examples/supervisor.yaml").read_text())
    schedule = load_schedule(tmp_path, **example["schedule"])

    assert [entry.describe() for entry in schedule.entries] == [
        "cron 0 2 * * * until done",
        "08:00–18:00",
        "18:00–24:00",
    ]
