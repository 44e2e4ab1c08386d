"""A reply: what one client sees of its call, from before the first byte to the end.

    NOT_BEGUN ── EARLY ──┐
        └────────────────┴─ STREAMING ── ENDED

Whatever fails before the first byte is answered with its status. An early answer has begun as an
event stream because its client has waited long: comment lines follow each second (server-sent
events: lines that begin with a colon are ignored) until its backend's events follow in the same
response. Its status is spent, as that of a stream that has begun: what fails then ends the stream
visibly broken, with one error event at an event boundary, never with a clean end.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from enum import StrEnum
from typing import Protocol

import structlog

from supervisor.errors import RequestRefused
from supervisor.gateway.answer import Answer, PiecewiseAnswer
from supervisor.gateway.bodies import BodyAccount
from supervisor.gateway.call import Headers
from supervisor.gateway.error_responses import error_answer
from supervisor.gateway.event_stream import EVENT_STREAM, last_event, note_broken
from supervisor.observability.request_log import RequestRecord, request_log

log = structlog.get_logger()

REQUEST_ID = b"X-Request-ID"
COMMENT_PAUSE_S = 1.0


class ReplyState(StrEnum):
    """How far a reply has come."""

    NOT_BEGUN = "not_begun"
    EARLY = "early"
    STREAMING = "streaming"
    ENDED = "ended"


class Wire(Protocol):
    """The way to the client, as a door has it. Writes return when the client keeps up."""

    async def send(self, status: int, reason: str | None, headers: Headers, body: bytes) -> None:
        """Send a whole answer. To HEAD only its head is sent."""
        ...

    async def begin(self, status: int, reason: str | None, headers: Headers) -> None:
        """Send the head of an answer whose body follows by `write`."""
        ...

    async def write(self, content: bytes) -> None:
        """Send a piece of the body."""
        ...

    async def end(self) -> None:
        """End the body so that it is complete."""
        ...

    def cut(self) -> None:
        """Close the connection, so that what was sent cannot be taken for complete."""
        ...


class Reply:
    """The answer to one request, and what its closing line says of it."""

    def __init__(self, wire: Wire, record: RequestRecord, headers: Headers = ()) -> None:
        """`headers` are those of every answer to this request, whatever it is (CORS)."""
        self._wire = wire
        self._headers = (*headers, (REQUEST_ID, record.request_id.encode()))
        self.comments: asyncio.Task[None] | None = None
        """What writes them; None while nothing does."""
        self.account: BodyAccount | None = None
        """What its call's body takes of the ledger; None where it has none."""
        self.record = record
        self.state = ReplyState.NOT_BEGUN
        self.error_answer: Callable[[RequestRefused], Answer] = error_answer
        """How errors look to its caller."""

    async def send(self, answer: Answer | PiecewiseAnswer) -> None:
        """Send an answer of ours."""
        if isinstance(answer, Answer):
            return await self.send_whole(answer.status, None, answer.headers, answer.body)
        length = (b"Content-Length", b"%d" % answer.size_bytes)
        await self.begin(200, None, (*answer.headers, length))
        async with aclosing(answer.pieces) as pieces:  # also where the client leaves
            if self.record.method != "HEAD":
                async for piece in pieces:
                    await self.pass_on(piece)
        return await self.end()

    async def send_whole(
        self, status: int, reason: str | None, headers: Headers, body: bytes
    ) -> None:
        """Send an answer at once; nothing may have begun."""
        self.state, self.record.status = ReplyState.ENDED, status
        await self._wire.send(status, reason, (*headers, *self._headers), body)

    async def begin(self, status: int, reason: str | None, headers: Headers) -> None:
        """Send the head of an answer; `pass_on` sends its body."""
        self.state = ReplyState.STREAMING
        self.record.status, self.record.headers = status, headers
        await self._wire.begin(status, reason, (*headers, *self._headers))

    async def pass_on(self, content: bytes) -> None:
        """Send a piece of the body as it came."""
        await self._wire.write(content)
        self.record.tail = (content if len(content) >= 4 else self.record.tail + content)[-4:]

    async def end(self) -> None:
        """End an answer that has begun so that it is complete."""
        await self._wire.end()
        self.state = ReplyState.ENDED

    async def refuse(self, error: RequestRefused) -> None:
        """Answer with an error, or end with it what has begun."""
        await self.stop_comments()
        if self.state is ReplyState.NOT_BEGUN:
            await self.send(self.error_answer(error))
        elif self.state is not ReplyState.ENDED:
            await self.break_off(error)

    async def break_off(self, error: RequestRefused) -> None:
        """End what has begun so that it cannot be taken for complete.

        The connection closes without the last chunk; an event stream that stands at an event
        boundary gets one error event before.
        """
        note_broken(self.record, error)
        self.state = ReplyState.ENDED
        event = last_event(self.record, error)
        if event:
            await self._wire.write(event)
        self._wire.cut()

    def comment_from(self, due_at: float, what_is_awaited: Callable[[], str]) -> None:
        """Begin the answer early if it has not begun at `due_at`, and write comments from then on.

        `stop_comments` ends that.
        """
        if self.comments is None:
            self.comments = asyncio.create_task(
                self._comment(due_at, what_is_awaited), name=f"comments-{self.record.request_id}"
            )

    async def stop_comments(self) -> None:
        """Return when the last comment is written; safe to call twice."""
        comments, self.comments = self.comments, None
        if comments is not None:
            comments.cancel()  # between two comments: what a write has taken is sent whole
            await asyncio.wait([comments])

    async def given_by(self, answering: Awaitable[None]) -> None:
        """Await what answers; turn errors into answers, and write the closing line in any case."""
        try:
            await self._answer_or_refuse(answering)
        except ConnectionResetError as error:
            # The client left in the middle of the answer, and the cancellation is on its way.
            raise asyncio.CancelledError from error
        finally:
            request_log.done(self.record)

    async def _answer_or_refuse(self, answering: Awaitable[None]) -> None:
        try:
            await answering
        except RequestRefused as error:
            await self.refuse(error)
        except ConnectionResetError:
            raise
        except Exception:
            log.exception("request.failed", path=self.record.path)
            await self.refuse(
                RequestRefused("internal_error", "the controller failed; its log says why")
            )

    async def _comment(self, due_at: float, what_is_awaited: Callable[[], str]) -> None:
        await asyncio.sleep(max(0.0, due_at - time.monotonic()))
        if self.state is ReplyState.NOT_BEGUN:
            await self._begin_early()
        while True:
            waited_s = int(self.record.age_s)
            await self._wire.write(f": {what_is_awaited()}, {waited_s} s\n\n".encode())
            await asyncio.sleep(COMMENT_PAUSE_S)

    async def _begin_early(self) -> None:
        headers = (
            (b"Content-Type", EVENT_STREAM),
            (b"Cache-Control", b"no-cache"),
            (b"X-Accel-Buffering", b"no"),  # else nginx collects what is to keep its client waiting
        )
        self.state = ReplyState.EARLY
        self.record.status, self.record.headers = 200, headers
        await self._wire.begin(200, None, (*headers, *self._headers))
