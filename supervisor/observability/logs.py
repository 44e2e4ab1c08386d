"""Log lines: events with stable dotted names, for people or as JSON. Never prompts, never keys."""

import sys
from typing import Literal

import msgspec
import structlog


def set_up_logging(log_format: Literal["console", "json"]) -> None:
    """Send log events to standard error, in the format asked for."""
    stream = sys.stderr
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if log_format == "json":
        encoder = msgspec.json.Encoder()
        structlog.configure(
            processors=[
                *shared,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(
                    serializer=lambda event, **_: encoder.encode(event)
                ),
            ],
            logger_factory=structlog.BytesLoggerFactory(stream.buffer),
            wrapper_class=structlog.make_filtering_bound_logger("info"),
            cache_logger_on_first_use=True,
        )
    else:
        structlog.configure(
            processors=[
                *shared,
                structlog.dev.ConsoleRenderer(colors=stream.isatty()),
            ],
            logger_factory=structlog.PrintLoggerFactory(stream),
            wrapper_class=structlog.make_filtering_bound_logger("info"),
            cache_logger_on_first_use=True,
        )
