"""Relays requests to the leased backend: streams are passed on as they come, never collected.

A client that leaves cancels the handler, which cuts the upstream connection and so frees the slot.
A backend that dies ends the client's stream visibly broken, never with a clean end.
"""

import asyncio
import errno
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import aiohttp
import msgspec
import structlog
from aiohttp import HttpVersion11, web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from supervisor.engine.servers.backend import Backend
from supervisor.errors import RequestRefused
from supervisor.gateway.error_responses import error_body

log = structlog.get_logger()

REQUEST_ID = "X-Request-ID"
EVENT_STREAM = "text/event-stream"
EVENT_END = b"\n\n"

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)  # RFC 9110, section 7.6.1
_OURS = frozenset({"authorization", "x-api-key", "x-request-id", "content-length", "expect"})
_COLLECT_UP_TO_BYTES = 1024 * 1024
_CROWDED_PAUSE_S = 0.005
_NO_DEFAULT_HEADERS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


Answer = Callable[
    [web.Request, aiohttp.ClientResponse, Backend, str], Awaitable[web.StreamResponse]
]
"""Passes a backend's answer, of which the head is there, to the client. The text is our id."""


async def answer_afresh(
    request: web.Request, upstream: aiohttp.ClientResponse, backend: Backend, request_id: str
) -> web.StreamResponse:
    """Give the client the backend's answer as it is, status and headers included.

    Raises RequestRefused `backend_unreachable` as long as the client has not got a byte.
    """
    headers = answer_headers(upstream.headers, request_id)
    length = upstream.content_length
    if request.method == "HEAD" or (length is not None and length <= _COLLECT_UP_TO_BYTES):
        content = await _collect(upstream, backend)
        whole = web.Response(
            status=upstream.status, reason=upstream.reason, headers=headers, body=content
        )
        # Sent from here, so that the client need not wait for our bookkeeping behind it.
        await whole.prepare(request)
        await whole.write_eof()
        return whole
    response = web.StreamResponse(status=upstream.status, reason=upstream.reason, headers=headers)
    if length is None and request.version < HttpVersion11:
        response.force_close()  # without chunks, the end of the connection is that of the body
    await response.prepare(request)
    await stream_into(response, request, upstream, backend)
    return response


async def forward(  # noqa: PLR0913 - what is sent, to whom, and how it is answered
    request: web.Request,
    backend: Backend,
    path: str,
    body: bytes,
    request_id: str,
    *,
    answer: Answer = answer_afresh,
) -> web.StreamResponse:
    """Send the request to the backend, when its turn comes, and the answer to the client.

    Raises RequestRefused `backend_unreachable` as long as the client has not got a byte.
    """
    async with backend.turns:
        backend.activity.begin()
        try:
            upstream = await _send(request, backend, path, body, request_id)
            backend.open_answers.add(upstream)
            try:
                return await answer(request, upstream, backend, request_id)
            finally:
                backend.open_answers.discard(upstream)
                # Cuts the connection unless it was read to its end: that frees the slot.
                upstream.close()
        finally:
            backend.activity.end()


async def _send(
    request: web.Request, backend: Backend, path: str, body: bytes, request_id: str
) -> aiohttp.ClientResponse:
    """Return the answer's head, once more on a fresh connection if a pooled one was stale.

    llama-server closes a connection after 5 s or 100 requests. Resending is safe only because the
    connection was reused and no byte of an answer came: the server never read the request.
    """
    url = URL(backend.base_url + path, encoded=True)
    headers = request_headers(request.headers, backend, request_id)
    while True:
        connection = SimpleNamespace(is_reused=False)
        try:
            return await backend.session.request(
                request.method,
                url,
                headers=headers,
                data=body or None,
                allow_redirects=False,
                skip_auto_headers=_NO_DEFAULT_HEADERS,
                trace_request_ctx=connection,
            )
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            is_crowded = _finds_no_room(error)
            is_stale = connection.is_reused and not _has_begun_to_answer(error)
            if not (is_crowded or is_stale) or not backend.process.is_running:
                raise _unreachable(backend, error) from error
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


async def _collect(upstream: aiohttp.ClientResponse, backend: Backend) -> bytes:
    try:
        return await upstream.read()
    except (aiohttp.ClientError, OSError) as error:
        raise _unreachable(backend, error) from error


async def stream_into(
    response: web.StreamResponse,
    request: web.Request,
    upstream: aiohttp.ClientResponse,
    backend: Backend,
) -> None:
    """Pass the backend's answer on into a response that has begun, and end it as that ends."""
    tail = EVENT_END
    try:
        async for chunk in upstream.content.iter_any():
            await response.write(chunk)
            backend.activity.signs += 1
            tail = (tail + chunk)[-4:]
    except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError) as error:
        if request.transport is None or request.transport.is_closing():
            raise  # it is the client that left
        await break_off(request, response, tail, _unreachable(backend, error))
    else:
        await response.write_eof()


async def break_off(
    request: web.Request, response: web.StreamResponse, tail: bytes, error: RequestRefused
) -> None:
    """End the client's stream so that it cannot be taken for complete.

    The connection closes without the last chunk; an event stream that stands at an event boundary
    gets one error event before. `tail` is what was sent last, four bytes of it.
    """
    log.warning("relay.broken", reason=error.message, path=request.path)
    is_event_stream = response.content_type == EVENT_STREAM
    if is_event_stream and tail.endswith((b"\n\n", b"\r\n\r\n")):
        await response.write(b"data: " + msgspec.json.encode(error_body(error)) + EVENT_END)
    if request.transport is not None:
        request.transport.close()


def request_headers(
    headers: CIMultiDictProxy[str], backend: Backend, request_id: str
) -> CIMultiDict[str]:
    """Return the client's headers for the backend: hop-by-hop ones out, its key and the id in."""
    kept = _without_hop_by_hop(headers, _OURS)
    kept["Authorization"] = backend.authorization
    if backend.launch.abilities.takes_request_id:
        kept[REQUEST_ID] = request_id
    return kept


def answer_headers(headers: CIMultiDictProxy[str], request_id: str) -> CIMultiDict[str]:
    """Return the backend's headers for the client: hop-by-hop ones out, the request's id in."""
    kept = _without_hop_by_hop(headers, frozenset())
    kept[REQUEST_ID] = request_id
    return kept


def _without_hop_by_hop(headers: CIMultiDictProxy[str], others: frozenset[str]) -> CIMultiDict[str]:
    named = headers.get("Connection", "")
    dropped = _HOP_BY_HOP | others
    if named:
        dropped |= {name.strip().lower() for name in named.split(",")}
    return CIMultiDict(
        (name, value) for name, value in headers.items() if name.lower() not in dropped
    )


def _unreachable(backend: Backend, error: BaseException) -> RequestRefused:
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
