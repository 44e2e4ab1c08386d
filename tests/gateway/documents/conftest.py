"""A controller that takes documents in, and texts of several chunks."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from lab.harness import korean_texts

from tests.gateway.jobs.conftest import Caller
from tests.relay.conftest import serving

SETTINGS: Mapping[str, Any] = {
    "server": {"log_format": "json"},
    "devices": {"host": {"exclusive": True}},
    "documents": {"chunk_tokens": 100, "chunk_overlap_tokens": 10, "max_pages": 20},
}

SENTENCE = korean_texts.SHORT[0]
PARAGRAPHS = korean_texts.LONG
LONG_TEXT = "\n\n".join(PARAGRAPHS)


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    """A caller of a controller that switches by request."""
    folder = tmp_path_factory.mktemp("documents")
    with serving(folder, server={}, files={"supervisor.yaml": SETTINGS}) as running:
        yield Caller(running.port)


def texts_in(caller: Caller, document: str, collection: str = "documents") -> dict[int, str]:
    """Return the chunks that are stored of a document, by their index, each there once."""
    found = caller.json(
        "POST",
        "/search",
        {
            "query": "무엇",
            "collection": collection,
            "limit": 1000,
            "filter": {"document": document},
        },
    )["hits"]
    chunks = {hit["index"]: hit["text"] for hit in found}
    assert len(chunks) == len(found)
    return chunks
