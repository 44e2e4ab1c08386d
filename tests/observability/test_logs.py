"""Log lines: one event each, for machines or for people, and never a reason to fail."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import structlog

from supervisor.observability.logs import set_up_logging

Stderr = pytest.CaptureFixture[str]


def events(stderr: Stderr) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stderr.readouterr().err.splitlines()]


def text(stderr: Stderr) -> str:
    return stderr.readouterr().err


@pytest.fixture
def stderr(capfd: Stderr) -> Stderr:
    """What is written to standard error."""
    return capfd


@pytest.fixture(autouse=True)
def quiet_afterwards() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def fail_over(reason: str, prompt: str = "") -> None:
    raise ValueError(reason)


def test_json_lines_hold_the_event_and_its_fields(stderr: Stderr) -> None:
    set_up_logging("json")
    log = structlog.get_logger()
    log.info("backend.ready", model="demo-chat", epoch=7, took_s=4.2, pids=(1, 2), gone=None)
    log.warning("switch.failed", reason='two\nlines and "quotes" and é')
    first, second = events(stderr)
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


def test_what_json_does_not_know_is_written_as_text(stderr: Stderr) -> None:
    set_up_logging("json")
    structlog.get_logger().info("a", path=Path("/models"), error=ValueError("no"))
    [event] = events(stderr)
    assert (event["path"], event["error"]) == ("/models", "no")


def test_bytes_of_a_client_that_are_not_utf8_are_no_reason_to_fail(stderr: Stderr) -> None:
    set_up_logging("json")
    header = b"caf\xe9".decode("utf-8", "surrogateescape")
    structlog.get_logger().info("request.done", request_id=header, path=Path("/models"))
    [event] = events(stderr)
    assert event["request_id"] == header
    assert event["path"] == "/models"


def test_an_exception_is_one_json_line_with_its_traceback(stderr: Stderr) -> None:
    set_up_logging("json")
    try:
        fail_over("the reason")
    except ValueError:
        structlog.get_logger().exception("request.failed", path="/x")
    [event] = events(stderr)
    assert event["level"] == "error"
    assert "ValueError: the reason" in event["exception"]
    assert "test_logs.py" in event["exception"]


def test_console_lines_are_for_people_without_colours_in_a_file(stderr: Stderr) -> None:
    set_up_logging("console")
    structlog.get_logger().info("backend.ready", model="demo-chat", epoch=7)
    [line] = text(stderr).splitlines()
    assert "backend.ready" in line
    assert "model=demo-chat" in line
    assert "epoch=7" in line
    assert "\x1b" not in line


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_traceback_never_shows_the_values_of_variables(
    stderr: Stderr, log_format: Literal["console", "json"]
) -> None:
    set_up_logging(log_format)
    try:
        fail_over("the length", prompt="a secret " + "prompt")
    except ValueError:
        structlog.get_logger().exception("request.failed")
    told = text(stderr)
    assert "ValueError: the length" in told
    assert "a secret prompt" not in told


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_debug_events_are_left_out(stderr: Stderr, log_format: Literal["console", "json"]) -> None:
    set_up_logging(log_format)
    structlog.get_logger().debug("details")
    assert text(stderr) == ""


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_full_disk_does_not_stop_the_service(
    monkeypatch: pytest.MonkeyPatch, log_format: Literal["console", "json"]
) -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(full, write_through=True))
        set_up_logging(log_format)
        with pytest.raises(OSError, match="No space left"):
            sys.stderr.write("x")
        structlog.get_logger().info("backend.ready", model="demo-chat")
