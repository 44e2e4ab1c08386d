"""Asking a controller over HTTP: its refusals as errors, and patience where waiting helps."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

from supervisor.errors import SupervisorError

_CONNECT_TIMEOUT_S = 10.0
_KEEP_ALIVE_S = 15
"""Seconds of silence after which, and between, TCP asks whether the other end is there: 9 times."""

OTHER_ADDRESS = "name another with --url or LLAMA_SUPERVISOR_URL"
"""What to do where the controller is not."""

_MAX_WAITS = 20
"""How often somebody who is told to come back does so, one after the other."""


class NoController(SupervisorError):
    """Nobody answers where the controller is expected, it has gone, or that place is unclear."""


class Refused(SupervisorError):
    """The controller answered with an error. `code` is its stable one, or the status."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status = status
        self.code = code
        super().__init__(message)


class Connection:
    """Asks one controller; `connect` makes it."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def ask(
        self,
        method: str,
        *path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        form: Callable[[], aiohttp.FormData] | None = None,
    ) -> Any:
        """Ask, and return what the answer's JSON says; `path` are its segments, not quoted yet.

        Comes back where the controller says that waiting helps; `form` makes its form anew each
        time. Raises NoController, and Refused.
        """
        url = URL(
            self._url + "".join(f"/{quote(segment, safe='')}" for segment in path), encoded=True
        ).with_query(query)
        for waits_left in reversed(range(_MAX_WAITS)):
            sent = {"data": form()} if form is not None else {"json": body}
            try:
                async with self._session.request(method, url, **sent) as answer:
                    content, headers, status = await answer.read(), answer.headers, answer.status
            except (aiohttp.ClientError, TimeoutError) as error:
                raise NoController(self._describe(error)) from error
            if status < 400:
                return self._content_of(status, content)
            if headers.get("x-should-retry") != "true" or not waits_left:
                break
            await asyncio.sleep(float(headers.get("Retry-After", 1)))
        raise _refusal(status, content)

    def _content_of(self, status: int, content: bytes) -> Any:
        """Read an answer. Raises NoController where no controller has written it."""
        try:
            return msgspec.json.decode(content) if content else None
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise NoController(
                f"what answers at {self._url} is no controller: status {status}, and no JSON: "
                f"{_shown(content)}; {OTHER_ADDRESS}"
            ) from error

    def _describe(self, error: Exception) -> str:
        if isinstance(error, aiohttp.ClientConnectorError):
            reason = f"no controller answers at {self._url} ({error.strerror or error})"
        else:
            reason = f"the controller at {self._url} broke off ({error or 'no answer'})"
        return f"{reason}; start one with `llama-supervisor serve`, or {OTHER_ADDRESS}"


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Connection]:
    """Yield what asks the controller at a URL. Raises NoController for one that cannot be asked.

    How long an answer may take is the controller's to say (`queue.hold_timeout_s`), which tells the
    reason then. A machine that is gone without a word is found by TCP's keep-alive.
    """
    sound_url = _checked(url)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=None)
    connector = aiohttp.TCPConnector(socket_factory=_new_socket)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        yield Connection(session, sound_url)


def _checked(url: str) -> str:
    """Return a URL in ASCII, without a `/` at its end. Raises NoController where it is none."""
    try:
        parsed = URL(url)
        reason = _fault_of(parsed)
    except ValueError as error:
        reason = str(error)
    if reason:
        raise NoController(
            f"{url!r} is no controller's URL ({reason}); write one such as http://127.0.0.1:8000 "
            "in --url or LLAMA_SUPERVISOR_URL"
        )
    return str(parsed).rstrip("/")


def _fault_of(url: URL) -> str:
    """Say what is wrong with a URL, or nothing. Raises ValueError for a host that cannot be."""
    if url.scheme not in {"http", "https"}:
        return "it must begin with http:// or https://"
    if not url.host or not url.host.isprintable() or " " in url.host:
        return "it names no host"
    url.host.encode("idna")  # what cannot be, the look-up of its address would trip over
    return "it has a query or a fragment" if url.raw_query_string or url.raw_fragment else ""


def _new_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEP_ALIVE_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEP_ALIVE_S)
    return made


def _refusal(status: int, content: bytes) -> Refused:
    try:
        error = msgspec.json.decode(content)["error"]
        return Refused(status, str(error["code"]), str(error["message"]))
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError):
        message = f"status {status}, and no error of ours: {_shown(content)}"
        return Refused(status, str(status), message)


def _shown(content: bytes) -> str:
    return repr(content[:200].decode("utf-8", "replace"))
