"""The simulation is right, what it compares with is exact, and `turns` reaches what it has to."""

import json
from collections.abc import Mapping, Sequence
from itertools import permutations
from math import ceil
from pathlib import Path
from statistics import mean
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.harness.command import LabError
from lab.simulate import drawing
from lab.simulate.__main__ import main
from lab.simulate.clairvoyant import least_total_wait_s, least_wait_of_most_s, start
from lab.simulate.disciplines import cyclic_exhaustive, cyclic_gated, exhaustive
from lab.simulate.knowledge import Known, Learned
from lab.simulate.loops import CROWDS, Crowd, beside_greedy, shares
from lab.simulate.open_traces import (
    CLAIRVOYANT,
    OVER_CLAIRVOYANT,
    OVER_STATIONARY,
    PRACTISED,
    STATIONARY,
    Setting,
    optimum_s,
    tails,
    total_waits_s,
)
from lab.simulate.simulation import Simulation
from lab.simulate.tables import TAIL_SETTING
from lab.simulate.workload import Arrival, Model, loop, poisson, two_models

from supervisor.core.scheduling.policies import POLICIES
from supervisor.core.scheduling.values import Decision, Policy, Priority

SEEDS = range(1, 21)
LOADS = (0.3, 0.6)

THREE = [
    Model(name="chat", service_s=0.2, switch_s=0.5, arrivals_per_s=0.6),
    Model(name="embedding", service_s=0.1, switch_s=0.2, arrivals_per_s=1.2),
    Model(name="other", service_s=0.3, switch_s=0.3, arrivals_per_s=0.3),
]


# -- the simulation ---------------------------------------------------------------------------


def conserved_s(models: Sequence[Model], *, is_gated: bool) -> float:
    """Σ ρ_i E[W_i] of a server that goes round, by the pseudo-conservation law.

    Boxma and Groenendijk: Pseudo-conservation laws in cyclic-service systems, 1987.
    """
    loads = [model.arrivals_per_s * model.service_s for model in models]
    load, squares = sum(loads), sum(each * each for each in loads)
    cycle_s = sum(model.switch_s for model in models)
    residual_s = sum(model.arrivals_per_s * model.service_s**2 for model in models)
    return (
        load * residual_s / (2 * (1 - load))
        + load * cycle_s / 2
        + cycle_s / (2 * (1 - load)) * (load**2 + (squares if is_gated else -squares))
    )


@pytest.mark.parametrize(
    "models",
    [two_models(0.5, 0.5, 2.0, 0.3), two_models(0.5, 0.05, 1.0, 0.4), THREE],
    ids=["equal", "unequal", "three models"],
)
@pytest.mark.parametrize(
    ("policy", "is_gated"),
    [(cyclic_exhaustive, False), (cyclic_gated, True)],
    ids=["exhaustive", "gated"],
)
def test_waits_obey_the_pseudo_conservation_law(
    models: list[Model], policy: Policy, is_gated: bool
) -> None:
    trace = poisson(models, 100_000, seed=1)
    outcome = Simulation(models, policy, Known(models)).run(trace)
    weighted_s = 0.0
    for model in models:
        waits_s = outcome.waits_s[model.name]
        weighted_s += model.arrivals_per_s * model.service_s * sum(waits_s) / len(waits_s)
    assert weighted_s == pytest.approx(conserved_s(models, is_gated=is_gated), rel=0.01)


def test_slots_serve_at_the_same_time() -> None:
    chat = Model(name="chat", service_s=1.0, switch_s=1.0)
    trace = [(0.0, "chat")] * 3
    outcome = Simulation([chat], exhaustive, Known([chat]), slots=2).run(trace)
    assert outcome.waits_s == {"chat": [0.0, 0.0, 1.0]}
    assert outcome.ended_at == 2.0


def test_switch_waits_for_what_is_in_flight_and_takes_its_time() -> None:
    models = two_models(2.0, 1.0, 0.5, 0.5)
    trace = [(0.0, "chat"), (1.0, "embedding"), (1.5, "chat")]
    outcome = Simulation(models, POLICIES["fifo"], Known(models)).run(trace)
    assert outcome.waits_s == {"chat": [0.0, 2.5], "embedding": [1.5]}
    assert (outcome.switches, outcome.switching_s) == (2, 1.0)


def test_who_starves_counts_among_the_longest_waits() -> None:
    models = two_models(0.5, 0.5, 1.0, 0.5)
    clients = [loop("chat"), loop("chat")]
    outcome = Simulation(models, exhaustive, Known(models)).run([(1.0, "embedding")], clients, 60.0)
    assert outcome.waits_s["embedding"] == []
    assert outcome.longest_wait_s == 59.0


@pytest.mark.parametrize(
    ("decide", "said"),
    [
        (lambda view: Decision(wake_at=view.at), "woken at"),
        (lambda view: Decision(model=view.stay.model), "which is live"),
        (lambda _: Decision(), "for ever"),
    ],
    ids=["no time passes", "switches to itself", "never switches"],
)
def test_policy_that_gets_nowhere_is_named(decide: Policy, said: str) -> None:
    models = two_models(0.5, 0.5, 1.0, 0.5)
    with pytest.raises(LabError, match=said):
        Simulation(models, decide, Known(models)).run([(0.0, "embedding")])


def test_what_is_learned_comes_near_what_is_true() -> None:
    models = two_models(0.5, 0.05, 2.0, 0.5)
    learned = Learned(models)
    Simulation(models, POLICIES["turns"], learned).run(poisson(models, 400, seed=1))
    for model in models:
        costs = learned.costs[model.name]
        assert costs.switch_s == 2.0
        assert costs.service_s == pytest.approx(model.service_s)
        assert costs.arrivals_per_s == pytest.approx(model.arrivals_per_s, rel=0.5)


# -- the optimum ------------------------------------------------------------------------------

MODELS = (
    Model(name="a", service_s=0.5, switch_s=1.0),
    Model(name="b", service_s=0.25, switch_s=2.0),
    Model(name="c", service_s=1.0, switch_s=0.25),
)

ARRIVALS = st.lists(
    st.tuples(st.integers(0, 40).map(lambda quarters: quarters / 4), st.sampled_from("abc")),
    min_size=1,
    max_size=6,
).map(sorted)


def waits_in(order: Sequence[str], trace: Sequence[Arrival], *, is_ahead: bool) -> list[float]:
    """The waits when models are served in that order, each request as early as it can be."""
    models = {model.name: model for model in MODELS}
    times = {name: iter([at for at, wanted in trace if wanted == name]) for name in models}
    live, at, waits = "a", 0.0, []
    for name in order:
        arrived_at = next(times[name])
        switch_s = 0.0 if name == live else models[name].switch_s
        starts_at = start(at, arrived_at, switch_s, is_ahead=is_ahead)
        live, at = name, starts_at + models[name].service_s
        waits.append(starts_at - arrived_at)
    return waits


@given(trace=ARRIVALS, is_ahead=st.booleans())
def test_least_wait_is_that_of_the_best_of_all_orders(trace: list[Arrival], is_ahead: bool) -> None:
    orders = set(permutations(name for _, name in trace))
    best_s = min(sum(waits_in(order, trace, is_ahead=is_ahead)) for order in orders)
    assert least_total_wait_s(MODELS, trace, may_switch_ahead=is_ahead) == pytest.approx(best_s)


@given(trace=ARRIVALS, part=st.sampled_from([0.5, 0.8, 1.0]))
def test_least_longest_wait_is_that_of_the_best_of_all_orders(
    trace: list[Arrival], part: float
) -> None:
    orders = set(permutations(name for _, name in trace))
    last = ceil(part * len(trace)) - 1
    best_s = min(sorted(waits_in(order, trace, is_ahead=True))[last] for order in orders)
    assert least_wait_of_most_s(MODELS, trace, part) == pytest.approx(best_s, abs=0.002)


@given(trace=ARRIVALS)
def test_no_policy_beats_who_knows_the_trace(trace: list[Arrival]) -> None:
    best_s = least_total_wait_s(MODELS, trace)
    not_ahead_s = least_total_wait_s(MODELS, trace, may_switch_ahead=False)
    assert best_s <= not_ahead_s + 1e-9
    for policy in PRACTISED.values():
        wait_s = Simulation(MODELS, policy, Known(MODELS)).run(trace).total_wait_s
        assert wait_s >= not_ahead_s - 1e-9


# -- what turns reaches -----------------------------------------------------------------------

Waits = Mapping[tuple[Setting, float], Mapping[str, float]]


@pytest.fixture(scope="module")
def waits_s() -> Waits:
    """The total waits of all policies, by setting and load."""
    return {
        (setting, load): total_waits_s(setting, load, SEEDS)
        for setting in OVER_STATIONARY
        for load in LOADS
    }


@pytest.mark.parametrize("setting", OVER_STATIONARY, ids=str)
@pytest.mark.parametrize("load", LOADS)
def test_turns_waits_little_longer_than_the_best_stationary_policy(
    setting: Setting, load: float, waits_s: Waits
) -> None:
    waits = waits_s[setting, load]
    assert waits["turns"] <= OVER_STATIONARY[setting] * waits[STATIONARY]


@pytest.mark.parametrize("setting", OVER_CLAIRVOYANT, ids=str)
def test_turns_is_near_the_clairvoyant_at_load_0_6(setting: Setting, waits_s: Waits) -> None:
    best_s = optimum_s(setting, 0.6, SEEDS)
    assert waits_s[setting, 0.6]["turns"] <= OVER_CLAIRVOYANT[setting] * best_s


def test_best_stationary_policy_is_as_good_as_all_others(waits_s: Waits) -> None:
    """Up to 5 %: it is the best for times that vary, and those of the traces do not."""
    for waits in waits_s.values():
        assert waits[STATIONARY] <= 1.05 * min(waits.values())


@pytest.mark.parametrize("knowledge", [Known, Learned])
@pytest.mark.parametrize(
    "setting",
    [
        Setting(chat_s=0.5, embedding_s=0.5, switch_s=0.5),
        Setting(chat_s=0.5, embedding_s=0.05, switch_s=2.0),
        Setting(chat_s=0.02, embedding_s=0.006, switch_s=0.14),
    ],
    ids=str,
)
def test_a_load_of_nine_tenths_is_carried(
    setting: Setting, knowledge: type[Known | Learned]
) -> None:
    """Long after the begin nobody waits much longer than before, nor than if nothing bounded waits.

    With turns that are never lengthened, waits grow with each request: fifty to a hundred times.
    """
    models = setting.models(load=0.9)
    trace = poisson(models, 6000, seed=7)
    got, free = (
        Simulation(models, policy, knowledge(models)).run(trace)
        for policy in (POLICIES["turns"], exhaustive)
    )
    early_s = sum(sum(waits[: len(waits) // 2]) for waits in got.waits_s.values())
    assert got.total_wait_s - early_s <= 1.25 * early_s
    assert got.total_wait_s <= 1.25 * free.total_wait_s


@pytest.mark.parametrize("crowd", [each for each in CROWDS if each.think_s < 0.01], ids=str)
def test_each_side_of_closed_loops_gets_its_part(crowd: Crowd) -> None:
    got = shares(crowd, POLICIES["turns"], seconds=150 * crowd.switch_s)
    turn_s = crowd.switch_s * (1 - 0.15) / 0.15
    head_s = 2 * crowd.switch_s + turn_s + crowd.chat_s
    assert min(got.chat, got.embedding) >= 0.40
    assert got.longest_wait_s <= head_s + crowd.clients * crowd.chat_s
    assert got.switching <= 0.16


def test_open_traffic_is_not_taken_for_closed_loops() -> None:
    """Its gaps are short against a switch, too; a model kept for it would idle for whole turns."""
    models = [
        Model(name="chat", service_s=0.0103, switch_s=0.14, arrivals_per_s=14.6),
        Model(name="embedding", service_s=0.0058, switch_s=0.14, arrivals_per_s=26.0),
    ]
    trace = poisson(models, 6000, seed=3)
    learned, known = (
        Simulation(models, POLICIES["turns"], knowledge(models)).run(trace)
        for knowledge in (Learned, Known)
    )
    assert learned.total_wait_s <= 1.05 * known.total_wait_s
    assert learned.longest_wait_s <= 1.2 * known.longest_wait_s


def test_no_schedule_halves_the_tail_of_exhaustive_service() -> None:
    """So that it is no aim for `turns`: what those wait who come when their model was just left."""
    models = TAIL_SETTING.models(load=0.3)
    found = tails(models, TAIL_SETTING.trace(0.3, 1, 150))
    least, usual = found[CLAIRVOYANT], found["exhaustive"]
    assert least.p99_s > 0.75 * usual.p99_s
    assert least.longest_s > 0.7 * usual.longest_s


def test_first_come_first_served_switches_nearly_all_of_the_time() -> None:
    assert shares(CROWDS[0], POLICIES["fifo"], seconds=60.0).switching > 0.9


def test_without_turns_one_side_of_closed_loops_starves() -> None:
    got = shares(CROWDS[2], exhaustive, seconds=60.0)
    assert min(got.chat, got.embedding) < 0.01
    assert got.longest_wait_s > 50


def test_chats_wait_less_beside_a_greedy_client_whose_work_is_batch_work() -> None:
    mean_s = {
        priority: mean(beside_greedy(POLICIES["turns"], priority=priority).waits_s["chat"])
        for priority in Priority
    }
    assert mean_s[Priority.BATCH] < mean_s[Priority.INTERACTIVE] / 2


# -- the command ------------------------------------------------------------------------------


def test_command_prints_and_writes_its_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "simulate.json"
    names = ["open", "learning", "closed", "greedy"]
    asked = ["--costs", "0.5", "0.05", "8", "--seeds", "1", "--json", str(target)]
    assert main(["--only", *names, *asked]) == 0
    written = json.loads(target.read_text())
    assert all(written[name] for name in names)
    row = written["open"][0]
    assert row["setting"] == "0.5 / 0.05 s, switch 8 s"
    assert f"{row['turns']:.2f}" in capsys.readouterr().out


def test_picture_has_a_line_for_each_policy(tmp_path: Path) -> None:
    target = tmp_path / "scheduling.svg"
    assert main(["--seeds", "1", "--plot", str(target)]) == 0
    picture = ET.parse(target).getroot()
    words = {"".join(text.itertext()) for text in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert set(drawing.COLOURS) <= words
