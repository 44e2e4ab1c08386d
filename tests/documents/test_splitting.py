"""Chunks: never longer than asked for, nothing lost, and each where it says it is."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from supervisor.documents.splitting import Splitter
from supervisor.documents.values import Division
from tests.documents.conftest import DIVISION, TOKENIZER

SPLITTER = Splitter(DIVISION)
WORDS = st.sampled_from(["한국어", "문장입니다.", "the", "fox", "\n\n", "\n", "日本", "é" * 40])
TEXTS = st.lists(WORDS, min_size=1, max_size=300).map(" ".join)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@given(text=TEXTS)
def test_chunk_is_not_longer_than_asked_for(tokenizer: Tokenizer, text: str) -> None:
    chunks = SPLITTER.divide(text, ())

    lengths = [len(tokenizer.encode(chunk.text, add_special_tokens=False)) for chunk in chunks]
    assert all(length <= DIVISION.size for length in lengths)


@given(text=TEXTS)
def test_chunks_stand_where_they_say_and_leave_no_word_out(text: str) -> None:
    chunks = SPLITTER.divide(text, ())

    covered: set[int] = set()
    for chunk in chunks:
        assert text[chunk.start : chunk.stop] == chunk.text
        covered.update(range(chunk.start, chunk.stop))
    assert all(letter.isspace() for at, letter in enumerate(text) if at not in covered)


@given(text=TEXTS, starts=st.sets(st.integers(1, 500), max_size=5))
def test_chunk_has_the_page_on_which_it_begins(text: str, starts: set[int]) -> None:
    page_starts = [0, *sorted(starts)]

    for chunk in SPLITTER.divide(text, page_starts):
        assert chunk.page == max(n for n, at in enumerate(page_starts, 1) if at <= chunk.start)


def test_text_is_not_cut_where_the_tokenizer_file_says(tmp_path: Path) -> None:
    truncating = Tokenizer.from_file(str(TOKENIZER))
    truncating.enable_truncation(16)
    truncating.save(str(tmp_path / "tokenizer.json"))
    division = Division(size=32, overlap=0, tokenizer=str(tmp_path / "tokenizer.json"))

    assert len(Splitter(division).divide("word " * 1000, ())) > 20


def test_without_a_tokenizer_characters_count() -> None:
    chunks = Splitter(Division(size=10, overlap=0)).divide("다섯 글자 " * 20, ())

    assert {len(chunk.text) <= 10 for chunk in chunks} == {True}
    assert {chunk.page for chunk in chunks} == {None}
