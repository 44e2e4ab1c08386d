"""Which texts of a caller are ranked together."""

from hypothesis import given
from hypothesis import strategies as st

from supervisor.embedding.reranking import parts_of
from supervisor.embedding.values import Piece

MAX_SIZE, MAX_TOKENS = 4, 100


@given(st.lists(st.integers(1, 150), min_size=1, max_size=40))
def test_parts_are_within_both_bounds_unless_a_text_is_alone_and_none_could_be_longer(
    tokens: list[int],
) -> None:
    pieces = [Piece(str(number), count) for number, count in enumerate(tokens)]
    parts = [[int(text) for text in part] for part in parts_of(pieces, MAX_SIZE, MAX_TOKENS)]
    assert [number for part in parts for number in part] == list(range(len(tokens)))
    sums = [sum(tokens[number] for number in part) for part in parts]
    for place, (part, in_all) in enumerate(zip(parts, sums, strict=True)):
        assert len(part) == 1 or (len(part) <= MAX_SIZE and in_all <= MAX_TOKENS)
        if place + 1 < len(parts):
            following = tokens[parts[place + 1][0]]
            assert len(part) == MAX_SIZE or in_all + following > MAX_TOKENS
