"""One controller whose catalogue has embedding models of every kind of limit."""

import http.client
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.relay.conftest import DOORS, Running, serving

MINILM: Mapping[str, Any] = {"path": "minilm.gguf", "type": "embedding"}
PATIENCE_S = 300
"""A machine that does other things at the same time is no reason to fail."""

TOKENIZER = "minilm.tokenizer.json"

TEXTS_ONLY: Mapping[str, Any] = {
    "mode": "embedding",
    "engine": "llama-cpp-python",
    "ctx_size": 512,
    "batch_size": 512,
}
"""A profile whose engine takes neither token ids nor lists to be tokenised."""


@dataclass(frozen=True, slots=True)
class Embedder:
    """Asks a controller for vectors by OpenAI's form."""

    running: Running

    def embed(self, model: str, inputs: Any, **fields: Any) -> Any:
        """Return the answer, or the error, of the service."""
        self.make_live(model)
        body = json.dumps({"model": model, "input": inputs, **fields})
        connection = http.client.HTTPConnection("127.0.0.1", self.running.port, timeout=PATIENCE_S)
        try:
            connection.request("POST", "/v1/embeddings", body)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def make_live(self, model: str) -> None:
        """Switch to a model unless it is live."""
        report = self.running.json("POST", "/switch-backend", {"model_name": model})
        assert report.get("outcome") in {"switched", "unchanged"}, report

    def ask_server(self, model: str, inputs: Any, **fields: Any) -> Any:
        """Return what the model's server itself answers."""
        self.make_live(model)
        path = f"/upstream/{model}/v1/embeddings"
        return self.running.json("POST", path, {"input": inputs, **fields})


@pytest.fixture(scope="session")
def embedder(long_reader: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedder]:
    """Calls a controller that runs."""
    files = {"models.yaml": {"models": models(long_reader)}, "texts-only.yaml": TEXTS_ONLY}
    folder = tmp_path_factory.mktemp("embedding")
    with serving(folder, server=DOORS["fast lane"], files=files) as running:
        yield Embedder(running)


def models(long_reader: Path) -> dict[str, Any]:
    """Return minilm and a reader of long texts, with limits of every kind."""
    long: Mapping[str, Any] = {"path": str(long_reader), "type": "embedding"}
    small = {"batch_size": 512, "ubatch_size": 512, "parallel": 8, "ctx_size": 1024}
    return {
        "whole": {**MINILM, "overrides": {"ctx_size": 512}},
        "narrow": {**MINILM, "overrides": {"batch_size": 64, "ubatch_size": 64}},
        "divided": {
            **MINILM,
            "overrides": {"ctx_size": 256, "parallel": 2, "kv_unified": False},
        },
        "splitting": {**long, "overrides": small},
        "pooling-mean": {**long, "overrides": {**small, "pooling": "mean"}},
        "korean": {**MINILM, "tokenizer": TOKENIZER},
        "asking": {**MINILM},
        "texts-only": {
            **MINILM,
            "profile": "texts-only",
            "max_input_tokens": 16,
            "long_input": "truncate",
        },
    }
