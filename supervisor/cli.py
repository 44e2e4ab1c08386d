"""The command line: `llama-supervisor serve`, `check`, `fit` and `doctor`."""

import asyncio
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import structlog
import typer
import uvloop

from supervisor import __version__
from supervisor.config.configuration import Configuration
from supervisor.config.explain import explain as explain_fields
from supervisor.config.load import load, read
from supervisor.config.profile import EngineName
from supervisor.config.waits import wait_warnings
from supervisor.doctor.gathering import Surroundings, gather
from supervisor.doctor.judging import is_well, judge
from supervisor.doctor.printing import describe_report, print_report
from supervisor.engine.fit import report_fit
from supervisor.engine.kinds.engines import Engines
from supervisor.engine.kinds.environment import withheld_names
from supervisor.engine.model_check import model_problems, require_models_dir
from supervisor.engine.models.model_scan import scan_models
from supervisor.engine.needs.assessment import examine
from supervisor.engine.port import ServerStart
from supervisor.engine.servers.addresses import choose_address
from supervisor.engine.targets import model_or_file
from supervisor.errors import ConfigError, SupervisorError
from supervisor.fit_table import describe_fit, print_fit
from supervisor.observability.estimates_store import FILE_NAME as ESTIMATES_FILE
from supervisor.observability.estimates_store import estimates_in
from supervisor.observability.logs import set_up_logging
from supervisor.running import serve as run_controller
from supervisor.telemetry.telemetry import Telemetry
from supervisor.wiring.ground import Options, build_engines

cli = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, help=__doc__)

EXIT_BAD_CONFIGURATION = 2


Profiles = Annotated[Path, typer.Option(help="Folder with the YAML files.")]
Models = Annotated[Path, typer.Option(help="Folder with the GGUF files.")]
Data = Annotated[Path, typer.Option(help="Folder for what the product writes.")]
Engine = Annotated[EngineName, typer.Option(help="What `auto` means.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


def print_version(is_asked: bool) -> None:
    """Print the version and end, before a command is missed."""
    if is_asked:
        typer.echo(__version__)
        raise typer.Exit


@cli.callback()
def root(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True),
    ] = False,
) -> None:
    """One GPU, two kinds of work: switch llama-server between generation and embedding."""
    _ = version


@cli.command()
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


@cli.command()
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


@cli.command()
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
    """Print every problem of the configuration as file:line: field: what is wrong; exit 2.

    What was learned in the data folder shows whether waiting times can be kept.
    """
    if configuration_only and explain is not None:
        raise typer.BadParameter(
            "cannot be given with --explain", param_hint="--configuration-only"
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
    print_wait_warnings(configuration, data)
    count = len(configuration.catalogue.models)
    print(f"{folder}: {count} models, {len(configuration.profiles)} profiles, no problems")


def print_wait_warnings(configuration: Configuration, data: Path) -> None:
    """Print which waiting times cannot be kept, where enough was learned to say so."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):  # `serve` says so, and sets it aside
        for warning in wait_warnings(configuration, estimates_in(data / ESTIMATES_FILE)):
            print(f"warning: {warning}")


@cli.command()
def doctor(
    profiles: Profiles = Path("profiles"),
    models: Models = Path("models"),
    data: Data = Path("data"),
    host: Annotated[
        list[str] | None, typer.Option(help="Address that `serve` is given; several times, too.")
    ] = None,
    engine: Engine = "auto",
    as_json: Json = False,
) -> None:
    """Show what is here, what is wrong, and the remedy; exit 1 when something will stop work."""
    set_up_logging("console", "error")  # what telemetry warns of is among the findings
    surroundings = Surroundings(
        profiles=profiles,
        models=models,
        data=data,
        engine=engine,
        hosts=tuple(host or ()),
        environ=os.environ,
    )
    facts = asyncio.run(gather(surroundings, Telemetry()))
    findings = judge(facts)
    if as_json:
        print(json.dumps(describe_report(facts, findings), indent=2))
    else:
        print_report(facts, findings)
    if not is_well(findings):
        raise SystemExit(1)


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


def open_standard_streams() -> None:
    """Open what was closed of standard input, output and error: a file would get its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def main() -> None:
    """Entry point of the `llama-supervisor` command."""
    open_standard_streams()
    # Standard output is for answers; `serve` sets up more than this.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    cli()
