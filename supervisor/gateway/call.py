"""A call: what a client asks, read once at the door, in one form for all who decide on it.

Nothing here knows by which door the call came in: every door builds the same value.
"""

from collections.abc import Mapping

import msgspec

from supervisor.core.machine.values import Target
from supervisor.core.scheduling.values import Priority
from supervisor.engine.servers.framing import Request
from supervisor.engine.tasks import ModelTask
from supervisor.errors import RequestRefused

Headers = tuple[tuple[bytes, bytes], ...]
"""Names and values as they stand on the wire, repeated ones included."""

SERVED_BY = b"X-Served-By"
"""Names the profile of the server that answered: of a model with a twin, there are two."""

Fields = Mapping[bytes, bytes]
"""The same by name, in lower case; values of repeated ones joined by commas (RFC 9110, 5.3)."""


class RequestHead(msgspec.Struct, frozen=True, kw_only=True):
    """What stands before a body, from which a door decides whether to read that."""

    method: str

    request_target: str
    """Path and query as they came, in origin form."""

    raw_path: str
    """Its path as it came."""

    headers: Headers

    fields: Fields

    takes_chunks: bool
    """Whether its client reads chunks (HTTP/1.1)."""


class CallHead(msgspec.Struct, frozen=True, kw_only=True):
    """What a head alone says of a call. Clients repeat themselves: it need not be read again."""

    method: str

    path: str
    """Decoded and without the query: what decisions look at."""

    request_target: str
    """Path and query as they came, in origin form: what a backend is sent."""

    query: tuple[tuple[str, str], ...]
    """Decoded names and values, repeated ones included."""

    moves_slots: bool
    """Whether it asks to save or restore a slot's cached prompt."""

    sent: Headers
    """The headers that a backend is sent."""

    is_form: bool
    """Whether its body says of itself that it is a form."""

    content_type: bytes

    body_fault: RequestRefused | None
    """Why nothing can be read of its body; None where it may be."""

    named: str | None
    """The model that the path names; None where it names none."""

    task: ModelTask | None
    """What a POST to the path asks of its model; None where any can answer."""

    may_switch: bool
    """Whether the scheduler may switch for it where its model is not live."""

    priority: Priority | None
    """How urgent its client says that it is; None: as its model is."""

    may_repeat: bool
    """Whether the path and the method allow it."""

    may_stream: bool
    """Whether it can get a stream of events if its body asks for one."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One request, whole. Whoever needs a fact of it finds it here, and reads nothing again."""

    head: CallHead

    request: Request
    """What a backend is sent: the call as it came, but for what is between two hops."""

    named: str | None
    """The model as the client named it; None where it named none."""

    wanted: Target | None
    """What the name means, or the route where none is named; None: whatever is live.

    On the device that it was first seen with: whoever is going to switch asks `Targets` anew."""

    priority: Priority

    streams: bool
    """Whether it asks for a stream of events, in a way in which it can get one."""

    may_repeat: bool
    """Whether it may be sent to a second server if the first one dies before its first byte."""

    may_spill: bool
    """Whether its model's twin may answer it: it is small, and somebody waits for it."""

    deadline_at: float
    """When it stops waiting for a server, on the monotonic clock."""

    fault: RequestRefused | None = None
    """Why its body, which may name a model, cannot be read; None where it can."""

    @property
    def body(self) -> bytes:
        """Its body as it came."""
        return self.request.body

    @property
    def request_id(self) -> str:
        """The client's own where it can be sent on, else ours."""
        return self.request.request_id or ""
