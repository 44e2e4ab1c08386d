"""Work on many vectors leaves the event loop free for others."""

import msgspec
import pytest

from supervisor.embedding.in_turns import in_turns
from supervisor.embedding.vectors import length, normalized, pack
from supervisor.gateway.forms.embedding_answer import as_numbers
from tests.embedding.turns import is_never_held_up

MOST_INPUTS, DIMENSIONS = 2048, 1024


async def test_the_loop_goes_on_while_the_largest_answer_is_written() -> None:
    vector = pack(0.001 * number for number in range(DIMENSIONS))

    async def write() -> None:
        assert len(await as_numbers([vector] * MOST_INPUTS)) == MOST_INPUTS
        assert len(await in_turns(normalized, [vector] * MOST_INPUTS)) == MOST_INPUTS

    assert await is_never_held_up(write)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 9])
async def test_each_vector_has_its_own_place(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supervisor.embedding.in_turns.NUMBERS_AT_ONCE", 8)
    vectors = [pack([number, number + 0.5]) for number in range(count)]
    assert await in_turns(length, vectors) == [2] * count
    written = [msgspec.json.decode(each) for each in await as_numbers(vectors)]
    assert written == [[number, number + 0.5] for number in range(count)]
