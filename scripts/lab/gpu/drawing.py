"""The timeline of a report as a picture (SVG): memory in use, with the phases marked."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any
from xml.sax.saxutils import escape

from lab.gpu.report import PICTURE, TITLES, Folder

PHASE_COLOURS = {
    "draining": "#f2c14e",
    "stopping": "#e4572e",
    "confirming": "#9b5de5",
    "starting": "#3a86ff",
}
_MARKED_BY_COLOUR = {*PHASE_COLOURS, "preflight", "warming"}
_MAX_LABELS = 24
"""Of very many labels, the lines alone would hide the curve."""

_WIDTH, _HEIGHT, _GAP, _LEFT = 1300, 200, 60, 70
_MIB_PER_GIB = 1024


def draw(folder: Folder) -> None:
    """Draw what is in the folder's report, where any part has a timeline."""
    report = folder.read()
    parts = {n: p for n, p in report.get("parts", {}).items() if p.get("timeline")}
    if not parts:
        return
    device = report["device"]
    title = f"{device['name']}, driver {device['driver_version']}: memory in use"
    legend = (
        f'<tspan fill="{colour}" dx="14">■ {name}</tspan>' for name, colour in PHASE_COLOURS.items()
    )
    rows = [
        f'<g transform="translate({_LEFT} {_GAP + number * (_HEIGHT + _GAP)})">'
        f"{_part(TITLES[name], part)}</g>"
        for number, (name, part) in enumerate(parts.items())
    ]
    size = (_LEFT + _WIDTH + _GAP, _GAP + len(parts) * (_HEIGHT + _GAP))
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" '
        'font-family="sans-serif" font-size="13">'
        '<rect width="100%" height="100%" fill="white"/>'
        f'<text x="{_LEFT}" y="24" font-size="16">{escape(title)} {"".join(legend)}</text>'
    )
    picture = "\n".join((text, *rows, "</svg>\n"))
    (folder.path / PICTURE).write_text(picture, encoding="utf-8")
    folder.write(report)


def _part(title: str, part: dict[str, Any]) -> str:
    """Draw one part: its phases as bands, its labels, the memory as steps, the load as a line."""
    end_s, points, marks = part["took_s"], part["timeline"], part["marks"]
    top_mib = max((point[1] for point in points), default=0) or 1
    at = {id(mark): _x(mark["at_s"], end_s) for mark in marks}
    bands = [
        f'<rect x="{at[id(mark)]}" width="{x - at[id(mark)]:.1f}" height="{_HEIGHT}" '
        f'fill="{PHASE_COLOURS[mark["label"]]}" fill-opacity=".35"/>'
        for mark, x in zip(marks, [*list(at.values())[1:], _WIDTH], strict=False)
        if mark["label"] in PHASE_COLOURS
    ]
    labels = [mark for mark in marks if mark["label"] not in _MARKED_BY_COLOUR]
    words = [
        f'<text transform="translate({at[id(mark)]} {_HEIGHT - 4}) rotate(-90)" font-size="9" '
        f'fill="#444">{escape(mark["label"])}</text>'
        for mark in (labels if len(labels) <= _MAX_LABELS else ())
    ]
    used = [(_x(point[0], end_s), _y(point[1] / top_mib)) for point in points]
    steps = [used[0], *(step for old, new in pairwise(used) for step in ((new[0], old[1]), new))]
    load = [(_x(p[0], end_s), _y(p[2] / 100)) for p in points if p[2]]
    return "".join(
        (
            f'<text y="-6">{escape(title)}</text>',
            *bands,
            _line(load, "#2a9d8f"),
            _line(steps, "#1d3557"),
            *words,
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#888"/>',
            f'<text x="-6" y="10" text-anchor="end">{top_mib / _MIB_PER_GIB:.1f} GiB</text>',
            f'<text x="-6" y="{_HEIGHT}" text-anchor="end">0</text>',
            f'<text x="{_WIDTH}" y="{_HEIGHT + 16}" text-anchor="end">{end_s:g} s</text>',
            f'<text x="{_WIDTH + 6}" y="10" fill="#2a9d8f">load 100 %</text>' if load else "",
        )
    )


def _x(seconds: float, end_s: float) -> float:
    return round(min(1.0, seconds / end_s) * _WIDTH, 1)


def _y(share: float) -> float:
    return round((1 - share) * _HEIGHT, 1)


def _line(points: Sequence[tuple[float, float]], colour: str) -> str:
    path = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.2"/>'
