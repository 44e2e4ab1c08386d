"""`llama-supervisor jobs`: batches and documents that are worked on, or were."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from supervisor.client.answers import Job, Jobs
from supervisor.client.connection import Connection
from supervisor.client.tables import JobsDisplay, print_job, print_json
from supervisor.commands.asking import Url, ask_controller
from supervisor.commands.options import Json, Profiles, new_app

app = new_app()

_PAUSE_S = 1.0

JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.")]


@app.callback(invoke_without_command=True)
def jobs(
    context: typer.Context,
    limit: Annotated[
        int, typer.Option("--limit", "-n", help="How many jobs.", min=1, max=100)
    ] = 20,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing, until Ctrl-C.")] = False,
    url: Url = None,
    profiles: Profiles = Path("profiles"),
    as_json: Json = False,
) -> None:
    """List the jobs, the newest first; exit 0, 1 when refused, or 69."""
    if context.invoked_subcommand is not None:
        return

    async def ask(connection: Connection) -> None:
        with JobsDisplay(as_json=as_json, is_live=watch) as display:
            while True:
                query = {"limit": str(limit)}
                answer = await connection.ask("GET", "jobs", query=query, shape=Jobs)
                display.show(answer["data"])
                if not watch:
                    return
                await asyncio.sleep(_PAUSE_S)

    ask_controller(url, profiles, ask)


@app.command()
def show(
    context: typer.Context,
    job: JobId,
    url: Url = None,
    profiles: Profiles = Path("profiles"),
    as_json: Json = False,
) -> None:
    """Show one job with all that is known of it."""
    _print_answer(context, "GET", (job,), url, profiles, as_json)


@app.command()
def cancel(
    context: typer.Context,
    job: JobId,
    url: Url = None,
    profiles: Profiles = Path("profiles"),
    as_json: Json = False,
) -> None:
    """Cancel a job; what was done by then is kept."""
    _print_answer(context, "POST", (job, "cancel"), url, profiles, as_json)


@app.command()
def retry(
    context: typer.Context,
    job: JobId,
    url: Url = None,
    profiles: Profiles = Path("profiles"),
    as_json: Json = False,
) -> None:
    """Take a job up again, with what failed or was not done."""
    _print_answer(context, "POST", (job, "retry"), url, profiles, as_json)


def _print_answer(
    context: typer.Context,
    method: str,
    path: tuple[str, ...],
    url: str | None,
    profiles: Path,
    as_json: bool,
) -> None:
    """Ask about one job. `--url` and `--json` may also stand before the command's own word."""
    before = context.parent.params if context.parent is not None else {}

    async def ask(connection: Connection) -> Job:
        return await connection.ask(method, "jobs", *path, shape=Job)

    job = ask_controller(url or before.get("url"), profiles, ask)
    print_json(job) if as_json or before.get("as_json") else print_job(job)
