"""The door for all HTTP: aiohttp's server in front of the route table and the relay.

Nothing behind this module knows of aiohttp: a request becomes a `Call` here, and what the client
sees goes out through a `Reply`, whose wire is here.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from operator import attrgetter

from aiohttp import HttpVersion, HttpVersion11, web
from multidict import CIMultiDict

from supervisor.config.holder import ConfigurationHolder
from supervisor.config.settings import ServerSettings
from supervisor.errors import RequestRefused
from supervisor.gateway.answer import Answer
from supervisor.gateway.bodies import BodyLedger
from supervisor.gateway.body_fields import inflated, unknown_encoding
from supervisor.gateway.body_reading import BodyPace, meet_expectation, too_large
from supervisor.gateway.call import Headers, RequestHead
from supervisor.gateway.call_reader import CallReader, read_head, request_id_of
from supervisor.gateway.connections import ClientServer, Handler, make_runner
from supervisor.gateway.form_routes import FormRoute, form_of, forms_at
from supervisor.gateway.lane.server import LaneServer
from supervisor.gateway.origins import Origins
from supervisor.gateway.parameters import read_parameters
from supervisor.gateway.relay import Relay
from supervisor.gateway.relayed_routes import ROUTE_BY_PATH
from supervisor.gateway.reply import Reply
from supervisor.gateway.request_target import ORIGIN_FORM, SERVED_METHODS, in_origin_form
from supervisor.gateway.route import Route, Scope
from supervisor.gateway.routes import NO_VALUES, find_routes
from supervisor.gateway.uploads import Fields, Uploads
from supervisor.observability.request_log import RequestRecord


class Door:
    """Lets requests in. `owners` are the objects whose methods the route table names."""

    def __init__(  # noqa: PLR0913 - each is a part of its own
        self,
        *,
        configuration: ConfigurationHolder,
        reader: CallReader,
        origins: Origins,
        relay: Relay,
        uploads: Uploads,
        owners: tuple[object, ...],
    ) -> None:
        self._configuration = configuration
        self._reader = reader
        self._bodies = BodyLedger(configuration)
        self._origins = origins
        self._relay = relay
        self._uploads = uploads
        self._owners: Mapping[type, object] = {type(owner): owner for owner in owners}

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
            owners=self._owners,
        )

    async def _let_in(self, request: web.BaseRequest) -> web.StreamResponse:
        """Have a request answered, errors and the closing line included."""
        wire = AiohttpWire(request)
        head = read_head(
            request.method,
            request.raw_path,
            request.raw_headers,
            takes_chunks=request.version >= HttpVersion11,
        )
        cors = self._origins.headers(head) if b"origin" in head.fields else ()
        record = RequestRecord(
            head.method, head.raw_path, request_id_of(head), request.remote or ""
        )
        reply = Reply(wire, record, cors)
        try:
            await reply.given_by(self._answer(wire, head, reply))
        finally:
            if reply.account is not None:
                reply.account.close()
        return wire.response

    async def _answer(self, wire: "AiohttpWire", head: RequestHead, reply: Reply) -> None:
        """Answer by the route that the request target means, or by a backend."""
        request = wire.request
        wire.closes = True  # where a head is not understood, nothing that follows it is
        _require_known_framing(request.version, head)
        if head.method == "CONNECT" or not ORIGIN_FORM.fullmatch(head.request_target):
            head = in_origin_form(head)
        preflight = self._origins.check(head)
        wire.closes = False
        if preflight is not None:
            return await reply.send(preflight)
        if head.request_target == "*":
            return await reply.send(_about_us())
        is_known = head.request_target in ROUTE_BY_PATH
        routes, values = ((), NO_VALUES) if is_known else find_routes(head.request_target)
        if not routes or routes[0].handler is None:
            forms = () if routes else forms_at(head.method, head.request_target)
            if forms:
                return await self._answer_in_form(request, head, reply, forms)
            body, content = await self._read_content(request, head, reply)
            call_head = self._reader.read_head(head, is_raw=bool(routes))
            call = self._reader.read(call_head, body, reply.record.request_id, content)
            return await self._relay.answer(call, reply)
        route = next((each for each in routes if head.method in each.methods), None)
        if route is None or route.handler is None:
            raise _method_not_allowed(routes)
        reply.record.is_probe = route.scope is Scope.PROBE
        reply.error_answer = route.error_answer
        async with self._brought(route, request, head, reply) as (body, form):
            query = head.request_target.partition("?")[2]
            asked = read_parameters(route.parameters, query, values, body, form)
            answer = await route.handler(self._owners[route.owner], asked)
        return await reply.send(answer)

    @asynccontextmanager
    async def _brought(
        self, route: Route, request: web.BaseRequest, head: RequestHead, reply: Reply
    ) -> AsyncIterator[tuple[bytes, Fields]]:
        """Yield the body of a request to a route of ours: whole, or the fields of an upload."""
        if not route.takes_body:
            yield b"", ()
        elif not route.upload_limit or request.content_type == "application/json":
            body, content = await self._read_content(request, head, reply)
            _require_readable(head, body)
            yield content, ()
        else:
            settings = self._configuration.current.settings
            async with self._uploads.receive(
                request,
                settings.server.body_timeout_s,
                attrgetter(route.upload_limit)(settings),
                route.upload_limit,
            ) as fields:
                yield b"", fields

    async def _answer_in_form(
        self,
        request: web.BaseRequest,
        head: RequestHead,
        reply: Reply,
        forms: tuple[FormRoute, ...],
    ) -> None:
        """Answer in the form in which the body asks, errors included; until then, in the first."""
        reply.error_answer = forms[0].error_answer
        body, content = await self._read_content(request, head, reply)
        form = _readable_form(forms, head, body, content)
        reply.error_answer = form.error_answer
        call_head, request_id = self._reader.read_head(head), reply.record.request_id
        if form.handler is None:
            return await self._relay.answer(
                self._reader.read(call_head, body, request_id, content), reply
            )
        call = self._reader.read(call_head, content, request_id)
        reply.record.model = call.wanted.model if call.wanted else None
        if reply.account is not None:
            self._relay.count_waiting(reply.account, reply.record.model)
        answer = await form.answer(self._owners[form.owner], call)
        reply.record.waited_s = answer.waited_s
        return await reply.send(answer)

    async def _read_content(
        self, request: web.BaseRequest, head: RequestHead, reply: Reply
    ) -> tuple[bytes, bytes]:
        """Return the whole body as it came, and inflated. Raises RequestRefused."""
        body = await self._read_body(request, head, reply)
        encodings = head.fields.get(b"content-encoding")
        if encodings is None:
            return body, body
        if reply.account is None:  # there is none
            return body, body
        limit = self._settings().max_body_bytes
        return body, await inflated(encodings, body, limit, reply.account.grow_to)

    async def _read_body(self, request: web.BaseRequest, head: RequestHead, reply: Reply) -> bytes:
        """Return the whole body as it came. Raises RequestRefused."""
        limits = self._settings()
        length = request.content_length
        if length is not None and length > limits.max_body_bytes:
            raise too_large(limits.max_body_bytes, "server.max_body_bytes")
        if not request.can_read_body:
            return b""
        if b"expect" in head.fields:
            await meet_expectation(request)
        reply.account = account = self._bodies.open()
        account.grow_to(length or 0)
        pace = BodyPace(request.content, limits.body_timeout_s)
        pieces: list[bytes] = []
        size = 0
        while size != length and (piece := await pace.keep(request.content.readany())):
            pieces.append(piece)
            size += len(piece)
            if size > limits.max_body_bytes:
                raise too_large(limits.max_body_bytes, "server.max_body_bytes")
            if size > (length or 0):
                account.grow_to(size)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _require_known_framing(version: HttpVersion, head: RequestHead) -> None:
    """Refuse what another server may see another end of (RFC 9112, 6.1). Raises RequestRefused."""
    if version.major != HttpVersion11.major:
        raise RequestRefused("version_not_supported", "only HTTP/1.1 and HTTP/1.0 are supported")
    coding = head.fields.get(b"transfer-encoding")
    if coding is None:
        return
    if not head.takes_chunks:
        raise RequestRefused("bad_request", "HTTP/1.0 has no Transfer-Encoding")
    if coding.strip().lower() != b"chunked":
        raise RequestRefused(
            "bad_request",
            f"Transfer-Encoding: {coding.decode(errors='replace')} is not supported, only chunked",
        )


def _require_readable(head: RequestHead, body: bytes) -> None:
    """Refuse a body in an encoding that is not read here. Raises RequestRefused."""
    refusal = unknown_encoding(head.fields.get(b"content-encoding", b""))
    if body and refusal is not None:
        raise refusal


def _readable_form(
    forms: tuple[FormRoute, ...], head: RequestHead, body: bytes, content: bytes
) -> FormRoute:
    """Return the form that a body is in; one that is relayed may be in any encoding.

    Raises RequestRefused.
    """
    try:
        form = form_of(forms, content)
    except RequestRefused:
        _require_readable(head, body)
        raise
    if form.handler is not None:
        _require_readable(head, body)
    return form


def _about_us() -> Answer:
    """Answer `OPTIONS *`, which asks about the server as a whole (RFC 9110, 9.3.7)."""
    return Answer(status=204, body=b"", headers=((b"Allow", ", ".join(SERVED_METHODS).encode()),))


def _method_not_allowed(routes: Sequence[Route]) -> RequestRefused:
    allowed = tuple(method for route in routes for method in route.methods)
    path = routes[0].path
    return RequestRefused(
        "method_not_allowed", f"{path} takes {' or '.join(allowed)}", {"allowed": allowed}
    )


class AiohttpWire:
    """The way to a client that came through this door."""

    def __init__(self, request: web.BaseRequest) -> None:
        self.request = request
        self.closes = False
        """Whether the connection ends with an answer that is sent whole."""
        self.response = web.StreamResponse()
        """What the server of aiohttp is handed at the end: the answer that was sent."""

    async def send(self, status: int, reason: str | None, headers: Headers, body: bytes) -> None:
        """Send a whole answer now, so that its client need not wait for our bookkeeping."""
        whole = web.Response(status=status, reason=reason, headers=_decoded(headers), body=body)
        self.response = whole
        if self.closes or not self.request.content.is_eof():
            # What is still to come of the body would be taken for the next request, or the other
            # way round: a client that is not told waits for an answer (RFC 9110, 10.1.1).
            whole.force_close()
        await whole.prepare(self.request)
        await whole.write_eof()

    async def begin(self, status: int, reason: str | None, headers: Headers) -> None:
        """Send the head of an answer whose body follows by `write`."""
        self.response = web.StreamResponse(status=status, reason=reason, headers=_decoded(headers))
        has_length = any(name.lower() == b"content-length" for name, _ in headers)
        if not has_length and self.request.version < HttpVersion11:
            self.response.force_close()  # without chunks, the end of the connection ends the body
        await self.response.prepare(self.request)

    async def write(self, content: bytes) -> None:
        """Send a piece of the body; returns when the client keeps up."""
        await self.response.write(content)

    async def end(self) -> None:
        """End the body so that it is complete."""
        await self.response.write_eof()

    def cut(self) -> None:
        """Close the connection, so that what was sent cannot be taken for complete."""
        if self.request.transport is not None:
            self.request.transport.close()


def _decoded(headers: Headers) -> CIMultiDict[str]:
    """Return headers as aiohttp takes them; it encodes them in the same way again."""
    return CIMultiDict(
        (name.decode(), value.decode("utf-8", "surrogateescape")) for name, value in headers
    )
