"""The generated pages of docs/reference are fresh, and what they say of fields is true.

The truth is what the models take: each cell is read back as an operator would use it.
"""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from supervisor.config.catalogue import Catalogue
from supervisor.config.profile import Profile
from supervisor.config.settings import SupervisorSettings
from supervisor.engine.kinds.flag_table import SETTINGS

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "make_reference.py"
_spec = importlib.util.spec_from_file_location("make_reference", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
make_reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_reference)

PAGE = (ROOT / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")

EXAMPLES: dict[str, tuple[Any, Any]] = {  # a value of the type, and one that is not of it
    "size": ("1KiB", "1h"),
    "duration": ("2h", "1KiB"),
    "integer": (20, "twenty"),
    "list of days": (["mon", "sun"], ["monday"]),
    "time of day": ("08:00", 1080),
    "device or devices": ("gpu1", "some text"),
    "cron expression": ("0 2 * * *", "2 o'clock"),
    "time zone": ("Asia/Seoul", "Seoul"),
    "text": ("/some/text", ["no", "text"]),
    "nothing": (None, ["something"]),
    "list of hosts": (["hooks.example:8443"], "hooks.example"),
    "list of names of hosts": (["llm.example"], "llm.example"),
    "list of origins": (["https://chat.example"], "https://chat.example"),
    "list of text": (["a", "b"], "a"),
    "list of `text`": (["a", "b"], "a"),
}


@pytest.mark.parametrize(("path", "content"), make_reference.pages().items())
def test_reference_page_is_what_the_code_says(path: Path, content: str) -> None:
    assert path.read_text(encoding="utf-8") == content, "stale: run scripts/make_reference.py"


def models_in(hint: Any) -> Iterator[type[BaseModel]]:
    """Yield the models that a type names, and those that their fields do, however deep."""
    for part in get_args(hint):
        yield from models_in(part)
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        yield hint
        for inner in get_type_hints(hint).values():
            yield from models_in(inner)


MODELS = sorted(
    {m for top in (Catalogue, Profile, SupervisorSettings) for m in models_in(top)},
    key=lambda kind: kind.__name__,
)
FIELDS = [(kind, name) for kind in MODELS for name in kind.model_fields]


def rows_of(heading: str) -> dict[str, list[str]]:
    """Return the cells of a section's table by field: type, default, meaning."""
    section = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ")[0]
    rows = [
        re.split(r"(?<!\\)\|", line)[1:-1] for line in section.splitlines() if line[:3] == "| `"
    ]
    cells = [[cell.strip().replace("\\|", "|") for cell in row] for row in rows]
    return {row[0].strip("`"): row[1:] for row in cells}


def cells_of(kind: type[BaseModel], name: str) -> list[str]:
    [heading] = [title for title, model in make_reference.SECTIONS if model is kind]
    return rows_of(heading)[kind.model_fields[name].alias or name]


def takes(kind: type[BaseModel], name: str, value: Any) -> bool:
    try:
        read(kind, name, value)
    except ValidationError:
        return False
    return True


def read(kind: type[BaseModel], name: str, value: Any) -> Any:
    """Return what the field makes of a value that stands in a YAML file."""
    hint = get_type_hints(kind, include_extras=True)[name]
    return TypeAdapter(hint).validate_python(value)


def test_the_models_that_operators_write_are_all_there() -> None:
    names = {kind.__name__ for kind in MODELS}
    assert {"ModelEntry", "ProfileMemory", "CommandSettings", "DeviceSettings"} <= names
    assert {kind for _, kind in make_reference.SECTIONS} == set(MODELS)


@pytest.mark.parametrize(("kind", "name"), FIELDS)
def test_a_field_has_a_row_with_its_default(kind: type[BaseModel], name: str) -> None:
    field, (_, default, meaning) = kind.model_fields[name], cells_of(kind, name)
    assert len(meaning) > 10
    if field.is_required():
        assert default == "required"
        return
    value = field.get_default(call_default_factory=True)
    if default == "–":
        assert value is None or value in ((), {}) or isinstance(value, BaseModel)
    else:
        assert read(kind, name, yaml.safe_load(default.strip("`"))) == value
        assert not re.search(r"\d{6}", default), "a size that nobody can read"


@pytest.mark.parametrize(("kind", "name"), FIELDS)
def test_a_field_takes_what_its_type_says_and_nothing_else(
    kind: type[BaseModel], name: str
) -> None:
    shown = cells_of(kind, name)[0]
    parts = shown.split(" | ")
    words = [yaml.safe_load(part.strip("`")) for part in parts if part[0] == "`"]
    assert all(takes(kind, name, word) for word in words), words
    if len(words) == len(parts):
        assert not takes(kind, name, "no such word")
    for part in parts:
        if part in EXAMPLES:
            right, wrong = EXAMPLES[part]
            assert takes(kind, name, right)
            assert "list" in shown or not takes(kind, name, wrong)
        elif "](#" in part:
            link = part.partition("](#")[2].rstrip(")")
            headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
            assert link in {make_reference.anchor(heading) for heading in headings}
            assert not takes(kind, name, "no section")
    assert takes(kind, name, None) == ("nothing" in parts)


@pytest.mark.parametrize("flag", [each for each in SETTINGS if each.field != "engine"])
def test_a_profiles_field_names_its_flag_in_page_and_schema(flag: Any) -> None:
    schema = make_reference.pages()[ROOT / "profiles" / "schema" / "profile.schema.json"]
    assert f"`{flag.name}`" in cells_of(Profile, flag.field)[2]
    assert f"`{flag.name}`" in yaml.safe_load(schema)["properties"][flag.field]["description"]
