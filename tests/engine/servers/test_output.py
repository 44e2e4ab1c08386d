"""What servers print: nothing is waited for, and a flood does not reach the log."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from supervisor.engine.servers.output import BURST, KEPT_LINES, LINES_PER_S, Output
from tests.patience import PATIENCE_S

Eventually = Callable[..., Awaitable[None]]


class Listener:
    """Notes the lines that are handed on, by a clock that the test moves."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.now = 0.0
        self.output = Output(self.lines.append, lambda: self.now)

    def feed(self, text: bytes, piece_bytes: int = 4096) -> None:
        for start in range(0, len(text), piece_bytes):
            self.output.feed(text[start : start + piece_bytes])


@pytest.fixture
def listener() -> Listener:
    """An output and what it hands on."""
    return Listener()


def test_two_hundred_thousand_lines_are_read_and_few_are_handed_on(listener: Listener) -> None:
    listener.feed(b"".join(b"line %d of many\n" % n for n in range(200_000)))
    assert BURST / 2 <= len(listener.lines) <= BURST
    assert listener.lines[0] == "line 0 of many"
    assert list(listener.output.last_lines) == [
        f"line {n} of many" for n in range(200_000 - KEPT_LINES, 200_000)
    ]


def test_megabytes_without_a_line_end_are_cut_and_few_of_them_handed_on(
    listener: Listener,
) -> None:
    listener.feed(b"x" * (48 << 20), 65536)
    listener.output.end()
    handed_bytes = sum(map(len, listener.lines))
    assert 1 << 20 <= handed_bytes <= 4 << 20
    assert max(map(len, listener.output.last_lines)) <= 16 * 1024 + 65536
    assert sum(map(len, listener.output.last_lines)) <= 16 << 20


def test_what_was_left_out_is_told_once_when_it_is_quiet_again(listener: Listener) -> None:
    listener.feed(b"flood\n" * 10_000)
    handed = len(listener.lines)
    listener.now = 0.5  # not yet
    listener.feed(b"late\n")
    assert len(listener.lines) == handed
    listener.now = 1.5
    listener.feed(b"quiet\nagain\n")
    told, *rest = listener.lines[handed:]
    left_out = 10_000 - handed + 1
    assert told.startswith(f"({left_out} lines, {(left_out - 1) * 5 + 4} bytes, came too fast")
    assert rest == ["quiet", "again"]


def test_a_flood_that_ends_with_the_process_is_told_too(listener: Listener) -> None:
    listener.feed(b"flood\n" * 10_000 + b"no end")
    listener.output.end()
    assert "came too fast" in listener.lines[-2]
    assert listener.lines[-1] == listener.output.last_lines[-1] == "no end"


def test_a_steady_talker_is_heard_in_full(listener: Listener) -> None:
    for n in range(20_000):
        listener.now = n / (LINES_PER_S * 0.9)
        listener.feed(b"steady\n")
    assert listener.lines == ["steady"] * 20_000


def has_heard(listener: Listener, text: str) -> bool:
    return listener.lines[-1:] == [text]


async def test_what_a_serving_server_prints_is_read_though_it_is_looked_at_seldom(
    listener: Listener, eventually: Eventually
) -> None:
    readable, writable = os.pipe()
    reading = asyncio.create_task(listener.output.read(os.fdopen(readable, "rb")))
    listener.output.slow_down()
    for text in ("first", "second", "third"):
        os.write(writable, f"{text}\n".encode())
        await eventually(partial(has_heard, listener, text))
    os.write(writable, b"last words")
    os.close(writable)
    listener.output.hurry()
    async with asyncio.timeout(PATIENCE_S):
        await reading
    assert listener.lines == ["first", "second", "third", "last words"]
