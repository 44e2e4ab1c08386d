"""How an answer that is a stream of events may end where it breaks off."""

import structlog

from supervisor.errors import RequestRefused
from supervisor.gateway.answer import as_json
from supervisor.gateway.call import Headers
from supervisor.gateway.error_responses import error_body
from supervisor.observability.request_log import RequestRecord

log = structlog.get_logger()

EVENT_STREAM = b"text/event-stream"

MESSAGES_PATH = "/v1/messages"
"""Of Anthropic's API, also below `/upstream/…`."""

_EVENT_ENDS = (b"\n\n", b"\r\n\r\n")


def note_broken(record: RequestRecord, error: RequestRefused) -> None:
    """Log why an answer broke off; its closing line has the status that it began with."""
    log.warning(
        "relay.broken",
        reason=error.message,
        path=record.path,
        model=record.model,
        request_id=record.request_id,
    )


def last_event(record: RequestRecord, error: RequestRefused) -> bytes:
    """Return what tells a client why its stream breaks; nothing where it would be misread.

    That is one error event, where an event stream stands at an event boundary. Anthropic's clients
    pass over events without a name.
    """
    is_event_stream = media_type(record.headers) == EVENT_STREAM
    if not is_event_stream or not record.tail.endswith(_EVENT_ENDS):
        return b""
    body = error_body(error)
    if not record.path.endswith(MESSAGES_PATH):
        return b"data: " + as_json(body) + b"\n\n"
    return b"event: error\ndata: " + as_json({"type": "error", **body}) + b"\n\n"


def media_type(headers: Headers) -> bytes:
    """Return the Content-Type without its parameters, in lower case; nothing where it has none."""
    for name, value in headers:
        if name.lower() == b"content-type":
            return value.partition(b";")[0].strip().lower()
    return b""
