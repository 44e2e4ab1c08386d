"""Writes the page of the commands, from what `--help` says of them."""

from collections.abc import Iterator
from typing import Any

import typer

from supervisor.cli import cli


def commands_page() -> str:
    """Write the page of all commands, with arguments and options."""
    whole = typer.main.get_command(cli)
    lines = [
        "# Commands",
        "",
        "<!-- Written by scripts/make_reference.py; do not edit. -->",
        "",
        "`llama-supervisor COMMAND --help` says the same. Answers go to standard output, all else",
        "to standard error; with `--json` the answers are JSON.",
    ]
    context = typer.Context(whole, info_name="llama-supervisor")
    return "\n".join([*lines, *_sections(whole, context), ""])


def _sections(group: Any, context: Any) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        own = typer.Context(command, parent=context, info_name=name)
        yield from _section(command, own)
        if hasattr(command, "list_commands"):
            yield from _sections(command, own)


def _section(command: Any, context: Any) -> Iterator[str]:
    yield from ("", f"## {context.command_path}", "", command.help, "")
    yield f"    {command.get_usage(context).removeprefix('Usage: ')}"
    rows = [record for each in command.params if (record := each.get_help_record(context))]
    if rows:
        yield from ("", "| | Meaning |", "|---|---|")
    for words, meaning in rows:
        cells = (f"`{words.strip()}`", meaning.strip())
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
