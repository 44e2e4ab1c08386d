"""The command line, whose commands are modules of `supervisor.commands`."""

import io
import os
import sys
from importlib import import_module
from typing import Annotated, Any, NoReturn

import structlog
import typer
from typer.core import TyperGroup

from supervisor import __version__

COMMANDS = ("serve", "fit", "check", "doctor", "embed", "search", "collections", "jobs")
"""In the order in which they are told."""


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


class Answers(io.TextIOWrapper):
    """Standard output: what cannot be written ends the command, which says so in a line, exit 1.

    A reader who leaves (`| head -1`) has what was wanted: that ends it without a word.
    """

    def write(self, text: str) -> int:
        """Write text, or end the command."""
        try:
            return super().write(text)
        except OSError as error:
            self._end(error)

    def flush(self) -> None:
        """Write what is left, or end the command."""
        try:
            super().flush()
        except OSError as error:
            self._end(error)

    def _end(self, error: OSError) -> NoReturn:
        # Python flushes once more when it ends: what is left of the text goes nowhere then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        if not isinstance(error, BrokenPipeError):
            typer.echo(f"standard output cannot be written: {error.strerror}", err=True)
        raise SystemExit(1)


def answers_on(stream: io.TextIOWrapper) -> Answers:
    """Return standard output in our form: a locale may lack a letter, and a line needs none."""
    encoding, errors, is_by_line = stream.encoding, stream.errors, stream.line_buffering
    at_once = stream.write_through
    return Answers(
        stream.detach(),
        encoding,
        "replace" if errors == "strict" else errors,
        line_buffering=is_by_line,
        write_through=at_once,
    )


def main() -> None:
    """Entry point of the `llama-supervisor` command."""
    open_standard_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = answers_on(sys.stdout)
    # Standard output is for answers; `serve` sets up more than this.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        cli()
    finally:
        sys.stdout.flush()
