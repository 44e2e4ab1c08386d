"""Files that are broken, hostile or too large harm nobody, and their senders hear why."""

import asyncio
import os
import select
import signal
import socket
import zipfile
from pathlib import Path

import msgspec
import psutil
import pytest
from lab.documents.pdf import write_pdf

from supervisor.documents.extraction.confinement import leave_network
from supervisor.documents.extraction.extractor import Extractor
from supervisor.documents.values import Division
from supervisor.errors import RequestRefused
from supervisor.own_process import command_of, python_path
from tests.documents.conftest import DIVISION, LIMITS, Reading
from tests.documents.files import write_docx, write_hwpx, write_package
from tests.relay.wire import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def refusal(read: Reading, path: Path, **limits: float) -> str:
    with pytest.raises(RequestRefused) as raised:
        await read(path, limits=msgspec.structs.replace(LIMITS, **limits))
    assert raised.value.code == "document_unreadable"
    return raised.value.message


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.pdf", b"%PDF-1.7 and nothing more", "the PDF cannot be opened"),
        ("a.docx", b"PK\x03\x04 and nothing more", "damaged ZIP package"),
        ("a.txt", b"", "the file is empty"),
        ("a.txt", b" \n ", "there is no text in the TXT"),
        ("a.bin", bytes(range(256)), "neither text nor in a format that is known"),
        ("a.hwp", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "the HWP is damaged"),
    ],
)
async def test_broken_file_is_refused_with_the_reason(
    read: Reading, tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)

    assert reason in await refusal(read, tmp_path / name)


async def test_docx_with_a_broken_part_is_refused(read: Reading, tmp_path: Path) -> None:
    whole, broken = write_docx(tmp_path / "whole.docx"), tmp_path / "broken.docx"
    with zipfile.ZipFile(whole) as package:
        parts = {name: package.read(name) for name in package.namelist()}
    write_package(broken, {**parts, "word/document.xml": parts["word/document.xml"][:200]})

    assert "the DOCX is damaged" in await refusal(read, broken)


async def test_bomb_is_refused_before_it_grows(read: Reading, tmp_path: Path) -> None:
    bomb = write_package(
        tmp_path / "bomb.hwpx",
        {"mimetype": "application/hwp+zip", "Contents/section0.xml": b" " * 200_000_000},
    )

    assert "as a bomb does" in await refusal(read, bomb)


async def test_xml_entities_are_refused(read: Reading, tmp_path: Path) -> None:
    section = (
        '<?xml version="1.0"?><!DOCTYPE s [<!ENTITY e SYSTEM "file:///etc/hostname">]><s>&e;</s>'
    )
    file = write_package(
        tmp_path / "a.hwpx", {"mimetype": "application/hwp+zip", "Contents/section0.xml": section}
    )

    assert "declares XML entities" in await refusal(read, file)


async def test_more_pages_than_allowed_are_refused(read: Reading, tmp_path: Path) -> None:
    write_pdf(tmp_path / "a.pdf", ["one", "two", "three"])

    assert "has 3 pages, and may have 2" in await refusal(read, tmp_path / "a.pdf", max_pages=2)


async def test_longer_text_than_allowed_is_refused(read: Reading, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words " * 100)

    message = await refusal(read, tmp_path / "a.txt", max_characters=100)

    assert "may have 100 (documents.max_characters)" in message


async def test_document_that_takes_too_long_is_given_up(read: Reading, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("한국어 문장입니다. " * 50_000)

    assert "documents.timeout_s" in await refusal(read, tmp_path / "a.txt", timeout_s=0.05)


async def test_document_that_takes_too_much_memory_is_given_up(
    read: Reading, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_bytes(b"word " * 4_000_000)

    message = await refusal(
        read, tmp_path / "a.txt", memory_bytes=8 * 1024 * 1024, max_characters=10**9
    )

    assert "documents.memory_bytes" in message


async def test_readers_that_are_killed_are_replaced(
    extractor: Extractor, read: Reading, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("one")
    await read(tmp_path / "a.txt")
    [server] = fork_servers()
    os.kill(server.pid, signal.SIGKILL)

    assert (await read(tmp_path / "a.txt")).text == "one"


async def test_reader_whose_controller_ends_as_it_starts_says_nothing() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        program = command_of("supervisor.documents.extraction.fork_server")
        environment = {**os.environ, "PYTHONPATH": python_path()}
        process = await asyncio.create_subprocess_exec(
            *program, stdin=theirs.fileno(), stderr=asyncio.subprocess.PIPE, env=environment
        )
    await asyncio.to_thread(select.select, [ours], [], [])  # what it says is there, and unread
    ours.close()

    _, said = await process.communicate()

    assert (process.returncode, said) == (0, b"")


async def test_readers_reach_no_network(read: Reading, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    await read(tmp_path / "a.txt")
    [server] = fork_servers()

    assert network_of(server.pid) != network_of(os.getpid()) or not may_make_namespaces()


async def test_many_documents_leave_no_process_behind(read: Reading, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")

    await asyncio.gather(*(read(tmp_path / "a.txt") for _ in range(20)))

    [server] = fork_servers()
    await asyncio.to_thread(until, lambda: not server.children())


async def test_tokenizer_that_is_none_is_named(read: Reading, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "tokenizer.json").write_text("{}")
    division = Division(size=10, overlap=0, tokenizer=str(tmp_path / "tokenizer.json"))

    with pytest.raises(RequestRefused, match=r"tokenizer\.json, the model's tokenizer"):
        await read(tmp_path / "a.txt", division=division)

    assert (await read(tmp_path / "a.txt", division=DIVISION)).text == "one"


async def test_hwpx_with_a_broken_section_is_refused(read: Reading, tmp_path: Path) -> None:
    file = write_hwpx(tmp_path / "a.hwpx", ["<unclosed>"])

    assert "the HWPX is damaged" in await refusal(read, file)


def fork_servers() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [each for each in children if any("fork_server" in word for word in each.cmdline())]


def network_of(pid: int) -> Path:
    return Path(f"/proc/{pid}/ns/net").readlink()


def may_make_namespaces() -> bool:
    """Whether this kernel grants a process a network namespace of its own."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if leave_network() is None else 1)
    return os.waitpid(pid, 0)[1] == 0
