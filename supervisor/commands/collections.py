"""`llama-supervisor collections`: what is stored; moved, backed up and restored."""

import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from supervisor.client.collections import RemoteCollections
from supervisor.client.connection import Connection
from supervisor.client.tables import print_collections, print_json
from supervisor.commands.asking import Url, ask_controller
from supervisor.commands.options import Json, Profiles, new_app
from supervisor.config.urls import http_url
from supervisor.errors import SupervisorError
from supervisor.vector_store import moving
from supervisor.vector_store.opening import open_server

app = new_app()

Name = Annotated[str, typer.Argument(metavar="COLLECTION", help="A collection's name.")]
NewName = Annotated[
    str | None, typer.Option("--as", metavar="NAME", help="Its new name [default: the same].")
]


@app.callback(invoke_without_command=True)
def collections(
    context: typer.Context,
    url: Url = None,
    profiles: Profiles = Path("profiles"),
    as_json: Json = False,
) -> None:
    """List the collections of vectors; exit 0, 1 when refused, or 69."""
    if context.invoked_subcommand is not None:
        return

    async def ask(connection: Connection) -> None:
        found = await RemoteCollections(connection).all()
        print_json(found) if as_json else print_collections(found)

    ask_controller(url, profiles, ask)


@app.command()
def copy(
    collection: Name,
    to: Annotated[str, typer.Option(metavar="URL", help="The Qdrant server.")],
    new_name: NewName = None,
    key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="The variable that has the server's key.")
    ] = None,
    url: Url = None,
    profiles: Profiles = Path("profiles"),
    as_json: Json = False,
) -> None:
    """Copy a collection to a Qdrant server; again, where it was cut short."""
    name = new_name or collection
    try:
        http_url(to)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--to") from error

    async def work(remote: RemoteCollections, progress: moving.Progress) -> tuple[str, int]:
        server = await open_server(to, key_env)
        try:
            return name, await moving.copy(remote, collection, server, name, progress)
        finally:
            await server.close()

    _move(url, profiles, as_json, "copied to", work)


@app.command()
def backup(
    collection: Name,
    file: Annotated[Path, typer.Argument(help="What is written: JSON, a line for each point.")],
    url: Url = None,
    profiles: Profiles = Path("profiles"),
    as_json: Json = False,
) -> None:
    """Write a collection to a file, which is there once it is complete."""

    async def work(remote: RemoteCollections, progress: moving.Progress) -> tuple[str, int]:
        return collection, await moving.back_up(remote, collection, file, progress)

    _move(url, profiles, as_json, "backed up from", work)


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="What `backup` wrote.")],
    new_name: NewName = None,
    url: Url = None,
    profiles: Profiles = Path("profiles"),
    as_json: Json = False,
) -> None:
    """Write what is in a backup to its collection, or to another; what is there stays."""

    async def work(remote: RemoteCollections, progress: moving.Progress) -> tuple[str, int]:
        return await moving.restore(file, remote, new_name, progress)

    _move(url, profiles, as_json, "restored to", work)


def _move(
    url: str | None,
    profiles: Path,
    as_json: bool,
    what: str,
    work: Callable[[RemoteCollections, moving.Progress], Awaitable[tuple[str, int]]],
) -> None:
    """Move a collection and say how many points; an error is printed and ends the command."""

    async def ask(connection: Connection) -> tuple[str, int]:
        with _progress() as progress:
            return await work(RemoteCollections(connection), progress)

    try:
        name, count = ask_controller(url, profiles, ask)
    except SupervisorError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from error
    if as_json:
        print_json({"collection": name, "points": count})
    else:
        print(f"{count} points {what} {name}")


@contextmanager
def _progress() -> Iterator[moving.Progress]:
    """Yield what reports the progress, which is shown where there is a terminal."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as display:
        task = display.add_task("points", total=None)
        yield lambda moved, total: display.update(task, completed=moved, total=total)
