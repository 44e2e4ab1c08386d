"""Asking a controller over HTTP: its refusals as errors, and patience where waiting helps."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

from supervisor.errors import SupervisorError

_CONNECT_TIMEOUT_S = 10.0
_READ_TIMEOUT_S = 300.0
"""Longer than a switch and a wait in the queue take (`queue.hold_timeout_s`)."""

_MAX_WAITS = 20
"""How often somebody who is told to come back does so, one after the other."""


class NoController(SupervisorError):
    """Nobody answers where the controller is expected, or it has gone in the middle."""


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
                return msgspec.json.decode(content) if content else None
            if headers.get("x-should-retry") != "true" or not waits_left:
                break
            await asyncio.sleep(float(headers.get("Retry-After", 1)))
        raise _refusal(status, content)

    def _describe(self, error: Exception) -> str:
        if isinstance(error, aiohttp.ClientConnectorError):
            reason = f"no controller answers at {self._url} ({error.strerror or error})"
        else:
            reason = f"the controller at {self._url} broke off ({error or 'no answer'})"
        return (
            f"{reason}; start one with `llama-supervisor serve`, or name another with --url or "
            "LLAMA_SUPERVISOR_URL"
        )


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Connection]:
    """Yield what asks the controller at a URL."""
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=_READ_TIMEOUT_S
    )
    async with aiohttp.ClientSession(timeout=timeout) as session:
        yield Connection(session, url)


def _refusal(status: int, content: bytes) -> Refused:
    try:
        error = msgspec.json.decode(content)["error"]
        return Refused(status, str(error["code"]), str(error["message"]))
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError):
        text = content[:200].decode("utf-8", "replace")
        return Refused(status, str(status), f"status {status}, and no error of ours: {text!r}")
