"""A book as a PDF: chunk by chunk by a server that generates, and as a document.

Before: the server is started as a profile for generation starts one for embeddings (batches of 128
tokens, one sequence), and is sent one chunk after the other. After: the file is sent in, and its
job reads it, embeds its chunks and the whole of it, and stores both. So the document's text is
embedded twice; what its chunks alone take is measured beside.
"""

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from lab.bench.embedding.arrays import IN_FLIGHT
from lab.bench.embedding.direct import Way, array_load, rate_of, started
from lab.bench.report import Figure, compare
from lab.documents.pdf import write_pdf
from lab.harness.command import LabError, say
from lab.harness.servers import Controller
from lab.harness.setting import EMBEDDING_MODEL, Setting, with_changes
from lab.harness.texts import turned_text

NAME = "pdf"

CHUNK_TOKENS = 120
FILE_BYTES_PER_PAGE = 35_000
"""Of which most is what a reader passes over: 10 MB in 300 pages."""

WORDS_PER_LINE, LINES_PER_PAGE = 10, 30
BEFORE = Way(ubatch_size=128, parallel=1, in_flight=1)

CHUNKS_BOUND = 0.91
"""1.1 times as fast, of the 1.1 to 1.5 that two cores have shown for the model alone."""

WITHIN_S = 1800.0
LOOK_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How long a document's job took: to be read and divided, embedded, and stored."""

    read_s: float
    embedded_s: float
    stored_s: float

    @classmethod
    def of(cls, job: Any) -> "Course":
        """Take it from what `/jobs/{id}` shows of a job that has ended."""
        entered_at = job["entered_at"]
        return cls(
            read_s=entered_at["in_progress"] - job["created_at"],
            embedded_s=entered_at["finalizing"] - entered_at["in_progress"],
            stored_s=entered_at["completed"] - entered_at["finalizing"],
        )

    @property
    def whole_s(self) -> float:
        """From when it was sent in until it was stored."""
        return self.read_s + self.embedded_s + self.stored_s


def measure(setting: Setting) -> Figure:
    """Embed a book in each way, in turns."""
    content = _book(setting.work_dir / "book.pdf", setting.pages)
    changes = {"documents": {"chunk_tokens": CHUNK_TOKENS, "chunk_overlap_tokens": 0}}
    with ExitStack() as stack:
        own = with_changes(setting, "chunks", {"supervisor.yaml": changes})
        controller = stack.enter_context(Controller(own))
        bare = stack.enter_context(started(controller.load(EMBEDDING_MODEL), BEFORE, setting))
        say("  what the book's chunks are …")
        chunks = _chunks(controller, content)
        before_s, together_s, courses = [], [], []
        for number in range(1, setting.rounds + 1):
            say(f"  {len(chunks)} chunks in each way, turn {number} of {setting.rounds} …")
            before_s.append(len(chunks) / rate_of(array_load(chunks, 1), bare.endpoint, 1))
            together_s.append(len(chunks) / _rate_together(controller, chunks))
            courses.append(Course.of(_sent_in(controller, content, f"id=book-{number}")))
    return figure(before_s, together_s, courses, pages=setting.pages, chunks=len(chunks))


def figure(
    before_s: Sequence[float],
    together_s: Sequence[float],
    courses: Sequence[Course],
    *,
    pages: int,
    chunks: int,
) -> Figure:
    """Judge what each way took."""
    whole_s = [course.whole_s for course in courses]
    without_model_s = [course.read_s + course.stored_s for course in courses]
    rows = (
        compare(
            f"{chunks} chunks, together over one by one",
            "s",
            direct=before_s,
            controller=together_s,
            judged_as="ratio",
            at_most=CHUNKS_BOUND,
        ),
        compare(
            f"a PDF of {pages} pages into the store, over its chunks one by one",
            "s",
            direct=before_s,
            controller=whole_s,
            judged_as="ratio",
            at_most=2 * CHUNKS_BOUND,
        ),
        compare(
            "reading, dividing and storing, over the whole",
            "s",
            direct=whole_s,
            controller=without_model_s,
            judged_as="ratio",
            at_most=0.2,
        ),
    )
    parts = {
        name: median(asdict(course)[name] for course in courses) for name in asdict(courses[0])
    }
    told = ", ".join(f"{name.removesuffix('_s')} in {value:.2f} s" for name, value in parts.items())
    note = (
        f"the document was {told}; embedded are its chunks and, for the whole of it, its text once "
        "more, in windows as long as the model takes"
    )
    samples = {
        "one_by_one_s": before_s,
        "together_s": together_s,
        "document": [asdict(course) for course in courses],
    }
    return Figure(name=NAME, rows=rows, notes=(note,), samples=samples)


def _book(path: Path, pages: int) -> bytes:
    """Return a PDF with English text on each page, and as large as such files are."""
    write_pdf(path, [_page(number) for number in range(pages)])
    missing = pages * FILE_BYTES_PER_PAGE - path.stat().st_size
    write_pdf(path, [_page(number) for number in range(pages)], padding_bytes=max(0, missing))
    return path.read_bytes()


def _page(number: int) -> str:
    words = turned_text(number, WORDS_PER_LINE * LINES_PER_PAGE).split()
    lines = (words[at : at + WORDS_PER_LINE] for at in range(0, len(words), WORDS_PER_LINE))
    return "\n".join(map(" ".join, lines))


def _chunks(controller: Controller, content: bytes) -> list[str]:
    """Return the texts of the chunks that the product makes of a document."""
    job = _sent_in(controller, content, "store=false")
    file_id = job["outcome"]["vectors_file_id"]
    made = json.loads(controller.download(f"/v1/files/{file_id}/content"))
    return [chunk["text"] for chunk in made["chunks"]]


def _sent_in(controller: Controller, content: bytes, query: str) -> Any:
    """Send a document in; return its job once that is done. Raises LabError where it is not."""
    began_at = time.monotonic()
    path = f"/documents?model={EMBEDDING_MODEL}&wait=false&{query}"
    location = controller.upload(path, content)["location"]
    job = controller.call("GET", location)
    while job["state"] not in {"completed", "failed"}:
        if time.monotonic() - began_at > WITHIN_S:
            raise LabError(f"the document was not done within {WITHIN_S:.0f} s: {job}")
        time.sleep(LOOK_PAUSE_S)
        job = controller.call("GET", location)
    if job["state"] != "completed":
        raise LabError(f"the document was not embedded: {job['reason']}")
    return job


def _rate_together(controller: Controller, chunks: Sequence[str]) -> float:
    """Return the texts per second of the service, asked in a few arrays of one length."""
    array = max(1, len(chunks) // IN_FLIGHT)
    load = array_load(chunks[: len(chunks) // array * array], array)
    return rate_of(load, controller.endpoint, IN_FLIGHT)
