"""Answers streaming requests before their turn comes, so that nobody on the way gives up.

A request that has waited long enough gets 200 and a comment line each second (server-sent events:
lines that begin with a colon are ignored), until its backend's events follow in the same response.
The status is spent then: whatever fails ends the stream visibly broken, with one error event.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import aiohttp
import msgspec
from aiohttp import web

from supervisor.core.machine.values import Snapshot, Target
from supervisor.engine.servers.backend import Backend
from supervisor.errors import RequestRefused
from supervisor.gateway import relay

COMMENT_PAUSE_S = 1.0

_TOLD_BYTES = 64 * 1024
"""How much of a backend's error a client is told."""


class Forward(Protocol):
    """Sends a request to a leased backend and its answer to the client, as `relay.forward` does."""

    def __call__(
        self, request: web.Request, backend: Backend, path: str, body: bytes, request_id: str
    ) -> Awaitable[web.StreamResponse]:
        """Raise RequestRefused where the request may be sent to another backend."""
        ...


async def answer_early(
    request: web.Request,
    serve: Callable[[Forward], Awaitable[web.StreamResponse]],
    *,
    request_id: str,
    after_s: float,
    what_is_awaited: Callable[[], str],
) -> web.StreamResponse:
    """Let `serve` find a backend and forward to it; begin the answer if that takes `after_s`.

    Raises what `serve` raises unless the answer has begun.
    """
    early = _EarlyAnswer(request, request_id, time.monotonic() + after_s, what_is_awaited)
    early.begin_to_wait()
    try:
        return await serve(early.forward)
    except RequestRefused as error:
        await early.end_to_wait()
        if early.response is None:
            raise
        await relay.break_off(request, early.response, relay.EVENT_END, error)
        return early.response
    finally:
        await early.end_to_wait()


class _EarlyAnswer:
    """The response of one request, from its first comment on."""

    def __init__(
        self, request: web.Request, request_id: str, due_at: float, what: Callable[[], str]
    ) -> None:
        self._request = request
        self._request_id = request_id
        self._arrived_at = time.monotonic()
        self._due_at = due_at
        self._what = what
        self._comments: asyncio.Task[None] | None = None
        self.response: web.StreamResponse | None = None
        """None until it has begun."""

    def begin_to_wait(self) -> None:
        """Write comments from when they are due until `end_to_wait`."""
        self._comments = asyncio.create_task(self._comment(), name=f"comments-{self._request_id}")

    async def end_to_wait(self) -> None:
        """Return when the last comment is written; safe to call twice."""
        comments, self._comments = self._comments, None
        if comments is not None:
            comments.cancel()  # between two comments: what a write has taken is sent whole
            await asyncio.wait([comments])

    async def forward(
        self, request: web.Request, backend: Backend, path: str, body: bytes, request_id: str
    ) -> web.StreamResponse:
        """Forward as usual, or into the response that has begun; wait on if that is refused."""
        if self.response is None:
            await self.end_to_wait()
        answer = relay.answer_afresh if self.response is None else self._go_on
        try:
            return await relay.forward(request, backend, path, body, request_id, answer=answer)
        except RequestRefused:
            if self._comments is None:
                self.begin_to_wait()
            raise

    async def _comment(self) -> None:
        await asyncio.sleep(max(0.0, self._due_at - time.monotonic()))
        response = self.response or await self._begin()
        while True:
            waited_s = int(time.monotonic() - self._arrived_at)
            await response.write(f": {self._what()} {waited_s} s\n\n".encode())
            await asyncio.sleep(COMMENT_PAUSE_S)

    async def _begin(self) -> web.StreamResponse:
        headers = {
            "Content-Type": relay.EVENT_STREAM,
            "Cache-Control": "no-cache",
            "X-Accel-Buffering": "no",  # else nginx collects what is to keep its client waiting
            relay.REQUEST_ID: self._request_id,
        }
        self.response = web.StreamResponse(headers=headers)
        await self.response.prepare(self._request)
        return self.response

    async def _go_on(
        self, request: web.Request, upstream: aiohttp.ClientResponse, backend: Backend, _: str
    ) -> web.StreamResponse:
        await self.end_to_wait()
        response = self.response or await self._begin()
        if _is_event_stream(upstream):
            await relay.stream_into(response, request, upstream, backend)
        else:
            error = await _other_answer(upstream, backend)
            await relay.break_off(request, response, relay.EVENT_END, error)
        return response


def describe_wait(snapshot: Snapshot, model: str | None) -> str:
    """Say what a request for this model waits for: `loading embedding model minilm`."""
    loading = _what_is_loading(snapshot, model)
    if loading is not None:
        return f"loading {loading.mode} model {loading.model}"
    return "waiting for the answer" if snapshot.switch is None else "unloading"


def _what_is_loading(snapshot: Snapshot, model: str | None) -> Target | None:
    if snapshot.switch is not None:
        return snapshot.switch.target
    down = snapshot.recovery(model) or next(iter(snapshot.recoveries), None)
    return down.target if down is not None else None


def _is_event_stream(upstream: aiohttp.ClientResponse) -> bool:
    """Whether the answer's bytes may follow in a response that has begun as one."""
    is_plain = upstream.headers.get("Content-Encoding", "identity") == "identity"
    return upstream.ok and is_plain and upstream.content_type == relay.EVENT_STREAM


async def _other_answer(upstream: aiohttp.ClientResponse, backend: Backend) -> RequestRefused:
    """Tell a client that has its 200 already what the backend answered instead of a stream."""
    try:
        content = await upstream.content.readexactly(_TOLD_BYTES)
    except asyncio.IncompleteReadError as end:
        content = end.partial
    except aiohttp.ClientError:
        content = b""  # it broke on the way; the status is told
    return RequestRefused(
        "no_event_stream",
        f"the server of '{backend.model}' answered {upstream.status} {upstream.reason}, not with "
        "an event stream; its answer is in `answer`",
        {"status": upstream.status, "answer": _as_json(content)},
    )


def _as_json(content: bytes) -> Any:
    try:
        return msgspec.json.decode(content)
    except msgspec.MsgspecError:
        return content.decode(errors="replace")
