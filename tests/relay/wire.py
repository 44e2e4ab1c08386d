"""HTTP/1.1 as bytes on a socket: what a client library would tidy up, left as it is."""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.patience import PATIENCE_S

Connect = Callable[[], socket.socket]
"""Opens a new connection to one server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer as it came: interim ones (1xx) left out, the body's framing taken off.

    `framing` is `length`, `chunked`, `close` (the body ends with the connection) or `none`.
    """

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    framing: str


class Incomplete(Exception):
    """The connection ended before the answer did. `args[0]` is what had come."""


class Connection:
    """A connection, and what has been received on it beyond the answers already read."""

    def __init__(self, peer: socket.socket, patience_s: float = PATIENCE_S) -> None:
        peer.settimeout(patience_s)
        self.socket = peer
        self._received = b""

    def send(self, *parts: bytes) -> None:
        """Send each part by itself."""
        for part in parts:
            self.socket.sendall(part)

    def read_answer(self, method: str) -> Answer:
        """Read one answer to its end. Raises Incomplete when the connection ends before."""
        while True:
            status, reason, headers = self._read_head()
            if not 100 <= status < 200 or status == 101:
                break
        fields = {name.lower(): value for name, value in headers}
        if method == "HEAD" or status in {101, 204, 304}:
            body, framing = b"", "none"
        elif "chunked" in fields.get("transfer-encoding", "").lower():
            body, framing = self._read_chunks(), "chunked"
        elif "content-length" in fields:
            body, framing = self._read(int(fields["content-length"])), "length"
        else:
            body, framing = self.read_rest(), "close"
        return Answer(status=status, reason=reason, headers=headers, body=body, framing=framing)

    def read_until(self, mark: bytes) -> bytes:
        """Read up to and with a mark. Raises Incomplete."""
        while mark not in self._received:
            self._receive()
        found, _, self._received = self._received.partition(mark)
        return found + mark

    def read_rest(self) -> bytes:
        """Read until the peer closes, or resets, the connection."""
        try:
            while True:
                self._receive()
        except (Incomplete, ConnectionError):
            rest, self._received = self._received, b""
            return rest

    def is_closed_within(self, patience_s: float) -> bool:
        """Whether the peer closes the connection in this time, without a further byte."""
        self.socket.settimeout(patience_s)
        try:
            return not self._received and self.socket.recv(1) == b""
        except TimeoutError:
            return False
        except ConnectionError:
            return True

    def _read_head(self) -> tuple[int, str, tuple[tuple[str, str], ...]]:
        lines = self.read_until(b"\r\n\r\n").decode("latin-1").split("\r\n")[:-2]
        _, status, reason = (lines[0] + " ").split(" ", 2)
        named = (line.split(":", 1) for line in lines[1:])
        return int(status), reason.strip(), tuple((n, value.strip()) for n, value in named)

    def _read_chunks(self) -> bytes:
        content = b""
        while size := int(self.read_until(b"\r\n").split(b";")[0], 16):
            content += self._read(size)
            assert self._read(2) == b"\r\n"
        while self.read_until(b"\r\n") != b"\r\n":
            pass  # a trailer field
        return content

    def _read(self, size: int) -> bytes:
        while len(self._received) < size:
            self._receive()
        found, self._received = self._received[:size], self._received[size:]
        return found

    def _receive(self) -> None:
        received = self.socket.recv(1024 * 1024)
        if not received:
            raise Incomplete(self._received)
        self._received += received


def ask(connect: Connect, method: str, *parts: bytes) -> Answer:
    """Send a request on a fresh connection and read its answer. Raises Incomplete."""
    with connect() as peer:
        connection = Connection(peer)
        connection.send(*parts)
        return connection.read_answer(method)


def to_unix(path: str) -> Connect:
    """Return what connects to a unix socket."""

    def connect() -> socket.socket:
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(path)
        return peer

    return connect


def to_port(port: int) -> Connect:
    """Return what connects to a port of the loopback."""
    return lambda: socket.create_connection(("127.0.0.1", port))


def until(condition: Callable[[], bool], within_s: float = PATIENCE_S) -> None:
    """Ask again and again until the condition holds."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"{condition} does not hold after {within_s} s"
        time.sleep(0.005)
