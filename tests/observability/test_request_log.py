"""Closing lines of requests: in batches, in order with the others, and as the others look."""

import asyncio
import json
import re
import time
from collections.abc import Sequence
from typing import Any

import pytest
import structlog

from supervisor.observability.request_log import (
    BATCH_LINES,
    RequestLine,
    RequestLog,
    RequestRecord,
    request_log,
)
from tests.observability.conftest import Log, LogFormat
from tests.patience import PATIENCE_S

ODD_VALUES = (
    ("POST", "/v1/embeddings", "minilm", "127.0.0.1"),
    ("GET", "/a b", "x=y", None),
    ("GET", "/it's", 'a "b"', "::1"),
    ("GET", "/\x1b[31m\r\n{0}", "名", "caf\udce9"),
)


def close(method: str = "GET", path: str = "/", **fields: Any) -> None:
    request_log.done(
        RequestRecord(
            method,
            path,
            "q-1",
            fields.pop("client", ""),
            epoch=3,
            status=200,
            waited_s=0.00004,
            **fields,
        )
    )


def without_time(text: str) -> str:
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "<time>", text)
    return re.sub(r"(took_s\W+)[\d.e-]+", r"\g<1>0", text)


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_closing_line_looks_as_any_other_event(log: Log, log_format: LogFormat) -> None:
    log.set_up(log_format)
    for method, path, model, client in ODD_VALUES:
        close(method, path, model=model, client=client)
    batched = log.text()
    log.set_up(log_format)
    for method, path, model, client in ODD_VALUES:
        structlog.get_logger().info(
            "request.done",
            method=method,
            path=path,
            status=200,
            request_id="q-1",
            epoch=3,
            waited_s=0.0,
            took_s=0.1,
            model=model,
            client=client,
        )
    one_by_one = log.text()
    assert "\x1b" not in batched
    if log_format == "console":
        assert without_time(batched) == without_time(one_by_one)
    else:
        assert fields_of(batched) == fields_of(one_by_one)


def fields_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in without_time(text).splitlines()]


async def test_other_lines_come_after_the_requests_before_them(log: Log) -> None:
    log.set_up("json")
    close(path="/first")
    close(path="/second")
    structlog.get_logger().error("request.failed")
    close(path="/third")
    events = log.events()
    assert [e.get("path", e["event"]) for e in events] == [
        "/first",
        "/second",
        "request.failed",
        "/third",
    ]


async def test_closing_line_is_written_though_nothing_follows_it(log: Log) -> None:
    written = asyncio.Event()
    batches: list[int] = []

    def take(lines: Sequence[RequestLine]) -> None:
        batches.append(len(lines))
        written.set()

    requests = RequestLog()
    requests.set_up(take, ("info",))
    requests.done(RequestRecord("GET", "/", "q-1", ""))
    requests.done(RequestRecord("GET", "/", "q-1", ""))
    assert not batches
    async with asyncio.timeout(PATIENCE_S):
        await written.wait()
    assert batches == [2]


async def test_batch_is_never_larger_than_what_the_loop_can_spare() -> None:
    batches: list[int] = []
    requests = RequestLog()
    requests.set_up(lambda lines: batches.append(len(lines)), ("info",))
    for _ in range(3 * BATCH_LINES + 1):
        requests.done(RequestRecord("GET", "/", "q-1", ""))
    requests.flush()
    assert batches == [BATCH_LINES, BATCH_LINES, BATCH_LINES, 1]


def test_closing_line_says_how_long_the_request_took(log: Log) -> None:
    log.set_up("json")
    close(began_at=time.monotonic() - 2)
    (event,) = log.events()
    assert 2 <= event["took_s"] < 60


async def test_what_is_pending_is_written_at_the_end(log: Log) -> None:
    log.set_up("json")
    close(path="/last")
    assert [event["path"] for event in log.events()] == ["/last"]


@pytest.mark.parametrize(
    ("level", "written"), [("debug", ["/a", "/ready"]), ("info", ["/a"]), ("warning", [])]
)
def test_probes_are_debug_lines(log: Log, level: str, written: list[str]) -> None:
    log.set_up("json", level)
    close(path="/a")
    close(path="/ready", is_probe=True)
    events = [e for e in log.events() if e["event"] == "request.done"]
    assert [event["path"] for event in events] == written
