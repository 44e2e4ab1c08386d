"""The option that names an engine, apart from the others: the names stand with the profiles."""

from typing import Annotated

import typer

from supervisor.config.profile import EngineName

Engine = Annotated[EngineName, typer.Option(help="What `auto` means.")]
