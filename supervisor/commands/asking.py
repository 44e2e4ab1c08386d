"""What commands have in common that ask a running controller."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from supervisor.client.address import address_of
from supervisor.client.connection import Connection, NoController, Refused, connect

EXIT_INTERRUPTED = 130  # as a shell has it for Ctrl-C

Url = Annotated[
    str | None,
    typer.Option(
        envvar="LLAMA_SUPERVISOR_URL",
        help="The controller [default: this machine, at the port in --profiles].",
    ),
]
Collection = Annotated[
    str | None,
    typer.Option("--collection", "-c", help="Where documents are kept together."),
]

_Got = TypeVar("_Got")


def ask_controller(
    url: str | None, profiles: Path, work: Callable[[Connection], Awaitable[_Got]]
) -> _Got:
    """Do work with a connection to the controller; what goes wrong is told, and ends the command.

    Exit 69 when nobody answers or can be asked, 1 when the controller refuses, 130 on Ctrl-C.
    """

    async def run() -> _Got:
        async with connect(address_of(url, profiles)) as connection:
            return await work(connection)

    try:
        return asyncio.run(run())
    except NoController as error:
        print(error, file=sys.stderr)
        raise SystemExit(os.EX_UNAVAILABLE) from error
    except Refused as error:
        print(f"{error} ({error.code})", file=sys.stderr)
        raise SystemExit(1) from error
    except KeyboardInterrupt as error:
        raise SystemExit(EXIT_INTERRUPTED) from error
