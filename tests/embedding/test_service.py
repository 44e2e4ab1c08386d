"""What the service makes of what its parts say."""

from hypothesis import given
from hypothesis import strategies as st

from supervisor.embedding.service import apportioned, name_input
from supervisor.embedding.values import Piece, PreparedInput
from supervisor.errors import RequestRefused


def test_a_guilty_window_is_told_as_its_input() -> None:
    prepared = [
        PreparedInput(pieces=tuple(Piece(content="text", tokens=4) for _ in range(windows)))
        for windows in (1, 3, 1)
    ]
    for piece, index in enumerate((0, 1, 1, 1, 2)):
        error = RequestRefused("embedding_failed", "the server failed", {"index": piece})
        name_input(error, prepared)
        assert error.details["index"] == index
    error = RequestRefused("hold_timeout", "waited too long")
    name_input(error, prepared)
    assert error.details == {}


@given(st.integers(0, 10_000), st.lists(st.integers(1, 1000), min_size=1, max_size=20))
def test_tokens_are_divided_by_shares_and_none_is_lost(total: int, shares: list[int]) -> None:
    divided = apportioned(total, shares)
    assert sum(divided) == total
    for own, share in zip(divided, shares, strict=True):
        assert abs(own - total * share / sum(shares)) <= 1
