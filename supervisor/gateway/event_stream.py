"""How an answer that is a stream of events may end where it breaks off."""

from supervisor.errors import RequestRefused
from supervisor.gateway.answer import as_json
from supervisor.gateway.call import Headers
from supervisor.gateway.error_responses import error_body
from supervisor.observability.request_log import RequestRecord

EVENT_STREAM = b"text/event-stream"

_EVENT_ENDS = (b"\n\n", b"\r\n\r\n")


def last_event(record: RequestRecord, error: RequestRefused) -> bytes:
    """Return what tells a client why its stream breaks; nothing where it would be misread.

    That is one error event, where an event stream stands at an event boundary.
    """
    is_event_stream = media_type(record.headers) == EVENT_STREAM
    if not is_event_stream or not record.tail.endswith(_EVENT_ENDS):
        return b""
    return b"data: " + as_json(error_body(error)) + b"\n\n"


def media_type(headers: Headers) -> bytes:
    """Return the Content-Type without its parameters, in lower case; nothing where it has none."""
    for name, value in headers:
        if name.lower() == b"content-type":
            return value.partition(b";")[0].strip().lower()
    return b""
