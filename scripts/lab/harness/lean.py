"""A load in a process of its own that costs a few microseconds a request: raw sockets and epoll.

On two cores a client that costs as much as the relay would measure itself. It looks at an answer
just enough to tell a whole one from a broken one.
"""

import json
import os
import re
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

from lab.harness.command import LabError
from lab.harness.servers import Endpoint

CONNECT_TIMEOUT_S = 10.0
_HEAD_END = b"\r\n\r\n"
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)\r\n")
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]+)\r\n")
_READ_BYTES = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class LeanLoad:
    """Requests as whole messages, and by what an answer to any of them is known to be whole.

    `mark` stands in it once for each unit that is counted, and `end` is what it ends with;
    `find_fault` may say what else is wrong, from the request and the body. The load ends when
    nothing arrives for `stall_s`.
    """

    requests: Sequence[bytes]
    mark: bytes
    units_per_answer: int = 1
    end: bytes = b""
    find_fault: Callable[[bytes, bytes], str | None] | None = None
    stall_s: float = 30.0


def post(path: str, content: object) -> bytes:
    """Write a whole POST request with a JSON body."""
    body = json.dumps(content).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass(slots=True)
class LeanTally:
    """What was counted.

    `units`: those that arrived within the time; `all_units`: those, too, of the answers that began
    within it and ended later. Each right answer has its latency, and the monotonic moment at which
    it was whole. `used_s` is the processor time of the load itself.
    """

    units: int = 0
    all_units: int = 0
    latencies_s: list[float] = field(default_factory=list)
    ended_at: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    used_s: float = 0.0


class LeanClient:
    """One connection, which is opened again after the server has closed it."""

    def __init__(self, endpoint: Endpoint, load: LeanLoad, requests: Iterator[bytes]) -> None:
        self._endpoint = endpoint
        self._load = load
        self._requests = requests
        self._request = b""
        self._received = bytearray()
        self._body_at = 0
        self._end_at: int | None = None
        self._counted = self._counted_to = 0
        self._asked_at = 0.0
        self._has_served = False
        self.socket = self._connect()

    def _connect(self) -> socket.socket:
        connection = self._endpoint.connect(CONNECT_TIMEOUT_S)
        connection.settimeout(None)  # it is read when something is there, and never else
        self._has_served = False
        return connection

    def ask(self, due_at: float | None = None) -> None:
        """Send the next request; its latency counts from when it was due, or else from now."""
        self._request = next(self._requests)
        self._received.clear()
        self._body_at, self._counted, self._counted_to, self._end_at = 0, 0, 0, None
        self._asked_at = time.monotonic() if due_at is None else due_at
        self.socket.sendall(self._request)

    def take(self, tally: LeanTally, *, is_in_time: bool) -> bool:
        """Read what came and count it. Returns whether the answer has ended.

        Raises OSError where the connection broke, and ValueError where the answer is not right.
        """
        data = self.socket.recv(_READ_BYTES)
        if not data:
            raise ConnectionResetError("the connection was closed in an answer")
        self._received += data
        if not self._body_at and not self._read_head():
            return False
        mark = self._load.mark
        units = self._received.count(mark, self._counted_to)
        self._counted += units
        tally.all_units += units
        tally.units += units if is_in_time else 0
        self._counted_to = max(self._counted_to, len(self._received) - len(mark) + 1)
        if self._end_at is None:
            if not self._received.endswith(_LAST_CHUNK):
                return False
        elif len(self._received) < self._end_at:
            return False
        # A mark that the border between two chunks cuts is seen only now.
        missed = self._checked_units() - self._counted
        tally.all_units += missed
        tally.units += missed if is_in_time else 0
        now = time.monotonic()
        tally.latencies_s.append(now - self._asked_at)
        tally.ended_at.append(now)
        self._has_served = True
        return True

    def _read_head(self) -> bool:
        at = self._received.find(_HEAD_END)
        if at < 0:
            return False
        self._body_at = self._counted_to = at + len(_HEAD_END)
        head = bytes(self._received[: self._body_at])
        if not head.startswith(b"HTTP/1.1 200"):
            raise ValueError(f"the answer begins {head[:24]!r}")
        length = _LENGTH.search(head)
        self._end_at = self._body_at + int(length[1]) if length else None
        return True

    def _checked_units(self) -> int:
        body = bytes(self._received[self._body_at :])
        body = body if self._end_at else dechunked(body)
        if not body.endswith(self._load.end):
            raise ValueError(f"an answer ended with {body[-20:]!r}")
        units = body.count(self._load.mark)
        if units != self._load.units_per_answer:
            raise ValueError(f"an answer had {units} marks and not {self._load.units_per_answer}")
        find_fault = self._load.find_fault
        if find_fault is not None and (fault := find_fault(self._request, body)):
            raise ValueError(fault)
        return units

    def was_stale(self) -> bool:
        """Open another connection; returns whether the request may be sent once more.

        No byte of an answer came, and the connection had served before: the request was not read
        (RFC 9112, section 9.3.1). llama-server closes so after each stream.
        """
        may_repeat = self._has_served and not self._received
        self.socket.close()
        self.socket = self._connect()
        if may_repeat:
            self.socket.sendall(self._request)
        return may_repeat


Busy = dict[int, LeanClient]
"""The clients that wait for an answer, by the descriptor of their socket."""


def dechunked(body: bytes) -> bytes:
    """Return the content of a chunked body that has no extensions and no trailers."""
    parts, at = [], 0
    while size := _CHUNK_SIZE.match(body, at):
        begin = size.end()
        at = begin + int(size[1], 16) + 2
        parts.append(body[begin : at - 2])
    return b"".join(parts)


def drive(load: LeanLoad, endpoint: Endpoint, clients: int, seconds: float) -> LeanTally:
    """Put a server under the load for a time, in this process; each client waits for its answer."""
    tally, used_before_s = LeanTally(), time.process_time()
    busy: Busy = {}
    poll = select.epoll()
    for number in range(clients):
        # Each client begins elsewhere in the list, so that no two send the same in step.
        begin = number * len(load.requests) // clients
        client = LeanClient(endpoint, load, islice(cycle(load.requests), begin, None))
        busy[client.socket.fileno()] = client
        poll.register(client.socket, select.EPOLLIN)
    ends_at = time.monotonic() + seconds
    for client in busy.values():
        client.ask()
    while busy:
        ready = poll.poll(load.stall_s)
        is_in_time = time.monotonic() < ends_at
        for number, _ in ready:
            _serve(busy, number, tally, poll, is_in_time=is_in_time)
        if not ready:
            tally.failures["no answer in time"] += len(busy)
            break
    poll.close()
    tally.used_s = time.process_time() - used_before_s
    return tally


def drive_until_answered(
    load: LeanLoad, endpoint: Endpoint, clients: int, seconds: float
) -> tuple[LeanTally, float]:
    """Drive for a time, or longer where nothing is answered in it; returns for how long, too.

    For rates against which all else is held. Raises LabError where nothing is answered in 16 times
    of it either.
    """
    for longer_s in (seconds, 4 * seconds, 16 * seconds):
        tally = drive(load, endpoint, clients, longer_s)
        if tally.units:
            return tally, longer_s
    raise LabError(f"{endpoint}: no answer in {longer_s:g} s: {dict(tally.failures)}")


def work_off(load: LeanLoad, endpoint: Endpoint, clients: int) -> LeanTally:
    """Have each of the load's requests answered once, with so many clients at a time."""
    tally, used_before_s = LeanTally(), time.process_time()
    requests = iter(load.requests)
    busy: Busy = {}
    poll = select.epoll()
    for _ in range(min(clients, len(load.requests))):
        client = LeanClient(endpoint, load, requests)
        busy[client.socket.fileno()] = client
        poll.register(client.socket, select.EPOLLIN)
        client.ask()
    while busy:
        ready = poll.poll(load.stall_s)
        for number, _ in ready:
            client_done = take(busy, number, tally, poll, is_in_time=True)
            if client_done is not None:
                _ask_or_close(client_done, busy)
        if not ready:
            tally.failures["no answer in time"] += len(busy)
            break
    poll.close()
    tally.used_s = time.process_time() - used_before_s
    return tally


def _ask_or_close(client: LeanClient, busy: Busy) -> None:
    try:
        client.ask()
    except StopIteration:
        del busy[client.socket.fileno()]
        client.socket.close()


def _serve(
    busy: Busy, number: int, tally: LeanTally, poll: select.epoll, *, is_in_time: bool
) -> None:
    """Take what came for a client; one whose answer has ended asks again while there is time."""
    client = take(busy, number, tally, poll, is_in_time=is_in_time)
    if client is None:
        return
    if is_in_time:
        client.ask()
    else:
        del busy[client.socket.fileno()]
        client.socket.close()


def take(
    busy: Busy, number: int, tally: LeanTally, poll: select.epoll, *, is_in_time: bool
) -> LeanClient | None:
    """Take what came on a socket. Returns its client once that waits no more."""
    client = busy[number]
    try:
        goes_on = not client.take(tally, is_in_time=is_in_time)
    except (OSError, ValueError) as error:
        del busy[number]
        goes_on = client.was_stale()
        if not goes_on:
            tally.failures[str(error)] += 1
        busy[client.socket.fileno()] = client
        poll.register(client.socket, select.EPOLLIN)
    return None if goes_on else client


def process_id() -> int:
    """Return the id of the process that runs this, which is that of the load."""
    return os.getpid()
