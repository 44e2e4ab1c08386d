"""What answers where the controller is expected is something else: each command says so."""

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from typer.testing import CliRunner, Result

from supervisor.cli import cli

BACKUP = """\
{"format": 1, "collection": "c", "space": {"model": "m", "dimension": 1}, "points": 0}
{"points": 0}
"""
JOB = {"id": "j", "kind": "batch", "state": "completed"}
COMMANDS = [
    ("jobs",),
    ("jobs", "--json"),
    ("jobs", "show", "j"),
    ("jobs", "cancel", "j"),
    ("search", "memory"),
    ("search", "memory", "--json"),
    ("collections",),
    ("collections", "backup", "c", "NEW"),
    ("embed", "FILE"),
]

Foreign = Callable[[int, object], str]


@pytest.fixture
def foreign() -> Iterator[Foreign]:
    """Starts services that answer everything with the same status and JSON; returns their URL."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int, content: object) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_DELETE = do_GET  # noqa: N815 - the names are the library's

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        Thread(target=server.serve_forever).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Result]:
    """Runs a command, in which words stand for a file and for one that is not there yet."""
    file = tmp_path / "text.md"
    file.write_text("text")
    paths = {"FILE": str(file), "NEW": str(tmp_path / "new")}

    def run(words: tuple[str, ...], url: str) -> Result:
        return CliRunner().invoke(cli, [*(paths.get(word, word) for word in words), "--url", url])

    return run


@pytest.mark.parametrize(
    "content", [{}, [], 7, None, {"data": [JOB], "hits": [{}], "collections": [{}]}]
)
@pytest.mark.parametrize("words", COMMANDS)
def test_foreign_answer_is_told_with_the_address_and_what_to_check(
    foreign: Foreign, run: Callable[..., Result], words: tuple[str, ...], content: object
) -> None:
    url = foreign(200, content)

    told = run(words, url)

    assert told.exit_code == 69, told.output
    assert f"what answers at {url} is no controller" in told.stderr
    assert "--url" in told.stderr


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] != "embed"])
def test_foreign_refusal_is_told_with_the_address_and_what_to_check(
    foreign: Foreign, run: Callable[..., Result], words: tuple[str, ...]
) -> None:
    """Such as a llama-server's, whose codes are numbers."""
    url = foreign(404, {"error": {"code": 404, "message": "File Not Found"}})

    told = run(words, url)

    assert told.exit_code == 1
    assert f"{url} answers with status 404" in told.stderr
    assert "File Not Found" in told.stderr
    assert "--url" in told.stderr


def test_restored_points_must_be_said_to_be_written(
    foreign: Foreign, run: Callable[..., Result], tmp_path: Path
) -> None:
    file = tmp_path / "new"
    file.write_text(BACKUP)

    told = run(("collections", "restore", "NEW"), foreign(200, {}))

    assert told.exit_code == 69, told.output
    assert "is no controller" in told.stderr
