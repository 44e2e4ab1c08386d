"""The command line, whose commands are modules of `supervisor.commands`."""

import io
import os
import sys
from importlib import import_module
from typing import Annotated, Any, BinaryIO, NoReturn, cast

import structlog
import typer
from typer.core import TyperGroup

from supervisor import __version__

COMMANDS = ("serve", "fit", "check", "doctor", "embed", "search", "collections", "jobs")
"""In the order in which the help lists them."""


class CommandModules(TyperGroup):
    """Imports a command when it is asked for: what the controller needs takes half a second."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - typer's
        """Return the names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - typer's
        """Return a command; None where there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        command = typer.main.get_command(import_module(f"supervisor.commands.{cmd_name}").app)
        command.name = cmd_name
        return command


cli = typer.Typer(
    cls=CommandModules, add_completion=False, no_args_is_help=True, rich_markup_mode=None
)


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


class OutputLostError(Exception):
    """Standard output takes nothing more."""


class Answers(io.FileIO):
    """Standard output; `lost` is why it takes nothing more."""

    lost: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write bytes. Raises OutputLostError."""
        try:
            return super().write(data)
        except OSError as error:
            self.lost = error
            raise OutputLostError from None

    def as_text(self, like: io.TextIOWrapper) -> io.TextIOWrapper:
        """Return what writes text here: a locale may lack a letter, and a line needs none."""
        return io.TextIOWrapper(
            cast("BinaryIO", self) if like.write_through else io.BufferedWriter(self),
            like.encoding,
            "replace" if like.errors == "strict" else like.errors,
            line_buffering=like.line_buffering,
            write_through=like.write_through,
        )


def main() -> None:
    """Entry point of the `llama-supervisor` command."""
    open_standard_streams()
    answers = Answers(1, "w", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = answers.as_text(sys.stdout)
    # Standard output is for answers; `serve` sets up more than this.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        try:
            cli()
        finally:
            sys.stdout.flush()
    except* OutputLostError:  # alone, or out of a group of tasks
        pass
    if answers.lost is not None:
        end_without_output(answers.lost)


def end_without_output(error: OSError) -> NoReturn:
    """Say why output could not be written; a reader who left (`| head`) has what was wanted."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more when it ends
    if not isinstance(error, BrokenPipeError):
        typer.echo(f"standard output cannot be written: {error.strerror}", err=True)
    raise SystemExit(1)
