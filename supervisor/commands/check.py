"""`llama-supervisor check`: every problem of the configuration, or what it means for a model."""

import contextlib
import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from supervisor.calendar.reading import next_changes
from supervisor.commands.engine_option import Engine
from supervisor.commands.options import EXIT_BAD_CONFIGURATION, Data, Models, new_app
from supervisor.config.all_warnings import all_warnings
from supervisor.config.configuration import Configuration
from supervisor.config.explain import explain as explain_fields
from supervisor.config.load import read
from supervisor.core.scheduling.estimates import Estimates
from supervisor.engine.kinds.engines import Engines
from supervisor.engine.kinds.environment import withheld_names
from supervisor.engine.model_check import model_problems, require_models_dir
from supervisor.engine.models.model_scan import scan_models
from supervisor.engine.port import ServerStart
from supervisor.engine.servers.addresses import choose_address
from supervisor.errors import ConfigError, SupervisorError
from supervisor.observability.estimates_store import FILE_NAME as ESTIMATES_FILE
from supervisor.observability.estimates_store import estimates_in
from supervisor.telemetry.vendors import hiding_variables
from supervisor.wiring.ground import build_engines

app = new_app()


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="Folder with the YAML files.")] = Path("profiles"),
    models: Models = Path("models"),
    explain: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Show where each value comes from.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="With --explain: another profile.")] = None,
    engine: Engine = "auto",
    configuration_only: Annotated[
        bool,
        typer.Option(
            "--configuration-only", help="Check the YAML files alone: no models, no engine."
        ),
    ] = False,
    data: Data = Path("data"),
) -> None:
    """Print every problem of the files as file:line: field: what is wrong; exit with 2 if any.

    What was learned in the data folder shows whether waiting times can be kept.
    """
    if configuration_only and explain is not None:
        raise typer.BadParameter(
            "cannot be given with --explain", param_hint="--configuration-only"
        )
    if profile is not None and explain is None:
        raise typer.BadParameter(
            f"belongs to --explain MODEL; a folder is given as it is: check {profile}",
            param_hint="--profile",
        )
    scan = None if configuration_only else scan_models
    reading = read(folder, models.resolve(), os.environ, scan)
    configuration, problems = reading.configuration, list(reading.problems)
    if configuration is not None and not configuration_only:
        engines = find_engines(configuration, engine, problems)
        if explain is not None and engines is not None and not problems:
            explain_or_exit(configuration, engines, explain, profile)
            return
        problems += all_model_problems(configuration, engines)
    print(*problems, sep="\n", end="\n" if problems else "")
    if problems or configuration is None:
        raise SystemExit(EXIT_BAD_CONFIGURATION)
    for left_out in configuration.left_out:
        print(left_out.describe())
    print_warnings(configuration, data)
    if configuration.settings.schedule is not None:
        print("schedule:", *next_changes(configuration.settings.schedule, time.time()), sep="\n  ")
    found = {"model": len(configuration.catalogue.models), "profile": len(configuration.profiles)}
    counts = (f"{count} {what}{'' if count == 1 else 's'}" for what, count in found.items())
    print(f"{folder}: {', '.join(counts)}, no problems")


def print_warnings(configuration: Configuration, data: Path) -> None:
    """Print what `serve` will warn of, by what was learned in the data folder."""
    learned = Estimates()
    with contextlib.suppress(OSError, msgspec.MsgspecError):  # `serve` says so, and sets it aside
        learned = estimates_in(data / ESTIMATES_FILE)
    for warning in all_warnings(configuration, os.environ, hiding_variables(), learned):
        print(f"warning: {warning}")


def find_engines(
    configuration: Configuration, preferred: str, problems: list[str]
) -> Engines | None:
    """Return the engines; None, with the reason added to the problems, where there are none."""
    try:
        return build_engines(configuration, preferred)
    except SupervisorError as error:
        problems.append(str(error))
        return None


def explain_or_exit(
    configuration: Configuration, engines: Engines, name: str, profile: str | None
) -> None:
    """Print the explanation of a model, or why there is none; exit 2."""
    try:
        print_explanation(configuration, engines, name, profile)
    except SupervisorError as error:
        print(error)
        raise SystemExit(EXIT_BAD_CONFIGURATION) from error


def all_model_problems(configuration: Configuration, engines: Engines | None) -> Iterator[str]:
    """Yield what is wrong with the models folder, else with each model."""
    try:
        require_models_dir(configuration)
    except ConfigError as error:
        yield from error.problems
    else:
        yield from model_problems(configuration, engines)


def print_explanation(
    configuration: Configuration, engines: Engines, name: str, profile: str | None
) -> None:
    """Print a model's fields with their origins, and the exact command line.

    Raises RequestRefused for a name that is not known.
    """
    resolved = configuration.resolve(name, profile)
    fields = list(explain_fields(configuration, resolved))
    widths = [max(len(getattr(f, column)) for f in fields) for column in ("name", "value")]
    for field in fields:
        print(f"{field.name:{widths[0]}}  {field.value:{widths[1]}}  {field.origin}")
    chosen = engines.choose(resolved.profile.engine)
    abilities = chosen.abilities(resolved)
    address = choose_address(Path("<data>"), 1, has_unix_socket=abilities.has_unix_socket)
    keeps_prompts = resolved.profile.keep_prompt_cache and abilities.saves_slots
    slots_dir = Path("<data>/prompt-cache/<identity>") if keeps_prompts else None
    withheld = withheld_names(os.environ, resolved.profile.env_passthrough)
    print(f"\nnot passed on (see env_passthrough): {', '.join(withheld) or 'nothing'}")
    start = ServerStart(model=resolved, address=address, api_key="<key>", slots_dir=slots_dir)
    print(f"\n{shlex.join(chosen.argv(start))}")
