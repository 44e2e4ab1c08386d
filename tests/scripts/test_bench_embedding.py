"""The benchmark of the embedding service asks every side for the same, and checks what it gets."""

from dataclasses import replace
from pathlib import Path

import pytest
from lab.bench.embedding import arrays, batches, direct, queued, shared, singles, sweeps
from lab.bench.report import Figure, Row
from lab.harness.setting import Setting


def rows_of(figure: Figure) -> dict[str, Row]:
    return {row.quantity: row for row in figure.rows}


def test_singles_are_asked_on_every_side_and_each_part_has_its_cost(setting: Setting) -> None:
    figure = singles.measure(setting)

    rows = rows_of(figure)
    assert rows["16 clients"].target.bound == 0.95
    assert rows["16 clients"].peers.keys() == {"relay"}
    assert (rows["failed"].direct, rows["failed"].controller) == (0, 0)
    costs = dict(note.split(": ", 1) for note in figure.notes if "processor time" in note)
    parts = {name.split()[-1]: cost for name, cost in costs.items()}
    assert "controller" not in parts["direct"]
    for side in ("controller", "relay"):
        assert all(part in parts[side] for part in ("controller", "child", "client")), parts


def test_arrays_are_held_against_the_best_way_and_the_service_is_started_as_that_wants_it(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, values in {"UBATCHES": (256,), "PARALLEL": (4,), "IN_FLIGHT": (1, 2)}.items():
        monkeypatch.setattr(direct, name, values)
    monkeypatch.setattr(arrays, "ARRAY", 40)
    monkeypatch.setattr(arrays, "CHECKED", 5)
    monkeypatch.setattr(arrays, "SAMPLE_DIVISOR", 1)

    figure = arrays.measure(replace(setting, texts=40))

    rows = rows_of(figure)
    rates = rows["40 texts, over the best of 2 ways"]
    assert min(rates.direct, rates.controller, rates.peers["shipped"]) > 0
    assert rates.judged == pytest.approx(rates.controller / rates.direct)
    assert rows["wrong vectors of 5"].controller == 0
    assert [note.partition("with ")[2].rpartition(", ")[0] for note in figure.notes] == [
        "ubatch_size 256, parallel 4"
    ] * 2
    (changed,) = tmp_path.glob("as-the-best-way/models.yaml")
    assert "ubatch_size: 256" in changed.read_text(encoding="utf-8")


def test_texts_that_wait_are_weighed_and_forgotten_once_their_callers_leave(
    setting: Setting,
) -> None:
    figure = queued.measure(setting, count=200)

    rows = rows_of(figure)
    assert rows["until all are gone"].controller < queued.WITHIN_S
    assert rows["memory of a text"].target.bound == 2
    assert rows["texts of 200 in answers that are wrong"].controller == 0
    assert figure.notes[0].partition(" of ")[2].startswith("200 texts waited")


def test_sweeps_have_a_row_for_each_cell_with_both_sides_and_the_share_that_was_refused(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, values in {
        "THREADS": (2,),
        "BATCHES": (1,),
        "CALLERS": (1, 6),
        "MAX_CONCURRENT": (1,),
        "BOUNDS": (1, 100),
        "LEAST_REQUESTS": 2,
        "JUDGED_REQUESTS": 12,
    }.items():
        monkeypatch.setattr(sweeps, name, values)

    figure = sweeps.measure(setting)

    rows = figure.samples["rows"]
    assert [(row["cell"]["length"], row["cell"]["callers"]) for row in rows[:4]] == [
        *(("short", 1), ("short", 6)),
        *(("long", 1), ("long", 6)),
    ]
    assert all(len(row["latencies_s"]) == len(row["direct_s"]) for row in rows[:4])
    narrow = next(row for row in rows[4:] if row["cell"]["callers"] == 6)
    assert narrow["cell"]["batching"] == {"max_concurrent": 1, "max_embedding_inputs": 1}
    assert narrow["refused"] > 0
    assert len(figure.attachments["sweeps.md"].splitlines()) == 2 + len(rows)
    assert figure.attachments["sweeps.svg"].count("<polyline") == 4
    assert [len(row["latencies_s"]) for row in rows[:4]] == [12, 12, 2, 6]
    assert rows_of(figure)["p95, 6 at a time"].target.bound == 1.05
    assert figure.notes[1].startswith("p95, 1 at a time: bare ")


def test_batches_are_held_against_arrays_in_each_form(setting: Setting) -> None:
    figure = batches.measure(replace(setting, texts=20))

    rows = rows_of(figure)
    for form in batches.FORMS:
        row = rows[f"20 texts as a batch, {form}, over arrays"]
        assert row.judged == pytest.approx(row.controller / row.direct)
        assert row.target.bound == 0.95
    assert rows["lines lost or twice"].controller == 0


def test_supervisors_on_one_queue_are_held_against_one_alone(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "SMALLS", 2)

    figure = shared.measure(replace(setting, texts=80))

    rows = rows_of(figure)
    row = rows["20 texts, two on Redis over one"]
    assert row.judged == pytest.approx(row.controller / row.direct)
    assert rows["lines lost or twice"].controller == 0
    assert set(figure.samples["p95_s"]) == {shared.OWN, shared.ONE, shared.TWO}
