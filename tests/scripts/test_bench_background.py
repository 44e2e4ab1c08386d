"""The bench of a batch behind chats: what it sends, and how it judges."""

from typing import Any

import pytest
from lab.bench import background
from lab.bench.background import Course
from lab.harness.lean import LeanTally


def tally(*latencies_s: float) -> LeanTally:
    return LeanTally(latencies_s=list(latencies_s))


def course(waited_s: float, lines: int = 100) -> Course:
    return Course(
        chats=tally(waited_s),
        lines=lines,
        is_done=False,
        took_s=10.0,
        switches_s=[0.3],
        drains_s=[0.1],
    )


@pytest.mark.parametrize(("waited_s", "is_met"), [(2.2, True), (2.3, False)])
def test_chats_wait_a_third_longer_and_a_turn_a_drain_and_a_switch_at_most(
    waited_s: float, is_met: bool
) -> None:
    """1.3 × 0.1 s + Q + D + s, where Q = s (1 - f) / f = 0.3 × 0.85 / 0.15 = 1.7 s."""
    chats, errors, batch = background.figure([tally(0.1)], [course(waited_s)], 2.0).rows

    assert chats.target.bound == pytest.approx(2230)
    assert chats.is_met is is_met
    assert errors.is_met
    assert batch.is_met


def test_batch_that_gets_nothing_is_a_miss() -> None:
    *_, batch = background.figure([tally(0.1)], [course(0.1, lines=0)], 2.0).rows

    assert not batch.is_met


def test_batch_goes_on_while_chats_are_answered(setting: Any) -> None:
    measured = background.measure(setting, lines=2000)

    chats, errors, batch = measured.rows
    assert chats.controller > 0
    assert errors.controller == 0
    assert batch.unit == "lines/s"
    assert "Q + D + s" in measured.notes[0]
