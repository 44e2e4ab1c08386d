"""Log lines: events with stable dotted names, for people or as JSON. Never prompts, never keys."""

import atexit
import logging
import os
import sys
from collections.abc import Callable
from typing import BinaryIO, Literal, cast

import structlog

from supervisor.observability.library_logs import take_over_library_logs
from supervisor.observability.log_forms import console_form, json_form
from supervisor.observability.log_writer import LogWriter
from supervisor.observability.request_log import request_log


def set_up_logging(
    log_format: Literal["console", "json"], level: str = "info"
) -> Callable[[], None]:
    """Send log events to standard error, in the format asked for.

    Those of libraries (the `logging` module, asyncio, warnings), too, each as one line. A thread
    writes them, so that a stream which is slow, full or closed stops nobody. Returns a function
    that ends the log: it writes what is left, and waits a second at most for a stream that does
    not take it. It is called at the end of the process, too.
    """
    form = json_form() if log_format == "json" else console_form(has_colours=_has_colours())
    writer = LogWriter(_error_descriptor(), _say_dropped)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *form.processors,
        ],
        logger_factory=structlog.BytesLoggerFactory(cast("BinaryIO", _InOrder(writer))),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    threshold = logging.getLevelNamesMapping()[level.upper()]
    levels = [name for name in ("debug", "info") if getattr(logging, name.upper()) >= threshold]
    request_log.set_up(lambda lines: writer.write(form.format_requests(lines)), levels)
    take_over_library_logs(level)

    def finish() -> None:
        request_log.flush()
        writer.close()

    atexit.register(finish)
    return finish


class _InOrder:
    """The file that structlog writes to: lines of requests that came earlier are written first."""

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer

    def write(self, line: bytes) -> None:
        request_log.flush()
        self._writer.write(line)

    def flush(self) -> None:
        """Do nothing: the writer never waits with what it has."""


def _has_colours() -> bool:
    """Whether standard error is a terminal that shows colours, and wants them (no-color.org)."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    is_plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return is_terminal and not is_plain


def _error_descriptor() -> int:
    """Return a descriptor of standard error's own, which stays what it is; else of nothing."""
    try:
        return os.dup(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):  # closed before we came, or not a file
        return os.open(os.devnull, os.O_WRONLY)


def _say_dropped(lines: int) -> None:
    structlog.get_logger().warning("log.lines_dropped", lines=lines)
