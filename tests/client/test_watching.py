"""`embed --watch`: what stands under a name is followed, whichever folder that is."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer
from watchfiles import awatch

from supervisor.client import watching
from supervisor.client.connection import NoController, connect
from supervisor.client.embedding import Embedder, FileReport, Outcome
from supervisor.client.embedding_display import JsonLines
from supervisor.client.files import FoundFile, LeftOut
from tests.patience import PATIENCE_S

MISSING = {"error": {"code": "no_such_document", "message": "it is not stored"}}


class Watched(JsonLines):
    """What a run tells, and the documents that are stored, by path."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: dict[str, Any] = {}
        self.notes: list[str] = []
        self.looks = 0
        """Files that were found as they are stored."""

    def tell(self, report: FileReport) -> None:
        self.summary.add(report)
        self.looks += report.outcome is Outcome.UNCHANGED

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """Store, show and delete documents."""
        if request.method == "POST":
            fields = await request.post()
            document = str(fields["id"])
            self.stored[document] = json.loads(str(fields["metadata"]))
            return web.json_response({"id": document, "job": "job-1", "chunks": 1})
        document = unquote(request.raw_path.removeprefix("/documents/"))
        if document not in self.stored:
            return web.json_response(MISSING, status=404)
        metadata = self.stored[document]
        if request.method == "DELETE":
            del self.stored[document]
            return web.json_response({"deleted": True})
        return web.json_response({"id": document, "metadata": metadata})

    async def until(self, *names: Path) -> None:
        """Wait until these files are stored, and no others."""
        await until(lambda: set(self.stored) == set(map(str, names)))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what it waits for is in another process's hands
            await asyncio.sleep(0.01)


@asynccontextmanager
async def watch(*roots: Path) -> AsyncIterator[Watched]:
    """Watch, for as long as it is entered."""
    watched = Watched()
    async with (
        RawTestServer(watched.answer) as server,
        connect(str(server.make_url(""))) as connection,
    ):
        embedder = Embedder(connection, None, watched.tell)
        run = asyncio.create_task(watching.embed_changes(embedder, watched, roots))
        try:
            yield watched
        finally:
            run.cancel()
            with suppress(asyncio.CancelledError):
                await run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a document, looked at often."""
    monkeypatch.setattr(watching, "_LOOK_S", 0.05)
    return filled(tmp_path / "documents", "old.txt")


def filled(folder: Path, name: str) -> Path:
    folder.mkdir()
    (folder / name).write_text(name)
    return folder


def move(folder: Path, to: Path) -> None:
    folder.rename(to)


def delete_and_make_again(folder: Path) -> None:
    shutil.rmtree(folder)
    filled(folder, "new.txt")


def move_away_and_make_again(folder: Path) -> None:
    folder.rename(folder.with_name("away"))
    filled(folder, "new.txt")


def put_another_in_its_place(folder: Path) -> None:
    another = filled(folder.with_name("another"), "new.txt")
    folder.rename(folder.with_name("away"))
    another.rename(folder)


def put_an_empty_one_in_its_place(folder: Path) -> None:
    folder.rename(folder.with_name("away"))
    folder.mkdir()


@pytest.mark.parametrize(
    "replace", [delete_and_make_again, move_away_and_make_again, put_another_in_its_place]
)
async def test_folder_that_is_replaced_is_watched_on(
    folder: Path, replace: Callable[[Path], None]
) -> None:
    async with watch(folder) as watched:
        await watched.until(folder / "old.txt")
        for _ in range(2):
            replace(folder)
            await watched.until(folder / "new.txt")

            (folder / "later.txt").write_text("later")
            await watched.until(folder / "new.txt", folder / "later.txt")
            shutil.rmtree(folder.with_name("away"), ignore_errors=True)


async def test_link_that_leads_to_another_folder_is_followed(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)
    async with watch(link) as watched:
        await watched.until(link / "old.txt")
        (tmp_path / "next").symlink_to(filled(tmp_path / "another", "new.txt"))
        (tmp_path / "next").rename(link)
        await watched.until(link / "new.txt")

        (tmp_path / "another" / "later.txt").write_text("later")
        await watched.until(link / "new.txt", link / "later.txt")


async def test_file_is_watched_on_in_a_folder_that_is_replaced(folder: Path) -> None:
    async with watch(folder / "old.txt") as watched:
        await watched.until(folder / "old.txt")
        delete_and_make_again(folder)
        await watched.until()

        (folder / "old.txt").write_text("again")
        await watched.until(folder / "old.txt")


async def test_folder_that_is_gone_is_waited_for_at_leisure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[Path, ...]] = []

    def counted(*paths: Path, **options: Any) -> Any:
        begun.append(paths)
        return awatch(*paths, **options)

    monkeypatch.setattr(watching, "awatch", counted)
    beside = filled(folder.with_name("beside"), "old.txt")
    async with watch(folder, beside) as watched:
        await watched.until(folder / "old.txt", beside / "old.txt")
        shutil.rmtree(folder)
        await until(lambda: f"{folder} is gone" in "".join(watched.notes))
        (beside / "new.txt").write_text("new")
        await until(lambda: str(beside / "new.txt") in watched.stored)
        assert len(watched.notes) == 1
        assert len(begun) <= 3

        filled(folder, "again.txt")
        await watched.until(beside / "old.txt", beside / "new.txt", folder / "again.txt")


async def test_the_only_folder_that_is_gone_is_waited_for(folder: Path) -> None:
    async with watch(folder) as watched:
        await watched.until(folder / "old.txt")
        move(folder, folder.with_name("away"))
        await until(lambda: len(watched.notes) == 1)

        move(folder.with_name("away"), folder)
        (folder / "new.txt").write_text("new")
        await watched.until(folder / "old.txt", folder / "new.txt")


async def test_what_is_stored_of_a_folder_stays_where_an_empty_one_stands_in_its_place(
    folder: Path,
) -> None:
    """As where it is not mounted any more."""
    beside = filled(folder.with_name("beside"), "old.txt")
    async with watch(folder, beside) as watched:
        await watched.until(folder / "old.txt", beside / "old.txt")
        looks = watched.looks
        put_an_empty_one_in_its_place(folder)
        await until(lambda: watched.looks > looks)  # of what is beside it

        assert set(watched.stored) == {str(folder / "old.txt"), str(beside / "old.txt")}


async def test_file_is_embedded_once_there_is_a_controller(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_COME_BACK_S", 0.01)
    embed, failures = Embedder.embed, [NoController("it is being restarted")]

    async def failing_once(embedder: Embedder, files: Sequence[FoundFile | LeftOut]) -> None:
        if failures:
            raise failures.pop()
        await embed(embedder, files)

    monkeypatch.setattr(Embedder, "embed", failing_once)
    async with watch(folder / "old.txt") as watched:
        await watched.until(folder / "old.txt")
        assert len(watched.notes) == 1
