"""The command line: `llama-supervisor serve`."""

import asyncio
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from supervisor import __version__
from supervisor.app import Options
from supervisor.app import serve as run_controller
from supervisor.config.load import load
from supervisor.errors import ConfigError, SupervisorError
from supervisor.observability.logs import set_up_logging

cli = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, help=__doc__)

EXIT_BAD_CONFIGURATION = 2


class EngineName(StrEnum):
    """Values of `--engine`."""

    AUTO = "auto"
    LLAMA_SERVER = "llama-server"
    EMBEDDED = "embedded"


@cli.callback()
def root(
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """One GPU, two kinds of work: switch llama-server between generation and embedding."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


@cli.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0: any free one.")] = None,
    profiles: Annotated[Path, typer.Option(help="Folder with the YAML files.")] = Path("profiles"),
    models: Annotated[Path, typer.Option(help="Folder with the GGUF files.")] = Path("models"),
    data: Annotated[Path, typer.Option(help="Folder for what the product writes.")] = Path("data"),
    engine: Annotated[EngineName, typer.Option(help="What `auto` means.")] = EngineName.AUTO,
) -> None:
    """Run the controller until SIGTERM or SIGINT."""
    try:
        configuration = load(profiles, models.resolve(), os.environ)
        set_up_logging(configuration.settings.server.log_format)
        options = Options(data_dir=data, host=host, port=port, engine=engine.value)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run_controller(configuration, options))
    except ConfigError as error:
        print("the configuration cannot be used:", *error.problems, sep="\n  ", file=sys.stderr)
        raise SystemExit(EXIT_BAD_CONFIGURATION) from error
    except SupervisorError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from error


def main() -> None:
    """Entry point of the `llama-supervisor` command."""
    cli()
