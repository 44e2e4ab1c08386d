"""What is embedded of a document: chunks, and stretches of the whole."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.documents.parts import EmbeddedPart, parts_of, stretches, whole_vector
from supervisor.documents.values import Chunk, ReadDocument
from supervisor.embedding.vectors import pack, unpack


def chunk(text: str) -> Chunk:
    return Chunk(text, 0, len(text), None)


def document(*texts: str) -> ReadDocument:
    whole = " ".join(texts)
    return ReadDocument(format="txt", text=whole, page_starts=(), chunks=[*map(chunk, texts)])


@given(st.text(alphabet="ab 가", max_size=60), st.integers(1, 12))
def test_stretches_are_the_whole_text_and_none_is_too_long(text: str, most: int) -> None:
    found = list(stretches(text, most))
    assert "".join(found) == text
    assert max(map(len, found)) <= most
    assert "" not in found[1:]


def test_stretches_end_between_words_where_they_can() -> None:
    assert list(stretches("one two three four", 9)) == ["one two ", "three ", "four"]


def test_a_document_of_one_chunk_is_embedded_once() -> None:
    assert [part.text for part in parts_of(document("alone"), "m")] == ["alone"]
    assert [part.text for part in parts_of(document("a", "b"), "m")] == ["a", "b", "a b"]


def test_the_whole_has_the_mean_of_its_stretches_by_tokens_and_length_one() -> None:
    chunks = [EmbeddedPart(pack([0, 1]), 9, chunk("x"))] * 2
    own = [EmbeddedPart(pack([1, 0]), 3, None), EmbeddedPart(pack([0, 4]), 1, None)]
    numbers = unpack(whole_vector([*chunks, *own]))
    assert numbers == pytest.approx([3 / 5, 4 / 5])
    assert math.hypot(*numbers) == pytest.approx(1)
    assert unpack(whole_vector(chunks[:1])) == [0, 1]
