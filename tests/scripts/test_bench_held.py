"""The figure of the held requests: a crowd waits for a switch, and each answer is looked at."""

from pathlib import Path
from typing import Any

from lab.bench import held
from lab.harness.servers import Controller

SCRIPTS = Path(__file__).parents[2] / "scripts"
REQUESTS = 40


def test_all_requests_wait_for_one_switch_and_each_gets_the_answer_to_its_own_text(
    setting: Any,
) -> None:
    figure = held.measure(setting, REQUESTS)

    failed, memory, health = figure.rows
    assert (failed.quantity, failed.controller) == (f"{REQUESTS} requests, failed", 0)
    assert figure.samples["held"]["answered"] == REQUESTS
    assert figure.samples["live"]["answered"] == REQUESTS
    assert memory.target.bound == 20
    assert 0 < health.controller < 1000


def test_answer_to_another_text_is_a_failure(setting: Any) -> None:
    with Controller(setting) as controller:
        controller.load("minilm")
        right = held._right_vectors(controller)
        swapped = dict(zip(right, reversed(list(right.values())), strict=True))
        answered, failures = held.send_crowd(controller.endpoint, swapped, REQUESTS)

    assert (answered, sum(failures.values())) == (0, REQUESTS)
    assert "of another text" in next(iter(failures))
