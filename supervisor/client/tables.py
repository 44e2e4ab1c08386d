"""How what a controller answers looks: tables for people, lines of JSON for machines."""

import json
import time
from collections.abc import Sequence
from textwrap import shorten
from typing import Any, Self

import msgspec
import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from supervisor.client.answers import Hit, Job, Lines
from supervisor.client.files import from_here, printable
from supervisor.vector_store.port import Collections

_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


_MAX_TEXT = 300
"""Characters of a passage that people are shown; `--json` has all."""

_WIDTH_OF_A_FILE = 160
"""Columns of tables that go elsewhere than to a terminal, whose width is known."""

_WIDTH_FOR_IDS = 72
"""Columns from which on a job's id stands in one line, to be copied, and the rest has room."""


def print_json(content: Any) -> None:
    """Print an object on a line of its own."""
    typer.echo(msgspec.json.encode(content))


def print_hits(hits: Sequence[Hit]) -> None:
    """Print passages with score, document and page, their texts cut short."""
    table = Table(show_edge=False)
    for name in ("score", "document", "page", "text"):
        table.add_column(name, overflow="fold")
    for hit in hits:
        text = shorten(hit.get("text", ""), _MAX_TEXT, placeholder="…")
        page = "" if hit.get("page") is None else str(hit["page"])
        table.add_row(
            f"{hit['score']:.3f}", Text(from_here(hit["document"])), page, Text(printable(text))
        )
    _console().print(table if hits else "nothing was found")


def print_collections(found: Collections) -> None:
    """Print collections with their models and counts, and those that cannot be opened."""
    table = Table(show_edge=False)
    for name in ("collection", "model", "dimension"):
        table.add_column(name, overflow="fold")
    for name in ("documents", "chunks", "indexed"):
        table.add_column(name, justify="right", overflow="fold")
    for each in found.collections:
        counts = (each.documents, each.chunks, each.indexed)
        table.add_row(Text(each.name), Text(each.model), str(each.dimension), *map(str, counts))
    if found.collections:
        _console().print(table)
    elif not found.damaged:
        _console().print("no collections")
    for damaged in found.damaged:
        _console().print(Text(f"{damaged.name}: {damaged.reason}"))


def print_job(job: Job) -> None:
    """Print all that is known of a job, a field on each line."""
    table = Table.grid(padding=(0, 2))
    for name, value in job.items():
        if value is not None:
            table.add_row(name, Text(_shown(name, value)))
    _console().print(table)


class JobsDisplay:
    """Shows jobs: once, or again and again in the same place while it is entered.

    As JSON, and where there is no terminal, they are printed again when something has changed.
    """

    def __init__(self, *, as_json: bool, is_live: bool) -> None:
        console = _console()
        self._console = console
        self._as_json = as_json
        is_redrawn = is_live and not as_json and console.is_terminal
        self._live = Live(console=console) if is_redrawn else None
        self._last: Sequence[Job] | None = None

    def __enter__(self) -> Self:
        """Begin."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End; what was shown last stays."""
        if self._live is not None:
            self._live.stop()

    def show(self, jobs: Sequence[Job]) -> None:
        """Show jobs."""
        if self._live is not None:
            self._live.update(_table_of(jobs, self._console.width), refresh=True)
        elif jobs != self._last:
            if self._as_json:
                print_json({"jobs": jobs})
            else:
                self._console.print(_table_of(jobs, self._console.width))
        self._last = jobs


def _table_of(jobs: Sequence[Job], width: int) -> Table | str:
    if not jobs:
        return "no jobs"
    table = Table(show_edge=False)
    table.add_column("job", no_wrap=width >= _WIDTH_FOR_IDS, overflow="fold")
    for name in ("state", "lines", "age", "reason"):
        table.add_column(name, overflow="fold")  # in a narrow terminal nothing is lost
    for job in jobs:
        table.add_row(
            job["id"],
            _state_of(job),
            _lines_of(job["lines"]),
            _age(time.time() - job["created_at"]),
            Text(printable(job["reason"] or "")),
        )
    return table


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDTH_OF_A_FILE)


def _state_of(job: Job) -> str:
    """Write a job's state, and until when it waits where it may not begin yet."""
    not_before = job["not_before"]
    if job["state"] == "in_progress" and not_before and not_before > time.time():
        return f"waits until {_moment(not_before)}"
    return job["state"]


def _lines_of(lines: Lines) -> str:
    """Write how many lines are done, and how many failed: `3 of 5, 2 failed`."""
    failed = f", {lines['failed']} failed" if lines["failed"] else ""
    return f"{lines['succeeded']} of {lines['total']}{failed}"


def _shown(name: str, value: Any) -> str:
    """Write a field of a job: moments as they are on this machine's clock."""
    if name in {"created_at", "not_before", "expires_at"}:
        return _moment(value)
    if name == "entered_at":
        return ", ".join(f"{state} {_moment(at)}" for state, at in value.items())
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _age(seconds: float) -> str:
    """Write a duration in its largest unit: `3 min`."""
    for unit_s, unit in _UNITS:
        if seconds >= unit_s:
            return f"{seconds // unit_s:.0f} {unit}"
    return "now"
