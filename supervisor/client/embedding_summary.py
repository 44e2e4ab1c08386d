"""What became of the files of a run, counted."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping

from supervisor.client.embedding import FileReport, Outcome


class Summary:
    """Counts files by what became of them."""

    def __init__(self) -> None:
        self._began_at = time.monotonic()
        self._files = Counter[Outcome]()
        self._reasons: dict[tuple[Outcome, str], list[str]] = {}
        self._chunks = 0

    def add(self, report: FileReport) -> None:
        """Count a file."""
        self._files[report.outcome] += 1
        self._chunks += report.chunks
        if report.reason:
            self._reasons.setdefault((report.outcome, report.reason), []).append(report.path)

    @property
    def has_failures(self) -> bool:
        """Whether any file failed."""
        return self._files[Outcome.FAILED] > 0

    @property
    def seconds(self) -> float:
        """How long the run takes by now."""
        return time.monotonic() - self._began_at

    @property
    def chunks_per_s(self) -> float:
        """Chunks that were stored each second, on the whole."""
        return self._chunks / max(self.seconds, 1e-3)

    def reasons(self) -> Iterator[tuple[Outcome, str, list[str]]]:
        """Yield each reason with what came of it, and the paths that it concerns."""
        for (outcome, reason), paths in self._reasons.items():
            yield outcome, reason, paths

    def as_values(self) -> Mapping[str, float]:
        """Return the counts for machines."""
        files = {outcome.value: self._files[outcome] for outcome in Outcome}
        return {**files, "chunks": self._chunks, "seconds": round(self.seconds, 3)}

    def __str__(self) -> str:
        files = ", ".join(f"{self._files[o]} {o}" for o in Outcome if self._files[o]) or "no files"
        speed = f", {self.chunks_per_s:.1f}/s" if self._chunks else ""
        return f"{files}; {counted(self._chunks, 'chunk')}{speed}; {self.seconds:.1f} s"


def counted(count: int, what: str) -> str:
    """Write a count of things: `1 chunk`, `2 chunks`."""
    return f"{count} {what}{'' if count == 1 else 's'}"
