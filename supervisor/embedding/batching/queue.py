"""What waits to be embedded by one model's server, and what is sent next. Pure: no clock, no I/O.

Pieces wait in lines, one for each kind of piece that goes into one batch: the same priority, both
normalised or not, both short or long, both of callers with more pieces than a batch may have or
not: a single text must not wait for another's two thousand. A line keeps the pieces of a caller
together, so that adding a caller, removing it and taking a piece cost the same however many wait.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import msgspec

from supervisor.core.scheduling.values import Priority, SchedulingRules
from supervisor.embedding.batching.batches import Batch, Caller, Item

_RULES = SchedulingRules()
_WEIGHTS = {
    Priority.INTERACTIVE: _RULES.interactive_weight,
    Priority.BATCH: _RULES.batch_weight,
}


class Amount(NamedTuple):
    """How much work something is."""

    inputs: int
    tokens: int


class BatchLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How large batches may be, how long they may wait to become so, and how many are sent.

    `wait_s`: from the arrival of its first piece until a batch is due though it is not full.
    `max_concurrent`: batches that are with the server; `max_full`: those of them that may be full.
    `slots`: pieces that the server computes together. It answers a batch once all of it is there,
    so that of callers with few pieces, more than that in one would have some wait for others.
    """

    max_size: int
    max_tokens: int
    wait_s: float = 0.0
    max_concurrent: int
    max_full: int
    slots: int

    def at_once(self, running: Amount) -> int:
        """Return how many batches there may be with a server that has so much.

        It computes one after the other, and needs the next one there. Small ones it merges, so that
        it is the busier the more of these it has; behind full ones others would only wait where
        nobody more urgent passes them.
        """
        return self.max_full if self.is_full(running) else self.max_concurrent

    def is_full(self, amount: Amount) -> bool:
        """Whether it is as much as one batch may have."""
        return amount.inputs >= self.max_size or amount.tokens >= self.max_tokens

    @property
    def short_tokens(self) -> int:
        """The most tokens that a short piece has: as many of these as a batch may have fit in it.

        So a batch of short pieces is bounded by their number, one of long pieces by their tokens,
        and no piece makes a batch larger than others of its kind do.
        """
        return max(1, self.max_tokens // self.max_size)


_ONLY = range(1)


class _Run:
    """The pieces of one caller in one line; `following` is the place of the next one in them."""

    __slots__ = ("following", "indexes", "tokens")

    def __init__(self, indexes: Sequence[int], tokens: int) -> None:
        self.indexes = indexes
        self.following = 0
        self.tokens = tokens

    @property
    def inputs(self) -> int:
        return len(self.indexes) - self.following


class _Line:
    """Pieces of one kind, the first come the first sent."""

    __slots__ = ("inputs", "priority", "runs", "served_at", "tokens", "weight")

    def __init__(self, priority: Priority) -> None:
        self.priority = priority
        self.weight = _WEIGHTS[priority]
        self.runs: OrderedDict[Caller, _Run] = OrderedDict()
        self.inputs = 0
        self.tokens = 0
        self.served_at = 0.0

    def add(self, caller: Caller, run: _Run) -> None:
        self.runs[caller] = run
        self.inputs += run.inputs
        self.tokens += run.tokens

    def remove(self, caller: Caller) -> None:
        run = self.runs.pop(caller, None)
        if run is not None:
            self.inputs -= run.inputs
            self.tokens -= run.tokens

    @property
    def head(self) -> Caller:
        return next(iter(self.runs))

    def batches(self, limits: BatchLimits) -> int:
        """Return how many batches its pieces are, at least."""
        return max(-(-self.inputs // self._most(limits)), -(-self.tokens // limits.max_tokens))

    def _most(self, limits: BatchLimits) -> int:
        """Return how many pieces the next batch may have: it is the server's, where few are."""
        few = len(self.runs[self.head].indexes) <= limits.slots
        return min(limits.slots, limits.max_size) if few else limits.max_size

    def due_at(self, limits: BatchLimits) -> float:
        """Return when it is due, which may have passed."""
        is_full = self.inputs >= self._most(limits) or self.tokens >= limits.max_tokens
        return 0.0 if is_full else self.head.came_at + limits.wait_s

    def urgency(self, now: float) -> float:
        """Return the wait of its head since it is the head, by the weight of its priority.

        Only that, since the age of a long backlog says how long it is, not that it is neglected.
        """
        return self.weight * (now - max(self.head.came_at, self.served_at))

    def take(self, limits: BatchLimits, now: float) -> list[Item]:
        """Take as many pieces as a batch may have, in order; at least one."""
        self.served_at = now
        items: list[Item] = []
        left, most = limits.max_tokens, self._most(limits)
        while self.runs and len(items) < most:
            caller, run = next(iter(self.runs.items()))
            index = run.indexes[run.following]
            tokens = caller.pieces[index].tokens
            if items and tokens > left:
                break
            items.append((caller, index))
            left -= tokens
            self._advance(caller, run, tokens)
        return items

    def _advance(self, caller: Caller, run: _Run, tokens: int) -> None:
        run.following += 1
        run.tokens -= tokens
        self.inputs -= 1
        self.tokens -= tokens
        if not run.inputs:
            del self.runs[caller]


class BatchQueue:
    """What waits for the server of one model."""

    def __init__(self) -> None:
        self._lines = {
            (priority is Priority.BATCH, normalize): tuple(_Line(priority) for _ in range(4))
            for priority in Priority
            for normalize in (True, False)
        }
        """By kind, the interactive ones first. Four each: for the short and the long pieces of
        callers with as many as a batch may have, and of those with more."""
        self._in_order = tuple(chain.from_iterable(self._lines.values()))
        self._returned: deque[Batch] = deque()
        """Batches that are sent as they are, before all others."""

    def add(self, caller: Caller, limits: BatchLimits) -> None:
        """Put a caller's pieces behind those that wait, the short and the long ones apart."""
        bound = limits.short_tokens
        lines = self._lines_of(caller)
        short, long = lines[2:] if len(caller.pieces) > limits.max_size else lines[:2]
        if len(caller.pieces) == 1:
            only = caller.pieces[0].tokens
            (long if only > bound else short).add(caller, _Run(_ONLY, only))
            return
        tokens = [piece.tokens for piece in caller.pieces]
        if max(tokens) <= bound or min(tokens) > bound:
            line = long if tokens[0] > bound else short
            line.add(caller, _Run(range(len(tokens)), sum(tokens)))
            return
        for line, is_long in ((short, False), (long, True)):
            indexes = [i for i, each in enumerate(tokens) if (each > bound) is is_long]
            line.add(caller, _Run(indexes, sum(tokens[i] for i in indexes)))

    def _lines_of(self, caller: Caller) -> tuple[_Line, ...]:
        """Return the lines in which a caller's pieces may wait."""
        return self._lines[caller.priority is Priority.BATCH, caller.normalize]

    def end(self, caller: Caller) -> list[Batch]:
        """Take out what waits of a caller that is over; return the batches that nobody wants now.

        Only those that were taken and not closed yet.
        """
        caller.is_over = True
        for line in self._lines_of(caller):
            if line.runs:
                line.remove(caller)
        batches, caller.batches = caller.batches, []
        for batch in batches:
            batch.present -= 1
        return [batch for batch in batches if not batch.present]

    def put_back(self, batches: Sequence[Batch]) -> None:
        """Have batches sent before all others, as they are."""
        self._returned.extendleft(reversed(batches))

    def take(self, limits: BatchLimits, now: float) -> Batch | None:
        """Return what is to be sent now; None where nothing is due."""
        while self._returned:
            batch = self._returned.popleft()
            if batch.present:
                return batch
        due = self._due(limits, now)
        if not due:
            return None
        line = due[0]
        if len(due) > 1:
            line = max(due, key=lambda each: (each.urgency(now), each.weight))
        return Batch(line.take(limits, now))

    def due(self, limits: BatchLimits, now: float) -> int:
        """Return how many batches are due."""
        count = sum([line.batches(limits) for line in self._due(limits, now)])
        return count + len(self._still_wanted())

    def due_after(self, limits: BatchLimits, now: float) -> float | None:
        """Return when the next batch is due that is not due now; None where there is none."""
        times = (line.due_at(limits) for line in self._waiting())
        return min((due_at for due_at in times if due_at > now), default=None)

    @property
    def most_urgent(self) -> Priority | None:
        """The priority of the most urgent of those that wait; None where nothing does."""
        lines = self._waiting()
        if lines and lines[0].priority is Priority.INTERACTIVE:
            return Priority.INTERACTIVE
        returned = [batch.priority for batch in self._still_wanted()]
        if Priority.INTERACTIVE in returned:
            return Priority.INTERACTIVE
        return Priority.BATCH if lines or returned else None

    @property
    def has_survivors(self) -> bool:
        """Whether batches wait that were with a server which died."""
        return any(batch.died for batch in self._returned)

    def amount(self, priority: Priority | None = None) -> Amount:
        """Return how much waits, of one priority or (None) of all."""
        inputs = tokens = 0
        for line in self._waiting():
            if priority is None or line.priority is priority:
                inputs += line.inputs
                tokens += line.tokens
        for batch in self._still_wanted():
            if priority is None or batch.priority is priority:
                inputs += len(batch)
                tokens += batch.tokens
        return Amount(inputs, tokens)

    def callers(self, priority: Priority) -> int:
        """Return how many callers of a priority wait, of whom nothing has been sent again."""
        return sum(len(line.runs) for line in self._waiting() if line.priority is priority)

    def callers_until(self, moment: float) -> list[Caller]:
        """Return the callers that came until then and of whom something waits."""
        return [caller for caller in self._all_callers() if caller.came_at <= moment]

    def waiting_since(self, moment: float) -> list[Caller]:
        """Return the callers who have had nothing since then or longer (`Caller.waits_since`)."""
        return [caller for caller in self._all_callers() if caller.waits_since <= moment]

    def longest_waits_since(self) -> float | None:
        """Return since when the first of them has had nothing; None where nobody waits."""
        return min((caller.waits_since for caller in self._all_callers()), default=None)

    def _all_callers(self) -> list[Caller]:
        in_lines = (caller for line in self._waiting() for caller in line.runs)
        returned = (caller for batch in self._returned for caller, _ in batch.items)
        each_once = dict.fromkeys(chain(in_lines, returned))
        return [caller for caller in each_once if not caller.is_over]

    def _waiting(self) -> list[_Line]:
        return [line for line in self._in_order if line.runs]

    def _due(self, limits: BatchLimits, now: float) -> list[_Line]:
        waiting = self._waiting()
        if not limits.wait_s:
            return waiting
        return [line for line in waiting if line.due_at(limits) <= now]

    def _still_wanted(self) -> list[Batch]:
        return [batch for batch in self._returned if batch.present] if self._returned else []
