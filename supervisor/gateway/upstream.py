"""The way to a backend: a request goes out, the head of its answer comes back, then its body."""

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from supervisor.engine.servers.backend import Backend
from supervisor.errors import RequestRefused
from supervisor.gateway.call import Headers

_CROWDED_PAUSE_S = 0.005
_NO_DEFAULT_HEADERS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


class BackendAnswer:
    """A backend's answer, of which the head is there. Reading raises RequestRefused."""

    def __init__(self, response: aiohttp.ClientResponse, backend: Backend) -> None:
        self._response = response
        self._backend = backend
        self.status = response.status
        self.reason = response.reason
        self.headers: Headers = tuple(response.headers.items())
        self.length = response.content_length

    async def read(self) -> bytes:
        """Return the whole body."""
        try:
            return await self._response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise unreachable(self._backend, error) from error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Return the body's pieces as they come."""
        try:
            async for chunk in self._response.content.iter_any():
                self._backend.activity.signs += 1
                yield chunk
        except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError) as error:
            raise unreachable(self._backend, error) from error


@asynccontextmanager
async def exchange(
    backend: Backend, method: str, target: str, headers: Headers, body: bytes
) -> AsyncIterator[BackendAnswer]:
    """Send a request to the backend, when its turn comes. Leaving early cuts the connection.

    Raises RequestRefused `backend_unreachable` where no answer begins.
    """
    async with backend.turns:
        backend.activity.begin()
        try:
            response = await _send(backend, method, target, headers, body)
            backend.open_answers.add(response)
            try:
                yield BackendAnswer(response, backend)
            finally:
                backend.open_answers.discard(response)
                # Cuts the connection unless it was read to its end: that frees the slot.
                response.close()
        finally:
            backend.activity.end()


async def _send(
    backend: Backend, method: str, target: str, headers: Headers, body: bytes
) -> aiohttp.ClientResponse:
    """Return the answer's head, once more on a fresh connection if a pooled one was stale.

    llama-server closes a connection after 5 s or 100 requests. Resending is safe only because the
    connection was reused and no byte of an answer came: the server never read the request.
    """
    url = URL(backend.base_url + target, encoded=True)
    while True:
        connection = SimpleNamespace(is_reused=False)
        try:
            return await backend.session.request(
                method,
                url,
                headers=CIMultiDict(headers),
                data=body or None,
                allow_redirects=False,
                skip_auto_headers=_NO_DEFAULT_HEADERS,
                trace_request_ctx=connection,
            )
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            is_crowded = _finds_no_room(error)
            is_stale = connection.is_reused and not _has_begun_to_answer(error)
            if not (is_crowded or is_stale) or not backend.process.is_running:
                raise unreachable(backend, error) from error
            if is_crowded:
                await asyncio.sleep(_CROWDED_PAUSE_S)


def _finds_no_room(error: Exception) -> bool:
    """Whether the server's queue of connections was full: a unix socket refuses then (unix(7))."""
    return isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno == errno.EAGAIN


def _has_begun_to_answer(error: Exception) -> bool:
    """Whether the server may have acted on the request that this error ended."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return not isinstance(error.message, str)  # else it is the head that had begun to come
    return not isinstance(error, aiohttp.ClientOSError)


def unreachable(backend: Backend, error: BaseException) -> RequestRefused:
    """Say that the backend's connection broke, and what became of its process."""
    if backend.session.closed:
        reason = "is stopped, or has ended; see /status for its last exit"
    else:
        state = "runs on" if backend.process.is_running else "has ended"
        reason = f"broke the connection ({type(error).__name__}); its process {state}"
    return RequestRefused(
        "backend_unreachable",
        f"the server of '{backend.model}' {reason}",
        {"model": backend.model, "epoch": backend.epoch},
    )
