"""Carries out the core's commands and reports back what came of them, as events."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import structlog

from supervisor.arbiter.ports import BackendLauncher, MemorySource, Schedule, TwinComparison
from supervisor.core.machine.commands import (
    CheckTarget,
    Command,
    OptimizeVectors,
    ReadSchedule,
    ReleaseMemory,
    SampleMemory,
    StartBackend,
    StopWarming,
    UnparkBackend,
    WarmFile,
)
from supervisor.core.machine.events import (
    BackendExited,
    BackendMoved,
    BackendNotParked,
    BackendParked,
    BackendReady,
    BackendSpawned,
    BackendStalled,
    BackendUnfit,
    Event,
    MemorySampled,
    MemoryUnreadable,
    ReleaseBegun,
    TargetAccepted,
    TargetRejected,
    VectorsKnown,
    WarmingBegun,
)
from supervisor.core.machine.footprint import Footprint
from supervisor.core.machine.memory import MemorySample
from supervisor.core.machine.values import KeptPrompts, Park, Target, TargetNeed
from supervisor.engine.prompts import prompt_slots as engine_prompts
from supervisor.engine.servers.backend import Backend
from supervisor.engine.servers.parking import NotParked
from supervisor.engine.servers.stall import watch_for_stalls
from supervisor.errors import BackendUnreachable, SupervisorError
from supervisor.telemetry.port import HOST

log = structlog.get_logger()


FORMER_SESSIONS = 8
"""Servers that were reaped last, whose sessions are looked for among a device's processes."""


class Performer:
    """Owns the running backends and the tasks that look after them."""

    def __init__(  # noqa: PLR0913 - the world is injected
        self,
        *,
        launcher: BackendLauncher,
        memory: MemorySource,
        schedule: Schedule,
        comparison: TwinComparison,
        clock: Callable[[], float],
        post: Callable[[Event], None],
    ) -> None:
        self._launcher = launcher
        self._memory = memory
        self._schedule = schedule
        self._comparison = comparison
        self._clock = clock
        self._post = post
        self._tasks: set[asyncio.Task[None]] = set()
        self._warmings: dict[str, threading.Event] = {}
        self._former_pids: deque[int] = deque(maxlen=FORMER_SESSIONS)
        self._observing: dict[int, asyncio.Task[None]] = {}
        self.backends: dict[int, Backend] = {}

    def perform(self, command: Command) -> None:
        """Begin to carry the command out; its result comes back by `post`."""
        match command:
            case CheckTarget():
                self._spawn(self._check(command), f"check-{command.switch_id}")
            case WarmFile():
                self._warm(command)
            case StopWarming():
                self._stop_warming(command)
            case StartBackend():
                self._start(command)
            case UnparkBackend():
                self._unpark(command)
            case ReleaseMemory():
                self._spawn(self._release(command), f"release-{command.epoch}")
            case SampleMemory():
                self._spawn(self._sample(command), f"sample-{command.device}")
            case ReadSchedule():
                self._spawn(self._read_schedule(command), "read-schedule")
            case OptimizeVectors():
                self._spawn(self._schedule.optimize_vectors(), "optimize-vectors")
            case _:
                raise TypeError(f"no way to perform {command!r}")

    async def _check(self, command: CheckTarget) -> None:
        target, switch_id = command.target, command.switch_id
        try:
            needs = await asyncio.to_thread(self._needs, target)
        except Exception as error:  # noqa: BLE001 - the switch waits for an answer, whatever fails
            reason = _reason(error)
            self._post(TargetRejected(at=self._clock(), switch_id=switch_id, message=reason))
            return
        devices = dict.fromkeys(
            d for d, need in needs.items() for d in (d, *need.footprint.devices)
        )
        read = [await self._try_sample(device) for device in devices]
        also = [await self._try_sample(d) for d in command.also_read if d not in devices]
        self._post(
            TargetAccepted(
                at=self._clock(),
                switch_id=switch_id,
                need=needs.pop(target.device),
                readings=tuple(memory for memory, _ in (*read, *also) if memory is not None),
                memory_problem=next((problem for _, problem in read if problem), None),
                elsewhere=tuple(needs.items()),
            )
        )

    def _needs(self, target: Target) -> dict[str, TargetNeed]:
        """Return what the target needs on each device that it may be put on."""
        return {place.device: self._launcher.check(place) for place in target.places}

    def _warm(self, command: WarmFile) -> None:
        should_stop = self._warmings[command.switch_id] = threading.Event()
        self._spawn(self._read_ahead(command, should_stop), f"warm-{command.switch_id}")
        self._post(WarmingBegun(at=self._clock(), switch_id=command.switch_id))

    def _stop_warming(self, command: StopWarming) -> None:
        if command.switch_id in self._warmings:
            self._warmings[command.switch_id].set()

    async def _read_ahead(self, command: WarmFile, should_stop: threading.Event) -> None:
        try:
            pids = self._child_pids()
            await asyncio.to_thread(self._launcher.warm, command.target, pids, should_stop)
        finally:
            should_stop.set()  # the thread outlives a task that is cancelled
            del self._warmings[command.switch_id]

    def _start(self, command: StartBackend) -> None:
        try:
            backend = self._launcher.launch(command.target, command.epoch)
        except Exception as error:  # noqa: BLE001 - the switch waits for an answer, whatever fails
            self._post(
                BackendExited(
                    at=self._clock(),
                    epoch=command.epoch,
                    exit_code=None,
                    last_lines=(_reason(error),),
                )
            )
            return
        self.backends[command.epoch] = backend
        self._post(
            BackendSpawned(
                at=self._clock(),
                epoch=command.epoch,
                pid=backend.process.pid,
                address=backend.launch.address.describe(),
            )
        )
        timeout_s = command.target.patience.start_timeout_s
        self._observe(backend, command.target, partial(backend.become_ready, timeout_s))
        self._spawn(self._look_after(backend), f"backend-{command.epoch}")

    def _unpark(self, command: UnparkBackend) -> None:
        backend = self.backends.get(command.epoch)
        if backend is not None:  # else it died by itself, which is reported already
            self._observe(backend, command.target, backend.take_memory_back)

    def _observe(
        self,
        backend: Backend,
        target: Target,
        become_ready: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        """Begin to report that the backend is ready, and then whether it hangs."""
        self._observing[backend.epoch] = asyncio.create_task(
            self._report(backend, target, become_ready), name=f"observe-{backend.epoch}"
        )
        self._observing[backend.epoch].add_done_callback(self._finish)

    def _stop_observing(self, backend: Backend) -> None:
        observing = self._observing.pop(backend.epoch, None)
        if observing is not None:
            observing.cancel()

    async def _look_after(self, backend: Backend) -> None:
        """Report that the backend is gone, whoever ended it; until then it is observed."""
        try:
            ended = await backend.wait()
        except Exception as error:  # noqa: BLE001 - nobody else would tell of its end
            ended = backend.process.abandon(_reason(error))
        finally:
            self._stop_observing(backend)
        del self.backends[backend.epoch]
        self._former_pids.append(backend.process.pid)
        self._post(
            BackendExited(
                at=self._clock(),
                epoch=backend.epoch,
                exit_code=ended.exit_code,
                signal=ended.signal,
                last_lines=tuple(backend.process.last_lines),
                prompts=_described(backend.model, backend.prompts_saved),
            )
        )
        backend.is_gone.set()

    async def _report(
        self,
        backend: Backend,
        target: Target,
        become_ready: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        try:
            is_serving = await self._report_ready(backend, target, become_ready)
        except Exception as error:  # noqa: BLE001 - the switch waits for an answer, whatever fails
            backend.end_lost(_reason(error))
            return
        if is_serving and target.patience.stall_timeout_s:
            await watch_for_stalls(
                backend,
                target.patience.stall_timeout_s,
                on_stalled=lambda stalled_s: self._post(
                    BackendStalled(at=self._clock(), epoch=backend.epoch, stalled_s=stalled_s)
                ),
                on_moved=lambda: self._post(BackendMoved(at=self._clock(), epoch=backend.epoch)),
            )

    async def _report_ready(
        self,
        backend: Backend,
        target: Target,
        become_ready: Callable[[], Coroutine[Any, Any, None]],
    ) -> bool:
        """Report that the backend is ready; returns whether it is, and may serve."""
        await become_ready()
        if target.is_twin:
            try:
                fault = await self._comparison.fault_of(backend, target)
            except BackendUnreachable:
                return False  # it has died, which is reported
            if fault is not None:
                self._post(BackendUnfit(at=self._clock(), epoch=backend.epoch, reason=fault))
                return False
        memory, _ = await self._try_sample(target.device)
        self._post(
            BackendReady(
                at=self._clock(),
                epoch=backend.epoch,
                memory=memory,
                prompts=_described(backend.model, backend.prompts_restored),
            )
        )
        if target.spill is not None:
            self._spawn(self._learn_vectors(backend, target), f"vectors-{backend.epoch}")
        return True

    async def _learn_vectors(self, backend: Backend, target: Target) -> None:
        faults = await self._comparison.learn(backend, target)
        if faults is None:
            return
        self._post(VectorsKnown(at=self._clock(), target=target))
        for epoch, reason in faults.items():
            self._post(BackendUnfit(at=self._clock(), epoch=epoch, reason=reason))

    async def _release(self, command: ReleaseMemory) -> None:
        backend = self.backends.get(command.epoch)
        if backend is None:  # it died by itself, which is reported already
            return

        def note_begun() -> None:
            self._post(ReleaseBegun(at=self._clock(), epoch=command.epoch))

        if not isinstance(command.how, Park):
            await backend.give_up_memory(command.how, note_begun)
            return
        self._stop_observing(backend)
        try:
            await backend.give_up_memory(command.how, note_begun)
        except NotParked as error:
            reason = str(error)
            self._post(BackendNotParked(at=self._clock(), epoch=backend.epoch, reason=reason))
            return
        self._post(
            BackendParked(
                at=self._clock(),
                epoch=backend.epoch,
                kept=Footprint.of({HOST: await asyncio.to_thread(lambda: backend.host_bytes)}),
                prompts=_described(backend.model, backend.prompts_saved),
            )
        )

    async def _sample(self, command: SampleMemory) -> None:
        try:
            sample = await self._read(command.device)
        except Exception as error:  # noqa: BLE001 - the gate waits for an answer, whatever fails
            reason = _reason(error)
            self._post(
                MemoryUnreadable(at=self._clock(), switch_id=command.switch_id, reason=reason)
            )
            return
        self._post(MemorySampled(at=self._clock(), switch_id=command.switch_id, sample=sample))

    async def _read_schedule(self, command: ReadSchedule) -> None:
        """Where that fails, what is known holds on, and it is read again in a minute."""
        self._post(await self._schedule.read(command.ended))

    async def _try_sample(self, device: str) -> tuple[MemorySample | None, str | None]:
        """Read the device, or return why it cannot be read."""
        try:
            return await self._read(device), None
        except Exception as error:  # noqa: BLE001 - a switch goes on without a reading
            reason = _reason(error)
            log.warning("telemetry.unreadable", device=device, reason=reason)
            return None, reason

    async def _read(self, device: str) -> MemorySample:
        return await self._memory.sample(device, self._child_pids(), tuple(self._former_pids))

    def close(self) -> None:
        """Give up what is still under way."""
        for task in self._tasks:
            task.cancel()

    def _child_pids(self) -> tuple[int, ...]:
        return tuple(backend.process.pid for backend in self.backends.values())

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run a piece of work as an owned, named task; its failure is logged, never lost."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("arbiter.task_failed", task=task.get_name(), exc_info=error)


def _described(model: str, kept: engine_prompts.KeptPrompts | None) -> KeptPrompts | None:
    """Put what the engine says of kept prompts into the core's words."""
    if kept is None:
        return None
    return KeptPrompts(
        model=model,
        slots=len(kept.slots),
        tokens=kept.tokens,
        size_bytes=kept.size_bytes,
        took_s=kept.took_s,
        reason=kept.reason,
    )


def _reason(error: Exception) -> str:
    """Say what failed. What is not ours is a bug: its trace goes to the log."""
    if isinstance(error, SupervisorError):
        return str(error)
    log.error("arbiter.unexpected", exc_info=error)
    return f"the controller failed ({type(error).__name__}: {error}); its log says where"
