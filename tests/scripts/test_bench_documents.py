"""The bench of documents: what it measures, on little."""

from dataclasses import replace

import pytest
from lab.bench import documents
from lab.bench.documents import Course
from lab.harness.setting import Setting


@pytest.mark.parametrize(("together_s", "is_met"), [(9.0, True), (9.2, False)])
def test_chunks_are_judged_by_what_they_take_one_by_one(together_s: float, is_met: bool) -> None:
    course = Course(read_s=1.0, embedded_s=15.0, stored_s=1.0)
    figure = documents.figure([10.0], [together_s], [course], pages=300, chunks=1000)
    chunks, whole, rest = figure.rows
    assert chunks.is_met is is_met
    assert whole.judged == pytest.approx(1.7)
    assert rest.judged == pytest.approx(2 / 17)
    assert "read in 1.00 s, embedded in 15.00 s, stored in 1.00 s" in figure.notes[0]


def test_a_book_is_embedded_in_each_way(setting: Setting) -> None:
    figure = documents.measure(replace(setting, pages=1))
    assert all(row.direct > 0 and row.controller > 0 for row in figure.rows)
    assert figure.rows[0].quantity.startswith("4 chunks")
