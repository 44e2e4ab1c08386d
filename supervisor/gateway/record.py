"""What is kept of a request while it is answered: its closing line, and how its stream may end."""

import time

from supervisor.arbiter.arbiter import Lease
from supervisor.errors import RequestRefused
from supervisor.gateway.answer import as_json
from supervisor.gateway.call import Headers, RequestHead
from supervisor.gateway.error_responses import error_body
from supervisor.observability.request_log import request_log

EVENT_STREAM = b"text/event-stream"

_EVENT_ENDS = (b"\n\n", b"\r\n\r\n")
_CLIENT_LEFT = 499  # nginx's number, for want of a standard one


class RequestRecord:
    """The facts of one request and its answer, for every door."""

    __slots__ = (
        "_began_at",
        "_caller",
        "_head",
        "_headers",
        "_tail",
        "epoch",
        "is_probe",
        "model",
        "request_id",
        "status",
        "waited_s",
    )

    def __init__(self, head: RequestHead, request_id: str, caller: str) -> None:
        """`caller`: the client's address."""
        self._head = head
        self.request_id = request_id
        self._caller = caller
        self._began_at = time.monotonic()
        self._tail = b"\n\n"
        """The last four bytes that were sent; a body begins at an event boundary."""
        self._headers: Headers = ()
        """Those of the answer, once it has begun."""
        self.status = _CLIENT_LEFT
        self.is_probe = False
        """Whether somebody looks whether we live, or may be sent requests; logged at debug only."""
        self.model: str | None = None
        self.epoch: int | None = None
        self.waited_s = 0.0
        """How long the call waited for leases."""

    def lease(self, lease: Lease) -> None:
        """A backend is leased to the call, perhaps after another one has died."""
        self.model, self.epoch = lease.backend.model, lease.backend.epoch
        self.waited_s += lease.waited_s

    @property
    def path(self) -> str:
        """The path that was asked for, as it came."""
        return self._head.request_target.partition("?")[0]

    @property
    def age_s(self) -> float:
        """Seconds since the request was read."""
        return time.monotonic() - self._began_at

    def begin(self, status: int, headers: Headers) -> None:
        """The head of the answer is sent."""
        self.status = status
        self._headers = headers

    def pass_on(self, content: bytes) -> None:
        """A piece of the body is sent."""
        self._tail = content[-4:] if len(content) >= 4 else (self._tail + content)[-4:]

    def last_event(self, error: RequestRefused) -> bytes:
        """Return what tells a client why its stream breaks; nothing where it would be misread.

        That is one error event, where an event stream stands at an event boundary.
        """
        is_event_stream = media_type(self._headers) == EVENT_STREAM
        if not is_event_stream or not self._tail.endswith(_EVENT_ENDS):
            return b""
        return b"data: " + as_json(error_body(error)) + b"\n\n"

    def close(self) -> None:
        """Write the closing line; the last that is done with a request, whatever came of it."""
        request_log.done(
            self._head.method,
            self.path,
            self.status,
            request_id=self.request_id,
            epoch=self.epoch,
            waited_s=self.waited_s,
            took_s=self.age_s,
            model=self.model,
            client=self._caller,
            level="debug" if self.is_probe else "info",
        )


def media_type(headers: Headers) -> bytes:
    """Return the Content-Type without its parameters, in lower case; nothing where it has none."""
    for name, value in headers:
        if name.lower() == b"content-type":
            return value.partition(b";")[0].strip().lower()
    return b""
