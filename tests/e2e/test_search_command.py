"""`llama-supervisor search`, as somebody uses it whose documents are stored."""

import json
import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import COMMAND
from tests.relay.conftest import Running, serving

TEXTS = {
    "cat": "A cat sits on the mat and looks out of the window.",
    "recipe": "Boil the noodles for three minutes, and add the soup at the end.",
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A controller in which two texts are stored."""
    with serving(tmp_path_factory.mktemp("search"), server={}) as running:
        running.make_live("minilm")
        for text in TEXTS.values():
            stored = running.json("POST", "/embed", {"text": text, "store": True})
            assert "error" not in stored, stored
        yield running


def search(running: Running, *words: str) -> subprocess.CompletedProcess[str]:
    url = f"http://127.0.0.1:{running.port}"
    return subprocess.run(
        [COMMAND, "search", *words, "--url", url], capture_output=True, text=True, check=False
    )


def test_nearest_passage_comes_first(running: Running) -> None:
    found = search(running, "how to cook noodles", "--json", "--limit", "1")

    [hit] = json.loads(found.stdout)["hits"]
    assert hit["text"] == TEXTS["recipe"]
    table = search(running, "how to cook noodles").stdout
    assert table.index("Boil the noodles") < table.index("A cat sits")
    assert f"{hit['score']:.3f}" in table


def test_collection_that_is_not_there_is_named(running: Running) -> None:
    told = search(running, "noodles", "--collection", "nowhere")

    assert told.returncode == 1
    assert "there is no collection 'nowhere'" in told.stderr


def test_what_others_have_stored_moves_no_terminal(running: Running) -> None:
    hostile = {
        "text": "Purple \x1b[31melephants",
        "id": "id\x1b]0;title\x07",
        "collection": "hostile",
    }
    for body, path in ((hostile, "/documents"), ({**hostile, "id": None}, "/embed")):
        given = {name: value for name, value in body.items() if value is not None}
        stored = running.json("POST", path, given)
        assert "error" not in stored, stored

    told = search(running, "elephants", "--collection", "hostile").stdout

    assert "id?]0;title?" in told
    assert "Purple ?[31melephants" in told
    assert not set(told) & {"\x1b", "\x07"}
