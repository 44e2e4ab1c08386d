"""What the storm says of a store: the last state of each document, whole, each chunk once."""

from collections.abc import Sequence
from typing import Any

import pytest
from lab.chaos.documents import State, is_whole, problems_of

OLD, NEW = "old one\n\nold two", "new one\n\nnew two"


def state(text: str, *, job: str | None = "document_1", is_stored: bool = True) -> State:
    return State(document="d", text=text, job=job, is_stored=is_stored)


def points(text: str, *, generation: str = "g", chunks: int = 2) -> list[dict[str, Any]]:
    """Return the points of a state of two chunks."""
    middle = text.index("\n\n")
    spans = [(0, middle), (middle + 2, len(text))]
    found: list[dict[str, Any]] = [
        {
            "kind": "chunk",
            "generation": generation,
            "payload": {"index": i, "text": text[start:stop], "start": start, "stop": stop},
        }
        for i, (start, stop) in enumerate(spans)
    ]
    return [*found, {"kind": "document", "generation": generation, "payload": {"chunks": chunks}}]


@pytest.mark.parametrize(
    ("states", "stored"),
    [
        ([state(OLD), state(NEW)], points(NEW)),
        ([state(OLD), state(NEW, is_stored=False)], points(OLD)),
        ([state(OLD), state(NEW, job=None, is_stored=False)], points(NEW)),
        ([state(OLD), state(NEW, job=None, is_stored=False)], points(OLD)),
        ([state(OLD, is_stored=False)], []),
    ],
    ids=["the last", "the last was given up", "may have come", "may not", "none"],
)
def test_store_with_the_last_state_is_right(states: list[State], stored: Any) -> None:
    assert problems_of(states, stored) == []


@pytest.mark.parametrize(
    ("states", "stored", "said"),
    [
        ([state(OLD), state(NEW)], points(OLD), "not those of"),
        ([state(OLD, job=None, is_stored=False), state(NEW)], points(OLD), "not those of"),
        ([state(OLD)], [], "nothing is stored"),
        ([state(OLD)], points(OLD)[1:], "chunks [1] are stored of 2"),
        ([state(OLD)], [*points(OLD), points(OLD)[0]], "chunks [0, 0, 1] are stored"),
        ([state(OLD)], points(OLD, chunks=3), "stored of 3"),
        ([state(NEW)], [*points(NEW), points(OLD, generation="h")[0]], "1 states of 2"),
        ([state(NEW)], points(NEW)[:2], "0 states of 1"),
    ],
)
def test_store_that_lost_doubled_or_mixed_chunks_is_found(
    states: Sequence[State], stored: Any, said: str
) -> None:
    assert any(said in problem for problem in problems_of(states, stored))


def test_chunks_that_leave_words_out_are_not_the_text() -> None:
    chunks = [each["payload"] for each in points(NEW)[:2]]
    assert is_whole(NEW, chunks)
    assert not is_whole(NEW + " more", chunks)
    assert not is_whole(NEW, chunks[1:])
    assert not is_whole(OLD, chunks)
