"""Single decisions of `turns` and `fifo`, with the sentences that explain them."""

from typing import Any

import pytest
from msgspec.structs import replace

from supervisor.core.scheduling.policies import POLICIES
from supervisor.core.scheduling.values import (
    Costs,
    Decision,
    Queue,
    SchedulingRules,
    Stay,
    View,
)

COSTS = {
    model: Costs(switch_s=0.2, drain_s=0.05, service_s=0.01) for model in ("chat", "minilm", "gte")
}
TURN_S = 0.2 * 0.85 / 0.15
BUSY = Stay(model="chat", since=10.0, granted=9, in_flight=2, interactive_in_flight=2)
EMPTY = replace(BUSY, in_flight=0, interactive_in_flight=0, empty_since=11.0)


def queue(
    model: str, oldest_at: float, waiting: int = 1, *, batch: bool = False, **more: Any
) -> Queue:
    """All of them as old as the oldest."""
    return Queue(
        model=model,
        interactive=0 if batch else waiting,
        batch=waiting if batch else 0,
        oldest_at=oldest_at,
        oldest_interactive_at=None if batch else oldest_at,
        arrived_at_sum=waiting * oldest_at,
        **more,
    )


def decide(
    at: float, stay: Stay | None, *queues: Queue, policy: str = "turns", **more: Any
) -> Decision:
    costs, rules = more.pop("costs", COSTS), SchedulingRules(**more)
    return POLICIES[policy](View(at=at, stay=stay, queues=queues, costs=costs, rules=rules))


def test_a_turn_that_is_over_ends_with_a_switch_to_who_waits() -> None:
    decision = decide(11.25, BUSY, queue("minilm", 9.875, 3))
    assert decision.model == "minilm"
    assert decision.reason == (
        "switching to minilm: its turn; chat has had 1.2 s; 3 wait, the oldest 1.4 s of at most 5 s"
    )


def test_a_turn_that_is_not_over_goes_on_and_says_for_how_long() -> None:
    decision = decide(10.5, BUSY, queue("minilm", 9.6, 3))
    assert decision.model is None
    assert decision.wake_at == pytest.approx(10.0 + TURN_S)
    assert decision.reason == (
        "chat stays: its turn ends in 0.63 s; 3 wait for minilm, the oldest 0.9 s of at most 5 s"
    )


def test_a_turn_goes_on_beyond_its_shortest_until_a_head_needs_the_device() -> None:
    decision = decide(20.0, BUSY, queue("minilm", 19.9))
    longest_s = 0.4 + TURN_S + 0.05
    assert decision.wake_at == pytest.approx(19.9 + longest_s - 0.05 - 0.2)


def test_whoever_stays_needs_no_alarm_while_nobody_else_waits() -> None:
    assert decide(20.0, BUSY, queue("chat", 19.0)) == Decision(
        reason="chat stays: nobody waits for another model"
    )
    assert decide(20.0, None) == Decision(reason="nobody waits for any model")


def test_a_device_without_a_model_goes_to_the_oldest_head_at_once() -> None:
    decision = decide(20.0, None, queue("minilm", 19.9, 9), queue("chat", 19.8))
    assert decision.model == "chat"
    assert decision.reason.startswith("switching to chat: nothing is live; 1 waits")


@pytest.mark.parametrize("service_s", [0.01, 5.0])
def test_the_turn_of_a_long_queue_is_not_over_before_it_was_served(service_s: float) -> None:
    """Whether or not the others would be served faster."""
    costs = COSTS | {"chat": replace(COSTS["chat"], service_s=service_s)}
    long = replace(BUSY, queued=round(2 * TURN_S / service_s) + 1)
    head = queue("minilm", 9.9, 300)
    turn_s = min(long.queued * service_s, 4 * TURN_S)
    decision = decide(11.9, long, head, costs=costs)
    assert decision.wake_at == pytest.approx(10.0 + turn_s)
    assert "chat stays: its turn ends in" in decision.reason
    assert decide(10.0 + turn_s, long, head, costs=costs).model == "minilm"


def test_the_turn_of_batch_work_is_not_lengthened_while_an_interactive_head_waits() -> None:
    batch = replace(BUSY, queued=1000, interactive_in_flight=0)
    assert decide(10.0 + TURN_S, batch, queue("minilm", 9.9)).model == "minilm"


def test_an_empty_resident_is_left_at_once_by_default() -> None:
    decision = decide(11.0, EMPTY, queue("minilm", 11.0))
    assert decision.model == "minilm"
    assert "chat has nothing to do" in decision.reason


def test_an_empty_resident_is_kept_for_clients_that_return_soon() -> None:
    soon = replace(COSTS["chat"], return_s=0.01)
    costs = COSTS | {"chat": soon}
    decision = decide(11.01, EMPTY, queue("minilm", 11.0), costs=costs)
    assert decision.model is None
    assert decision.wake_at == pytest.approx(11.2)
    assert decide(11.2, EMPTY, queue("minilm", 11.0), costs=costs).model == "minilm"


def test_how_long_an_empty_resident_will_be_kept_is_said_while_it_works() -> None:
    soon = replace(COSTS["chat"], return_s=0.01)
    costs = COSTS | {"chat": soon}
    assert decide(11.0, BUSY, queue("minilm", 11.0), costs=costs).linger_s == pytest.approx(0.2)
    assert decide(11.0, BUSY, queue("minilm", 11.0)).linger_s == 0.0


def test_clients_that_return_soon_keep_a_model_no_longer_than_its_turn() -> None:
    soon = replace(COSTS["chat"], return_s=0.01)
    empty = replace(EMPTY, empty_since=11.4)
    costs = COSTS | {"chat": soon}
    assert decide(11.5, empty, queue("minilm", 9.9), costs=costs).model == "minilm"


def test_few_are_held_until_enough_wait_to_be_worth_two_switches() -> None:
    often = {model: replace(known, arrivals_per_s=20.0) for model, known in COSTS.items()}
    waiting = queue("minilm", 11.0, 2)
    decision = decide(11.0, EMPTY, waiting, costs=often)
    assert decision.wake_at == pytest.approx(11.2)
    assert decision.reason.startswith("chat stays: 4 are worth a switch, 2 wait: left in 0.2 s")
    assert decide(11.2, EMPTY, waiting, costs=often).model == "minilm"
    assert decide(11.0, EMPTY, queue("minilm", 11.0, 4), costs=often).model == "minilm"


def test_those_who_have_waited_long_in_all_are_held_no_longer() -> None:
    often = {model: replace(known, arrivals_per_s=20.0) for model, known in COSTS.items()}
    assert decide(11.0, EMPTY, queue("minilm", 10.4, 3), costs=often).model == "minilm"


def test_a_stay_that_has_served_nobody_goes_on_however_late_others_are() -> None:
    fresh = replace(BUSY, granted=0, in_flight=0, interactive_in_flight=0, empty_since=10.0)
    late = queue("minilm", 0.0)
    assert decide(50.0, fresh, queue("chat", 49.0), late).model is None
    assert decide(50.0, fresh, late).model == "minilm"


def test_many_short_requests_interrupt_long_ones_once_the_shortest_turn_is_over() -> None:
    costs = COSTS | {"chat": replace(COSTS["chat"], service_s=5.0)}
    shortest_at = 10.0 + TURN_S
    waiting = queue("minilm", 10.0 + TURN_S - 0.01, 3)
    decision = decide(shortest_at, BUSY, waiting, costs=costs)
    assert decision.model == "minilm"
    assert "it serves more in the time" in decision.reason
    assert decide(shortest_at - 0.01, BUSY, waiting, costs=costs).wake_at == shortest_at
    assert decide(shortest_at, BUSY, waiting).model is None


def test_batch_work_gives_way_to_an_interactive_head_after_the_shortest_turn() -> None:
    batch = replace(BUSY, interactive_in_flight=0)
    head = queue("minilm", 11.0)
    shortest_at = 10.0 + TURN_S
    decision = decide(shortest_at, batch, head, max_wait_s=60.0)
    assert decision.model == "minilm"
    assert "chat has only batch work" in decision.reason
    assert decide(shortest_at, BUSY, head, max_wait_s=60.0).model is None


def test_batch_work_waits_ten_times_as_long_for_interactive_work() -> None:
    texts = queue("minilm", 10.0, 5000, batch=True)
    decision = decide(12.0, BUSY, texts)
    assert decision.model is None
    longest_s = 0.4 + TURN_S + 0.05
    assert decision.wake_at == pytest.approx(10.0 + 9 * longest_s)
    assert decision.reason == "chat stays: only batch work waits"


def test_batch_work_ages() -> None:
    texts = queue("minilm", 10.0, 5000, batch=True)
    decision = decide(12.0, BUSY, texts, batch_ages_s=3.0)
    assert decision.wake_at == pytest.approx(13.0)
    assert decide(15.0, BUSY, texts, batch_ages_s=3.0).model == "minilm"


def test_batch_work_beside_batch_work_takes_turns() -> None:
    batch = replace(BUSY, interactive_in_flight=0)
    assert decide(11.5, batch, queue("minilm", 10.1, 3, batch=True)).model == "minilm"


def test_an_interactive_head_goes_before_older_batch_work() -> None:
    older = queue("gte", 10.0, 900, batch=True)
    assert decide(11.0, EMPTY, older, queue("minilm", 10.9)).model == "minilm"
    assert decide(11.0, EMPTY, older).model == "gte"


def test_who_had_the_device_stands_behind_who_waits_however_old_its_backlog_is() -> None:
    backlog = queue("minilm", 1.0, 900, left_at=9.8)
    decision = decide(11.5, BUSY, backlog, queue("gte", 9.0))
    assert decision.model == "gte"
    again = decide(11.5, BUSY, backlog)
    assert "the oldest 10 s, counted as 1.7 s of at most 5 s" in again.reason


@pytest.mark.parametrize(
    ("waited_s", "words"), [(0.0, "0 s"), (0.0123, "0.012 s"), (9.97, "10 s"), (123.4, "123 s")]
)
def test_sentences_give_times_in_plain_digits(waited_s: float, words: str) -> None:
    decision = decide(200.0, None, queue("minilm", 200.0 - waited_s))
    assert f"1 waits, the oldest {words} of at most 0.2 s" in decision.reason


def test_first_come_first_served_follows_the_oldest_request() -> None:
    waiting = queue("minilm", 10.2)
    assert decide(10.3, BUSY, waiting, policy="fifo").model == "minilm"
    assert decide(10.3, BUSY, waiting, queue("chat", 10.1), policy="fifo").model is None
    fresh = replace(BUSY, granted=0, in_flight=0, interactive_in_flight=0)
    assert decide(10.3, fresh, waiting, queue("chat", 10.25), policy="fifo").model is None
    assert decide(10.3, BUSY, policy="fifo").model is None
    assert decide(10.3, None, waiting, policy="fifo").model == "minilm"
