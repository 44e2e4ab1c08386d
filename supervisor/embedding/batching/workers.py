"""The workers that have the queue of one model computed: leases, batches, and what becomes of them.

A batch is made up after its lease is granted. So when a switch takes the model away nothing is
lost: workers get no lease, and the queue waits until it is back.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import structlog

from supervisor.arbiter.arbiter import Arbiter, Lease
from supervisor.core.machine.values import Target
from supervisor.core.scheduling.values import Priority
from supervisor.embedding.batching.batches import Batch, Caller
from supervisor.embedding.batching.exchange import BatchFailed, ask_for_vectors
from supervisor.embedding.batching.measures import Measures
from supervisor.embedding.batching.queue import Amount, BatchLimits, BatchQueue
from supervisor.engine.servers.backend import MAX_REPEATS, Backend
from supervisor.engine.targets import Targets
from supervisor.errors import BackendUnreachable, RequestRefused

log = structlog.get_logger()

_PLACE_REFUSED = frozenset({"queue_full", "hold_queue_full"})
"""Codes of a lease that others wait for already: it says nothing of the model."""


_FAILED = RequestRefused("internal_error", "the controller failed; its log says why")


class WorkRules(msgspec.Struct, frozen=True, kw_only=True):
    """What the workers of a model are held to, as it is configured now."""

    limits: BatchLimits
    max_concurrent: int
    may_switch: bool


class Workers:
    """Computes what callers add, for one target. Use it on one event loop only."""

    def __init__(
        self, target: Target, arbiter: Arbiter, targets: Targets, rules: WorkRules
    ) -> None:
        self.target = target
        self.queue = BatchQueue()
        self.measures = Measures()
        self._arbiter = arbiter
        self._targets = targets
        self.rules = rules
        self._workers: set[asyncio.Task[None]] = set()
        self._asking: dict[asyncio.Task[None], Priority] = {}
        """Workers that wait for a lease, and how urgently each asked."""
        self._running: dict[Batch, asyncio.Task[None]] = {}
        """What is with the server, and who waits for its answer."""
        self._is_waking = False
        self._alarm: asyncio.TimerHandle | None = None
        self._vector_bytes: tuple[int, int] = (0, 0)
        """An epoch, and the length of its server's vectors."""

    @property
    def running(self) -> Amount:
        """How much is with the server."""
        batches = self._running
        return Amount(sum(map(len, batches)), sum(batch.tokens for batch in batches))

    @property
    def busy(self) -> int:
        """How many batches are with the server."""
        return len(self._running)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._running and not self.queue.amount().inputs

    def add(self, caller: Caller) -> None:
        """Have a caller's pieces computed. Its `on_end` is called in any case but `leave`."""
        self.queue.add(caller, self.rules.limits)
        self._wake_soon()

    def leave(self, caller: Caller) -> None:
        """Drop a caller; a batch goes on for the others in it, and is cut where none is left."""
        if caller.is_over:
            return
        for batch in self.queue.end(caller):
            worker = self._running.get(batch)
            if worker is not None:
                worker.cancel()
        self._withdraw()

    def _withdraw(self) -> None:
        """Take back the leases that are asked for more urgently than by anybody who waits."""
        if not self._asking:
            return
        wanted = self.queue.most_urgent
        for worker, priority in self._asking.items():
            if wanted is None or (wanted is Priority.BATCH and priority is Priority.INTERACTIVE):
                worker.cancel()

    def _wake_soon(self) -> None:
        """See to it that there are workers, once all that came together is in the queue."""
        if not self._is_waking:
            self._is_waking = True
            asyncio.get_running_loop().call_soon(self._wake)

    def _wake(self) -> None:
        """Start a worker for each batch that is due, up to their number, and an urgent one."""
        self._is_waking = False
        rules, now = self.rules, time.monotonic()
        due = self.queue.due(rules.limits, now)
        free = rules.max_concurrent - len(self._workers)
        wanted = min(due - len(self._workers) + len(self._running), free)
        is_overtaken = bool(due) and self._is_urgent_behind_batch()
        for _ in range(max(wanted, int(is_overtaken))):
            worker = asyncio.create_task(self._work(), name=f"embed-{self.target.model}")
            self._workers.add(worker)
        if rules.limits.wait_s:
            self._set_alarm(now)

    def _set_alarm(self, now: float) -> None:
        """Wake when the next batch is due that is not yet."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        due_at = self.queue.due_after(self.rules.limits, now)
        if due_at is not None:
            loop = asyncio.get_running_loop()
            self._alarm = loop.call_later(due_at - now, self._wake_soon)

    def _is_urgent_behind_batch(self) -> bool:
        """Whether somebody urgent waits, and all who ask for a lease ask for it as batch work."""
        is_urgent = self.queue.most_urgent is Priority.INTERACTIVE
        return is_urgent and set(self._asking.values()) == {Priority.BATCH}

    async def _work(self) -> None:
        """Compute batch after batch until none is due."""
        worker = asyncio.current_task()
        assert worker is not None  # noqa: S101 - it is a task's function
        is_needed = True
        try:
            while await self._compute_next(worker):
                pass
        except RequestRefused as refusal:
            is_needed = refusal.code not in _PLACE_REFUSED or len(self._workers) == 1
        finally:
            self._workers.discard(worker)
            if is_needed:
                self._wake_soon()

    async def _compute_next(self, worker: asyncio.Task[None]) -> bool:
        """Compute what is due. Returns whether there may be more. Raises RequestRefused."""
        rules, asked_at = self.rules, time.monotonic()
        priority = self.queue.most_urgent
        if priority is None or not self.queue.due(rules.limits, asked_at):
            return False
        try:
            async with self._lease(worker, priority, rules) as lease:
                if len(self._running) >= rules.max_concurrent:
                    return False
                batch = self.queue.take(rules.limits, time.monotonic())
                if batch is None:
                    return False
                self._running[batch] = worker
                try:
                    await self._compute(batch, lease)
                except Exception:  # a bug of ours: nobody must wait for ever because of it
                    log.exception("embedding.failed", model=self.target.model)
                    self._fail_all(batch, _FAILED)
                finally:
                    del self._running[batch]
        except RequestRefused as refusal:
            if refusal.code == "backend_unreachable":  # it died as the lease was granted
                await asyncio.sleep(0)
                return True
            self._refuse(refusal, asked_at)
            raise
        return True

    @asynccontextmanager
    async def _lease(
        self, worker: asyncio.Task[None], priority: Priority, rules: WorkRules
    ) -> AsyncIterator[Lease]:
        """Lease the model's backend, at once or when its turn has come. Raises RequestRefused."""
        lease = self._arbiter.lease_at_once(self.target, priority)
        if lease is not None:
            try:
                yield lease
            finally:
                lease.end()
            return
        if rules.may_switch:
            self._targets.require_device(self.target)
        self._asking[worker] = priority
        try:
            async with self._arbiter.lease(
                self.target, may_switch=rules.may_switch, priority=priority
            ) as lease:
                del self._asking[worker]
                yield lease
        finally:
            self._asking.pop(worker, None)

    async def _compute(self, batch: Batch, lease: Lease) -> None:
        """Have a batch computed, and give each caller its vectors, or see what else to do."""
        sent_at = time.monotonic()
        self._note_sent(batch, sent_at)
        tokens = self.running.tokens
        backend = lease.backend
        try:
            vectors = await ask_for_vectors(backend, batch, lease.end)
            self._require_length(backend, vectors[0])
        except BackendUnreachable as error:
            lease.end()
            await self._repeat(batch, backend, error)
        except BatchFailed as error:
            self._divide(batch, error.refusal)
        else:
            self.measures.note_batch(tokens, time.monotonic() - sent_at)
            self._deliver(batch, vectors)

    def _note_sent(self, batch: Batch, now: float) -> None:
        for caller, _ in batch.items:
            if caller.sent_at is None:
                caller.sent_at = now
                self.measures.note_wait(now - caller.came_at)

    def _require_length(self, backend: Backend, vector: bytes) -> None:
        """Raise BatchFailed for a vector that is not as long as the others of its server."""
        epoch, length = self._vector_bytes
        if epoch != backend.epoch:
            self._vector_bytes = backend.epoch, len(vector)
        elif len(vector) != length:
            told = f"vectors of {len(vector)} bytes, where it made {length} before"
            message = f"the server of '{backend.model}' answered what cannot be used: {told}"
            raise BatchFailed(RequestRefused("embedding_failed", message))

    def _deliver(self, batch: Batch, vectors: Sequence[bytes]) -> None:
        batch.close()
        for (caller, index), vector in zip(batch.items, vectors, strict=True):
            caller.vectors[index] = vector
            caller.missing -= 1
            if not caller.missing and not caller.is_over:
                self.queue.end(caller)
                caller.on_end()

    async def _repeat(self, batch: Batch, backend: Backend, error: BackendUnreachable) -> None:
        """Have a batch whose server was stopped or died sent to the next one, in two halves.

        In halves, since it may be one of the pieces that the server dies of. A server that goes on
        although it broke its answer is no other than one that answers an error.
        """
        is_dead = await backend.is_found_dead()
        if not is_dead and not backend.is_stopping:
            self._divide(batch, RequestRefused("embedding_failed", error.message, error.details))
        elif batch.died >= MAX_REPEATS:
            self._fail_all(batch, RequestRefused(error.code, error.message, error.details))
        else:
            self.queue.put_back(batch.parts(died=batch.died + 1))
            log.info("embedding.repeated", model=backend.model, epoch=backend.epoch)

    def _divide(self, batch: Batch, refusal: RequestRefused) -> None:
        """Try the halves of a batch that failed by themselves, so that only the guilty piece fails.

        A batch of one piece is found guilty.
        """
        if len(batch) > 1:
            self.queue.put_back(batch.parts(died=batch.died))
            return
        (caller, index) = batch.items[0]
        batch.close()
        details = {**refusal.details, "index": index}
        self._fail(caller, RequestRefused(refusal.code, refusal.message, details))

    def _refuse(self, refusal: RequestRefused, asked_at: float) -> None:
        """Fail those who waited for a lease that is refused, unless others get one for them."""
        if refusal.code in _PLACE_REFUSED and len(self._workers) > 1:
            return
        for caller in self.queue.callers_until(asked_at):
            self._fail(caller, refusal)

    def _fail_all(self, batch: Batch, refusal: RequestRefused) -> None:
        batch.close()
        for caller in dict.fromkeys(caller for caller, _ in batch.items):
            self._fail(caller, refusal)

    def _fail(self, caller: Caller, refusal: RequestRefused) -> None:
        """End a caller with an error of its own: exceptions carry the traceback of who raises."""
        if caller.is_over:
            return
        caller.error = RequestRefused(refusal.code, refusal.message, dict(refusal.details))
        self.leave(caller)
        caller.on_end()
