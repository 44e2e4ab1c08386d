"""The door for all HTTP: aiohttp's server in front of the route table and the relay.

Nothing behind this module knows of aiohttp: a request becomes a `Call` here, and what the client
sees goes out through a `Reply`, whose wire is here.
"""

import asyncio
from collections.abc import Callable
from functools import partial

from aiohttp import HttpVersion11, StreamReader, web
from multidict import CIMultiDict

from supervisor.config.holder import ConfigurationHolder
from supervisor.config.settings import ServerSettings
from supervisor.errors import RequestRefused
from supervisor.gateway.answer import Answer
from supervisor.gateway.bodies import BodyAccount, BodyLedger
from supervisor.gateway.body_fields import inflated
from supervisor.gateway.call import Headers, RequestHead, header
from supervisor.gateway.call_reader import CallReader, request_id_of
from supervisor.gateway.connections import ClientServer, Handler, make_runner
from supervisor.gateway.lane.server import LaneServer
from supervisor.gateway.orders import read_order
from supervisor.gateway.origins import Origins
from supervisor.gateway.relay import Relay
from supervisor.gateway.reply import Reply
from supervisor.gateway.request_target import SERVED_METHODS, in_origin_form
from supervisor.gateway.routes import Route, Scope, find_route, methods_of


class Door:
    """Lets requests in. `owners` are the objects whose methods the route table names."""

    def __init__(
        self,
        *,
        configuration: ConfigurationHolder,
        origins: Origins,
        relay: Relay,
        owners: tuple[object, ...],
    ) -> None:
        self._configuration = configuration
        self._reader = CallReader(configuration)
        self._bodies = BodyLedger(configuration)
        self._origins = origins
        self._relay = relay
        self._owners = {type(owner): owner for owner in owners}

    def runner(self) -> web.BaseRunner:
        """Return what serves."""
        return make_runner(self._let_in, self._settings, self._make_server())

    def _settings(self) -> ServerSettings:
        return self._configuration.current.settings.server

    def _make_server(self) -> Callable[[Handler, Callable[[], ServerSettings]], ClientServer]:
        if not self._settings().fast_lane:
            return ClientServer
        return partial(
            LaneServer,
            reader=self._reader,
            origins=self._origins,
            relay=self._relay,
            bodies=self._bodies,
        )

    async def _let_in(self, request: web.BaseRequest) -> web.StreamResponse:
        """Have a request answered, errors and the closing line included."""
        head = _read_head(request)
        wire = AiohttpWire(request)
        reply = Reply(wire, head, self._origins.headers(head))
        account = self._bodies.open()
        try:
            await reply.given_by(self._answer(request, head, reply, account))
        finally:
            account.close()
        return wire.response

    async def _answer(
        self, request: web.BaseRequest, head: RequestHead, reply: Reply, account: BodyAccount
    ) -> None:
        """Answer by the route that the target means, or by a backend."""
        if request.version.major != HttpVersion11.major:
            raise RequestRefused(
                "version_not_supported", "only HTTP/1.1 and HTTP/1.0 are supported"
            )
        head = in_origin_form(head)
        self._origins.check(head)
        preflight = self._origins.preflight(head) or _about_us(head)
        if preflight is not None:
            return await reply.send(preflight)
        route, values = find_route(head.target)
        if route is None or route.handler is None:
            body = await self._read_body(request, account)
            content = await inflated(head.headers, body, self._reader.max_body_bytes)
            is_raw = route is not None
            return await self._relay.answer(
                self._reader.read(head, body, content, is_raw=is_raw), reply
            )
        if head.method not in methods_of(route):
            raise _method_not_allowed(route)
        reply.record.is_probe = route.scope is Scope.PROBE
        body = await self._read_body(request, account) if route.takes_body else b""
        order = read_order(route.request, head.target.partition("?")[2], values, body)
        return await reply.send(await route.handler(self._owners[route.owner], order))

    async def _read_body(self, request: web.BaseRequest, account: BodyAccount) -> bytes:
        """Return the whole body as it came. Raises RequestRefused."""
        length = request.content_length
        if length is not None and length > self._reader.max_body_bytes:
            raise self._reader.too_large()
        if not request.can_read_body:
            return b""
        account.grow_to(length or 0)
        await _meet_expectation(request)
        pieces: list[bytes] = []
        size = 0
        try:
            while piece := await self._read_piece(request.content):
                pieces.append(piece)
                size += len(piece)
                if size > self._reader.max_body_bytes:
                    raise self._reader.too_large()
                account.grow_to(size)
        except web.RequestPayloadError as error:
            raise RequestRefused("bad_request", f"the body cannot be read: {error}") from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _read_piece(self, content: StreamReader) -> bytes:
        """Return what has come of a body, at its end nothing. Raises RequestRefused."""
        if content.total_bytes and content.is_eof():
            return content.read_nowait()
        limit_s = self._settings().body_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await content.readany()
        except TimeoutError as error:
            raise RequestRefused(
                "body_timeout",
                f"nothing of the body came for {limit_s:g} s (server.body_timeout_s)",
            ) from error


def _about_us(head: RequestHead) -> Answer | None:
    """Answer `OPTIONS *`, which asks about the server as a whole (RFC 9110, 9.3.7)."""
    if head.target != "*":
        return None
    return Answer(status=204, body=b"", headers=((b"Allow", ", ".join(SERVED_METHODS).encode()),))


def _method_not_allowed(route: Route) -> RequestRefused:
    allowed = methods_of(route)
    return RequestRefused(
        "method_not_allowed", f"{route.path} takes {' or '.join(allowed)}", {"allowed": allowed}
    )


class AiohttpWire:
    """The way to a client that came through this door."""

    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request
        self.response = web.StreamResponse()
        """What the server of aiohttp is handed at the end: the answer that was sent."""

    async def send(self, status: int, reason: str | None, headers: Headers, body: bytes) -> None:
        """Send a whole answer now, so that its client need not wait for our bookkeeping."""
        whole = web.Response(status=status, reason=reason, headers=_decoded(headers), body=body)
        self.response = whole
        await whole.prepare(self._request)
        await whole.write_eof()

    async def begin(self, status: int, reason: str | None, headers: Headers) -> None:
        """Send the head of an answer whose body follows by `write`."""
        self.response = web.StreamResponse(status=status, reason=reason, headers=_decoded(headers))
        if header(headers, b"content-length") is None and self._request.version < HttpVersion11:
            self.response.force_close()  # without chunks, the end of the connection ends the body
        await self.response.prepare(self._request)

    async def write(self, content: bytes) -> None:
        """Send a piece of the body; returns when the client keeps up."""
        await self.response.write(content)

    async def end(self) -> None:
        """End the body so that it is complete."""
        await self.response.write_eof()

    def cut(self) -> None:
        """Close the connection, so that what was sent cannot be taken for complete."""
        if self._request.transport is not None:
            self._request.transport.close()


def _decoded(headers: Headers) -> CIMultiDict[str]:
    """Return headers as aiohttp takes them; it encodes them in the same way again."""
    return CIMultiDict(
        (name.decode(), value.decode("utf-8", "surrogateescape")) for name, value in headers
    )


def _read_head(request: web.BaseRequest) -> RequestHead:
    headers = request.raw_headers
    return RequestHead(
        request_id=request_id_of(headers),
        method=request.method,
        target=request.raw_path,
        headers=headers,
        caller=request.remote or "",
        takes_chunks=request.version >= HttpVersion11,
    )


async def _meet_expectation(request: web.BaseRequest) -> None:
    """Have a client send the body that it holds back (RFC 9110, 10.1.1)."""
    expected = request.headers.get("Expect")
    if expected is None or request.version < HttpVersion11:
        return
    if expected.lower() != "100-continue":
        raise RequestRefused("expectation_failed", f"Expect: {expected} cannot be met")
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # what follows is the answer's first byte
