"""The picture of the docs (SVG): waits of open traffic over the load, and closed loops as bars."""

from collections.abc import Iterator, Mapping, Sequence
from math import log

from lab.simulate.loops import Crowd, Shares, shares
from lab.simulate.open_traces import CLAIRVOYANT, PRACTISED, STATIONARY, Setting, mean_waits_s

LOADS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
SETTING = Setting(chat_s=0.5, embedding_s=0.05, switch_s=2.0)
CROWD = Crowd(clients=4, chat_s=0.5, embedding_s=0.05, switch_s=2.0)

COLOURS = {
    "fifo": "#e4572e",
    "sticky": "#f2a541",
    "exhaustive": "#3a86ff",
    "bounded": "#9b5de5",
    "turns": "#1d7a4f",
    STATIONARY: "#888888",
    CLAIRVOYANT: "#000000",
}
LOOPING = ("exhaustive", "fifo", "bounded", "turns")
"""The policies of the bars."""

_FONT = 'font-family="sans-serif" font-size="12"'
_SIDE, _GAP, _BAR = 340, 60, 26
_MARKS_S = (0.3, 1.0, 3.0, 10.0, 30.0)
_MOST_S = 40.0


def draw(seeds: Sequence[int]) -> str:
    """Run what is drawn, and return the picture."""
    named = {name: policy for name, policy in PRACTISED.items() if name in COLOURS}
    lines: dict[str, list[tuple[float, float]]] = {name: [] for name in COLOURS}
    for load in LOADS:
        for name, wait_s in mean_waits_s(SETTING, load, seeds, named).items():
            lines[name].append((load, wait_s))
    bars = {name: shares(CROWD, PRACTISED[name]) for name in LOOPING}
    width, height = 2 * _SIDE + 5 * _GAP, _SIDE + 2 * _GAP
    parts = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {_FONT}>',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<g transform="translate({_GAP} {_GAP})">',
        f'<text y="-30" font-size="14">Mean wait, s, by load ({SETTING})</text>',
        *_axes(),
        *_curves(lines),
        f'</g><g transform="translate({_SIDE + 4 * _GAP} {_GAP})">',
        f'<text y="-30" font-size="14">Share of alone ({CROWD})</text>',
        *_bars(bars),
        "</g></svg>\n",
    )
    return "\n".join(parts)


def _x(load: float) -> float:
    return round(load / LOADS[-1] * _SIDE, 1)


def _y(wait_s: float) -> float:
    part = log(wait_s / _MARKS_S[0]) / log(_MOST_S / _MARKS_S[0])
    return round((1 - part) * _SIDE, 1)


def _axes() -> Iterator[str]:
    yield f'<path d="M0,0 V{_SIDE} H{_SIDE}" fill="none" stroke="#888"/>'
    for load in LOADS[1::2]:
        yield f'<text x="{_x(load)}" y="{_SIDE + 16}" text-anchor="middle">{load:g}</text>'
    for wait_s in _MARKS_S:
        yield f'<path d="M0,{_y(wait_s)} H{_SIDE}" stroke="#ddd"/>'
        yield f'<text x="-6" y="{_y(wait_s) + 4}" text-anchor="end">{wait_s:g}</text>'


def _curves(lines: Mapping[str, Sequence[tuple[float, float]]]) -> Iterator[str]:
    """Draw each line, and its name where it ends, apart from the others."""
    lowest = float(_SIDE)
    for name, points in sorted(lines.items(), key=lambda line: line[1][-1][1]):
        path = " ".join(f"{_x(load)},{_y(wait_s)}" for load, wait_s in points)
        style = 'stroke-dasharray="5 4"' if name in {STATIONARY, CLAIRVOYANT} else ""
        colour = COLOURS[name]
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" {style}/>'
        lowest = min(lowest - 15, _y(points[-1][1]))
        yield f'<text x="{_SIDE + 6}" y="{lowest + 4:.1f}" fill="{colour}">{name}</text>'


def _bars(bars: Mapping[str, Shares]) -> Iterator[str]:
    for number, (name, got) in enumerate(bars.items()):
        y = number * 3 * _BAR
        yield f'<text x="-6" y="{y + _BAR}" text-anchor="end">{name}</text>'
        for share, shade, mode in ((got.chat, 1.0, "chat"), (got.embedding, 0.5, "embedding")):
            yield (
                f'<rect y="{y}" width="{share * _SIDE:.1f}" height="{_BAR - 2}" '
                f'fill="{COLOURS[name]}" fill-opacity="{shade}"/>'
            )
            at = f'x="{share * _SIDE + 6:.1f}" y="{y + _BAR - 9}"'
            yield f"<text {at}>{mode} {share:.2f}</text>"
            y += _BAR
        words = (
            f"longest wait {got.longest_wait_s:.0f} s, {got.switching:.0%} of the time switching"
        )
        yield f'<text y="{y + 12}" font-size="11" fill="#555">{words}</text>'
