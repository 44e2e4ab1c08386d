"""Logging is set up for real, and what it replaces is put back after each test."""

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
import structlog

from supervisor.observability.logs import set_up_logging
from supervisor.observability.request_log import request_log

LogFormat = Literal["console", "json"]


class Log:
    """Standard error with the log set up to go there."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd
        self._finish: list[Callable[[], None]] = []

    def set_up(self, log_format: LogFormat, level: str = "info") -> None:
        self._finish.append(set_up_logging(log_format, level))

    def text(self) -> str:
        """End the log, and give what it has written."""
        while self._finish:
            self._finish.pop()()
        return self._capfd.readouterr().err

    def lines(self) -> list[str]:
        return self.text().splitlines()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines()]


@pytest.fixture
def log(capfd: pytest.CaptureFixture[str]) -> Iterator[Log]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    log = Log(capfd)
    try:
        yield log
    finally:
        log.text()
        logging.captureWarnings(capture=False)
        root.handlers[:], root.level = handlers, level
        request_log.set_up(None, ("info", "debug"))
        structlog.reset_defaults()
