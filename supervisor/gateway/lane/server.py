"""The server of all connections: each begins in the fast lane, and may go on at aiohttp's door."""

import asyncio
import contextlib
from collections.abc import Callable

from supervisor.config.settings import ServerSettings
from supervisor.errors import RequestRefused
from supervisor.gateway.bodies import BodyAccount, BodyLedger
from supervisor.gateway.call import RequestHead
from supervisor.gateway.call_reader import CallReader
from supervisor.gateway.connections import ClientConnection, ClientServer, Handler
from supervisor.gateway.lane.crossing import Crossing
from supervisor.gateway.lane.lane import FastLane
from supervisor.gateway.origins import Origins
from supervisor.gateway.relay import Relay
from supervisor.gateway.relayed_routes import ROUTE_BY_PATH
from supervisor.gateway.routes import find_route

_LOOK_EVERY_S = 0.5


class LaneServer(ClientServer):
    """aiohttp's server with the fast lane in front of it.

    `reader`, `origins`, `relay` and `bodies` are those of the other door.
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
    ) -> None:
        super().__init__(handler, limits)
        self._reader = reader
        self._origins = origins
        self._relay = relay
        self._bodies = bodies
        self._lanes: set[FastLane] = set()
        self._is_empty = asyncio.Event()
        """Set when the last connection has left."""
        self._next_look: asyncio.TimerHandle | None = None

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
        if self._next_look is None:
            self._look_later()

    def leave(self, lane: FastLane) -> None:
        """See `lane.Lanes`."""
        self._lanes.discard(lane)
        if not self._lanes:
            self._is_empty.set()

    def cross(self, lane: FastLane, head: RequestHead, body: bytes) -> Crossing | None:
        """See `lane.Lanes`. What would be refused is left to the other door, which says why."""
        route = None if head.request_target in ROUTE_BY_PATH else find_route(head.request_target)[0]
        if route is not None and route.handler is not None:
            return None
        try:
            self._origins.check(head)
            call = self._reader.read(head, body, is_raw=route is not None)
            lease = self._relay.lease_at_once(call)
        except RequestRefused:
            return None
        if lease is None:
            return None
        try:
            return Crossing(lane, self._relay, head, call, lease)
        except ValueError:
            lease.end()
            return None

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
        if self._next_look is not None:
            self._next_look.cancel()
        await super().shutdown(max(0.0, deadline - loop.time()))

    def _look_later(self) -> None:
        self._next_look = asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        """Look through the connections, each of which may leave."""
        now, limits = asyncio.get_running_loop().time(), self.limits()
        for lane in tuple(self._lanes):
            lane.look(now, limits)
        self._next_look = None
        if self._lanes:
            self._look_later()
