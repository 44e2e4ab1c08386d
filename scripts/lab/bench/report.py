"""What a run has found: rows with a target each, as a table for people and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any, Literal

from lab.harness.command import in_columns

Judged = Literal["controller", "difference", "ratio"]
"""What a target bounds: the controller's value, what it adds to the direct one, or its share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A bound from the requirements, in the row's unit (a ratio has none)."""

    sense: Literal["at most", "at least"]
    bound: float

    def is_met(self, value: float) -> bool:
        """Whether the value is within the bound."""
        return value <= self.bound if self.sense == "at most" else value >= self.bound

    def describe(self) -> str:
        """Write it as `≤ 60`."""
        return f"{'≤' if self.sense == 'at most' else '≥'} {self.bound:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One quantity, as medians; `lower` and `upper` are the quartiles of the judged value."""

    quantity: str
    unit: str
    direct: float
    controller: float
    peers: Mapping[str, float]
    judged_as: Judged
    judged: float
    lower: float
    upper: float
    target: Target

    @property
    def is_met(self) -> bool:
        """Whether the judged value is within the target."""
        return self.target.is_met(self.judged)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """The rows of one figure, sentences for people, and the raw samples for machines.

    `attachments` are files that are written beside the report, by their names.
    """

    name: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    samples: Mapping[str, Any] = field(default_factory=dict)
    attachments: Mapping[str, str] = field(default_factory=dict)


def compare(  # noqa: PLR0913 - four of them are named by every caller
    quantity: str,
    unit: str,
    *,
    direct: Sequence[float],
    controller: Sequence[float],
    judged_as: Judged = "controller",
    at_most: float | None = None,
    at_least: float | None = None,
    peers: Mapping[str, Sequence[float]] | None = None,
) -> Row:
    """Judge samples of both sides, one pair after the other, and take the median of each.

    Sample n of one side was measured next to sample n of the other, so that both had the same
    machine. `peers` are further sides by their names. One of the bounds is given.
    """
    if at_most is not None:
        target = Target(sense="at most", bound=at_most)
    else:
        assert at_least is not None
        target = Target(sense="at least", bound=at_least)
    pairs = zip(direct, controller, strict=True)
    judged = [_judge(judged_as, bare, supervised) for bare, supervised in pairs]
    lower, _, upper = quantiles(judged, method="inclusive") if len(judged) > 1 else judged * 3
    return Row(
        quantity=quantity,
        unit=unit,
        direct=median(direct),
        controller=median(controller),
        peers={name: median(samples) for name, samples in (peers or {}).items()},
        judged_as=judged_as,
        judged=median(judged),
        lower=lower,
        upper=upper,
        target=target,
    )


def _judge(judged_as: Judged, bare: float, supervised: float) -> float:
    match judged_as:
        case "controller":
            return supervised
        case "difference":
            return supervised - bare
        case "ratio":
            return supervised / bare if bare else 0.0


def table(figures: Sequence[Figure]) -> str:
    """Write the rows in columns, numbers to the right, and the notes below."""
    rows = [(figure.name, row) for figure in figures for row in figure.rows]
    peers = tuple(dict.fromkeys(name for _, row in rows for name in row.peers))
    heads = ("figure", "quantity", "direct", "controller", *peers, "judged", "range", "target", "")
    lines = [heads, *(_cells(name, row, peers) for name, row in rows)]
    text = in_columns(lines, frozenset({0, 1, len(heads) - 1}))
    text.insert(1, "─" * max(map(len, text)))
    notes = [f"{figure.name}: {note}" for figure in figures for note in figure.notes]
    return "\n".join([*text, "", *notes]).rstrip()


def _cells(name: str, row: Row, peers: Sequence[str]) -> tuple[str, ...]:
    sign = "+" if row.judged_as == "difference" else ""
    suffix = " ×" if row.judged_as == "ratio" else ""
    return (
        name,
        f"{row.quantity}, {row.unit}" if row.unit else row.quantity,
        _number(row.direct),
        _number(row.controller),
        *(_number(row.peers[peer]) if peer in row.peers else "" for peer in peers),
        f"{row.judged:{sign}.4g}{suffix}",
        f"{_number(row.lower)} – {_number(row.upper)}",
        row.target.describe(),
        "met" if row.is_met else "MISSED",
    )


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def as_json(figures: Sequence[Figure], context: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole report: the context, every row with its verdict, every sample."""
    return {
        **context,
        "figures": {
            figure.name: {
                "rows": [asdict(row) | {"is_met": row.is_met} for row in figure.rows],
                "notes": figure.notes,
                "samples": figure.samples,
            }
            for figure in figures
        },
    }
