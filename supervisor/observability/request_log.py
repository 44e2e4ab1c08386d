"""The closing line of each request, formatted in batches: half a microsecond at its end.

A line through structlog takes 24 µs (console) or 9 µs (JSON), several times what the rest of a
relayed request may cost. So lines are kept, and formatted together once there are `BATCH_LINES`,
or after `BATCH_S`. Every other log line lets them go first, so that the log keeps its order.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime

import msgspec
import structlog

BATCH_LINES = 100
"""Lines that are formatted at once: under a millisecond, which no other request notices."""

BATCH_S = 0.02
"""Seconds after which a line is formatted even if few others have come."""

EVENT = "request.done"


CLIENT_LEFT = 499
"""nginx's status of a request whose client left, for want of a standard one."""


class RequestRecord(msgspec.Struct, gc=False):
    """The facts of one request and its answer, noted as they become known.

    `path`: as it came, without the query. `client`: its address. `model` and `epoch` are those of
    its backend. `waited_s`: how long it waited for leases. `is_probe`: somebody looks whether we
    live, or may be sent requests. `headers`: those of the answer, once it has begun. `tail`: the
    last bytes of the body that were sent, four where there are so many; it begins at the boundary
    of an event.
    """

    method: str
    path: str
    request_id: str
    client: str
    model: str | None = None
    epoch: int | None = None
    status: int = CLIENT_LEFT
    waited_s: float = 0.0
    is_probe: bool = False
    headers: tuple[tuple[bytes, bytes], ...] = ()
    tail: bytes = b"\n\n"
    began_at: float = msgspec.field(default_factory=time.monotonic)

    @property
    def age_s(self) -> float:
        """Seconds since the request was read."""
        return time.monotonic() - self.began_at


class RequestLine(msgspec.Struct, frozen=True, gc=False, tag_field="event", tag=EVENT):
    """How a request ended. None: not known."""

    method: str
    path: str
    status: int
    request_id: str | None
    epoch: int | None
    waited_s: float
    took_s: float
    model: str | None
    client: str | None
    level: str
    timestamp: datetime


class RequestLog:
    """Takes closing lines in the loop's thread; `flush` may be called from any.

    Until `set_up` is called, as in tests, each line goes through structlog at once.
    """

    def __init__(self) -> None:
        self._pending: deque[RequestLine] = deque()
        self._emit: Callable[[Sequence[RequestLine]], None] | None = None
        self._levels: Collection[str] = ("info", "debug")

    def set_up(
        self, emit: Callable[[Sequence[RequestLine]], None] | None, levels: Collection[str]
    ) -> None:
        """Hand batches to `emit` from now on, and drop the lines of other levels than `levels`."""
        self.flush()
        self._emit, self._levels = emit, levels

    def done(self, record: RequestRecord) -> None:
        """Log that a request has ended, at the level `info`, or `debug` for a probe."""
        level = "debug" if record.is_probe else "info"
        if level not in self._levels:
            return
        pending, waited_s = self._pending, record.waited_s
        pending.append(
            RequestLine(
                record.method,
                record.path,
                record.status,
                record.request_id,
                record.epoch,
                _rounded(waited_s) if waited_s else 0.0,
                _rounded(time.monotonic() - record.began_at),
                record.model,
                record.client,
                level,
                datetime.now(UTC),
            )
        )
        count = len(pending)
        if count == 1:
            self._flush_in_time()
        elif count >= BATCH_LINES:
            self.flush()

    def flush(self) -> None:
        """Hand on what is pending, at most a batch."""
        lines: list[RequestLine] = []
        while self._pending and len(lines) < BATCH_LINES:
            lines.append(self._pending.popleft())
        if lines:
            (self._emit or _log_each)(lines)

    def _flush_in_time(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # nobody would come back to it
            self.flush()
            return
        if self._emit is None:
            self.flush()
        else:
            loop.call_later(BATCH_S, self.flush)


request_log = RequestLog()
"""One for the process, as the log itself is; `set_up_logging` sets it up."""


def _rounded(seconds: float) -> float:
    """Round to 0.1 ms, in half the time that `round` takes."""
    return int(seconds * 10_000 + 0.5) / 10_000


def _log_each(lines: Sequence[RequestLine]) -> None:
    log = structlog.get_logger()
    for line in lines:
        fields = msgspec.structs.asdict(line)
        del fields["timestamp"]
        getattr(log, fields.pop("level"))(EVENT, **fields)
