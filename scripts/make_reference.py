"""Writes docs/reference and the editors' schemas from the code that they describe.

A test fails when a file is stale; run this to renew them.
"""

import json
import re
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from command_reference import commands_page
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from supervisor.config.catalogue import Catalogue, DefaultModels, ModelEntry
from supervisor.config.command import CommandSettings, ParkSettings
from supervisor.config.device_choice import DeviceChoice
from supervisor.config.profile import Profile, ProfileBatching, ProfileMemory
from supervisor.config.schedule import (
    ClockTime,
    CronExpression,
    Days,
    ScheduleEntry,
    ScheduleSettings,
    ServedSettings,
    TimeZone,
)
from supervisor.config.scheduler import SchedulerSettings
from supervisor.config.settings import (
    DeviceSettings,
    DocumentSettings,
    EngineSettings,
    JobSettings,
    QueueSettings,
    ServerSettings,
    SupervisorSettings,
    SwitchSettings,
    VectorSettings,
)
from supervisor.config.units import Bytes, Seconds
from supervisor.config.urls import HostAndPort, HostName, Origin
from supervisor.core.byte_size import MIB
from supervisor.engine.kinds.flag_table import SETTINGS
from supervisor.gateway.error_responses import STATUS_BY_CODE
from supervisor.gateway.form_routes import FORM_ROUTES, FormRoute
from supervisor.gateway.parameters import AnyParameters
from supervisor.gateway.relayed_routes import RELAYED_ROUTES, RelayedRoute
from supervisor.gateway.route import Route
from supervisor.gateway.routes import RESERVED_ROUTES

SECTIONS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("`models.yaml`", Catalogue),
    ("`models.yaml`: `default_models`", DefaultModels),
    ("`models.yaml`: an entry of `models`", ModelEntry),
    ("A profile", Profile),
    ("A profile: `command`", CommandSettings),
    ("A profile: `park` of `command`", ParkSettings),
    ("A profile: `memory`", ProfileMemory),
    ("A profile: `batching`", ProfileBatching),
    ("`supervisor.yaml`", SupervisorSettings),
    ("`supervisor.yaml`: `server`", ServerSettings),
    ("`supervisor.yaml`: an entry of `devices`", DeviceSettings),
    ("`supervisor.yaml`: `engines`", EngineSettings),
    ("`supervisor.yaml`: `queue`", QueueSettings),
    ("`supervisor.yaml`: `switch`", SwitchSettings),
    ("`supervisor.yaml`: `scheduler`", SchedulerSettings),
    ("`supervisor.yaml`: `vectors`", VectorSettings),
    ("`supervisor.yaml`: `jobs`", JobSettings),
    ("`supervisor.yaml`: `documents`", DocumentSettings),
    ("`supervisor.yaml`: `schedule`", ScheduleSettings),
    ("`supervisor.yaml`: `baseline` of `schedule`", ServedSettings),
    ("`supervisor.yaml`: an entry of `entries` in `schedule`", ScheduleEntry),
)

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"
SCHEMAS = ROOT / "profiles" / "schema"


def http_page() -> str:
    """Write the page of routes and error codes."""
    routes = [route_row(route) for route in RESERVED_ROUTES]
    forms = [form_row(form) for form in FORM_ROUTES]
    ours = {form.path for form in FORM_ROUTES if not form.told_by}
    relayed = [relayed_row(route) for route in RELAYED_ROUTES if route.path not in ours]
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
            "These paths are the controller's own, whatever the method. All others go to the live",
            "backend unchanged: method, path, query, body, status and headers (hop-by-hop ones",
            "stripped, `X-Request-ID` added). A request that names a `model` goes to the backend",
            "of that model: the name is read from any body that is a JSON object, whatever its",
            "Content-Type and with gzip or deflate, from a multipart form, and from the query.",
            "A body in another Content-Encoding is refused with 415 on the controller's own paths,",
            "and where it would switch; a live backend gets it as it is.",
            "",
            "What a route takes is in its path, its query or its JSON body, each field once; a",
            "field that the route does not know is refused. A field with `?` may be left out. A",
            "flag is `true` or `false` in JSON, and `true`, `false`, `1` or `0` in a query. Routes",
            "that take `any` answer whatever is given, and do not look at it: they are asked by",
            "probes, and by clients of other servers.",
            "",
            "A route that takes a `file` takes a form (`multipart/form-data`: one file, and up to",
            "64 KiB of other fields, a flag as in a query), or the file itself as the body, with",
            "the other fields in the query. The file goes to disk as it comes; beyond the limit",
            "that the error names it is refused with 413, and where the disk has no room with 507.",
            "",
            "| Method | Path | What it does | Takes | Answers | Refusals of its own |",
            "|---|---|---|---|---|---|",
            *routes,
            "",
            "## Embeddings",
            "",
            "A POST to one of these paths is answered by the embedding service, with the errors of",
            "its form. Where a path has several forms, a field of the body tells which is meant:",
            "with both or none of them, or a body that cannot be read, the answer is 422 in the",
            "form that stands first. Answers say in `X-Queue-Time-Ms` and `X-Inference-Time-Ms`",
            "how long their inputs waited and took, and in `X-Truncated` and `X-Windowed` how many",
            "of them were cut short or divided. `X-Served-By` names the profile of the server that",
            "made them: a model may have a twin (`spill`).",
            "",
            "| Path | Told by | What it does |",
            "|---|---|---|",
            *forms,
            "",
            "`/upstream/{model}/v1/embeddings` asks the model's server itself.",
            "",
            "## Routes of backends",
            "",
            "Every path that is not above is relayed. More is known of these: a request that may",
            "be repeated is sent to the next server if its own dies before the first byte, as GET",
            "and HEAD are. A POST for a task that its model cannot do is refused with 422: a model",
            "reranks with `pooling: rank`, and transcribes with an `mmproj` that has an audio",
            "encoder. A POST that names no model means the default one of its task; one that",
            "switches waits for the turn of its model where that is not live",
            "(`scheduler.auto_switch`). No other request switches.",
            "",
            "| Path | Task | May be repeated | Switches |",
            "|---|---|---|---|",
            *relayed,
            "",
            "What is relayed is the server's own answer, byte by byte, except that",
            "",
            "- `Date` and `X-Request-ID` are ours, and so are all `Access-Control-*` headers;",
            "- a request that names an unknown model is refused with 404, and the known ones;",
            "- a method that HTTP does not register is refused with 400 at the door;",
            "- a client of HTTP/1.0 gets an answer of unknown length up to the end of the",
            "  connection, where llama-server sends it chunks.",
            "",
            "What is relayed is not held to a model's `max_input_tokens`: what is too long is up",
            "to the server. LangChain's `OpenAIEmbeddings` needs",
            "`check_embedding_ctx_length=False`: otherwise it sends token ids of another",
            "tokenizer, which give wrong vectors, without an error where the model has such ids.",
            "",
            "## Browsers",
            "",
            "A page of another origin may not call any path with an unsafe method, unless",
            "`server.cors_origins` names its origin; the controller answers CORS preflights.",
            "`Host` must be an address, `localhost`, the machine's name or one of",
            "`server.allowed_hosts`; beyond loopback that is asked of browsers only.",
            "",
            "## Errors",
            "",
            'Errors of ours have OpenAI\'s form: `{"error": {"message", "type", "code", …}}`.',
            "`x-should-retry` says whether waiting can help; where it can, `Retry-After` says for",
            "how many seconds, and `X-Queue-Position` where a request that waited stood.",
            "",
            "| Status | Code |",
            "|---|---|",
            *codes,
            "",
        ]
    )


def route_row(route: Route) -> str:
    """Write a reserved route as a row of the table."""
    fields = route.parameters.model_fields.items()
    takes = ", ".join(
        f"`{field.alias or name}`" + ("" if field.is_required() else "?") for name, field in fields
    )
    if route.parameters is AnyParameters:
        takes = "any"
    answers = ", ".join(map(str, route.answers)) if route.handler else "the backend's"
    refusals = ", ".join(f"`{code}`" for code in route.refusals)
    cells = (f"`{route.path}`", route.purpose, takes or "–", answers, refusals or "–")
    return f"| {route.method} | {' | '.join(cells)} |"


def form_row(form: FormRoute) -> str:
    """Write a path in one of its forms as a row of the table."""
    told_by = f"`{form.told_by}`" if form.told_by else "–"
    return f"| `{form.path}` | {told_by} | {form.purpose} |"


def relayed_row(route: RelayedRoute) -> str:
    """Write what is known of a path of the backends as a row of the table."""
    yes_or_no = ("yes" if each else "no" for each in (route.may_repeat, route.computes))
    return f"| `{route.path}` | {route.task or 'any'} | {' | '.join(yes_or_no)} |"


def configuration_page() -> str:
    """Write the page of every file's fields, with type, default and meaning."""
    lines = [
        "# Configuration",
        "",
        "<!-- Written by scripts/make_reference.py; do not edit. -->",
        "",
        "One folder (`--profiles`): `models.yaml`, `supervisor.yaml`, and one file per profile,",
        "whose name is the profile's. A *size* is a number of bytes, or has a unit: `16GiB`,",
        "`512 MiB`. A *duration* is a number of seconds, or has a unit: `250ms`, `30s`, `5m`.",
        "`llama-supervisor check` names every problem",
        "by file and line; `llama-supervisor check --explain MODEL` shows where each value of a",
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
        lines += [field_row(kind, name) for name in kind.model_fields]
    return "\n".join([*lines, ""])


def field_row(kind: type[BaseModel], name: str) -> str:
    """Write one field as a row of the table."""
    field, hint = kind.model_fields[name], get_type_hints(kind, include_extras=True)[name]
    meaning = described(kind, name, field.description or "See the section of that name.")
    cells = (f"`{field.alias or name}`", display_as_type(hint), default_of(field, hint), meaning)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def described(kind: type[BaseModel], name: str, meaning: str) -> str:
    """Add to a profile's field the flag of llama-server that it becomes."""
    flag = next((flag for flag in SETTINGS if flag.field == name), None)
    if kind is not Profile or flag is None:
        return meaning
    opposite = f" / `{flag.negation}`" if flag.negation else ""
    return f"{meaning} Flag `{flag.name}`{opposite}."


def display_as_type(hint: Any) -> str:
    """Write a type as an operator would: `integer`, `on` | `off` | `auto`, a link to a section."""
    if hint in WORDS:
        return WORDS[hint]
    origin, parts = get_origin(hint), get_args(hint)
    if origin is None and issubclass(hint, StrEnum):
        origin, parts = Literal, tuple(hint)
    if origin is Literal:
        return " | ".join(f"`{value}`" for value in parts)
    if origin is None:
        [title] = (title for title, kind in SECTIONS if kind is hint)
        return f"[section](#{anchor(title)})"
    return display_as_parts(origin, parts)


def display_as_parts(origin: Any, parts: tuple[Any, ...]) -> str:
    """Write a type that is made of others."""
    if origin is tuple:
        return f"list of {display_as_type(parts[0])}"
    if origin is dict:
        return f"names, each with {display_as_type(parts[1])}"
    alternatives = parts[:1] if origin is Annotated else parts
    return " | ".join(map(display_as_type, alternatives))


WORDS: dict[Any, str] = {
    Bytes: "size",
    Seconds: "duration",
    ClockTime: "time of day",
    Days: "list of days",
    CronExpression: "cron expression",
    DeviceChoice: "device or devices",
    HostAndPort: "hosts",
    HostName: "names of hosts",
    Origin: "origins",
    TimeZone: "time zone",
    int: "integer",
    float: "number",
    str: "text",
    bool: "`true` | `false`",
    NoneType: "nothing",
    Any: "any value",
}


def anchor(title: str) -> str:
    """Return the name under which a heading can be linked to, as GitHub makes it."""
    return re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-")


def default_of(field: FieldInfo, hint: Any) -> str:
    """Write a field's default as an operator would; a section's is that of its fields."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, BaseModel) or value in ((), {}):
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if hint == Bytes:
        return f"`{size(value)}`"
    if isinstance(value, int) and value >= 100_000:
        return f"`{value:_}`"
    return f"`{value:g} s`" if hint == Seconds else f"`{value}`"


def size(value_bytes: int) -> str:
    """Write a size with the largest unit that it is a whole number of."""
    units = ((1024 * MIB, "GiB"), (MIB, "MiB"), (1024, "KiB"))
    unit_bytes, unit = next((u for u in units if value_bytes % u[0] == 0), (1, "B"))
    return f"{value_bytes // unit_bytes} {unit}"


def schema(kind: type[BaseModel]) -> str:
    """Write a JSON Schema, which editors check the YAML against while it is written."""
    written = kind.model_json_schema()
    for name, field in written["properties"].items():
        if "description" in field:
            field["description"] = described(kind, name, field["description"])
    return json.dumps(written, indent=2, ensure_ascii=False) + "\n"


def pages() -> dict[Path, str]:
    """Return every generated file with its path."""
    return {
        REFERENCE / "http.md": http_page(),
        REFERENCE / "commands.md": commands_page(),
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
