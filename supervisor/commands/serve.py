"""`llama-supervisor serve`: the controller itself."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from supervisor.commands.engine_option import Engine
from supervisor.commands.options import (
    EXIT_BAD_CONFIGURATION,
    Data,
    Models,
    Profiles,
    new_app,
)
from supervisor.config.load import load
from supervisor.engine.model_check import require_models_dir
from supervisor.engine.models.model_scan import scan_models
from supervisor.errors import ConfigError, SupervisorError
from supervisor.observability.logs import set_up_logging
from supervisor.running import serve as run_controller
from supervisor.wiring.ground import Options

app = new_app()


@app.command()
def serve(
    host: Annotated[
        list[str] | None, typer.Option(help="Address to listen on; may be given several times.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0: any free one.", min=0, max=65535)
    ] = None,
    profiles: Profiles = Path("profiles"),
    models: Models = Path("models"),
    data: Data = Path("data"),
    data_wait: Annotated[
        float,
        typer.Option(
            help="Seconds that another controller gets to leave the data folder.", min=0.0
        ),
    ] = 0.0,
    engine: Engine = "auto",
) -> None:
    """Run the controller until SIGTERM or SIGINT."""
    try:
        configuration = load(profiles, models.resolve(), os.environ, scan_models)
        require_models_dir(configuration)
        server = configuration.settings.server
        set_up_logging(server.log_format, server.log_level)
        options = Options(
            data_dir=data,
            data_wait_s=data_wait,
            hosts=tuple(host or ()),
            port=port,
            engine=engine,
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run_controller(configuration, options))
    except ConfigError as error:
        print("the configuration cannot be used:", *error.problems, sep="\n  ", file=sys.stderr)
        raise SystemExit(EXIT_BAD_CONFIGURATION) from error
    except SupervisorError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from error
