"""Inputs that are longer than their model takes, as tokens: cut, and divided."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from supervisor.embedding.lengths import Frame, Ids, truncated, windows
from supervisor.embedding.values import Side

FRAME = Frame(head=(101,), tail=(102,))
bodies = st.lists(st.integers(1000, 1100), max_size=60).map(tuple)
limits = st.integers(FRAME.length + 1, 20)


@given(bodies, limits)
def test_windows_have_every_token_once_in_order_and_none_is_too_long(body: Ids, limit: int) -> None:
    parts = windows(FRAME.put_around(body), limit, FRAME)

    assert sum((FRAME.body(part) for part in parts), ()) == body
    assert all(FRAME.around(part) == FRAME for part in parts)
    assert max(map(len, parts)) <= limit
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert len(parts) == max(1, -(-len(body) // (limit - FRAME.length)))


@given(bodies, limits)
def test_cut_input_keeps_its_frame_and_the_end_that_is_not_cut(body: Ids, limit: int) -> None:
    ids = FRAME.put_around(body)

    right, left = (truncated(ids, limit, FRAME, side) for side in (Side.RIGHT, Side.LEFT))

    room = limit - FRAME.length
    assert right == FRAME.put_around(body[:room])
    assert left == FRAME.put_around(body[-room:])


@given(bodies, limits)
def test_callers_own_ids_get_no_frame_that_they_have_not(body: Ids, limit: int) -> None:
    assert truncated(body, limit, FRAME, Side.RIGHT) == body[:limit]
    assert sum(windows(body, limit, FRAME), ()) == body


def test_frame_that_leaves_no_room_is_said() -> None:
    with pytest.raises(ValueError, match="2 tokens leave no room beside 2 special ones"):
        truncated((101, 1000, 102), 2, FRAME, Side.RIGHT)
