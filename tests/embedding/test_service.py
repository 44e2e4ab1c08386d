"""What the service makes of what its parts say."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.embedding.service import apportioned, name_input
from supervisor.embedding.values import EmbeddingRequest, Piece, PreparedInput
from supervisor.errors import RequestRefused
from tests.embedding.batching.conftest import running


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


async def test_what_vectors_cannot_be_cut_to_is_refused_before_anything_is_switched(
    models_dir: Path,
) -> None:
    async with running(models_dir) as bench:
        request = EmbeddingRequest(
            target=bench.parts.targets.target("minilm"), inputs=("a",), dimensions=7
        )
        with pytest.raises(RequestRefused, match=r"7: models\.yaml names no lengths for it"):
            await bench.parts.services.embedding.service.embed(request)
        assert not bench.parts.arbiter.snapshot.backends
