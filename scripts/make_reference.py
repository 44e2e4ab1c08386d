"""Writes the generated pages of docs/reference from the code that they describe.

A test fails when a page is stale; run this to renew them.
"""

from enum import StrEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from supervisor.config.profile import Profile, ProfileMemory
from supervisor.config.settings import (
    Catalogue,
    DeviceSettings,
    EngineSettings,
    ModelEntry,
    QueueSettings,
    ServerSettings,
    SwitchSettings,
)
from supervisor.gateway.error_responses import STATUS_BY_CODE
from supervisor.gateway.routes import RESERVED_ROUTES

SECTIONS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("`models.yaml`", Catalogue),
    ("`models.yaml`: an entry of `models`", ModelEntry),
    ("A profile", Profile),
    ("A profile: `memory`", ProfileMemory),
    ("`supervisor.yaml`: `server`", ServerSettings),
    ("`supervisor.yaml`: an entry of `devices`", DeviceSettings),
    ("`supervisor.yaml`: `engines`", EngineSettings),
    ("`supervisor.yaml`: `queue`", QueueSettings),
    ("`supervisor.yaml`: `switch`", SwitchSettings),
)

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"


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
        "whose name is the profile's. Sizes are in bytes and times in seconds, as the names say.",
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


def pages() -> dict[Path, str]:
    """Return every generated page with its path."""
    return {
        REFERENCE / "http.md": http_page(),
        REFERENCE / "configuration.md": configuration_page(),
    }


def main() -> None:
    """Write the pages that changed."""
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for path, content in pages().items():
        path.write_text(content, encoding="utf-8")
        print(f"{path.relative_to(REFERENCE.parent.parent)} written")


if __name__ == "__main__":
    main()
