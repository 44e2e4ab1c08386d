"""Tables lose nothing in a narrow terminal: what has no room on a line goes on in the next one."""

import time
from io import StringIO

import pytest
from rich.console import Console, RenderableType

from supervisor.client import tables
from supervisor.client.answers import Job
from supervisor.vector_store.port import CollectionInfo, Collections, DamagedCollection

REASON = "its file is encrypted: take its password away, and send it again"
JOB_ID = "document_5037178441c5caa6cdd3f8d2"


def rendered(content: RenderableType, width: int) -> list[str]:
    """Return the columns of a table without its head, each as one text without blanks."""
    file = StringIO()
    Console(width=width, file=file).print(content)
    rows = [line.split("│") for line in file.getvalue().splitlines() if "│" in line]
    return ["".join("".join(cells).split()) for cells in zip(*rows, strict=True)]


def failed_job() -> Job:
    return Job(
        id=JOB_ID,
        kind="document",
        state="failed",
        created_at=time.time() - 300,
        not_before=None,
        expires_at=None,
        entered_at={},
        lines={"total": 5, "succeeded": 3, "failed": 2},
        reason=REASON,
    )


@pytest.mark.parametrize("width", [160, 80, 60, 45])
def test_of_a_job_nothing_is_cut_off(width: int) -> None:
    columns = rendered(tables._table_of([failed_job()], width), width)

    assert columns == [JOB_ID, "failed", "3of5,2failed", "5min", REASON.replace(" ", "")]


def test_id_of_a_job_can_be_copied_in_80_columns() -> None:
    file = StringIO()
    Console(width=80, file=file).print(tables._table_of([failed_job()], 80))

    assert JOB_ID in file.getvalue()


def test_name_of_a_collection_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    info = CollectionInfo(
        name="handbooks-of-all-departments",
        model="multilingual-e5-small",
        dimension=384,
        chunks=1_000_000,
        documents=12_345,
        indexed=0,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "_WIDTH_OF_A_FILE", 50)
        tables.print_collections(Collections(collections=[info]))

    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert "".join(row[0].strip() for row in rows) == info.name


def test_a_damaged_collection_is_told_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    damaged = DamagedCollection(name="mails", reason="it cannot be opened; delete it")
    tables.print_collections(Collections(collections=[], damaged=[damaged]))
    assert capsys.readouterr().out == "mails: it cannot be opened; delete it\n"
