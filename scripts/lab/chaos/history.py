"""Whether the history of switches is consistent: with itself, over restarts, and with the log."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from lab.chaos.facts import Facts

_CLOCK_SLACK_S = 0.25
"""`ended_at` is read from the wall clock when the end is recorded, `total` is monotonic: a busy
machine records late, and the next switch may have begun at once."""

_WRITTEN_WITHIN_S = 1.0
"""A switch that ended this long before a kill must be on disk."""

_COMPARED = 500
"""The newest records that are compared: old ones fall out beyond `switch.history_size`."""

Record = Mapping[str, Any]


def problems_of(records: Sequence[Record]) -> list[str]:
    """Return what is wrong with a listing, the newest first: order, overlaps, unknown outcomes."""
    ended = records[1:] if records and records[0]["outcome"] == "running" else records
    problems = [
        f"{r['switch_id']} has the outcome {r['outcome']!r}"
        for r in ended
        if r["outcome"] not in {"switched", "unchanged", "failed"}
    ]
    ids = [r["switch_id"] for r in records]
    problems += [f"{one} is listed twice" for one in sorted({i for i in ids if ids.count(i) > 1})]
    failed = [r for r in ended if (r["outcome"] == "failed") != (r["error"] is not None)]
    problems += [f"{r['switch_id']}: {r['outcome']} with error {r['error']}" for r in failed]
    return problems + _overlaps(ended)


def _overlaps(ended: Sequence[Record]) -> list[str]:
    found = []
    for newer, older in pairwise(ended):
        began_at = newer["ended_at"] - newer["seconds"]["total"]
        if began_at < older["ended_at"] - _CLOCK_SLACK_S:
            found.append(f"{newer['switch_id']} began before {older['switch_id']} had ended")
    return found


def forgotten(
    before: Sequence[Record],
    after: Sequence[Record],
    killed_at: float,
    is_excused: Callable[[float], bool] = lambda _: False,
) -> list[str]:
    """Return what a controller's successor does not know, or knows otherwise.

    `is_excused`: whether a switch that ended at a time may be unknown.
    """
    kept = {r["switch_id"]: r for r in after}
    return [
        f"{r['switch_id']} was in the history before the controller ended, and is "
        + ("not the same after it" if r["switch_id"] in kept else "gone after it")
        for r in before[:_COMPARED]
        if r["outcome"] != "running"
        and r["ended_at"] < killed_at - _WRITTEN_WITHIN_S
        and kept.get(r["switch_id"]) != r
        and not is_excused(r["ended_at"])
    ]


def unlisted(
    facts: Sequence[Facts],
    records: Sequence[Record],
    is_excused: Callable[[float], bool] = lambda _: False,
) -> list[str]:
    """Return the switches that the logs say have ended, and the history does not list."""
    ended = [
        begun
        for each in facts
        for begun in each.phases
        if begun.phase == "ended" and begun.at < each.ended_at - _WRITTEN_WITHIN_S
    ]
    listed = {r["switch_id"] for r in records}
    return [
        f"{begun.switch_id} ended, and is not in the history"
        for begun in ended[-_COMPARED:]
        if begun.switch_id not in listed and not is_excused(begun.at)
    ]
