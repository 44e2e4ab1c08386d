"""Documents come in, are embedded whole and in chunks, stored, changed and found again."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from lab.documents.pdf import write_pdf

from supervisor.embedding.vectors import cosine, pack
from tests.documents.files import write_docx
from tests.gateway.documents.conftest import LONG_TEXT, PARAGRAPHS, SENTENCE, texts_in
from tests.gateway.jobs.conftest import ENDED, Caller
from tests.relay.wire import until

TOPICS = (
    "Cats are small carnivorous animals that purr and sleep most of the day.",
    "The express train leaves the station at noon and arrives in the evening.",
    "Boil the vegetables for an hour and add some salt to make a soup.",
)


def add(caller: Caller, **fields: Any) -> Any:
    """Send a text in; returns what came of it."""
    return caller.json("POST", "/documents", fields)


def test_a_chat_model_gives_way_to_documents_which_are_found_and_it_comes_back(
    caller: Caller, tmp_path: Path
) -> None:
    chat = {"model": "demo-chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    caller.json("POST", "/v1/chat/completions", chat)
    path = tmp_path / "안내서.pdf"
    write_pdf(path, ["표지", PARAGRAPHS[0], *(f"{topic} " * 5 for topic in TOPICS)])
    fields = {"id": "guides/안내서.pdf", "metadata": json.dumps({"year": 2026})}
    status, made = caller.send("/documents", path.name, path.read_bytes(), fields)
    assert (status, made["format"], made["pages"]) == (200, "pdf", len(TOPICS) + 2)
    [live] = caller.json("GET", "/status")["backends"]
    assert live["model"] == "minilm"

    stored = caller.json("GET", f"/documents/{quote(made['id'])}")
    assert (stored["chunks"], stored["metadata"]) == (made["chunks"], {"year": 2026})
    question = {"query": "When does the railway service depart?", "limit": 3}
    question["filter"] = {"metadata.year": 2026}
    best = caller.json("POST", "/search", question)["hits"][0]
    assert best["text"].startswith(TOPICS[1])
    assert (best["document"], best["page"]) == (made["id"], 4)
    [whole] = caller.json("POST", "/search", question | {"kind": "document"})["hits"]
    assert whole["document"] == made["id"]
    caller.json("POST", "/v1/chat/completions", chat)


def test_a_document_that_is_sent_again_is_left_as_it_is(caller: Caller) -> None:
    first = add(caller, id="again", text=LONG_TEXT)
    stored = caller.json("GET", "/documents/again")
    second = add(caller, id="again", text=LONG_TEXT)
    assert (second["unchanged"], second["tokens"]) == (True, 0)
    assert (second["chunks"], second["characters"]) == (first["chunks"], first["characters"])
    again = caller.json("GET", "/documents/again")
    assert again.pop("accepted_at") > stored.pop("accepted_at")
    assert again == stored


def test_a_changed_document_takes_the_place_of_what_it_was(caller: Caller) -> None:
    made = add(caller, id="changing", text=LONG_TEXT, metadata={"state": 1})
    assert len(texts_in(caller, "changing")) == made["chunks"] > 3
    assert add(caller, id="changing", text=SENTENCE, metadata={"state": 2})["chunks"] == 1
    assert texts_in(caller, "changing") == {0: SENTENCE}
    assert caller.json("GET", "/documents/changing")["metadata"] == {"state": 2}
    assert add(caller, id="changing", text=LONG_TEXT)["chunks"] == made["chunks"]


def test_what_is_not_to_be_stored_is_answered_with_its_vectors(caller: Caller) -> None:
    made = add(caller, id="returned", text=LONG_TEXT, store=False)
    asked = {"model": "minilm", "input": [chunk["text"] for chunk in made["chunks"]]}
    expected = caller.json("POST", "/v1/embeddings", asked)["data"]
    for chunk, one in zip(made["chunks"], expected, strict=True):
        assert chunk["text"] == LONG_TEXT[chunk["start"] : chunk["stop"]]
        assert cosine(pack(chunk["vector"]), pack(one["embedding"])) > 0.9999
    assert made["dimensions"] == len(made["vector"]) == 384
    status, code = caller.refused("GET", "/documents/returned")
    assert (status, code) in {(404, "document_not_found"), (404, "collection_not_found")}


def test_the_whole_document_has_the_mean_of_its_windows(caller: Caller) -> None:
    short = add(caller, text=SENTENCE, store=False)
    [only] = short["chunks"]
    assert short["vector"] == only["vector"]
    text = PARAGRAPHS[0]  # more than a chunk, less than the model takes
    two = add(caller, text=text, store=False)
    assert len(two["chunks"]) > 1
    [one] = caller.json("POST", "/v1/embeddings", {"model": "minilm", "input": text})["data"]
    assert cosine(pack(two["vector"]), pack(one["embedding"])) > 0.9999


def test_a_caller_that_does_not_wait_is_told_where_to_ask(caller: Caller) -> None:
    taken = caller.json("POST", "/documents", {"text": LONG_TEXT, "wait": False}, status=202)
    until(lambda: caller.json("GET", taken["location"])["state"] in ENDED)
    job = caller.json("GET", f"/jobs/{taken['job']}")
    assert (job["kind"], job["state"], job["lines"]["left"]) == ("document", "completed", 0)
    assert job["lines"]["succeeded"] == job["lines"]["total"] > job["outcome"]["chunks"]
    assert taken["id"].startswith("sha256-")
    assert len(texts_in(caller, taken["id"])) == job["outcome"]["chunks"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("broken.pdf", b"%PDF-1.7 and then nothing", "the PDF cannot be opened"),
        ("broken.docx", b"PK\x03\x04 and then nothing", "damaged ZIP package"),
        ("empty.txt", b"", "the file is empty"),
        ("blank.txt", b"  \n ", "there is no text"),
        ("picture.png", b"\x89PNG\r\n\x1a\n\0\0\0", "neither text nor"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason_and_nothing_is_stored(
    caller: Caller, name: str, content: bytes, reason: str
) -> None:
    add(caller, id=name, text=SENTENCE)
    status, answer = caller.send("/documents", name, content, {"id": name})
    assert (status, answer["error"]["code"]) == (422, "document_unreadable")
    assert reason in answer["error"]["message"]
    job = caller.json("GET", f"/jobs/{answer['error']['job']}")
    assert (job["state"], job["lines"]["total"]) == ("failed", 0)
    assert caller.json("GET", f"/v1/files/{job['spec']['file_id']}")["bytes"] == len(content)
    assert texts_in(caller, name) == {0: SENTENCE}


def test_a_document_with_too_many_pages_is_refused(caller: Caller, tmp_path: Path) -> None:
    write_pdf(tmp_path / "long.pdf", ["page"] * 21)
    content = (tmp_path / "long.pdf").read_bytes()
    status, answer = caller.send("/documents", "long.pdf", content, {})
    assert (status, answer["error"]["code"]) == (422, "document_unreadable")
    assert "21 pages" in answer["error"]["message"]


def test_a_file_is_the_document_of_its_name(caller: Caller, tmp_path: Path) -> None:
    content = write_docx(tmp_path / "표.docx").read_bytes()
    status, made = caller.send("/documents", "표.docx", content, {"collection": "files"})
    assert (status, made["id"], made["collection"]) == (200, "표.docx", "files")
    assert "사과 | 3,000원" in "".join(texts_in(caller, "표.docx", "files").values())


def test_a_name_that_is_not_in_utf8_is_read_as_what_it_is_in(caller: Caller) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="'
    name, content = "한글.txt".encode("cp949"), SENTENCE.encode()
    form = b"".join((head, name, b'"\r\n\r\n', content, b"\r\n--x--\r\n"))
    status, received = caller.ask("POST", "/documents", form, "multipart/form-data; boundary=x")
    assert (status, json.loads(received)["id"]) == (200, "한글.txt")


def test_json_that_is_sent_as_a_form_is_refused_and_a_text_is_not(caller: Caller) -> None:
    """As `curl -d` sends both: the JSON itself was stored as a text."""
    form = "application/x-www-form-urlencoded"
    body = json.dumps({"id": "notes/17", "text": SENTENCE}).encode()
    status, received = caller.ask("POST", "/documents?store=false", body, form)
    assert status == 400
    assert "Content-Type: application/json" in json.loads(received)["error"]["message"]

    assert caller.ask("POST", "/documents?id=form", SENTENCE.encode(), form)[0] == 200
    assert texts_in(caller, "form") == {0: SENTENCE}
    assert caller.ask("POST", "/documents?store=false", body, "text/plain")[0] == 200


@pytest.mark.parametrize("text", ["<html> opens a page", "%PDF- begins a file", "a\0b"])
def test_a_text_in_a_request_is_a_text_whatever_it_tells_of(caller: Caller, text: str) -> None:
    made = add(caller, text=text, store=False)
    assert made["format"] == "txt"
    assert made["chunks"][0]["text"] == text.replace("\0", "")


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({}, 400, "bad_request"),
        ({"text": "a", "metadata": "[1]"}, 400, "bad_request"),
        ({"text": "a", "metadata": {"note": "a" * 16_384}}, 400, "bad_request"),
        ({"text": "a", "metadata": json.loads('{"a":' * 33 + "1" + "}" * 33)}, 400, "bad_request"),
        ({"text": "a", "metadata": {"n": [2**63]}}, 400, "bad_request"),
        ({"text": "a", "metadata": "[" * 5000}, 400, "bad_request"),
        ({"text": "a", "model": "nobody"}, 404, "model_not_found"),
        ({"text": "a", "model": "demo-chat"}, 422, "model_type_mismatch"),
        ({"text": "a", "collection": "../other"}, 400, "bad_request"),
        ({"text": "a", "collection": "foreign"}, 409, "collection_mismatch"),
    ],
)
def test_what_cannot_be_done_is_refused_before_it_is_a_job(
    caller: Caller, fields: Any, status: int, code: str
) -> None:
    foreign = {"model": "another", "dimension": 384, "points": []}
    caller.json("POST", "/collections/foreign/points", foreign)
    before = caller.json("GET", "/jobs")["data"]
    assert caller.refused("POST", "/documents", fields) == (status, code)
    assert caller.json("GET", "/jobs")["data"] == before
