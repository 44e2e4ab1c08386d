"""One controller with an embedding model for every form, through each door in turn."""

import http.client
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.relay.conftest import DOORS, Running, serving
from tests.relay.wire import until

Answer = tuple[int, Mapping[str, str], Any]
"""Status, headers in lower case, JSON."""

PROMPTS = {"query": "query: ", "document": "passage: "}


@dataclass(frozen=True, slots=True)
class Caller:
    """Calls a controller that runs."""

    running: Running

    def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Answer:
        """Send JSON, or bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.running.port, timeout=60)
        try:
            connection.request(
                "POST", path, content, {"Content-Type": "application/json", **(headers or {})}
            )
            answer = connection.getresponse()
            received = answer.read()
        finally:
            connection.close()
        fields = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, fields, json.loads(received)

    def closing_line(self, request_id: str) -> Mapping[str, Any]:
        """Return what the log says at the end of a request."""

        def found() -> list[Mapping[str, Any]]:
            return [each for each in self.log_lines() if each.get("request_id") == request_id]

        until(lambda: bool(found()))
        return found()[0]

    def log_lines(self) -> list[Mapping[str, Any]]:
        """Return what the log says by now; half a line at its end is left out."""
        whole_lines = self.running.log_path.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole_lines.splitlines()]


@pytest.fixture(scope="module", params=[*DOORS])
def caller(
    request: pytest.FixtureRequest,
    reranker: Path,
    long_reader: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Caller]:
    """A caller of a controller whose embedding model is live, and has prompts.

    Where others wait, and more than 5,000 tokens would, a request gets 429.
    """
    folder = tmp_path_factory.mktemp("forms")
    files = {"models.yaml": catalogue(reranker, long_reader)}
    queue = {"max_embedding_tokens": 5_000}
    with serving(folder, server=DOORS[request.param], queue=queue, files=files) as running:
        running.make_live("minilm")
        yield Caller(running)


def catalogue(reranker: Path, long_reader: Path) -> dict[str, Any]:
    """Return the shipped catalogue, minilm with prompts and shorter vectors, and what else is.

    `windowed` is minilm that divides what is too long, `plain` minilm without a tokenizer of its
    own; a reranker, and a `reader` of 32,768 tokens.
    """
    shipped: dict[str, Any] = yaml.safe_load((ROOT / "profiles" / "models.yaml").read_text())
    changes = {"prompts": PROMPTS, "matryoshka_dimensions": [64, 128]}
    shipped["models"]["minilm"] |= changes
    minilm = {key: value for key, value in shipped["models"]["minilm"].items() if key != "aliases"}
    others = {
        "windowed": minilm | {"long_input": "window"},
        "plain": {key: value for key, value in minilm.items() if key != "tokenizer"},
        "reranker": {"path": str(reranker), "overrides": {"pooling": "rank"}},
        "reader": {"path": str(long_reader), "overrides": {"ctx_size": 33_024}},
    }
    shipped["models"] |= {name: {"type": "embedding", **each} for name, each in others.items()}
    return shipped | {"default_model": None}


def cosine(one: list[float], other: list[float]) -> float:
    """Return the cosine of the angle between two vectors."""
    product = math.fsum(a * b for a, b in zip(one, other, strict=True))
    return product / (math.hypot(*one) * math.hypot(*other))
