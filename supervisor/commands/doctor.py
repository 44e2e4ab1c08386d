"""`llama-supervisor doctor`: what is wrong with a machine."""

import asyncio
import json
import os
from pathlib import Path
from typing import Annotated

import typer

from supervisor.commands.engine_option import Engine
from supervisor.commands.options import Data, Json, Models, Profiles, new_app
from supervisor.doctor.gathering import Surroundings, gather
from supervisor.doctor.judging import is_well, judge
from supervisor.doctor.printing import describe_report, print_report
from supervisor.observability.logs import set_up_logging
from supervisor.telemetry.telemetry import Telemetry

app = new_app()


@app.command()
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
