"""The bench of the store of vectors: what it measures, on little."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lab.bench import __main__ as bench
from lab.bench.store import indexed
from lab.bench.store.collection import NAME, Corpus, Library, filled_store
from lab.harness.setting import Setting


async def test_the_library_and_the_store_find_the_same(tmp_path: Path) -> None:
    corpus = Corpus.of(700, 5)
    async with filled_store(tmp_path, corpus) as store:
        found = [
            [hit.id for hit in await store.search(NAME, vector.tobytes(), limit=10)]
            for vector in corpus.questions
        ]
        info = await store.collection(NAME)
    assert (info.chunks, info.documents) == (693, 7)
    library = Library(tmp_path)
    assert [[str(hit.id) for hit in library.search(v)] for v in corpus.questions] == found
    library.close()


def test_the_same_size_gives_the_same_corpus() -> None:
    one, other = Corpus.of(300, 3), Corpus.of(300, 3)
    assert np.array_equal(one.vectors, other.vectors)
    assert sum(map(len, one.points())) == 300
    assert np.allclose(np.linalg.norm(one.questions, axis=1), 1, atol=1e-5)


def test_an_index_is_judged_by_what_exact_searches_find(setting: Setting) -> None:
    figure = indexed.measure(replace(setting, indexed=8000))
    recall, search = figure.rows
    assert recall.controller > 0.9
    assert search.controller > 0
    assert "of 8000 points are in it" in figure.notes[0]


def test_all_of_it_is_printed_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "store.json"
    little = ["--points", "300", "--rounds", "1", "--only", "query", "search"]
    assert bench.main(["store", *little, "--json", str(target)]) == 0
    written = json.loads(target.read_text())
    assert list(written["figures"]) == ["query", "search"]
    assert "points a second stored by HTTP" in capsys.readouterr().out
