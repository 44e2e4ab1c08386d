"""A running backend: its process, and the one way to talk to it.

Whoever answers is checked to be the process that we started: the socket stands in a folder that
only we can enter, and the peer's process must belong to the child's group. A fresh random key for
each start keeps strangers from calling it.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from math import inf

import structlog

from supervisor.core.machine.values import Park, Stop
from supervisor.engine.port import Launch
from supervisor.engine.prompts.prompt_slots import (
    KeptPrompts,
    SlotClient,
    restore_prompts,
    save_prompts,
)
from supervisor.engine.servers.addresses import (
    accepts_connections,
    is_listening,
    make_room,
)
from supervisor.engine.servers.answer import ServerAnswer
from supervisor.engine.servers.channel import Channel
from supervisor.engine.servers.framing import Request
from supervisor.engine.servers.parking import (
    NotParked,
    ParkingByCheckpoint,
    ParkingByRequest,
    WayOfParking,
    held_on_host,
)
from supervisor.engine.servers.process import ChildProcess, ProcessExit
from supervisor.errors import BackendUnreachable, EngineError

log = structlog.get_logger()

_FIRST_POLL_S = 0.01
_MAX_POLL_S = 0.25
_POLL_GROWTH = 1.1  # 250 ms after some three seconds, and sooner whenever the child says something

_MIN_POLL_S = 0.002  # a server that prints without a pause is not asked without a pause

MAX_REPEATS = 3
"""Servers that one request may see die before whoever made it gets an error."""

_SHARE_TO_RESTORE_IN = 0.95
"""Of the time that a start has: by then restoring is over, and a slow disk fails no start."""

_DEATH_NOTICE_S = 0.5
_SOCKET_PAUSE_S = 5.0
_LOST_GRACE_S = 1.0

OnLine = Callable[[str, bool], None]
"""Takes a line of a server's output, and whether the server was ready when it came."""


class Backend:
    """One spawned server, from its start until its group is reaped."""

    def __init__(self, launch: Launch, on_line: OnLine) -> None:
        """Spawn it. Raises EngineError when it cannot be executed, or has no place to listen."""
        self.launch = launch
        self.epoch = launch.epoch
        self.model = launch.model
        make_room(launch.address)
        self._has_spoken = asyncio.Event()

        self.is_ready = False

        def hear(line: str) -> None:
            self._has_spoken.set()
            on_line(line, self.is_ready)

        self.process = ChildProcess.spawn(launch, hear)
        self._connect()
        self._parked: WayOfParking | None = None
        self.is_stopping = False
        self.is_gone = asyncio.Event()
        """Set once its end is reported: whoever asks for a lease then gets none on it."""
        self.is_replaced = False
        """Whether it is stopped so that a successor may serve its requests, as after a death."""
        self._ending_lost: asyncio.Task[None] | None = None
        self.prompts_saved: KeptPrompts | None = None
        """What a stop kept for the next start; None where nothing was to be kept."""
        self.prompts_restored: KeptPrompts | None = None
        """What was there from the last stop when it became ready; None where nothing was."""

    async def become_ready(self, timeout_s: float = inf) -> None:
        """Return once our own child answers on its readiness path, its kept prompts restored.

        The caller sets the deadline, in `timeout_s`: restoring ends in time for it.
        """
        restore_by = time.monotonic() + timeout_s * _SHARE_TO_RESTORE_IN
        await self._become_healthy()
        await self._restore_prompts(restore_by - time.monotonic())
        self.is_ready = True
        self.process.output.slow_down()

    async def _become_healthy(self) -> None:
        """Ask at growing pauses, and at once after each line of output.

        Servers tell when they listen, and what they tell is only a hint to look.
        """
        pause_s = _FIRST_POLL_S
        while not await self._is_healthy():
            self._has_spoken.clear()
            await asyncio.sleep(_MIN_POLL_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._has_spoken.wait(), pause_s)
            pause_s = min(_MAX_POLL_S, pause_s * _POLL_GROWTH)

    async def _is_healthy(self) -> bool:
        if self._channel.is_closed:  # it is being stopped, or has died
            return False
        abilities = self.launch.abilities
        try:
            if not is_listening(self.launch.address, self.process.pid, self.process.owns):
                return False  # a stranger must not even learn the key
            status, _ = await self._channel.ask("GET", abilities.readiness_path, b"")
        except (BackendUnreachable, OSError):
            return False
        return status == abilities.readiness_status

    async def ask_slots(self, patience_s: float) -> bytes | None:
        """Return what the server tells of its slots, as it stands; None when it does not in time.

        None, too, where it is not known to tell of any.
        """
        path = self.launch.abilities.slots_path
        if path is None:
            return None
        try:
            async with asyncio.timeout(patience_s):
                return (await self._channel.ask("GET", path, b""))[1]
        except (BackendUnreachable, TimeoutError):
            return None

    def _connect(self) -> None:
        self._channel = self._open_channel()
        self.activity = self._channel.activity
        self.send = self._channel.send

    def _open_channel(self) -> Channel:
        return Channel(
            self.launch.address,
            f"Bearer {self.launch.api_key}",
            self.launch.abilities.requests_at_once,
            fault=self._fault,
            is_alive=lambda: self.process.is_running,
            names_requests=self.launch.abilities.takes_request_id,
        )

    @property
    def open_connections(self) -> int:
        """Connections to it that stand, in use or idle."""
        return self._channel.open_connections

    def exchange(self, request: Request) -> ServerAnswer:
        """Send a request, and read its answer: `async with backend.exchange(…) as answer`."""
        return self._channel.exchange(request)

    @property
    def standing(self) -> str:
        """What is known of its process at this moment, as the end of a sentence."""
        if not self.process.is_running:
            return "its process has ended; see /status for its last exit"
        return "its process is ending" if self.process.is_ending else "its process runs on"

    def _fault(self, reason: str, may_repeat: bool) -> BackendUnreachable:
        return BackendUnreachable(
            f"the server of '{self.model}' {reason}",
            {"model": self.model, "epoch": self.epoch, "may_repeat": may_repeat},
            may_repeat=may_repeat,
        )

    async def give_up_memory(
        self, how: Stop | Park, on_begun: Callable[[], None] = lambda: None
    ) -> None:
        """Give the device's memory back; return when that is done, so far as it is ours to do.

        Connections are cut, because a server waits for its clients before it ends; prompts are
        saved where they are to be (`prompts_saved` says what came of it), in bounded time. Then
        `on_begun` is called. Stopped, its processes are ended and reaped, and `wait` tells how they
        ended. Parked, it lives on; raises NotParked where it cannot do that.
        """
        self.is_stopping = True
        self._channel.close()
        if how.keeps_prompts and self.is_ready:
            await self._save_prompts()
        on_begun()
        if isinstance(how, Park):
            await self._park()
            return
        self.is_replaced = how.is_replaced
        may_end = self._parked is None or self._parked.ends_by_itself
        await self._end(how.grace_s if may_end else 0.0)
        self._remove_socket()

    async def _end(self, grace_s: float) -> None:
        """End its processes. One that cannot be ended is named in the log, and lives on."""
        try:
            await self.process.stop(grace_s)
        except EngineError as error:
            log.warning("backend.not_ended", model=self.model, epoch=self.epoch, reason=str(error))

    async def _park(self) -> None:
        self._connect()
        self._parked = self._way_of_parking()
        try:
            await self._parked.park()
        except NotParked:
            self._channel.close()
            raise

    def _way_of_parking(self) -> WayOfParking:
        """Return how it is parked. Raises NotParked where it cannot be."""
        routes = self.launch.abilities.park_routes
        if routes is not None:
            return ParkingByRequest(routes, self._ask)
        if self.launch.may_checkpoint:
            return ParkingByCheckpoint(self.process.pid)
        raise NotParked(
            f"nothing is known of how the server of '{self.model}' gives memory up: its profile "
            "needs command.park, or switch.cuda_checkpoint must be on"
        )

    async def _ask(self, method: str, path: str) -> tuple[int, bytes]:
        return await self._channel.ask(method, path)  # as it is now: a wake has another

    async def take_memory_back(self) -> None:
        """Return once a parked server has its memory again and answers. The caller sets a deadline.

        One that fails to is ended, and `wait` tells of it.
        """
        parked = self._parked or self._way_of_parking()
        self.is_stopping = False
        try:
            await parked.unpark()
        except NotParked as error:
            self.end_lost(f"it did not take its memory back: {error}")
            await self.is_gone.wait()
        self._parked = None
        await self._become_healthy()

    @property
    def host_bytes(self) -> int:
        """The host memory that it holds, and that its end would give back."""
        return held_on_host(self.process.pid)

    async def _save_prompts(self) -> None:
        files = self.launch.prompt_files
        if files is None:
            return
        channel = self._open_channel()
        try:
            slots = self._slots(channel)
            self.prompts_saved = await save_prompts(slots, files, self.prompts_restored)
        finally:
            channel.close()
        self._tell("prompts.saved", self.prompts_saved)

    async def _restore_prompts(self, within_s: float) -> None:
        files = self.launch.prompt_files
        if files is None:
            return
        self.prompts_restored = await restore_prompts(
            self._slots(self._channel),
            files,
            is_stopping=lambda: self.is_stopping,
            within_s=within_s,
        )
        if self.prompts_restored is not None:
            self._tell("prompts.restored", self.prompts_restored)
            await self._become_healthy()  # a server that broke on them is not ready

    def _slots(self, channel: Channel) -> SlotClient:
        return SlotClient(channel.ask, self.launch.abilities.slots_path or "")

    def _tell(self, event: str, kept: KeptPrompts) -> None:
        (log.warning if kept.has_failed else log.info)(
            event,
            model=self.model,
            epoch=self.epoch,
            slots=len(kept.slots),
            tokens=kept.tokens,
            size_bytes=kept.size_bytes,
            took_s=round(kept.took_s, 3),
            **({"reason": kept.reason} if kept.reason else {}),
        )

    async def wait(self) -> ProcessExit:
        """Return how the process ended, once all that came from it is reaped, whoever ended it."""
        watching = asyncio.create_task(self._watch_socket(), name=f"socket-{self.epoch}")
        try:
            return await self.process.wait()
        finally:
            watching.cancel()
            self._channel.close()
            self._remove_socket()

    async def is_found_dead(self, within_s: float) -> bool:
        """Tell, to one that could not connect or whose connection broke, whether the server died.

        Waits half a second for its end to be reported, and up to `within_s` where it is ending: a
        process that holds much memory of a GPU takes seconds to die. One that runs although nobody
        listens at its address any more is ended here. One that we stop, or that runs on,
        is not dead, but for one that is being replaced because it hangs.
        """
        until = time.monotonic() + within_s
        while not self.is_stopping and not self.is_gone.is_set():
            if self.is_ready and not await accepts_connections(self.launch.address):
                self.end_lost("nobody listens at its address any more")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.is_gone.wait(), _DEATH_NOTICE_S)
            is_dying = self._ending_lost is not None or self.process.is_ending
            if not self.is_gone.is_set() and (not is_dying or time.monotonic() >= until):
                return False
        return self.is_replaced if self.is_stopping else True

    async def _watch_socket(self) -> None:
        """End the server where its socket is swept away: nobody could reach it, and none would."""
        path = self.launch.address.socket_path
        while path is not None:
            await asyncio.sleep(_SOCKET_PAUSE_S)
            if self.is_ready and not path.exists():
                self.end_lost(f"its socket is gone ({path})")

    def end_lost(self, why: str) -> None:
        """End a server that nobody can reach or use; what is reported is a death, and recovered.

        `why` is among its last lines. Nothing is done where it is ending already.
        """
        is_over = self.is_stopping or self.process.is_ending
        if is_over or self._ending_lost is not None:
            return
        log.error("backend.lost", model=self.model, epoch=self.epoch, reason=why)
        self.process.last_lines.append(f"(ended by the controller: {why})")
        self._channel.close()
        self._ending_lost = asyncio.create_task(
            self._end(_LOST_GRACE_S), name=f"end-lost-{self.epoch}"
        )

    def _remove_socket(self) -> None:
        if self.launch.address.socket_path is not None:
            self.launch.address.socket_path.unlink(missing_ok=True)
