"""The same for servers that take texts only, which tokenise them anew."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from supervisor.embedding.text_lengths import cut_text, divide_text
from supervisor.embedding.values import Side

texts = st.text("ab 한국", max_size=80)
limits = st.integers(4, 30)


async def count(text: str) -> int:
    """Count as a byte-level tokenizer with two special tokens would."""
    return len(text.encode()) + 2


@given(texts, limits, st.sampled_from(Side))
async def test_cut_text_fits_and_is_an_end_of_the_whole(text: str, limit: int, side: Side) -> None:
    if max(map(len, map(str.encode, text)), default=0) + 2 > limit:
        return  # not even one character fits

    piece = await cut_text(text, limit, side, count)

    assert isinstance(piece.content, str)
    assert piece.tokens == await count(piece.content) <= max(limit, 2)
    assert text.startswith(piece.content) if side is Side.RIGHT else text.endswith(piece.content)


@given(texts, st.integers(5, 30))
async def test_parts_of_a_text_have_all_of_it_and_each_fits(text: str, limit: int) -> None:
    parts = await divide_text(text, limit, count)

    assert "".join(str(part.content) for part in parts) == text
    assert all(part.tokens <= limit for part in parts)


async def test_limit_that_takes_nothing_is_said() -> None:
    with pytest.raises(ValueError, match="no room"):
        await cut_text("abc", 1, Side.RIGHT, count)
    with pytest.raises(ValueError, match="no room"):
        await divide_text("abc", 2, count)
