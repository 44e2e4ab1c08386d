"""What the schedule has, and what a hand has chosen against it, written as JSON for `/status`."""

from typing import Any

from supervisor.core.machine.agenda import Agenda, Period

SHOWN = 3
"""Changes to come that are shown."""


def describe_schedule(agenda: Agenda, now: float) -> dict[str, Any] | None:
    """Write the period that holds, what it overrides, and the next changes; None: no schedule."""
    if not agenda.periods:
        return None
    holding, *following = agenda.periods
    by_hand = agenda.by_hand
    return {
        "serves": agenda.period.serves if agenda.period else None,
        "entry": holding.entry,
        "since": holding.local or None,
        "until_done": holding.until_done,
        "overrides": holding.over,
        "by_hand": by_hand
        and {
            "serves": by_hand.period.serves,
            "makes_live": by_hand.period.target is not None,
            "in_place_of": holding.serves,
            "until": following[0].local if following else None,
        },
        "outside_window": "refuse" if agenda.refuses else "wait",
        "next": [_change(period, now) for period in following[:SHOWN]],
    }


def _change(period: Period, now: float) -> dict[str, Any]:
    return {
        "at": period.local,
        "in_s": round(period.starts_at - now, 1),
        "serves": period.serves,
        "entry": period.entry,
        "until_done": period.until_done,
    }
