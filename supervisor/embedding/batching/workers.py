"""Has the queue of one model computed: leases, batches, and what becomes of them.

A batch is made up once its lease is granted. So when a switch takes the model away nothing is lost:
no lease comes, and the queue waits until the model is back. Where the model is live and has room,
everything happens in callbacks, without a task; there are tasks only for leases that have to wait,
and for servers of which it is to be found out whether they died.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from supervisor.arbiter.arbiter import Arbiter, Lease
from supervisor.core.machine.values import Target
from supervisor.core.scheduling.values import Priority
from supervisor.embedding.batching.batches import Batch, Caller
from supervisor.embedding.batching.exchange import Outcome, send_batch, unusable
from supervisor.embedding.batching.measures import Measures
from supervisor.embedding.batching.pending import (
    Alarm,
    Arrivals,
    AskedLease,
    Running,
    SentBatch,
    VectorLength,
    caller_shares,
    in_a_moment,
)
from supervisor.embedding.batching.queue import BatchQueue
from supervisor.embedding.batching.rules import RulesOf
from supervisor.embedding.values import made_for_another
from supervisor.engine.servers.backend import MAX_REPEATS, Backend
from supervisor.engine.targets import Targets
from supervisor.errors import BackendUnreachable, RequestRefused

log = structlog.get_logger()

_PLACE_REFUSED = frozenset({"queue_full", "hold_queue_full"})
"""Codes of a lease that others wait for already: it says nothing of the model."""

_FAILED = RequestRefused("internal_error", "the controller failed; its log says why")


class Workers:
    """Computes what callers add, for one model. Use it on one event loop only.

    A worker is a batch with the server, or one that waits for its lease.
    """

    def __init__(
        self,
        target: Target,
        arbiter: Arbiter,
        targets: Targets,
        rules_of: RulesOf,
        *,
        may_spill: bool = False,
    ) -> None:
        """`may_spill`: what callers want is small, and the model's twin may make it."""
        self.target = target
        self._may_spill = may_spill
        self.queue = BatchQueue()
        self.measures = Measures()
        self._arbiter = arbiter
        self._targets = targets
        self._rules_of = rules_of
        self._profile = target.profile
        """What the model's server runs with, as it was seen last: it may be the fallback."""
        self.rules = rules_of(target, self._profile)
        self._asking: dict[asyncio.Task[None], AskedLease] = {}
        """What waits for a lease."""
        self.running = Running()
        """What is with the server."""
        self._finding_out: set[asyncio.Task[None]] = set()
        self._is_waking = False
        self._arrivals = Arrivals()
        self._batch_due = Alarm(self._wake_soon)
        self._patience = Alarm(self._wake_soon)
        self._vector_length = VectorLength()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self.running and not self.queue.amount().inputs

    def apply_rules(self) -> None:
        """Hold what waits to the rules as they are now; a model that is gone keeps its own."""
        with contextlib.suppress(RequestRefused):
            self.rules = self._rules_of(self.target, self._profile)
        self._patience.set(None)

    def add(self, caller: Caller) -> None:
        """Have a caller's pieces computed. Its `on_end` is called in any case but `leave`."""
        self.queue.add(caller, self.rules.limits)
        self._patience.forget_later_than(caller.waits_since + self.rules.hold_timeout_s)
        self._arrivals.came += 1
        self._wake_soon()

    def leave(self, caller: Caller) -> None:
        """Drop a caller; a batch goes on for the others in it, and is cut where none is left."""
        if caller.is_over:
            return
        for batch in self.queue.end(caller):
            sent = self.running.get(batch)
            if sent is not None and sent.exchange is not None:
                sent.exchange.cancel()
                self._end(sent)
        self._withdraw()
        if self._asking:
            self._wake_soon()

    def _withdraw(self) -> None:
        """Take back the leases that are asked for more urgently than by anybody who waits."""
        if not self._asking:
            return
        wanted = self.queue.most_urgent
        for asking, asked in self._asking.items():
            is_urgent = asked.priority is Priority.INTERACTIVE
            if wanted is None or (wanted is Priority.BATCH and is_urgent):
                asking.cancel()

    def _wake_soon(self) -> None:
        """See to it that what is due is sent, once all that came together is in the queue."""
        if not self._is_waking:
            self._is_waking = True
            self._arrivals.begin()
            in_a_moment(self._wake)

    def _is_gathering(self) -> bool:
        """Whether what waits goes with those on their way, to a server that has nothing else."""
        is_enough = self.queue.amount().inputs >= self.rules.limits.slots
        return not (self.running or self._asking or is_enough) and self._arrivals.look()

    def _wake(self) -> None:
        """Send what is due, or ask for leases for it, as many at once as there may be."""
        if self._is_gathering():
            in_a_moment(self._wake)
            return
        self._is_waking = False
        self._withdraw()
        now = time.monotonic()
        while (due := self._due(now)) > 0 and (priority := self.queue.most_urgent) is not None:
            lease = self._arbiter.lease_at_once(self.target, priority, may_spill=self._may_spill)
            if lease is None:
                for _ in range(due):
                    self._ask(priority)
            elif self._send_next(lease) is not None:
                continue
            else:
                lease.end(callers=0)
            break
        if self._asking and self._is_urgent_behind_batch():
            self._ask(Priority.INTERACTIVE)
        if self._asking:
            self._count_callers()
        if self.rules.limits.wait_s:
            self._batch_due.set(self.queue.due_after(self.rules.limits, now))
        self._refuse_overdue(now)

    def _due(self, now: float) -> int:
        """Return for how many batches there is to be a worker that there is not."""
        asking = len(self._asking)
        at_once = self.running.at_once(self.queue, self.rules.limits)
        free = at_once - len(self.running) - asking
        if free <= 0:
            return 0
        return min(free, self.queue.due(self.rules.limits, now) - asking)

    def _ask(self, priority: Priority) -> None:
        asked = AskedLease(self._arbiter.new_request_id(), priority)
        name = f"embed-{self.target.model}"
        asking = asyncio.create_task(self._send_in_turn(asked), name=name)
        self._asking[asking] = asked
        asking.add_done_callback(self._forget_asked)

    def _forget_asked(self, asking: asyncio.Task[None]) -> None:
        """Count a lease no longer whose task was withdrawn before it had begun to ask for it."""
        if self._asking.pop(asking, None) is not None:
            self._wake_soon()

    def _count_callers(self) -> None:
        """Tell the scheduler how many callers wait for the leases that are asked for.

        It would else see a request for each, however many wait.
        """
        for asked, callers in caller_shares(self._asking.values(), self.queue.callers):
            if callers != asked.callers:
                asked.callers = callers
                self._arbiter.count_callers(asked.request_id, callers)

    def _is_urgent_behind_batch(self) -> bool:
        """Whether somebody urgent waits, and all who ask for a lease ask for it as batch work."""
        is_urgent = self.queue.most_urgent is Priority.INTERACTIVE
        return is_urgent and {each.priority for each in self._asking.values()} == {Priority.BATCH}

    def _refuse_overdue(self, now: float) -> None:
        """Refuse those who have waited for the model as long as anybody may.

        Several wait for one lease, which is younger or older than they are. While others are being
        computed the model is there, and nobody waits for it.
        """
        if self.running or not self._asking:
            self._patience.set(None)
        elif self._patience.at is None:
            asked = (self._arbiter.refusal_for_time(x.request_id) for x in self._asking.values())
            refusal = next(filter(None, asked), None)
            if refusal is not None:  # else one of them is granted or asked for just now
                for caller in self.queue.waiting_since(now - self.rules.hold_timeout_s):
                    self._fail(caller, refusal)
                since = self.queue.longest_waits_since()
                self._patience.set(None if since is None else since + self.rules.hold_timeout_s)

    async def _send_in_turn(self, asked: AskedLease) -> None:
        """Send a batch once the model's turn has come."""
        asking = asyncio.current_task()
        assert asking is not None  # noqa: S101 - it is a task's function
        asked_at, may_switch = time.monotonic(), self.rules.may_switch
        is_needed = True
        try:
            target = self.target
            if may_switch:
                target = self._targets.usable(target, may_spill=self._may_spill)
            asked.callers = 1
            self._wake_soon()  # behind the request: to count who waits for it
            async with self._arbiter.lease(
                target,
                may_switch=may_switch,
                may_spill=self._may_spill,
                priority=asked.priority,
                request_id=asked.request_id,
            ) as lease:
                del self._asking[asking]
                sent = self._send_next(lease)
                if sent is None:
                    lease.end(callers=0)
                else:
                    sent.over = asyncio.get_running_loop().create_future()
                    await sent.over
        except RequestRefused as refusal:
            is_needed = not self._refuse(refusal, asked_at)
        finally:
            self._asking.pop(asking, None)
            if is_needed:
                self._wake_soon()

    def _send_next(self, lease: Lease) -> SentBatch | None:
        """Send what is due, in a lease that is ended with the answer; None where nothing is."""
        backend = lease.backend
        if backend.launch.profile != self._profile:
            self._profile = backend.launch.profile
            self.apply_rules()
        now = time.monotonic()
        if len(self.running) >= self.running.at_once(self.queue, self.rules.limits):
            return None
        batch = self._take_for(backend, now)
        if batch is None:
            return None
        self._note_sent(batch, now)
        tokens = self.running.tokens_of_busy(batch, self.queue, self.rules.limits)
        self.running[batch] = sent = SentBatch(batch, lease, now, tokens)
        try:
            sent.exchange = send_batch(backend, batch, partial(self._take, sent))
        except Exception as error:  # noqa: BLE001 - as in `_finish`
            self._give_up(sent, error)
            return None
        return sent

    def _take_for(self, backend: Backend, now: float) -> Batch | None:
        """Take what is to be sent next, for callers whose tokens are those of the server's file."""
        runs = backend.launch.model_path
        while (batch := self.queue.take(self.rules.limits, now)) is not None:
            strangers = {
                caller for caller, _ in batch.items if caller.model_path not in (None, runs)
            }
            if not strangers:
                return batch
            for caller in strangers:
                self._fail(caller, made_for_another(backend.model, runs))
            self.queue.put_back(batch.parts(died=batch.died))
        return None

    def _note_sent(self, batch: Batch, now: float) -> None:
        for caller, _ in batch.items:
            if caller.sent_at is None:
                caller.sent_at = now
                self.measures.note_wait(now - caller.came_at)

    def _take(self, sent: SentBatch, outcome: Outcome) -> None:
        """Give each caller its vectors, or see what else to do."""
        sent.exchange = None
        if isinstance(outcome, BackendUnreachable):
            sent.lease.end(callers=0)
            finding = asyncio.create_task(self._find_out(sent, outcome), name="embed-find-out")
            self._finding_out.add(finding)
            finding.add_done_callback(self._finding_out.discard)
            return
        self._wake_soon()  # before its callers are, who write their answers
        self._finish(sent, partial(self._settle, sent, outcome))

    def _finish(self, sent: SentBatch, settle: Callable[[], None]) -> None:
        try:
            settle()
        except Exception as error:  # noqa: BLE001 - nobody must wait for ever for a bug of ours
            self._give_up(sent, error)
        else:
            self._end(sent)

    def _give_up(self, sent: SentBatch, error: Exception) -> None:
        log.error("embedding.failed", model=self.target.model, exc_info=error)
        self._fail_all(sent.batch, _FAILED)
        self._end(sent)

    def _end(self, sent: SentBatch) -> None:
        """Set its worker free for what is due next; the model is not left between the two."""
        del self.running[sent.batch]
        self._wake_soon()
        in_a_moment(sent.give_back)

    def _settle(self, sent: SentBatch, outcome: Sequence[bytes] | RequestRefused) -> None:
        backend, batch = sent.lease.backend, sent.batch
        known = self._vector_length
        if not isinstance(outcome, RequestRefused) and not known.is_of(backend.epoch, outcome[0]):
            told = f"vectors of {len(outcome[0])} bytes, where it made {known.bytes} before"
            outcome = unusable(backend.model, told)
        if isinstance(outcome, RequestRefused):
            self._divide(batch, outcome)
            return
        if sent.tokens_of_busy is not None:
            self.measures.note_batch(sent.tokens_of_busy, time.monotonic() - sent.at)
        batch.deliver(outcome, backend.launch.profile, time.monotonic())

    async def _find_out(self, sent: SentBatch, error: BackendUnreachable) -> None:
        """See whether the server of a batch died, and what is to be done then."""
        patience_s = self._arbiter.snapshot.limits.hold_timeout_s
        try:
            is_dead = await sent.lease.backend.is_found_dead(patience_s)
        except Exception as failure:  # noqa: BLE001 - as in `_finish`
            self._give_up(sent, failure)
            return
        self._finish(sent, partial(self._repeat, sent, error, is_dead=is_dead))

    def _repeat(self, sent: SentBatch, error: BackendUnreachable, *, is_dead: bool) -> None:
        """Have a batch whose server was stopped or died sent to the next one, in two halves.

        In halves, since it may be one of the pieces that the server dies of. A server that goes on
        although it broke its answer is no other than one that answers an error.
        """
        backend, batch = sent.lease.backend, sent.batch
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

    def _refuse(self, refusal: RequestRefused, asked_at: float) -> bool:
        """Fail those who waited for a lease that is refused, unless others get one for them.

        Returns whether others do. A server that died as its lease was granted has a successor.
        """
        if refusal.code == "backend_unreachable":
            return False
        others = len(self._asking) + len(self.running) > 1
        if refusal.code in _PLACE_REFUSED and others:
            return True
        for caller in self.queue.callers_until(asked_at):
            self._fail(caller, refusal)
        return False

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
