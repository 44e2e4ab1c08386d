"""Documents whose controller, or whose reader, is killed in the middle."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from tests.gateway.documents.conftest import LONG_TEXT, SETTINGS, texts_in
from tests.gateway.jobs.conftest import ENDED, Caller, text
from tests.relay.conftest import serving
from tests.relay.wire import until

BOOK = "\n\n".join(f"{number}장. {LONG_TEXT}" for number in range(6))
"""Dozens of chunks: seconds of work."""


def job_of(caller: Caller, job_id: str) -> Any:
    """Return a job; at leisure, so that asking does not take the time of working."""
    time.sleep(0.1)
    return caller.json("GET", f"/jobs/{job_id}")


def has_begun(caller: Caller, job_id: str) -> bool:
    return bool(job_of(caller, job_id)["lines"]["succeeded"])


def is_idle(caller: Caller) -> bool:
    """Whether nothing is being embedded."""
    model = caller.json("GET", "/status")["embedding"]["minilm"]
    return not (model["queued"]["batch"]["inputs"] or model["running"]["inputs"])


def has_ended(caller: Caller, job_id: str) -> bool:
    return job_of(caller, job_id)["state"] in ENDED


def test_a_document_survives_the_death_of_its_controller_and_is_stored_once(
    tmp_path: Path,
) -> None:
    setting: Any = {
        "server": {},
        "files": {"supervisor.yaml": SETTINGS},
        "data": tmp_path / "data",
    }
    with serving(tmp_path, **setting) as running:
        caller = Caller(running.port)
        caller.json("POST", "/documents", {"id": "book", "text": LONG_TEXT})
        changed = {"id": "book", "text": BOOK, "wait": False}
        job_id = caller.json("POST", "/documents", changed, status=202)["job"]
        os.kill(running.pid, signal.SIGKILL)
    with serving(tmp_path, **setting) as running:
        caller = Caller(running.port)
        until(lambda: has_begun(caller, job_id))
        assert job_of(caller, job_id)["lines"]["left"]
        os.kill(running.pid, signal.SIGKILL)
    with serving(tmp_path, **setting) as running:
        caller = Caller(running.port)
        until(lambda: has_ended(caller, job_id), within_s=120)
        job = job_of(caller, job_id)
        assert (job["state"], job["lines"]["failed"], job["lines"]["left"]) == ("completed", 0, 0)
        stored = texts_in(caller, "book")
        assert sorted(stored) == list(range(job["outcome"]["chunks"]))
        assert stored[0] == BOOK[: len(stored[0])]
        assert caller.json("GET", "/documents/book")["chunks"] == len(stored)


def test_what_is_deleted_is_not_stored_by_a_job_that_was_on_its_way(tmp_path: Path) -> None:
    with serving(tmp_path, server={}, files={"supervisor.yaml": SETTINGS}) as running:
        caller = Caller(running.port)
        caller.json("POST", "/documents", {"id": "book", "text": LONG_TEXT})
        for path, collection in (
            ("/documents/book", "documents"),
            ("/documents/book", "documents"),  # of which nothing is stored now
            ("/documents/book?collection=new", "new"),
            ("/collections/documents", "documents"),
        ):
            sent = {"id": "book", "text": BOOK, "collection": collection, "wait": False}
            job_id = caller.json("POST", "/documents", sent, status=202)["job"]
            other = {"id": "other", "text": BOOK, "collection": "others", "wait": False}
            other_id = caller.json("POST", "/documents", other, status=202)["job"]
            until(partial(has_begun, caller, job_id))
            deleted = caller.json("DELETE", path)
            assert (deleted["deleted"], deleted["cancelled_jobs"]) == (True, [job_id])
            until(partial(has_ended, caller, job_id))
            assert job_of(caller, job_id)["state"] == "cancelled"
            assert caller.ask("GET", f"/documents/book?collection={collection}")[0] == 404
            caller.json("POST", f"/jobs/{other_id}/cancel")  # it was not meant
        assert caller.json("GET", "/collections")["collections"] == []
        assert caller.ask("DELETE", "/documents/book")[0] == 404


def test_a_batch_does_not_make_a_collection_anew_that_was_deleted_meanwhile(tmp_path: Path) -> None:
    with serving(tmp_path, server={}, files={"supervisor.yaml": SETTINGS}) as running:
        caller = Caller(running.port)
        lines = [text(f"t{n}", f"text {n} " * 40) for n in range(2000)]
        stored, other, later = (
            caller.begin(lines, "/v1/embeddings", store={"collection": name}, **fields)["id"]
            for name, fields in (
                ("night", {}),
                ("others", {}),
                ("night", {"not_before": "2100-01-01T00:00:00Z"}),
            )
        )
        until(partial(has_begun, caller, stored))
        deleted = caller.json("DELETE", "/collections/night")
        assert deleted["deleted"]
        assert sorted(deleted["cancelled_jobs"]) == sorted([stored, later])
        ended = caller.ended(stored)
        assert ended["status"] == "cancelled"
        undone = caller.lines_of(ended["error_file_id"])
        assert len(undone) + ended["request_counts"]["completed"] == len(lines)
        why = "the collection 'night', which was deleted"
        assert {each["error"]["code"] for each in undone.values()} == {"batch_cancelled"}
        assert all(why in each["error"]["message"] for each in undone.values())
        assert why in job_of(caller, later)["reason"]
        until(lambda: caller.json("GET", "/collections")["collections"])  # the others'
        caller.json("POST", f"/jobs/{other}/cancel")
        caller.ended(other)
        until(partial(is_idle, caller))
        assert [each["name"] for each in caller.json("GET", "/collections")["collections"]] == [
            "others"
        ]


def test_a_document_is_read_again_when_its_reader_is_killed(tmp_path: Path) -> None:
    with serving(tmp_path, server={}, files={"supervisor.yaml": SETTINGS}) as running:
        caller = Caller(running.port)
        caller.json("POST", "/documents", {"text": "so that the reader runs", "store": False})
        text = BOOK * 30
        job_id = caller.json("POST", "/documents", {"text": text, "wait": False}, status=202)["job"]
        until(lambda: len(list(readers(running.pid))) > 1)
        os.kill(max(reader.pid for reader in readers(running.pid)), signal.SIGKILL)
        until(lambda: job_of(caller, job_id)["state"] != "validating")
        assert job_of(caller, job_id)["state"] == "in_progress"
        caller.json("POST", f"/jobs/{job_id}/cancel")
        until(lambda: has_ended(caller, job_id))

        for reader in readers(running.pid):
            os.kill(reader.pid, signal.SIGKILL)
        again = caller.json("POST", "/documents", {"id": "again", "text": "a reader comes back"})
        assert again["chunks"] == 1


def test_a_document_that_cannot_be_written_down_is_refused_with_the_reason(tmp_path: Path) -> None:
    setting: Any = {"files": {"supervisor.yaml": SETTINGS}, "data": tmp_path / "data"}
    with serving(tmp_path, server={}, **setting) as running:
        caller = Caller(running.port)
        text = {"text": "so that the room for work is there", "store": False}
        caller.json("POST", "/documents", text)
        shutil.rmtree(tmp_path / "data" / "job-work")
        error = caller.json("POST", "/documents", text, status=507)["error"]
        assert error["code"] == "storage_full"
        assert "cannot take a document: No such file" in error["message"]
        (tmp_path / "data" / "job-work").mkdir()
        caller.json("POST", "/documents", text)


def readers(controller: int) -> Iterator[psutil.Process]:
    """Yield the processes that read documents: the one that forks them, and those."""
    for process in psutil.Process(controller).children(recursive=True):
        if any(word.endswith("fork_server") for word in process.cmdline()):
            yield process
