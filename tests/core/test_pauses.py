"""Pauses grow, and are bounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.pauses import doubled_pause_s


@pytest.mark.parametrize(
    ("failures", "pause_s"), [(1, 0.2), (2, 0.4), (3, 0.8), (9, 51.2), (10, 60.0), (5000, 60.0)]
)
def test_a_pause_doubles_with_each_failure_up_to_its_bound(failures: int, pause_s: float) -> None:
    assert doubled_pause_s(failures, 0.2, 60.0) == pytest.approx(pause_s)


@given(failures=st.integers(1, 10_000), first_s=st.floats(0.001, 10), longest_s=st.floats(10, 100))
def test_a_pause_never_shrinks_and_never_exceeds_its_bound(
    failures: int, first_s: float, longest_s: float
) -> None:
    pause_s = doubled_pause_s(failures, first_s, longest_s)
    assert first_s <= pause_s <= doubled_pause_s(failures + 1, first_s, longest_s) <= longest_s
