"""What is told of a queue: its speed, the waits, who was refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.embedding.batching.measures import LONGEST_RETRY_AFTER_S, Measures


def test_the_speed_is_that_of_the_server_however_many_batches_are_there_at_once() -> None:
    measures, tokens, per_s, workers = Measures(), 100, 1000.0, 3
    done_at: list[float] = []
    for number in range(30):  # the server computes one batch after the other
        sent_at = done_at[number - workers] if number >= workers else 0.0
        there = 1 + sum(done > sent_at for done in done_at)
        done_at.append(max([sent_at, *done_at]) + tokens / per_s)
        measures.note_batch(there * tokens, done_at[-1] - sent_at)
    assert measures.tokens_per_s == pytest.approx(per_s)


def test_one_stall_does_not_change_the_speed() -> None:
    measures = Measures()
    for took_s in (0.1, 0.1, 30.0, 0.1, 0.1):
        measures.note_batch(100, took_s)
    assert measures.tokens_per_s == pytest.approx(1000)
    assert measures.expected_wait_s(500) == pytest.approx(0.5)
    assert measures.retry_after_s(2500) == 3
    assert measures.retry_after_s(10**9) == LONGEST_RETRY_AFTER_S


def test_before_the_first_batch_nothing_is_promised() -> None:
    measures = Measures()
    assert measures.expected_wait_s(1000) is None
    assert measures.retry_after_s(1000) == 5
    assert measures.waits() is None


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300))
def test_waits_are_quantiles(waited: list[float]) -> None:
    measures = Measures()
    for each in waited:
        measures.note_wait(each)
    waits = measures.waits()
    assert waits is not None
    assert sum(each <= waits.p95_s for each in waited) >= 0.95 * len(waited)
    assert sum(each < waits.p95_s for each in waited) <= 0.95 * len(waited)
    assert waits.p50_s in waited
