"""Asking a controller over HTTP: its refusals as errors, and patience where waiting helps."""

import asyncio
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar, cast
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


_Shape = TypeVar("_Shape")


class NoController(SupervisorError):
    """Nobody answers where the controller is expected, it has gone, or that place is unclear."""


class Refused(SupervisorError):
    """The controller answered with an error. `code` is its stable one, or the status."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status = status
        self.code = code
        super().__init__(message)


class _Error(msgspec.Struct, frozen=True):
    code: str
    message: str


class _ErrorAnswer(msgspec.Struct, frozen=True):
    error: _Error


class Connection:
    """Asks one controller; `connect` makes it."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def ask(
        self,
        method: str,
        *path: str,
        shape: type[_Shape],
        query: Mapping[str, str] | None = None,
        body: Any = None,
        form: Callable[[], aiohttp.FormData] | None = None,
    ) -> _Shape:
        """Ask, and return what the answer's JSON says; `path` are its segments, not quoted yet.

        Comes back where the controller says that waiting helps; `form` makes its form anew each
        time. `shape` is the type that the answer must have (client/answers.py); of a TypedDict the
        fields beyond it are returned, too. Raises NoController, and Refused.
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
                return self._content_of(status, content, shape)
            if headers.get("x-should-retry") != "true" or not waits_left:
                break
            await asyncio.sleep(_pause_s(headers.get("Retry-After", "")))
        raise self._refusal(status, content)

    def _content_of(self, status: int, content: bytes, shape: type[_Shape]) -> _Shape:
        """Read an answer. Raises NoController where no controller has written it."""
        reason = "no JSON"
        try:
            told = msgspec.json.decode(content) if content else None
            reason = "another answer than a controller's"
            shaped = msgspec.convert(told, shape)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise NoController(
                f"what answers at {self._url} is no controller, or one of another version: status "
                f"{status}, and {reason} ({error}): {_shown(content)}; {OTHER_ADDRESS}"
            ) from error
        return cast("_Shape", told) if isinstance(shaped, dict) else shaped

    def _refusal(self, status: int, content: bytes) -> Refused:
        try:
            told = msgspec.json.decode(content, type=_ErrorAnswer).error
            return Refused(status, told.code, told.message)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            message = (
                f"{self._url} answers with status {status}, and no error of a controller: "
                f"{_shown(content)}; if none is there, {OTHER_ADDRESS}"
            )
            return Refused(status, str(status), message)

    def _describe(self, error: Exception) -> str:
        if isinstance(error, aiohttp.ClientConnectorError):
            told = error.strerror or str(error)
            if told.startswith("Connect call failed"):  # asyncio's words, in place of the reason
                told = os.strerror(error.errno or 0)
            reason = f"no controller answers at {self._url} ({told})"
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


def _pause_s(given: str) -> float:
    """Return the seconds that Retry-After asks for, as a number or a date (RFC 9110, 10.2.3).

    The controller writes a number; what stands between may make a date of it. 1: neither is there.
    """
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", given):
        return float(given)
    try:
        date = parsedate_to_datetime(given)
    except (ValueError, OverflowError):
        return 1.0
    at = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
    return max(0.0, at.timestamp() - time.time())


def _shown(content: bytes) -> str:
    return repr(content[:200].decode("utf-8", "replace"))
