"""`llama-supervisor embed`, as somebody uses it who has a folder of documents."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lab.documents.pdf import write_pdf

from tests.documents.files import write_docx
from tests.e2e.conftest import COMMAND, Serve
from tests.relay.conftest import Running, serving
from tests.relay.wire import until

KOREAN = "고양이는 창가에 앉아 밖을 내다본다. 비가 오는 날에는 하루 종일 잠을 잔다."
DOCUMENTS = ("가격표.docx", "고양이.txt", "보고서.pdf", "soup.md")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A controller whose embedding model is live."""
    with serving(tmp_path_factory.mktemp("embed"), server={}) as running:
        running.make_live("minilm")
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Documents, three of them in Korean, and what is none."""
    folder = tmp_path / "문서"
    folder.mkdir()
    (folder / "고양이.txt").write_text(KOREAN)
    write_pdf(folder / "보고서.pdf", ["매출은 지난해보다 두 배로 늘었다."])
    write_docx(folder / "가격표.docx")
    (folder / "soup.md").write_text("# Soup\n\nBoil the noodles for three minutes.\n")
    (folder / "song.mp3").write_bytes(b"ID3")
    return folder


def url_of(running: Running) -> str:
    return f"http://127.0.0.1:{running.port}"


def embed(url: str, *words: str | Path) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Embed as a machine would. Returns exit code, outcomes by file name, and the summary."""
    asked = [COMMAND, "embed", *words, "--json", "--url", url]
    finished = subprocess.run(asked, capture_output=True, text=True, check=False)
    *files, last = map(json.loads, finished.stdout.splitlines())
    outcomes = {Path(each["path"]).name: each["outcome"] for each in files}
    return finished.returncode, outcomes, last["summary"]


@contextmanager
def embedding(url: str, *words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Yield a run that goes on."""
    asked = [COMMAND, "embed", *words, "--json", "--url", url]
    with subprocess.Popen(asked, stdout=subprocess.PIPE, text=True) as run:
        yield run


def next_report(run: subprocess.Popen[str]) -> Mapping[str, Any]:
    assert run.stdout is not None
    report: Mapping[str, Any] = json.loads(run.stdout.readline())
    return report


def until_embedded(run: subprocess.Popen[str]) -> None:
    """Wait until the first document is stored."""
    while next_report(run)["outcome"] != "embedded":
        pass


def found(running: Running, query: str, collection: str) -> Sequence[Mapping[str, Any]]:
    asked: list[str | Path] = [COMMAND, "search", query, "-c", collection, "--json"]
    asked += ["--url", url_of(running)]
    finished = subprocess.run(asked, capture_output=True, check=True)
    hits: Sequence[Mapping[str, Any]] = json.loads(finished.stdout)["hits"]
    return hits


def test_folder_is_embedded_once_and_found(running: Running, folder: Path) -> None:
    code, outcomes, summary = embed(url_of(running), folder, "-c", "once")
    assert code == 0
    assert outcomes.pop("song.mp3") == "skipped"
    assert outcomes == dict.fromkeys(DOCUMENTS, "embedded")
    assert summary["chunks"] >= len(DOCUMENTS)

    assert found(running, KOREAN, "once")[0]["document"] == str(folder / "고양이.txt")
    report = found(running, "매출은 지난해보다 두 배로 늘었다.", "once")[0]
    assert (report["document"], report["page"]) == (str(folder / "보고서.pdf"), 1)
    assert "사과" in found(running, "이름 가격 사과 3,000원", "once")[0]["text"]
    assert "noodles" in found(running, "how to cook noodles", "once")[0]["text"]

    (folder / "soup.md").write_text("# Soup\n\nBoil the potatoes for twenty minutes.\n")
    code, outcomes, _ = embed(url_of(running), folder, "-c", "once")
    assert (code, outcomes.pop("song.mp3"), outcomes.pop("soup.md")) == (0, "skipped", "embedded")
    assert set(outcomes.values()) == {"unchanged"}
    assert all("noodles" not in hit["text"] for hit in found(running, "how to cook", "once"))

    posted = count_of_posts(running)
    code, outcomes, _ = embed(url_of(running), folder, "-c", "once", "--again")
    assert (code, outcomes["soup.md"]) == (0, "unchanged")
    until(lambda: count_of_posts(running) == posted + len(DOCUMENTS))


def count_of_posts(running: Running) -> int:
    """How many documents were sent so far."""
    lines = running.log_path.read_text().rpartition("\n")[0].splitlines()
    told = [json.loads(line) for line in lines if '"request.done"' in line]
    return sum(each["method"] == "POST" and each["path"] == "/documents" for each in told)


def test_file_that_cannot_be_read_fails_alone(running: Running, folder: Path) -> None:
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7\nbroken")

    code, outcomes, _ = embed(url_of(running), folder, "-c", "broken")
    assert (code, outcomes["broken.pdf"], outcomes["soup.md"]) == (1, "failed", "embedded")

    asked: list[str | Path] = [COMMAND, "embed", folder, "-c", "broken"]
    asked += ["--url", url_of(running)]
    told = subprocess.run(asked, capture_output=True, text=True, check=False).stderr
    assert "1 failed: " in told
    assert str(folder / "broken.pdf") in told


def test_run_that_was_killed_goes_on_where_it_stopped(running: Running, folder: Path) -> None:
    add_texts(folder, 60)
    with embedding(url_of(running), folder, "-c", "killed") as first:
        until_embedded(first)
        first.kill()

    code, _, summary = embed(url_of(running), folder, "-c", "killed")
    assert (code, summary["failed"]) == (0, 0)
    assert summary["unchanged"] >= 1
    assert summary["embedded"] + summary["unchanged"] == 60 + len(DOCUMENTS)
    assert len(found(running, "고양이", "killed")) == 5


async def test_controller_that_was_killed_goes_on_where_it_stopped(
    serve: Serve, folder: Path
) -> None:
    add_texts(folder, 60)
    served = serve()
    with embedding(await served.url(), folder) as first:
        until_embedded(first)
        served.process.kill()
        assert first.wait() == 69

    served = serve(log_file=folder.parent / "second.log")
    code, _, summary = embed(await served.url(), folder)
    assert code == 0
    assert summary["unchanged"] >= 1
    assert summary["embedded"] + summary["unchanged"] == 60 + len(DOCUMENTS)
    _, collection = await served.json("GET", "/collections/documents")
    assert collection["documents"] == 60 + len(DOCUMENTS)


def write_another(folder: Path) -> None:
    (folder / "new.txt").write_text("Snow falls on the mountains in winter.")


def delete_one(folder: Path) -> None:
    (folder / "soup.md").unlink()


@pytest.mark.parametrize(
    ("change", "name", "outcome"),
    [(write_another, "new.txt", "embedded"), (delete_one, "soup.md", "removed")],
)
async def test_watching_goes_on_with_the_next_controller(
    serve: Serve, folder: Path, change: Callable[[Path], None], name: str, outcome: str
) -> None:
    served = serve()
    url = await served.url()
    with embedding(url, folder, "--watch") as watching:
        for _ in (*DOCUMENTS, "song.mp3"):
            next_report(watching)
        served.process.kill()
        served.process.wait()
        change(folder)
        assert "no controller answers" in next_report(watching)["note"]

        await serve("--port", url.rpartition(":")[2], log_file=folder.parent / "second.log").url()
        told = next_report(watching)
        while told.get("outcome") != outcome:
            told = next_report(watching)
        assert Path(told["path"]).name == name
        watching.send_signal(signal.SIGINT)


def add_texts(folder: Path, count: int) -> None:
    for number in range(count):
        (folder / f"{number}.txt").write_text(f"{KOREAN} {number}")


def test_a_watcher_that_cannot_watch_ends_with_the_reason(running: Running, folder: Path) -> None:
    gone = folder / "gone" / "file.txt"
    with embedding(url_of(running), gone, "--watch") as watching:
        assert watching.wait() not in {0, 130}


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_reports_that_cannot_be_written_end_it_in_a_line(
    running: Running, folder: Path, unbuffered: str
) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        told = subprocess.run(
            [COMMAND, "embed", folder, "--json", "--again", "--url", url_of(running)],
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert told.returncode == 1
    assert told.stderr == b"standard output cannot be written: No space left on device\n"


def test_names_that_are_not_in_utf8_are_told_and_hinder_nobody(
    running: Running, folder: Path
) -> None:
    for suffix in (b".txt", b".mp3"):
        (Path(os.fsdecode(os.fsencode(folder) + "/한글".encode("cp949") + suffix))).write_text("x")
    code, outcomes, summary = embed(url_of(running), folder, "-c", "names")
    assert code != 0
    assert (summary["failed"], summary["embedded"]) == (1, len(DOCUMENTS))
    assert sorted(outcomes.values()).count("skipped") == 2


def test_names_with_control_characters_are_told_and_hinder_nobody(
    running: Running, folder: Path
) -> None:
    (folder / "line\nbreak.txt").write_text("x")
    (folder / "\x1b[31mred.txt").write_text("x")
    code, outcomes, summary = embed(url_of(running), folder, "-c", "controls")
    assert code == 1
    assert (summary["failed"], summary["embedded"]) == (2, len(DOCUMENTS))
    assert outcomes["line?break.txt"] == outcomes["?[31mred.txt"] == "failed"


def test_changes_are_followed(running: Running, folder: Path) -> None:
    with embedding(url_of(running), folder, "-c", "watched", "--watch") as watching:
        for _ in (*DOCUMENTS, "song.mp3"):
            next_report(watching)
        (folder / "new.txt").write_text("Snow falls on the mountains in winter.")
        assert next_report(watching)["outcome"] == "embedded"
        (folder / "soup.md").unlink()
        told = next_report(watching)
        assert (Path(told["path"]).name, told["outcome"]) == ("soup.md", "removed")
        watching.send_signal(signal.SIGINT)
        assert watching.wait() == 130
    until(lambda: "winter" in found(running, "snow in winter", "watched")[0]["text"])
    assert all("noodles" not in hit["text"] for hit in found(running, "noodles", "watched"))
