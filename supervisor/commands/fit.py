"""`llama-supervisor fit`: what a model takes, and whether it fits."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from supervisor.commands.engine_option import Engine
from supervisor.commands.options import (
    EXIT_BAD_CONFIGURATION,
    Data,
    Json,
    Models,
    Profiles,
    new_app,
)
from supervisor.config.load import load
from supervisor.engine.fit import report_fit
from supervisor.engine.models.model_scan import scan_models
from supervisor.engine.needs.assessment import examine
from supervisor.engine.targets import model_or_file
from supervisor.errors import ConfigError, SupervisorError
from supervisor.fit_table import describe_fit, print_fit
from supervisor.wiring.ground import build_engines

app = new_app()


@app.command()
def fit(
    model: Annotated[str, typer.Argument(help="A model of the catalogue, or a GGUF file.")],
    profile: Annotated[
        str | None, typer.Option(help="The profile to run with; default: the model's.")
    ] = None,
    profiles: Profiles = Path("profiles"),
    models: Models = Path("models"),
    data: Data = Path("data"),
    engine: Engine = "auto",
    as_json: Json = False,
    forget: Annotated[bool, typer.Option(help="First drop what was learned of its need.")] = False,
) -> None:
    """Show what a model takes on each device, whether it fits, and what would; exit 0, 1 or 2."""
    try:
        configuration = load(profiles, models.resolve(), os.environ, scan_models)
        engines = build_engines(configuration, engine)
        resolved = model_or_file(configuration, model, profile)
        candidate = examine(resolved, engines.choose(resolved.profile.engine))
        report = asyncio.run(report_fit(candidate, configuration, data, forget=forget))
    except ConfigError as error:
        print(*error.problems, sep="\n", file=sys.stderr)
        raise SystemExit(EXIT_BAD_CONFIGURATION) from error
    except SupervisorError as error:
        print(error, file=sys.stderr)
        raise SystemExit(EXIT_BAD_CONFIGURATION) from error
    print(json.dumps(describe_fit(report), indent=2)) if as_json else print_fit(report)
    if not report.fits:
        raise SystemExit(1)
