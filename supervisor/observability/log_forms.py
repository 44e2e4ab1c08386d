"""The two forms of a log line: JSON for machines, console for people. One event, one line."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
import structlog
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

from supervisor.observability.request_log import EVENT, RequestLine

_encoder = msgspec.json.Encoder(enc_hook=str)
_NEEDS_QUOTES = frozenset(" =\"'")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogForm:
    """How lines are written: the last processors of an event, and a batch of closing lines."""

    processors: tuple[Processor, ...]
    format_requests: Callable[[Sequence[RequestLine]], bytes]


def json_form() -> LogForm:
    """One JSON object a line."""
    return LogForm(
        processors=(
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_to_json),
        ),
        format_requests=_requests_as_json,
    )


def console_form(*, has_colours: bool) -> LogForm:
    """Lines for people; whatever could steer their terminal is quoted."""
    renderer = structlog.dev.ConsoleRenderer(
        colors=has_colours,
        # The default prints local variables, and with them prompts and keys.
        exception_formatter=_plain_traceback,
    )
    return LogForm(
        processors=(_quote_control_characters, renderer, _to_bytes),
        format_requests=_console_requests(renderer),
    )


def _to_json(event: Mapping[str, Any], **_: Any) -> bytes:
    try:
        return _encoder.encode(event)
    except UnicodeEncodeError:
        # A client's header may hold bytes that are not UTF-8; they stand in text as surrogates.
        return json.dumps(event, default=str).encode()


def _requests_as_json(lines: Sequence[RequestLine]) -> bytes:
    try:
        return _encoder.encode_lines(lines)
    except UnicodeEncodeError:
        one_by_one = (_to_json(msgspec.to_builtins(line)) + b"\n" for line in lines)
        return b"".join(one_by_one)


def _console_requests(
    renderer: structlog.dev.ConsoleRenderer,
) -> Callable[[Sequence[RequestLine]], bytes]:
    """Return a formatter that writes what the renderer would, in a tenth of its time.

    The renderer writes a line with a placeholder for what differs in each; it is kept for the next
    lines that have the rest in common, as nearly all have.
    """

    @lru_cache(maxsize=256)
    def template(in_common: tuple[str | int | None, ...]) -> str:
        fields = dict(zip(_IN_COMMON, in_common, strict=True))
        level = str(fields["level"])
        fields = {"event": EVENT, **_quote_control_characters(None, level, fields), **_MARKS}
        line = str(renderer(None, level, fields)).replace("%", "%%")
        for mark in _MARKS.values():
            line = line.replace(mark, "%s", 1)
        return line + "\n"

    def form(line: RequestLine) -> str:
        common = template((line.level, line.method, line.path, line.epoch, line.model, line.client))
        stamp = line.timestamp.isoformat()[: -len("+00:00")]
        return common % (
            f"{stamp}Z",
            _shown(line.request_id),
            line.status,
            line.took_s,
            line.waited_s,
        )

    return lambda lines: "".join(map(form, lines)).encode("utf-8", "backslashreplace")


_IN_COMMON = ("level", "method", "path", "epoch", "model", "client")
_MARKS = {
    name: f"\x00{name}\x00" for name in ("timestamp", "request_id", "status", "took_s", "waited_s")
}
"""Stand for what each line has of its own, in the order in which the renderer writes it."""


def _shown(value: str | None) -> str | None:
    """Write text as the renderer does: as it is where it is plain, else quoted."""
    if value is None or (value.isprintable() and _NEEDS_QUOTES.isdisjoint(value)):
        return value
    return repr(value)


def _to_bytes(_logger: WrappedLogger, _name: str, line: Any) -> Any:
    return line.encode("utf-8", "backslashreplace")


class _Quoted:
    """Text that the renderer writes with its control characters escaped."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return repr(self._text)


def _quote_control_characters(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """A model's name, a path or a header must neither colour a terminal nor forge a line."""
    return {
        key: _Quoted(value) if isinstance(value, str) and not value.isprintable() else value
        for key, value in event.items()
    }


def _plain_traceback(stream: Any, exc_info: ExcInfo) -> None:
    """Write the traceback with control characters escaped, but for the line feeds."""
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    stream.write(
        "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text.getvalue())
    )
