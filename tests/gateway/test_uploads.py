"""Bodies go to disk as they come where a route says so, whatever door they come through."""

import asyncio
import resource
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pydantic
import pytest

from supervisor.gateway import routes
from supervisor.gateway.answer import Answer, json_answer
from supervisor.gateway.parameters import Parameters
from supervisor.gateway.route import Route
from supervisor.gateway.uploads import Upload, Uploads
from tests.conftest import RunningController, StartController
from tests.gateway.conftest import both_doors, raw_request, until

MIB = 1024 * 1024
PATH = "/test/uploads"
POST = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\n".encode()


class UploadParameters(Parameters):
    file: pydantic.InstanceOf[Upload]
    purpose: str = "none"
    expires_after_s: int = pydantic.Field(default=0, alias="expires_after[seconds]")
    wait: pydantic.StrictBool = True


class Archive:
    """Answers with what it got; keeps the file where it is told to."""

    def __init__(self, kept: Path) -> None:
        self._kept = kept

    async def add(self, asked: UploadParameters) -> Answer:
        path, size = asked.file.path, asked.file.size_bytes
        told = {
            "content": path.read_text() if size < 1000 else "",
            "size": size,
            "mode": oct(path.stat().st_mode & 0o777),
            "name": asked.file.file_name,
            "type": asked.file.content_type,
            "expires_after_s": asked.expires_after_s,
            "wait": asked.wait,
        }
        if asked.purpose == "keep":
            path.rename(self._kept)
        return json_answer(told)


StartArchive = Callable[..., Awaitable[RunningController]]


@pytest.fixture
async def start_archive(
    start_controller: StartController, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> StartArchive:
    """Starts a controller with a route for uploads, which may be as large as other bodies."""

    async def start(max_body_bytes: int = 2 * MIB) -> RunningController:
        server = {"max_body_bytes": max_body_bytes, "body_timeout_s": 0.5}
        files = {"supervisor.yaml": {"server": server}}
        controller = await start_controller(files=files, data_dir=tmp_path / "data")
        owners = controller.parts.door._owners
        monkeypatch.setitem(owners, Archive, Archive(tmp_path / "kept"))
        return controller

    route = Route(
        method="POST",
        path=PATH,
        purpose="Keeps files.",
        owner=Archive,
        handler=Archive.add,
        parameters=UploadParameters,
        upload_limit="server.max_body_bytes",
    )
    monkeypatch.setitem(routes._BY_PATH, PATH, (route,))
    return start


@pytest.fixture
async def archive(start_archive: StartArchive) -> RunningController:
    return await start_archive()


def left(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "data" / "uploads").iterdir())


async def send(
    controller: RunningController, data: Any, **options: Any
) -> tuple[int, dict[str, Any]]:
    async with controller.client.post(controller.url + PATH, data=data, **options) as answer:
        return answer.status, await answer.json()


def form(content: Any = b"some text", **fields: str) -> aiohttp.FormData:
    data = aiohttp.FormData(quote_fields=False)  # names in UTF-8, as browsers send them
    for name, value in fields.items():
        data.add_field(name, value)
    data.add_field("file", content, filename="한글.txt", content_type="text/plain")
    return data


@both_doors
async def test_form_brings_a_file_and_fields(
    archive: RunningController, tmp_path: Path, *, has_fast_lane: bool
) -> None:
    given = {"expires_after[seconds]": "3600", "wait": "false"}
    status, told = await send(archive, form(**given))

    assert (status, told) == (
        200,
        {
            "content": "some text",
            "size": 9,
            "mode": "0o600",
            "name": "한글.txt",
            "type": "text/plain",
            "expires_after_s": 3600,
            "wait": False,
        },
    )
    assert not left(tmp_path)


@both_doors
async def test_any_other_body_is_the_file_itself(
    archive: RunningController, tmp_path: Path, *, has_fast_lane: bool
) -> None:
    headers = {"Content-Type": "application/pdf"}
    status, told = await send(archive, b"%PDF", params={"wait": "0"}, headers=headers)

    assert (status, told["content"], told["type"]) == (200, "%PDF", "application/pdf")
    assert not told["wait"]
    assert not left(tmp_path)


async def test_file_that_was_moved_elsewhere_stays_there(
    archive: RunningController, tmp_path: Path
) -> None:
    assert (await send(archive, form(b"x" * MIB, purpose="keep")))[0] == 200

    assert (tmp_path / "kept").stat().st_size == MIB
    assert not left(tmp_path)


async def test_large_file_is_never_held_in_memory(
    start_archive: StartArchive, tmp_path: Path
) -> None:
    archive = await start_archive(400 * MIB)

    async with growth_of_memory() as growth:
        status, told = await send(archive, form(pieces(300 * MIB)))

    assert (status, told["size"]) == (200, 300 * MIB)
    assert max(growth) < 30 * MIB


async def pieces(size: int) -> AsyncIterator[bytes]:
    piece = b"x" * 64 * 1024
    for _ in range(size // len(piece)):
        yield piece


@asynccontextmanager
async def growth_of_memory() -> AsyncIterator[list[int]]:
    """Yield a list that grows by how much larger the process is, again and again."""
    memory = psutil.Process().memory_info
    at_first, growth = memory().rss, [0]

    async def look() -> None:
        while True:
            growth.append(memory().rss - at_first)
            await asyncio.sleep(0.01)

    looking = asyncio.create_task(look())
    yield growth
    looking.cancel()


def a_form(*parts: bytes, end: bytes = b"--X--\r\n") -> tuple[bytes, dict[str, str]]:
    head = b"--X\r\nContent-Disposition: form-data; "
    body = b"".join(head + part + b"\r\n" for part in parts) + end
    return body, {"Content-Type": "multipart/form-data; boundary=X"}


FILE = b'name="file"; filename="a"\r\n\r\ntext'
CHARSET = (
    a_form(b'name="_charset_"\r\n\r\nutf-8', FILE)[0].replace(b"--X", b"--" + b"X" * 40),
    {"Content-Type": f"multipart/form-data; boundary={'X' * 40}"},
)
"""A field that says how the others are written (RFC 7578, 4.6), and a boundary as they are."""
NESTED = b'name="file"\r\nContent-Type: multipart/mixed; boundary=Y\r\n\r\n--Y\r\n\r\n\r\n--Y--'


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        pytest.param(a_form(FILE, FILE), "two files", id="two files"),
        pytest.param(a_form(b'filename="a"\r\n\r\ntext'), "without a name", id="no name"),
        pytest.param(a_form(NESTED), "without a name", id="nested"),
        pytest.param(a_form(FILE, end=b""), "cannot be read", id="no end"),
        pytest.param((b"", {"Content-Type": "multipart/form-data"}), "boundary", id="no boundary"),
        pytest.param(a_form(b'name="purpose"\r\n\r\n\xff', FILE), "cannot be read", id="no UTF-8"),
        pytest.param(
            a_form(b'name="purpose"\r\n\r\n' + b"x" * 65_537, FILE), "65536", id="long field"
        ),
        pytest.param(
            a_form(*[b'name="purpose"\r\n\r\n'] * 101, FILE), "more than 100", id="many fields"
        ),
        pytest.param(a_form(b'name="colour"\r\n\r\nred', FILE), "colour", id="unknown field"),
        pytest.param(a_form(b'name="file"\r\n\r\ntext'), "file", id="text for a file"),
        pytest.param((b"", {"Content-Type": "text/plain"}), "file", id="nothing"),
        pytest.param(CHARSET, "cannot be read", id="charset"),
    ],
)
async def test_what_is_no_form_with_a_file_is_refused(
    archive: RunningController, tmp_path: Path, sent: tuple[bytes, dict[str, str]], reason: str
) -> None:
    status, told = await send(archive, sent[0], headers=sent[1])

    assert (status, told["error"]["code"]) == (400, "bad_request")
    assert reason in told["error"]["message"]
    assert not left(tmp_path)


async def test_compressed_file_is_refused(archive: RunningController, tmp_path: Path) -> None:
    status, told = await send(archive, b"x", headers={"Content-Encoding": "gzip"})

    assert (status, told["error"]["code"]) == (415, "encoding_not_supported")
    assert told["error"]["accepted_encodings"] == ["identity"]
    assert not left(tmp_path)


async def test_json_cannot_name_a_file(archive: RunningController) -> None:
    file = {"path": "/etc/hostname", "size_bytes": 1, "file_name": None, "content_type": None}
    status, told = await send(archive, None, json={"file": file})

    assert (status, told["error"]["code"]) == (400, "bad_request")


async def test_form_beyond_the_limit_is_refused_as_it_comes(
    archive: RunningController, tmp_path: Path
) -> None:
    status, told = await send(archive, form(pieces(3 * MIB)))

    assert (status, told["error"]["code"]) == (413, "body_too_large")
    assert "server.max_body_bytes" in told["error"]["message"]
    assert not left(tmp_path)


@pytest.mark.parametrize(
    ("max_body_bytes", "announced", "status"),
    [
        pytest.param(MIB, MIB + 1, b"413", id="beyond the limit"),
        pytest.param(2**62, 2**61, b"507", id="beyond what is free"),
    ],
)
async def test_announced_file_is_refused_before_it_comes(
    start_archive: StartArchive, max_body_bytes: int, announced: int, status: bytes
) -> None:
    archive = await start_archive(max_body_bytes)
    async with raw_request(archive, POST + b"Content-Length: %d\r\n\r\n" % announced) as (r, _):
        assert (await r.readline()).split(b" ")[1] == status


async def test_disk_that_becomes_full_is_told(archive: RunningController, tmp_path: Path) -> None:
    with files_of_at_most(MIB):
        status, told = await send(archive, form(pieces(2 * MIB)))

    assert (status, told["error"]["code"]) == (507, "storage_full")
    assert not left(tmp_path)
    assert (await send(archive, form()))[0] == 200


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Have the system refuse to write more into any file, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_folder_that_was_deleted_is_made_again(
    archive: RunningController, tmp_path: Path
) -> None:
    (tmp_path / "data" / "uploads").rmdir()

    assert (await send(archive, form()))[0] == 200


@both_doors
async def test_client_that_stops_in_the_middle_is_cut(
    archive: RunningController, tmp_path: Path, *, has_fast_lane: bool
) -> None:
    async with raw_request(archive, POST + b"Content-Length: 9\r\n\r\nhalf") as (reader, _):
        assert b" 408 " in await reader.readline()
    assert not left(tmp_path)


async def test_file_of_a_client_that_leaves_is_removed(
    archive: RunningController, tmp_path: Path
) -> None:
    async def has(count: int) -> bool:
        return len(left(tmp_path)) == count

    sent = POST + b"Content-Length: 1000000\r\n\r\nhalf"
    async with raw_request(archive, sent):
        await until(partial(has, 1))
    await until(partial(has, 0))


async def test_held_back_body_is_sent_once_it_is_wanted(archive: RunningController) -> None:
    assert (await send(archive, b"text", expect100=True))[0] == 200


async def test_page_of_another_origin_may_not_upload(
    archive: RunningController, tmp_path: Path
) -> None:
    status, told = await send(archive, form(), headers={"Origin": "https://foreign.example"})

    assert (status, told["error"]["code"]) == (403, "foreign_origin")
    assert not left(tmp_path)


def test_what_a_killed_controller_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "upload-abc").write_bytes(b"half")

    Uploads(tmp_path)

    assert not list(tmp_path.iterdir())
