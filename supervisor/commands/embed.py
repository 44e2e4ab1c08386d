"""`llama-supervisor embed`: files become vectors in a collection of the running controller."""

import os
from pathlib import Path
from typing import Annotated

import typer

from supervisor.client.connection import Connection
from supervisor.client.embedding import Embedder
from supervisor.client.embedding_display import ForPeople, JsonLines
from supervisor.client.files import find_files
from supervisor.client.watching import embed_changes
from supervisor.commands.asking import Collection, Url, ask_controller
from supervisor.commands.options import Json, Profiles, new_app

app = new_app()


@app.command()
def embed(
    paths: Annotated[
        list[Path], typer.Argument(help="Files, and folders to look through.", exists=True)
    ],
    collection: Collection = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on with what changes, until Ctrl-C.")
    ] = False,
    again: Annotated[
        bool,
        typer.Option("--again", help="Send what is unchanged, too: the settings have changed."),
    ] = False,
    url: Url = None,
    profiles: Profiles = Path("profiles"),
    as_json: Json = False,
) -> None:
    """Embed files into a collection; what is stored and unchanged is not sent again.

    Exit 0, 1 when a file failed, or 69 when no controller answers.
    """
    display = JsonLines() if as_json else ForPeople()
    roots = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 - links are kept

    async def work(connection: Connection) -> None:
        with display:
            embedder = Embedder(connection, collection, display.tell, again=again)
            if watch:
                await embed_changes(embedder, display, roots)
            files = list(find_files(roots))
            display.expect(files)
            await embedder.embed(files)

    ask_controller(url, profiles, work)
    if display.summary.has_failures:
        raise SystemExit(1)
