"""`llama-supervisor collections`, as somebody uses it who moves what is stored."""

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.vector_store.server import ServerStore
from tests.e2e.conftest import COMMAND
from tests.relay.conftest import Running, serving
from tests.vector_store.conftest import API_KEY, serving_qdrant

TEXTS = ("A cat sits on the mat.", "서울의 카페에서 커피를 마신다.", "Boil the noodles.")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A controller in which three texts are stored."""
    with serving(tmp_path_factory.mktemp("collections"), server={}) as running:
        running.make_live("minilm")
        for text in TEXTS:
            running.json("POST", "/embed", {"text": text, "collection": "notes"})
        yield running


def run(running: Running, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "collections", *words],
        env={**os.environ, "LLAMA_SUPERVISOR_URL": f"http://127.0.0.1:{running.port}"}
        | {"QDRANT_KEY": API_KEY},
        capture_output=True,
        text=True,
        check=False,
    )


def hits(running: Running, collection: str) -> list[str]:
    body = {"query": "animals", "collection": collection}
    return [hit["text"] for hit in running.json("POST", "/search", body)["hits"]]


def test_collections_are_listed(running: Running) -> None:
    table = run(running).stdout
    assert "notes" in table
    assert "minilm" in table
    [listed] = json.loads(run(running, "--json").stdout)["collections"]
    assert (listed["name"], listed["documents"], listed["chunks"]) == ("notes", 3, 3)


def test_what_was_backed_up_is_restored_and_found_as_before(
    running: Running, tmp_path: Path
) -> None:
    path = str(tmp_path / "notes.jsonl")
    assert run(running, "backup", "notes", path).stdout == "6 points backed up from notes\n"
    told = run(running, "restore", path, "--as", "notes-2", "--json")
    assert json.loads(told.stdout) == {"collection": "notes-2", "points": 6}
    assert hits(running, "notes-2") == hits(running, "notes")
    running.json("DELETE", "/collections/notes-2")


def test_a_collection_is_copied_to_a_server(running: Running, tmp_path: Path) -> None:
    with serving_qdrant(tmp_path) as url:
        refused = run(running, "copy", "notes", "--to", url)
        assert refused.returncode == 1
        assert "Invalid API key" in refused.stderr
        copied = run(running, "copy", "notes", "--to", url, "--key-env", "QDRANT_KEY")
        assert copied.stdout == "6 points copied to notes\n", copied.stderr

        async def texts() -> set[str]:
            store = ServerStore(url, API_KEY)
            page = await store.points("notes", start=None, limit=10)
            await store.close()
            return {point.payload["text"] for point in page.points}

        assert asyncio.run(texts()) == set(TEXTS)


def test_what_is_not_there_is_named(running: Running, tmp_path: Path) -> None:
    told = run(running, "backup", "nowhere", str(tmp_path / "x"))
    assert told.returncode == 1
    assert "there is no collection 'nowhere'" in told.stderr
    told = run(running, "restore", str(tmp_path / "x"))
    assert told.returncode == 1
    assert "cannot be read" in told.stderr
