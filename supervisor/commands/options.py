"""Options that several commands have, and how commands end."""

from pathlib import Path
from typing import Annotated

import typer

EXIT_BAD_CONFIGURATION = 2

Profiles = Annotated[Path, typer.Option(help="Folder with the YAML files.")]
Models = Annotated[Path, typer.Option(help="Folder with the GGUF files.")]
Data = Annotated[Path, typer.Option(help="Folder for what the product writes.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


def new_app() -> typer.Typer:
    """Return what a command is made with."""
    return typer.Typer(add_completion=False, rich_markup_mode=None)
