"""Clients that ask again once they are answered, from the first request on, on the machine itself.

What the scheduler learns of them it learns here as it does in the controller: while a switch is
checked, what it replaces goes on admitting, and who is answered last returns while it stops.
"""

import random
from collections.abc import Callable

import pytest

from tests.core.machine.device import Device, Measured

SECONDS = 40.0
SERVICE_S = {"chat": 0.017, "embed": 0.0075}


def at_once(chance: random.Random) -> float:
    return 0.001 + 0.001 * chance.random()


def sometimes_late(chance: random.Random) -> float:
    """One in fifty is later than a third of a switch, as on a busy machine."""
    return 0.05 if chance.random() < 0.02 else at_once(chance)


def asked_in_turns(batched: frozenset[str] = frozenset()) -> Device:
    """One that was asked for both models in turns, twice each, so that old pauses are known."""
    device = Device(SERVICE_S, slots=1, batched=batched)
    device.ask_once("chat")
    device.now += 0.3
    for _ in range(5):
        for model in ("chat", "chat", "embed", "embed"):
            device.ask_once(model)
    return device


def in_words(measured: Measured) -> list[str]:
    return [report.reason for report in measured.reports]


@pytest.mark.parametrize("clients", [1, 4])
@pytest.mark.parametrize("returns", [at_once, sometimes_late])
@pytest.mark.parametrize("batched", [frozenset(), frozenset({"embed"})], ids=["", "batched"])
def test_both_classes_reach_two_fifths_of_what_they_reach_alone(
    clients: int, returns: Callable[[random.Random], float], batched: frozenset[str]
) -> None:
    device, chance = asked_in_turns(batched), random.Random(1)

    def gap_s() -> float:
        return returns(chance)

    alone = {}
    for model in SERVICE_S:
        device.ask_once(model)
        alone[model] = device.measure([model], clients, 5.0, gap_s).answers[model] / 5.0
    device.measure(list(SERVICE_S), clients, 5.0, gap_s)  # in which the loops become known
    got = device.measure(list(SERVICE_S), clients, SECONDS, gap_s)

    for model, per_s in alone.items():
        assert got.answers[model] >= 0.40 * per_s * SECONDS, in_words(got)
    assert got.switching <= 0.16


def test_loops_are_known_after_two_absences_whatever_was_before() -> None:
    device, chance = asked_in_turns(), random.Random(1)
    got = device.measure(list(SERVICE_S), 1, SECONDS, lambda: at_once(chance))
    early = [reason for reason in in_words(got) if "has nothing to do" in reason]
    assert len(early) <= 6, early
    assert "has nothing to do" not in "".join(in_words(got)[8:])


@pytest.mark.parametrize("batched", [frozenset(), frozenset({"embed"})], ids=["", "batched"])
def test_open_traffic_is_not_taken_for_loops(batched: frozenset[str]) -> None:
    """Nor where only the first of those who come for a model that is away asks for it."""
    device, chance = asked_in_turns(batched), random.Random(1)
    moments = []
    for model, per_s in (("chat", 14.6), ("embed", 26.0)):
        at = 0.0
        while at < SECONDS:
            at += chance.expovariate(per_s)
            moments.append((at, model))
    got = device.come(sorted(moments))
    assert "its turn" not in "".join(in_words(got))
    assert got.longest_s < 1.0
