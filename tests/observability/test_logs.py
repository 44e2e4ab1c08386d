"""Log lines: one event each, for machines or for people, and never a reason to fail."""

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from tests.observability.conftest import Log, LogFormat


def fail_over(reason: str, prompt: str = "") -> None:
    raise ValueError(reason)


def test_json_lines_hold_the_event_and_its_fields(log: Log) -> None:
    log.set_up("json")
    logger = structlog.get_logger()
    logger.info("backend.ready", model="demo-chat", epoch=7, took_s=4.2, pids=(1, 2), gone=None)
    logger.warning("switch.failed", reason='two\nlines and "quotes" and é')
    first, second = log.events()
    timestamp = first.pop("timestamp")
    assert timestamp.endswith("Z")
    assert first == {
        "event": "backend.ready",
        "level": "info",
        "model": "demo-chat",
        "epoch": 7,
        "took_s": 4.2,
        "pids": [1, 2],
        "gone": None,
    }
    assert (second["level"], second["reason"]) == ("warning", 'two\nlines and "quotes" and é')


def test_what_json_does_not_know_is_written_as_text(log: Log) -> None:
    log.set_up("json")
    structlog.get_logger().info("a", path=Path("/models"), error=ValueError("no"))
    [event] = log.events()
    assert (event["path"], event["error"]) == ("/models", "no")


def test_bytes_of_a_client_that_are_not_utf8_are_written_as_they_came(log: Log) -> None:
    log.set_up("json")
    header = b"caf\xe9".decode("utf-8", "surrogateescape")
    structlog.get_logger().info("request.done", request_id=header, path=Path("/models"))
    [event] = log.events()
    assert event["request_id"] == header
    assert event["path"] == "/models"


def test_an_exception_is_one_json_line_with_its_traceback(log: Log) -> None:
    log.set_up("json")
    try:
        fail_over("the reason")
    except ValueError:
        structlog.get_logger().exception("request.failed", path="/x")
    [event] = log.events()
    assert event["level"] == "error"
    assert "ValueError: the reason" in event["exception"]
    assert "test_logs.py" in event["exception"]


def test_console_lines_are_for_people_without_colours_in_a_file(log: Log) -> None:
    log.set_up("console")
    structlog.get_logger().info("backend.ready", model="demo-chat", epoch=7)
    [line] = log.lines()
    assert "backend.ready" in line
    assert "model=demo-chat" in line
    assert "epoch=7" in line
    assert "\x1b" not in line


@pytest.mark.parametrize(
    ("variables", "has_colours"),
    [({}, True), ({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_colours_are_for_terminals_that_want_them(
    variables: dict[str, str], has_colours: bool
) -> None:
    controlling, terminal = pty.openpty()
    without = {name: text for name, text in os.environ.items() if name != "NO_COLOR"}
    words = (
        "import structlog; from supervisor.observability.logs import set_up_logging; "
        "set_up_logging('console'); structlog.get_logger().info('backend.ready')"
    )
    subprocess.run(
        [sys.executable, "-c", words],
        stderr=terminal,
        env={**without, "TERM": "xterm", **variables},
        check=True,
    )
    os.close(terminal)
    written = os.read(controlling, 65_536)
    os.close(controlling)
    assert b"backend.ready" in written
    assert (b"\x1b" in written) is has_colours


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_traceback_never_shows_the_values_of_variables(log: Log, log_format: LogFormat) -> None:
    log.set_up(log_format)
    try:
        fail_over("the length", prompt="a secret " + "prompt")
    except ValueError:
        structlog.get_logger().exception("request.failed")
    told = log.text()
    assert "ValueError: the length" in told
    assert "a secret prompt" not in told


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_debug_events_are_left_out(log: Log, log_format: LogFormat) -> None:
    log.set_up(log_format)
    structlog.get_logger().debug("details")
    assert log.text() == ""


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_full_disk_does_not_stop_the_service(
    log: Log, monkeypatch: pytest.MonkeyPatch, log_format: LogFormat
) -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(full, write_through=True))
        log.set_up(log_format)
        with pytest.raises(OSError, match="No space left"):
            sys.stderr.write("x")
        structlog.get_logger().info("backend.ready", model="demo-chat")


def test_control_characters_reach_no_terminal(log: Log) -> None:
    log.set_up("console")
    logger = structlog.get_logger()
    logger.info("backend.ready", model="\x1b[31mred", path="a\nb", plain="a-b")
    try:
        fail_over("\x1b[2J\r")
    except ValueError:
        logger.exception("request.failed")
    text = log.text()
    assert r"'\x1b[31mred'" in text
    assert r"'a\nb'" in text
    assert "plain=a-b" in text
    assert r"ValueError: \x1b[2J\r" in text
    assert "\x1b" not in text
    assert "\r" not in text
