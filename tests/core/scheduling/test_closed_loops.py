"""Two classes of clients that ask again at once, on a device that learns all it knows."""

import pytest

from supervisor.core.scheduling.fifo import fifo
from supervisor.core.scheduling.turns import turns
from supervisor.core.scheduling.values import Costs, Policy
from tests.core.scheduling.world import Record, World, closed_loop

SECONDS = 60.0
SERVICE_S = {"chat": 0.02, "embed": 0.005}
SWITCH_S = 0.4


def mixed(policy: Policy, clients: int, models: tuple[str, ...] = ("chat", "embed")) -> Record:
    costs = {model: Costs(switch_s=SWITCH_S) for model in models}
    world = World(policy, costs, learns=True)
    for model in models:
        for request in closed_loop(model, clients, SERVICE_S[model], 0.0005):
            world.comes(request)
    return world.run(SECONDS)


def alone(policy: Policy, clients: int) -> dict[str, int]:
    return {model: mixed(policy, clients, (model,)).answered[model] for model in SERVICE_S}


@pytest.mark.parametrize("clients", [1, 4])
def test_both_classes_reach_two_fifths_of_what_they_reach_alone(clients: int) -> None:
    record, single = mixed(turns, clients), alone(turns, clients)
    for model in SERVICE_S:
        assert record.answered[model] >= 0.40 * single[model]


@pytest.mark.parametrize("clients", [1, 4])
def test_nobody_waits_longer_than_two_switches_and_a_turn(clients: int) -> None:
    turn_s = SWITCH_S * 0.85 / 0.15
    in_line_s = clients * max(SERVICE_S.values())
    assert mixed(turns, clients).longest_wait_s <= 2 * SWITCH_S + turn_s + 2 * in_line_s


def test_first_come_first_served_switches_nearly_all_of_the_time() -> None:
    assert mixed(fifo, 1).switching_s > 0.9 * SECONDS
