"""The log never stops the controller: not by a reader that is slow, and not by one that left."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from supervisor.observability.log_writer import MAX_BACKLOG_BYTES, LogWriter
from supervisor.observability.logs import set_up_logging
from tests.observability.conftest import Log

LINE = b"x" * 1023 + b"\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(writing)


def read_lines(descriptor: int, count: int) -> list[bytes]:
    text = b""
    while text.count(b"\n") < count:
        text += os.read(descriptor, 1 << 20)
    return text.splitlines(keepends=True)


def test_reader_that_does_not_read_costs_lines_and_no_time(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    dropped: list[int] = []
    writer = LogWriter(writing, dropped.append)
    given = 2 * MAX_BACKLOG_BYTES // len(LINE)
    for _ in range(given):
        writer.write(LINE)
    assert not writer.flush(0)
    kept = MAX_BACKLOG_BYTES // len(LINE)
    assert set(read_lines(reading, kept)) == {LINE}
    assert writer.flush(10)
    writer.close()
    os.close(reading)
    assert sum(dropped) == given - kept


def test_lines_keep_their_order_through_a_slow_reader(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LogWriter(writing, lambda _: None)
    lines = [b"%06d\n" % number for number in range(50_000)]
    for line in lines:
        writer.write(line)
    assert read_lines(reading, len(lines)) == lines
    writer.close()
    os.close(reading)


def test_reader_that_left_stops_nobody(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.close(reading)
    dropped: list[int] = []
    writer = LogWriter(writing, dropped.append)
    writer.write(LINE)
    assert writer.flush(10)
    writer.write(LINE)
    writer.close()
    assert not dropped  # there is nobody to say it to


def test_stream_that_somebody_made_non_blocking_gets_every_line(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.set_blocking(writing, False)
    writer = LogWriter(writing, lambda _: None)
    for _ in range(1024):
        writer.write(LINE)
    assert read_lines(reading, 1024) == [LINE] * 1024
    writer.close()
    os.close(reading)


def test_dropped_lines_are_named_once_the_stream_takes_lines_again(
    log: Log, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = pipe
    with monkeypatch.context() as patched, os.fdopen(os.dup(writing), "w") as stream:
        patched.setattr(sys, "stderr", stream)
        finish = set_up_logging("json")
    for _ in range(2 * MAX_BACKLOG_BYTES // 1000):
        structlog.get_logger().info("x", text="y" * 1000)
    text = b""
    while b'"log.lines_dropped"' not in text:
        text = text[-1000:] + os.read(reading, 1 << 20)
    finish()
    os.close(reading)


def test_standard_error_that_was_closed_is_not_taken_for_another_file(
    log: Log, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    log.set_up("console")
    structlog.get_logger().info("backend.ready")
    assert not log.text()
