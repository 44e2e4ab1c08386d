"""One HTTP exchange as a client of some temper makes it, and what it saw."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from multidict import CIMultiDict

from lab.chaos.ledger import End, Entry, Ledger, Seen
from lab.chaos.setting import REQUEST_BOUND_S
from lab.harness.lean import dechunked

_SLOW_FOR_S = 2.0
"""A slow reader reads at full speed after this, so that no stream lasts for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer, or the part of a stream that came: its JSON, or its texts put together."""

    status: int
    content: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked, and how its answer is recognised.

    `find_fault` returns what is wrong with an answer's content, or with the part of a stream.
    `is_lines`: the answer is JSON line by line.
    """

    kind: str
    path: str
    model: str | None = None
    body: bytes | None = None
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    is_stream: bool = False
    is_lines: bool = False
    right_statuses: frozenset[int] = frozenset({200})
    may_refuse: frozenset[str] = frozenset()
    find_fault: Callable[[Answer], str | None] = lambda _: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Temper:
    """How the client behaves: it leaves after a time or some events, or reads slowly.

    `sends_half`: it sends one half of the body, and no more until it leaves. `reads_nothing`: it
    does not read the answer until it leaves. `half_closes`: it closes its side once it has asked.
    """

    leave_after_s: float | None = None
    leave_after_events: int | None = None
    pause_per_event_s: float = 0.0
    sends_half: bool = False
    reads_nothing: bool = False
    half_closes: bool = False


PATIENT = Temper()

_INTERIM = b"HTTP/1.1 100 "
_HEADER = re.compile(r"\r\n([^:]+): *([^\r]*)")


class _Left(Exception):
    """The client has had enough."""


class Exchanger:
    """Makes exchanges, each on a connection of its own, and writes them into the ledger."""

    def __init__(self, url: str, ledger: Ledger) -> None:
        self._url = url
        self._ledger = ledger
        self._numbers = count(1)

    async def exchange(self, request: Request, temper: Temper = PATIENT) -> tuple[Entry, Any]:
        """Make the exchange; returns its entry, and the JSON or text that came."""
        request_id = f"chaos-{next(self._numbers)}"
        started_at = time.time()
        self._ledger.pending[request_id] = started_at
        attempt = _Attempt(request, temper, request_id)
        try:
            seen = await self._bounded(attempt)
        finally:
            del self._ledger.pending[request_id]
        wrong = None
        if attempt.status in request.right_statuses and attempt.content is not None:
            wrong = request.find_fault(Answer(status=attempt.status, content=attempt.content))
        entry = Entry(
            request_id=request_id,
            kind=request.kind,
            model=request.model,
            started_at=started_at,
            ended_at=time.time(),
            seen=seen,
            wrong=wrong,
            is_batch=request.headers.get("X-Priority") == "batch",
            right_statuses=request.right_statuses,
            may_refuse=request.may_refuse,
        )
        self._ledger.entries.append(entry)
        return entry, attempt.content

    async def _bounded(self, attempt: "_Attempt") -> Seen:
        """Make the exchange within its bound, or until the client leaves."""
        leave_after_s = attempt.temper.leave_after_s
        try:
            async with asyncio.timeout(leave_after_s or REQUEST_BOUND_S):
                return await attempt.make(self._url)
        except TimeoutError:
            return attempt.seen(End.TIMED_OUT if leave_after_s is None else End.LEFT)
        except _Left:
            return attempt.seen(End.LEFT)
        except aiohttp.ClientConnectorError as error:
            return attempt.seen(End.NO_CONNECTION, repr(error))
        except (aiohttp.ClientError, OSError) as error:
            return attempt.seen(End.BROKEN, repr(error))


class _Attempt:
    """The state of one exchange, kept when it is broken off."""

    def __init__(self, request: Request, temper: Temper, request_id: str) -> None:
        self.request = request
        self.temper = temper
        self.request_id = request_id
        self.status: int | None = None
        self.content: Any = None
        self._code: str | None = None
        self._headers: Mapping[str, str] = {}

    def seen(self, end: End, detail: str = "") -> Seen:
        """Sum up what was seen."""
        return Seen(
            end=end,
            status=self.status,
            code=self._code,
            retry_after=self._headers.get("Retry-After"),
            should_retry=self._headers.get("x-should-retry"),
            has_begun=self.content is not None,
            detail=detail,
        )

    async def make(self, url: str) -> Seen:
        """Send the request and read the answer."""
        headers = {"X-Request-ID": self.request_id, **self.request.headers}
        if self.request.body is not None:
            headers.setdefault("Content-Type", "application/json")
        if self.temper.half_closes:
            return await self._make_half_closed(url, headers)
        timeout = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(force_close=True)
        async with (
            aiohttp.ClientSession(
                connector=connector, timeout=timeout, read_bufsize=2**12
            ) as client,
            client.request(
                self.request.method,
                url + self.request.path,
                data=self._body(),
                headers=headers,
            ) as answer,
        ):
            self.status = answer.status
            self._headers = answer.headers
            if self.temper.reads_nothing and answer.status == 200:
                await asyncio.sleep(REQUEST_BOUND_S)
            if answer.content_type == "text/event-stream":
                return await self._read_stream(answer)
            return self._read_json(await answer.read())

    async def _make_half_closed(self, url: str, headers: Mapping[str, str]) -> Seen:
        """Ask on a bare connection, close the own side, and read the answer to its end."""
        address = urlsplit(url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            body = self.request.body or b""
            more = {"Host": address.netloc, "Connection": "close", "Content-Length": len(body)}
            lines = "".join(f"{name}: {value}\r\n" for name, value in {**more, **headers}.items())
            start = f"{self.request.method} {self.request.path} HTTP/1.1\r\n{lines}\r\n"
            writer.write(start.encode() + body)
            writer.write_eof()
            raw = await reader.read()
        finally:
            writer.close()
        while raw.startswith(_INTERIM):  # whether we are there is asked so
            raw = raw.partition(b"\r\n\r\n")[2]
        head, _, content = raw.partition(b"\r\n\r\n")
        if not content:
            raise ConnectionResetError(f"no answer came: {raw[:80]!r}")
        self.status = int(head.split()[1])
        self._headers = CIMultiDict(_HEADER.findall(head.decode()))
        is_chunked = self._headers.get("Transfer-Encoding") == "chunked"
        return self._read_json(dechunked(content) if is_chunked else content)

    def _body(self) -> Any:
        """Return the body as aiohttp takes it; an iterator is sent chunk by chunk as it comes."""
        body = self.request.body
        return _half_of(body) if body is not None and self.temper.sends_half else body

    def _read_json(self, raw: bytes) -> Seen:
        try:
            is_lines = self.request.is_lines and self.status == 200
            content: Any = list(map(json.loads, raw.splitlines())) if is_lines else json.loads(raw)
        except ValueError:
            return self.seen(End.TRUNCATED, f"no JSON: {raw[:80]!r}")
        self._code = _code_of(content)
        self.content = content
        if self._code is None:
            return self.seen(End.WHOLE, "" if self.status == 200 else str(content)[:200])
        return self.seen(End.WHOLE, str(content["error"].get("message"))[:300])

    async def _read_stream(self, answer: aiohttp.ClientResponse) -> Seen:
        """Read events to the end mark. A stream that ends without it is not whole."""
        started_at, events = time.monotonic(), 0
        texts: list[str] = []
        is_finished = False
        async for event in _events(answer.content):
            is_finished = is_finished or event == "[DONE]"
            if event != "[DONE]":
                content = json.loads(event)
                self._code = _code_of(content)
                if self._code is not None or "error" in content:
                    return self.seen(End.ERROR_EVENT, str(content["error"])[:200])
                texts.extend(c["delta"].get("content") or "" for c in content["choices"])
                self.content = {"model": content.get("model"), "text": "".join(texts)}
            events += 1
            if events == self.temper.leave_after_events:
                raise _Left
            if time.monotonic() - started_at < _SLOW_FOR_S:
                await asyncio.sleep(self.temper.pause_per_event_s)
        return self.seen(End.WHOLE if is_finished else End.TRUNCATED)


async def _half_of(body: bytes) -> AsyncIterator[bytes]:
    yield body[: len(body) // 2]
    await asyncio.sleep(REQUEST_BOUND_S)


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[str]:
    """Yield the data of server-sent events, one line each, as llama-server sends them."""
    rest = b""
    async for chunk in content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data: "):
                yield line[6:].decode()


def _code_of(content: Any) -> str | None:
    """Return the code of our error envelope; llama-server's own has a number there."""
    error = content.get("error") if isinstance(content, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) else None
