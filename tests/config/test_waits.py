"""Waiting times that cannot be kept are named before anybody waits in vain."""

from dataclasses import replace
from pathlib import Path

import pytest

from supervisor.config.load import load
from supervisor.config.waits import wait_warnings
from supervisor.core.scheduling.estimates import Estimates, note_switch
from tests.conftest import ROOT


def learned(switch_s: float) -> Estimates:
    """Both models were switched to, in so many seconds each."""
    known = Estimates()
    for model in ("demo-chat", "minilm"):
        known = note_switch(known, model, switch_s, is_cold=False)
    return known


@pytest.mark.parametrize(
    ("section", "switch_s", "named"),
    [
        ({}, 2.0, []),
        ({"queue": {"hold_timeout_s": 15}}, 2.0, ["queue.hold_timeout_s"]),
        ({"scheduler": {"max_wait_s": 20}}, 2.0, []),
        ({"scheduler": {"max_wait_s": 10}}, 2.0, ["scheduler.max_wait_s"]),
        ({"scheduler": {"auto_switch": False, "max_wait_s": 10}}, 2.0, []),
    ],
)
def test_what_cannot_be_kept_is_named(
    section: dict[str, dict[str, float]], switch_s: float, named: list[str]
) -> None:
    """Two models, 2 s a switch, f = 15 %: a head waits up to 15.3 s, and its switch takes 2 s."""
    configuration = load(ROOT / "profiles", Path("/models"), {})
    changed = {
        name: getattr(configuration.settings, name).model_copy(update=values)
        for name, values in section.items()
    }
    settings = configuration.settings.model_copy(update=changed)
    warnings = list(wait_warnings(replace(configuration, settings=settings), learned(switch_s)))
    assert [warning.split(": ")[1] for warning in warnings] == named


def test_nothing_is_said_where_nothing_was_learned() -> None:
    configuration = load(ROOT / "profiles", Path("/models"), {})
    assert list(wait_warnings(configuration, Estimates())) == []
