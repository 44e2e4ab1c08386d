"""`llama-supervisor search`: the passages of documents that answer a question best."""

from pathlib import Path
from typing import Annotated, Any

import typer

from supervisor.client.answers import Found
from supervisor.client.connection import Connection
from supervisor.client.tables import print_hits, print_json
from supervisor.commands.asking import Collection, Url, ask_controller
from supervisor.commands.options import Json, Profiles, new_app

app = new_app()


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="What is looked for, in words.")],
    collection: Collection = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="How many passages.", min=1)] = 5,
    url: Url = None,
    profiles: Profiles = Path("profiles"),
    as_json: Json = False,
) -> None:
    """Find the passages that are nearest to a question; exit 0, 1 when refused, or 69."""
    body: dict[str, Any] = {"query": query, "limit": limit}
    if collection is not None:
        body["collection"] = collection

    async def ask(connection: Connection) -> Found:
        return await connection.ask("POST", "search", body=body, shape=Found)

    found = ask_controller(url, profiles, ask)
    print_json(found) if as_json else print_hits(found["hits"])
