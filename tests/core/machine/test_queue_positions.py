"""Where a request stands among those that wait for its model's turn."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.machine.queues import (
    Kind,
    LineKey,
    Requests,
    count_callers,
    join,
    leave_line,
    take,
)
from supervisor.core.machine.values import Waiter
from supervisor.core.scheduling.values import Priority

MODELS = ("chat", "minilm")

arrivals = st.lists(st.tuples(st.sampled_from(MODELS), st.sampled_from(Kind)), max_size=20)


def waiting(arrived: list[tuple[str, Kind]]) -> Requests:
    """Let requests arrive; each is named by its number."""
    requests = Requests()
    for number, (model, kind) in enumerate(arrived):
        urgency = Priority.BATCH if kind is Kind.BATCH else Priority.INTERACTIVE
        waiter = Waiter(
            request_id=str(number),
            target=None,
            arrived_at=float(number),
            arrived_at_sum=float(number),
            number=number,
            priority=urgency,
        )
        requests = join(requests, LineKey(model, kind), waiter)
    return requests


def rank(requests: Requests, request_id: str) -> int:
    """Count, one by one, who comes before in the lines of its model, and itself."""
    place = requests.places[request_id]
    ahead = [
        other
        for other in requests.places.values()
        if other.line.model == place.line.model
        and (other.line.kind is Kind.INTERACTIVE or other.line.kind is place.line.kind)
        and (other.line.kind is not place.line.kind or other.number < place.number)
    ]
    return len(ahead) + 1


@given(arrivals, st.integers(0, 20))
def test_position_is_the_rank_while_requests_leave_from_the_head_only(
    arrived: list[tuple[str, Kind]], served: int
) -> None:
    requests = waiting(arrived)
    for key in tuple(requests.lines):
        if len(requests.lines[key].waiters) > served:
            requests, _ = take(requests, key, served)

    for request_id, place in requests.places.items():
        is_in_turn = place.line.kind is not Kind.BYSTANDER
        expected = rank(requests, request_id) if is_in_turn else None
        assert requests.position_of(request_id) == expected


@given(arrivals, st.lists(st.tuples(st.integers(0, 19), st.integers(1, 9))), st.integers(0, 20))
def test_sums_of_a_line_are_those_of_who_stands_in_it(
    arrived: list[tuple[str, Kind]], counts: list[tuple[int, int]], served: int
) -> None:
    """Callers of a request came with it or when they were counted, and leave with it."""
    requests = waiting(arrived)
    for at, (number, callers) in enumerate(counts, start=len(arrived)):
        if str(number) in requests.places:
            requests = count_callers(requests, str(number), callers, float(at))
    for key in tuple(requests.lines):
        requests, _ = take(requests, key, served)

    for line in requests.lines.values():
        there = line.waiters.values()
        assert line.callers == sum(waiter.callers for waiter in there)
        assert line.arrived_at_sum == pytest.approx(sum(w.arrived_at_sum for w in there))
        for waiter in there:
            mean_at = waiter.arrived_at_sum / waiter.callers
            assert waiter.arrived_at <= mean_at <= len(arrived) + len(counts)


@given(arrivals, st.sets(st.integers(0, 19)))
def test_position_is_never_better_than_the_rank_whoever_leaves(
    arrived: list[tuple[str, Kind]], gone: set[int]
) -> None:
    requests = waiting(arrived)
    before = {name: requests.position_of(name) for name in requests.places}
    for number in gone & set(range(len(arrived))):
        requests = leave_line(requests, str(number))

    for request_id in requests.places:
        position, first = requests.position_of(request_id), before[request_id]
        if position is not None and first is not None:
            assert rank(requests, request_id) <= position <= first


def test_who_does_not_wait_has_no_position() -> None:
    assert waiting([("chat", Kind.BATCH)]).position_of("7") is None
