"""The sweeps as a table (Markdown) and as a picture (SVG)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import log
from statistics import mean
from typing import Any

MS = 1000

_HEADS = (
    *("threads", "texts", "in a request", "at a time", "settings"),
    *("mean, ms", "p95, ms", "ms a text", "429", "bare mean, ms", "bare p95, ms"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What one row is measured for; `batching` are the settings that differ from the shipped."""

    threads: int
    length: str
    batch: int
    callers: int
    batching: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The latencies of a row: of the service, which refused some, and of the bare server."""

    cell: Cell
    latencies_s: Sequence[float]
    refused: int
    direct_s: Sequence[float]

    @property
    def refused_share(self) -> float:
        """Which part of the requests got 429."""
        return self.refused / (self.refused + len(self.latencies_s))

    def as_json(self) -> dict[str, Any]:
        """Return the row with all its samples."""
        return asdict(self)


def p95_ms(latencies_s: Sequence[float]) -> float:
    """Return the 95th percentile, between two samples by their distance; of none it is 0."""
    if not latencies_s:
        return 0.0
    ordered = sorted(latencies_s)
    place = (len(ordered) - 1) * 0.95
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return (ordered[below] + (ordered[above] - ordered[below]) * (place - below)) * MS


def table_of(rows: Sequence[Measured]) -> str:
    """Write every row, as Markdown."""
    lines = [_HEADS, ["-"] * len(_HEADS), *map(_cells, rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _cells(row: Measured) -> list[str]:
    cell = row.cell
    settings = ", ".join(f"{name} {value}" for name, value in cell.batching.items())
    return [
        *(str(cell.threads), cell.length, str(cell.batch), str(cell.callers), settings),
        *(_mean_ms(row.latencies_s), f"{p95_ms(row.latencies_s):.1f}"),
        f"{mean(row.latencies_s) * MS / cell.batch:.1f}" if row.latencies_s else "",
        f"{row.refused_share:.0%}",
        *(_mean_ms(row.direct_s), f"{p95_ms(row.direct_s):.1f}" if row.direct_s else ""),
    ]


def _mean_ms(latencies_s: Sequence[float]) -> str:
    return f"{mean(latencies_s) * MS:.1f}" if latencies_s else ""


_SIDE, _GAP = 300, 70
_COLOURS = {1: "#e4572e", 2: "#3a86ff", 4: "#1d7a4f"}
_FONT = 'font-family="sans-serif" font-size="12"'


def picture_of(rows: Sequence[Measured]) -> str:
    """Draw the 95th percentile by requests at a time, a field for each length of texts.

    A line for each number of threads, the bare server's dashed; one text in a request.
    """
    shown = [row for row in rows if row.cell.batch == 1 and not row.cell.batching]
    lengths = tuple(dict.fromkeys(row.cell.length for row in shown))
    width, height = len(lengths) * (_SIDE + 2 * _GAP), _SIDE + 2 * _GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {_FONT}>',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, length in enumerate(lengths):
        parts.append(f'<g transform="translate({number * (_SIDE + 2 * _GAP) + _GAP} {_GAP})">')
        title = f"{length} texts: p95, ms, by requests at a time; dashed: bare"
        parts.append(f'<text y="-30">{title}</text>')
        parts.extend(_field([row for row in shown if row.cell.length == length]))
        parts.append("</g>")
    return "\n".join([*parts, "</svg>\n"])


def _field(rows: Sequence[Measured]) -> Iterator[str]:
    """Draw one field, both axes of which are logarithmic."""
    values = [p95_ms(each) for row in rows for each in (row.latencies_s, row.direct_s)]
    low, high = min(values) / 1.2, max(values) * 1.2
    most = max(row.cell.callers for row in rows)

    def at(row: Measured, latencies_s: Sequence[float]) -> str:
        x = log(row.cell.callers) / log(most) * _SIDE if most > 1 else 0
        y = (1 - log(p95_ms(latencies_s) / low) / log(high / low)) * _SIDE
        return f"{x:.1f},{y:.1f}"

    yield f'<path d="M0,0 V{_SIDE} H{_SIDE}" fill="none" stroke="#888"/>'
    yield f'<text x="-6" y="4" text-anchor="end">{high:.0f}</text>'
    yield f'<text x="-6" y="{_SIDE}" text-anchor="end">{low:.1f}</text>'
    for callers, row in {row.cell.callers: row for row in rows}.items():
        x = float(at(row, row.latencies_s).partition(",")[0])
        yield f'<text x="{x}" y="{_SIDE + 16}" text-anchor="middle">{callers}</text>'
    for number, threads in enumerate(dict.fromkeys(row.cell.threads for row in rows)):
        own = [row for row in rows if row.cell.threads == threads]
        colour = _COLOURS.get(threads, "#000")
        for dashes, points in (
            ("", [at(row, row.latencies_s) for row in own]),
            ("5 4", [at(row, row.direct_s) for row in own]),
        ):
            yield (
                f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" '
                f'stroke-width="2" stroke-dasharray="{dashes}"/>'
            )
        yield f'<text x="12" y="{16 * (number + 1)}" fill="{colour}">threads {threads}</text>'
