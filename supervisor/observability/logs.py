"""Log lines: events with stable dotted names, for people or as JSON. Never prompts, never keys."""

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any, BinaryIO, Literal, TextIO, cast

import msgspec
import structlog

_encoder = msgspec.json.Encoder(enc_hook=str)


def set_up_logging(log_format: Literal["console", "json"], level: str = "info") -> None:
    """Send log events to standard error, in the format asked for."""
    stream = sys.stderr
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if log_format == "json":
        structlog.configure(
            processors=[
                *shared,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(serializer=_to_json),
            ],
            logger_factory=structlog.BytesLoggerFactory(cast("BinaryIO", _Lossy(stream.buffer))),
            wrapper_class=structlog.make_filtering_bound_logger(level),
            cache_logger_on_first_use=True,
        )
    else:
        structlog.configure(
            processors=[
                *shared,
                structlog.dev.ConsoleRenderer(
                    colors=stream.isatty(),
                    # The default prints local variables, and with them prompts and keys.
                    exception_formatter=structlog.dev.plain_traceback,
                ),
            ],
            logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Lossy(stream))),
            wrapper_class=structlog.make_filtering_bound_logger(level),
            cache_logger_on_first_use=True,
        )


class _Lossy:
    """A stream that drops what it cannot write: a full disk must not stop the service."""

    def __init__(self, stream: IO[Any]) -> None:
        self._stream = stream

    def write(self, line: Any) -> None:
        with suppress(OSError):
            self._stream.write(line)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def _to_json(event: Mapping[str, Any], **_: Any) -> bytes:
    try:
        return _encoder.encode(event)
    except UnicodeEncodeError:
        # A client's header may hold bytes that are no UTF-8; they stand in text as surrogates.
        return json.dumps(event, default=str).encode()
