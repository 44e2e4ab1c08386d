"""Writes docs/reference and the editors' schemas from the code that they describe.

A test fails when a file is stale; run this to renew them.
"""

import json
from enum import StrEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from supervisor.config.command import CommandSettings
from supervisor.config.profile import Profile, ProfileMemory
from supervisor.config.settings import (
    Catalogue,
    DeviceSettings,
    EngineSettings,
    ModelEntry,
    QueueSettings,
    ServerSettings,
    SupervisorSettings,
    SwitchSettings,
)
from supervisor.gateway.error_responses import STATUS_BY_CODE
from supervisor.gateway.routes import RESERVED_ROUTES

SECTIONS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("`models.yaml`", Catalogue),
    ("`models.yaml`: an entry of `models`", ModelEntry),
    ("A profile", Profile),
    ("A profile: `command`", CommandSettings),
    ("A profile: `memory`", ProfileMemory),
    ("`supervisor.yaml`: `server`", ServerSettings),
    ("`supervisor.yaml`: an entry of `devices`", DeviceSettings),
    ("`supervisor.yaml`: `engines`", EngineSettings),
    ("`supervisor.yaml`: `queue`", QueueSettings),
    ("`supervisor.yaml`: `switch`", SwitchSettings),
)

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"
SCHEMAS = ROOT / "profiles" / "schema"


def http_page() -> str:
    """Write the page of routes and error codes."""
    routes = [f"| {r.method} | `{r.path}` | {r.purpose} |" for r in RESERVED_ROUTES]
    codes = [
        f"| {status} | `{code}` |"
        for code, status in sorted(STATUS_BY_CODE.items(), key=lambda item: (item[1], item[0]))
    ]
    return "\n".join(
        [
            "# HTTP routes",
            "",
            "<!-- Written by scripts/make_reference.py; do not edit. -->",
            "",
            "These paths are ours, whatever the method. Everything else goes to the live backend",
            "unchanged: method, path, query, body, status and headers (hop-by-hop ones stripped,",
            "`X-Request-ID` added). A JSON body that names a `model` goes to that model's backend.",
            "",
            "| Method | Path | What it does |",
            "|---|---|---|",
            *routes,
            "",
            "## Errors",
            "",
            'Errors of ours have OpenAI\'s form: `{"error": {"message", "type", "code", …}}`.',
            "Answers with 503 carry `Retry-After`.",
            "",
            "| Status | Code |",
            "|---|---|",
            *codes,
            "",
        ]
    )


def configuration_page() -> str:
    """Write the page of every file's fields, with type, default and meaning."""
    lines = [
        "# Configuration",
        "",
        "<!-- Written by scripts/make_reference.py; do not edit. -->",
        "",
        "One folder (`--profiles`): `models.yaml`, `supervisor.yaml`, and one file per profile,",
        "whose name is the profile's. Sizes are in bytes and times in seconds, as names say, or",
        "with a unit: `16GiB`, `512MiB`, `30s`, `5m`. `llama-supervisor check` names every problem",
        "by file and line; `llama-supervisor check --explain MODEL` tells where each value of a",
        "model comes from, and the command line that will run. Editors that know the YAML language",
        "server check the files while you write: their first line names the schema.",
    ]
    for title, kind in SECTIONS:
        lines += [
            "",
            f"## {title}",
            "",
            "| Field | Type | Default | Meaning |",
            "|---|---|---|---|",
        ]
        lines += [field_row(name, field) for name, field in kind.model_fields.items()]
    return "\n".join([*lines, ""])


def field_row(name: str, field: FieldInfo) -> str:
    """Write one field as a row of the table."""
    kind = display_as_type(field.annotation).replace("|", "\\|")
    meaning = (field.description or "See the section of that name.").replace("|", "\\|")
    return f"| `{name}` | `{kind}` | {default_of(field)} | {meaning} |"


def display_as_type(annotation: Any) -> str:
    """Write a type as an operator would: `integer`, `on | off | auto`."""
    if get_origin(annotation) is Literal:
        return " | ".join(str(value) for value in get_args(annotation))
    if get_origin(annotation) in {Union, UnionType}:
        return " | ".join(display_as_type(part) for part in get_args(annotation) if part)
    if get_origin(annotation) is tuple:
        return f"list of {display_as_type(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return " | ".join(annotation)
    plain = {int: "integer", float: "number", str: "text", bool: "true | false", Path: "path"}
    return plain.get(annotation, "section" if annotation is not NoneType else "none")


def default_of(field: FieldInfo) -> str:
    """Write a field's default; a section's default is that of its fields."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, BaseModel) or value in ((), {}):
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def schema(kind: type[BaseModel]) -> str:
    """Write a JSON Schema, which editors check the YAML against while it is written."""
    return json.dumps(kind.model_json_schema(), indent=2, ensure_ascii=False) + "\n"


def pages() -> dict[Path, str]:
    """Return every generated file with its path."""
    return {
        REFERENCE / "http.md": http_page(),
        REFERENCE / "configuration.md": configuration_page(),
        SCHEMAS / "models.schema.json": schema(Catalogue),
        SCHEMAS / "profile.schema.json": schema(Profile),
        SCHEMAS / "supervisor.schema.json": schema(SupervisorSettings),
    }


def main() -> None:
    """Write every file."""
    for path, content in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        print(f"{path.relative_to(ROOT)} written")


if __name__ == "__main__":
    main()
