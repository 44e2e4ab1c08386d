"""What is shown while files are embedded, and at the end: for people, or as lines of JSON."""

from collections.abc import Sequence
from typing import Protocol, Self

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from supervisor.client.embedding import FileReport, Outcome
from supervisor.client.embedding_summary import Summary, counted
from supervisor.client.files import FoundFile, LeftOut, from_here

_MAX_NAMED = 10
"""Paths that are named for one reason; `--json` names all."""


class EmbeddingDisplay(Protocol):
    """Shows how a run goes on while it is entered, and at the end what came of it."""

    summary: Summary

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, *_: object) -> None:
        """End, and sum up."""

    def expect(self, files: Sequence[FoundFile | LeftOut]) -> None:
        """Take note of what is to come."""

    def tell(self, report: FileReport) -> None:
        """Show what became of a file."""

    def note(self, sentence: str) -> None:
        """Show what else happens."""


class JsonLines:
    """Prints an object for each file, and one for all."""

    def __init__(self) -> None:
        self.summary = Summary()

    def __enter__(self) -> Self:
        """See EmbeddingDisplay."""
        return self

    def __exit__(self, *_: object) -> None:
        """See EmbeddingDisplay."""
        _print({"summary": self.summary.as_values()})

    def expect(self, files: Sequence[FoundFile | LeftOut]) -> None:
        """See EmbeddingDisplay."""

    def tell(self, report: FileReport) -> None:
        """See EmbeddingDisplay."""
        self.summary.add(report)
        _print(report)

    def note(self, sentence: str) -> None:
        """See EmbeddingDisplay."""
        _print({"note": sentence})


class ForPeople:
    """Shows a bar where there is a terminal, else a line for each file that was sent."""

    def __init__(self) -> None:
        self.summary = Summary()
        self._console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self._progress = Progress(
            BarColumn(),
            TextColumn("{task.fields[done]} of {task.fields[files]} files"),
            TextColumn("{task.fields[speed]:.1f} chunks/s"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("", total=0, done=0, files=0, speed=0.0)

    def __enter__(self) -> Self:
        """See EmbeddingDisplay."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """See EmbeddingDisplay."""
        self._progress.stop()
        for outcome, reason, paths in self.summary.reasons():
            self._console.print(f"{len(paths)} {outcome}: {reason}")
            for path in paths[:_MAX_NAMED]:
                self._console.print(f"    {from_here(path)}")
            if len(paths) > _MAX_NAMED:
                self._console.print(f"    and {len(paths) - _MAX_NAMED} more; --json names all")
        self._console.print(str(self.summary))

    def expect(self, files: Sequence[FoundFile | LeftOut]) -> None:
        """See EmbeddingDisplay."""
        task = self._progress.tasks[self._task]
        size_bytes = sum(each.size_bytes for each in files if isinstance(each, FoundFile))
        self._progress.update(
            self._task,
            total=(task.total or 0) + size_bytes,
            files=task.fields["files"] + len(files),
        )

    def tell(self, report: FileReport) -> None:
        """See EmbeddingDisplay."""
        self.summary.add(report)
        self._progress.update(
            self._task,
            advance=report.size_bytes,
            done=self._progress.tasks[self._task].fields["done"] + 1,
            speed=self.summary.chunks_per_s,
        )
        if report.outcome is Outcome.EMBEDDED and not self._console.is_terminal:
            self._console.print(f"{from_here(report.path)}: {counted(report.chunks, 'chunk')}")

    def note(self, sentence: str) -> None:
        """See EmbeddingDisplay."""
        self._console.print(sentence)


def _print(content: object) -> None:
    typer.echo(msgspec.json.encode(content))
