"""Vendors' own clients get what they expect of the forms that they speak."""

import json
import subprocess
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.gateway.forms.conftest import Caller, cosine

CLIENTS = ROOT / ".venv" / "clients" / "bin" / "python"
SCRIPT = ROOT / "tests" / "clients" / "ask.py"


@pytest.fixture(scope="module")
def texts(caller: Caller) -> list[list[float]]:
    """Return the vectors that the clients' texts have."""
    body = {"input": ["a cat sits on a mat", "memory is free"]}
    _, _, answer = caller.post("/v1/embeddings", body)
    return [each["embedding"] for each in answer["data"]]


def ask(caller: Caller, client: str) -> Any:
    """Return what a client gets."""
    assert CLIENTS.exists(), "scripts/test installs the clients; run it once, with any test"
    url = f"http://127.0.0.1:{caller.running.port}"
    finished = subprocess.run(
        [CLIENTS, SCRIPT, client, url], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout)


def are_alike(some: list[list[float]], others: list[list[float]]) -> bool:
    """Whether vectors differ by no more than the order in which a server computes them."""
    return all(cosine(one, other) > 0.9999 for one, other in zip(some, others, strict=True))


def test_openai(caller: Caller, texts: list[list[float]]) -> None:
    got = ask(caller, "openai")

    assert are_alike(got["vectors"], texts)
    assert are_alike(got["floats"], texts)
    assert len(got["short"]) == 64
    assert got["ids"] == [0, 1]
    assert got["tokens"] == 13
    assert got["model"] == "minilm"
    assert got["errors"]["unknown model"]["code"] == "model_not_found"
    assert got["errors"]["nothing"]["code"] == "bad_request"
    assert got["errors"]["too long"]["code"] == "input_too_long"
    assert got["errors"]["too long"]["body"]["index"] == 1


def test_openai_comes_back_where_waiting_helps_and_only_there(caller: Caller) -> None:
    """By itself it would repeat any 409 and 429, twice."""
    got = ask(caller, "openai_retries")

    assert got["busy"][0] == "embedding_queue_full"
    assert count_of(caller, "/v1/embeddings", got["busy"][1]) == 3
    assert got["not live"][0] == "model_not_live"
    assert count_of(caller, "/v1/chat/completions", got["not live"][1]) == 1


def count_of(caller: Caller, path: str, last_id: str) -> int:
    """Return how many requests to a path were answered as the last one was."""
    status = caller.closing_line(last_id)["status"]
    lines = caller.log_lines()
    return sum((each.get("path"), each.get("status")) == (path, status) for each in lines)


def test_huggingface_hub(caller: Caller, texts: list[list[float]]) -> None:
    got = ask(caller, "huggingface_hub")

    assert are_alike(got["vectors"], texts[:1])
    assert cosine(got["query"][0], texts[0]) < 0.999
    assert got["cut"] == [1, len(texts[0])]
    status, refusal = got["refusal"]
    assert (status, refusal["error_type"]) == (422, "Validation")
    assert "must have less than 256 tokens. Given: 3002" in refusal["error"]
    assert got["similarity"][0] > 0.9999 > got["similarity"][1]


def test_ollama(caller: Caller, texts: list[list[float]]) -> None:
    got = ask(caller, "ollama")

    assert are_alike(got["vectors"], texts)
    assert got["none"] == []
    assert len(got["short"]) == 64
    assert got["tokens"] == 13
    assert got["duration_ns"] > 0
    assert got["refusal"][0] == 404
    assert "there is no model 'nobody'" in got["refusal"][1]


def test_langchain(caller: Caller, texts: list[list[float]]) -> None:
    got = ask(caller, "langchain")

    assert are_alike(got["vectors"], texts)
    assert are_alike([got["query"]], texts[:1])
