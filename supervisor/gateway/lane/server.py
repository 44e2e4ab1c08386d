"""The server of all connections: each begins in the fast lane, and may go on at aiohttp's door."""

import asyncio
import contextlib
import re
from collections.abc import Callable, Mapping

from supervisor.config.configuration import Configuration
from supervisor.config.settings import ServerSettings
from supervisor.engine.servers.framing import encoded
from supervisor.errors import RequestRefused
from supervisor.gateway.bodies import BodyAccount, BodyLedger
from supervisor.gateway.call import CallHead, RequestHead
from supervisor.gateway.call_reader import CallReader, request_id_of
from supervisor.gateway.connections import ClientConnection, ClientServer, Handler
from supervisor.gateway.form_routes import form_of, forms_at
from supervisor.gateway.lane.answering import Answering
from supervisor.gateway.lane.crossing import Crossing
from supervisor.gateway.lane.lane import MAX_BODY_BYTES, FastLane, KnownHead
from supervisor.gateway.lane.plain_head import read_plain_head
from supervisor.gateway.origins import Origins
from supervisor.gateway.relay import Relay
from supervisor.gateway.relayed_routes import ROUTE_BY_PATH
from supervisor.gateway.routes import find_routes
from supervisor.observability.request_log import RequestRecord

_MAX_KNOWN = 256  # of 8 KiB each at most

_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ?([0-9]{1,9})\r\n")


class LaneServer(ClientServer):
    """aiohttp's server with the fast lane in front of it.

    `reader`, `origins`, `relay`, `bodies` and `owners` are those of the other door.
    """

    def __init__(  # noqa: PLR0913 - what both doors work with
        self,
        handler: Handler,
        limits: Callable[[], ServerSettings],
        *,
        reader: CallReader,
        origins: Origins,
        relay: Relay,
        bodies: BodyLedger,
        owners: Mapping[type, object],
    ) -> None:
        super().__init__(handler, limits)
        self._reader = reader
        self._origins = origins
        self._relay = relay
        self._bodies = bodies
        self._owners = owners
        self._known: dict[bytes, KnownHead] = {}
        """Heads that came before, by what they are without the lengths of their bodies."""
        self._known_of: Configuration | None = None
        """What they were read with."""
        self._lanes: set[FastLane] = set()
        self._is_empty = asyncio.Event()
        """Set when the last connection has left."""

    def __call__(self) -> asyncio.Protocol:  # type: ignore[override]  # not aiohttp's own
        """Return what serves a new connection."""
        return FastLane(self, asyncio.get_running_loop().time())

    def other_door(self) -> ClientConnection:
        """See `lane.Lanes`."""
        return super().__call__()

    def take_back(self, transport: asyncio.Transport, data: bytes) -> None:
        """See `lane.Lanes`."""
        lane = FastLane(self, asyncio.get_running_loop().time())
        transport.set_protocol(lane)
        lane.connection_made(transport)
        lane.data_received(data)

    def open_account(self) -> BodyAccount:
        """See `lane.Lanes`."""
        return self._bodies.open()

    def enter(self, lane: FastLane) -> None:
        """See `lane.Lanes`."""
        self._lanes.add(lane)

    def leave(self, lane: FastLane) -> None:
        """See `lane.Lanes`."""
        self._lanes.discard(lane)
        if not self._lanes:
            self._is_empty.set()

    def recognise(self, head: bytes) -> tuple[KnownHead, int] | None:
        """See `lane.Lanes`. A head that came before is known, whatever the length of its body."""
        shape, length = split_length(head)
        configuration = self._reader.configuration.current
        if configuration is not self._known_of:
            self._known, self._known_of = {}, configuration
        known = self._known.get(shape)
        if known is None:
            plain = read_plain_head(shape)
            if plain is None:
                return None
            max_body_bytes = min(MAX_BODY_BYTES, self.limits().max_body_bytes)
            forms = forms_at(plain.head.method, plain.head.request_target)
            known = KnownHead(plain, self._read(plain.head), max_body_bytes, forms)
            if len(self._known) >= _MAX_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[shape] = known
        return known, known.plain.length if length is None else length

    def _read(self, head: RequestHead) -> CallHead | None:
        """Read what a plain head asks for; None where the other door has to answer it."""
        is_relayed = head.request_target in ROUTE_BY_PATH
        routes = () if is_relayed else find_routes(head.request_target)[0]
        if routes and routes[0].handler is not None:
            return None
        try:
            self._origins.check(head)
            read = self._reader.read_head(head, is_raw=bool(routes))
            encoded(read.method, read.request_target, read.sent)
        except (RequestRefused, ValueError):
            return None
        return None if read.moves_slots else read

    def cross(
        self, lane: FastLane, known: KnownHead, body: bytes, caller: str
    ) -> Crossing | Answering | None:
        """See `lane.Lanes`. What would be refused is left to the other door, which says why."""
        head, call_head = known.plain.head, known.call_head
        if call_head is None:
            return None
        try:
            lane.account.grow_to(len(body))
            request_id = request_id_of(head)
            form = form_of(known.forms, body) if known.forms else None
            call = self._reader.read(call_head, body, request_id)
            is_ours = form is not None and form.handler is not None
            if is_ours:  # it may wait for the model's turn, or for others
                self._relay.count_waiting(lane.account, call.wanted.model if call.wanted else None)
        except RequestRefused:
            return None
        record = RequestRecord(head.method, head.raw_path, request_id, caller)
        if form is not None and is_ours:
            return Answering(lane, form, self._owners[form.owner], call, record)
        lease = self._relay.arbiter.lease_at_once(
            call.wanted, call.priority, may_spill=call.may_spill
        )
        if lease is None:
            return None
        record.model, record.epoch = lease.backend.model, lease.backend.epoch
        return Crossing(lane, self._relay, call, lease, record)

    def look(self, now: float, limits: ServerSettings) -> None:
        """Look through the connections of both doors; each may leave."""
        super().look(now, limits)
        for lane in tuple(self._lanes):
            lane.look(now, limits)

    def pre_shutdown(self) -> None:
        """Close what is idle."""
        for lane in tuple(self._lanes):
            lane.close_if_idle()
        super().pre_shutdown()

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - aiohttp's
        """Let what is being answered end within the time, and cut the rest."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (timeout or 0.0)
        self._is_empty.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                if self._lanes:
                    await self._is_empty.wait()
        for lane in tuple(self._lanes):
            lane.abort()
        await super().shutdown(max(0.0, deadline - loop.time()))


def split_length(head: bytes) -> tuple[bytes, int | None]:
    """Return the head with 0 for its Content-Length, and that; None where none is recognised.

    Two heads that differ in the length of the body alone are the same otherwise.
    """
    found = _LENGTH.search(head)
    if found is None:
        return head, None
    return b"%b0%b" % (head[: found.start(1)], head[found.end(1) :]), int(found[1])
