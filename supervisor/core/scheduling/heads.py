"""Who waits for the device, in the order in which they get it.

Heads are served in the order in which their waits began to count: at their arrival, or at the end
of their model's last stay where that was later. So whoever had the device stands behind all who
wait for it, however old its backlog is, and between two stays of one model every other model that
waits gets one.

Batch work stands behind interactive work: while there is any, its wait counts from a later time,
by which it has waited as many times the longest wait as it weighs less, or for `batch_ages_s`.
Until then it does not contend.
"""

import math
from collections.abc import Sequence

from msgspec import Struct

from supervisor.core.scheduling.bounds import Cycle, cycle_of, linger_s
from supervisor.core.scheduling.values import Queue, Stay, View

_NOBODY = Queue(model="")


class Head(Struct, frozen=True):
    """The head of a queue, and from when its wait counts."""

    queue: Queue
    since: float

    @property
    def oldest_at(self) -> float:
        """When the oldest of the queue arrived."""
        return self.since if self.queue.oldest_at is None else self.queue.oldest_at


class Contest(Struct, frozen=True, kw_only=True):
    """The models that contend for the device now, the resident among them.

    `heads`: those who wait for other models, the first to be served first; `next_at`: when batch
    work will join them, infinity where none waits. `idle_since`: since when the resident does
    nothing though somebody waits, infinity where it works. `linger_s`: how long it is kept, once it
    has served, for clients that return soon, and `kept_until`: to when, where it is empty now.
    """

    own: Queue
    heads: Sequence[Head]
    next_at: float
    cycle: Cycle
    idle_since: float
    linger_s: float
    kept_until: float


def contest_of(view: View, stay: Stay | None) -> Contest:
    """Who contends; heads is empty where nobody waits for another model, or only batch work does.

    Batch work waits for its time only while interactive work is there: waiting anywhere, in flight,
    or expected back by a resident that is kept for it.
    """
    resident = stay.model if stay else None
    own = next((queue for queue in view.queues if queue.model == resident), _NOBODY)
    others = [queue for queue in view.queues if queue.waiting and queue.model != resident]
    cycle = _cycle(view, others, resident)
    empty_since = _empty_since(stay, own)
    kept_s = linger_s(cycle, view.costs[stay.model]) if stay and stay.granted else 0.0
    is_kept = kept_s > 0.0 and empty_since < math.inf
    kept_until = empty_since + kept_s if is_kept else -math.inf
    heads, next_at = _by_time(view, others, cycle, _is_interactive(view, stay, kept_until))
    if len(heads) < len(others):
        cycle = _cycle(view, [head.queue for head in heads], resident)
    oldest_at = min((_oldest_at(queue) for queue in others), default=view.at)
    return Contest(
        own=own,
        heads=heads,
        next_at=next_at,
        cycle=cycle,
        idle_since=max(empty_since, oldest_at),
        linger_s=kept_s,
        kept_until=kept_until,
    )


def _cycle(view: View, others: Sequence[Queue], resident: str | None) -> Cycle:
    """The cycle of those who wait for other models, and the resident."""
    models = [queue.model for queue in others]
    if resident is not None:
        models.append(resident)
    return cycle_of(models, view.costs, view.rules)


def _empty_since(stay: Stay | None, own: Queue) -> float:
    """Since when the resident has no work; infinity where it has some."""
    if stay is None or stay.in_flight or own.waiting:
        return math.inf
    return stay.since if stay.empty_since is None else stay.empty_since


def _oldest_at(queue: Queue) -> float:
    return math.inf if queue.oldest_at is None else queue.oldest_at


def _is_interactive(view: View, stay: Stay | None, kept_until: float) -> bool:
    """Whether there is interactive work, for any model."""
    if stay is not None and (stay.interactive_in_flight or view.at < kept_until):
        return True
    return any(queue.interactive for queue in view.queues)


def _by_time(
    view: View, others: Sequence[Queue], cycle: Cycle, is_interactive: bool
) -> tuple[list[Head], float]:
    """The heads that contend now, in their order, and when the next one will."""
    rules = view.rules
    later = max(0.0, rules.interactive_weight / rules.batch_weight - 1.0) if is_interactive else 0.0
    heads, next_at = [], math.inf
    for queue in others:
        longest_s = cycle.due_s(view.costs[queue.model])
        since = _counts_from(queue, min(later * longest_s, rules.batch_ages_s))
        if since <= view.at or not is_interactive:
            heads.append(Head(queue, since))
        else:
            next_at = min(next_at, since)
    heads.sort(key=_since)
    return heads, next_at


def _counts_from(queue: Queue, batch_later_s: float) -> float:
    """From when the wait of a queue's head counts."""
    since = math.inf
    left_at = -math.inf if queue.left_at is None else queue.left_at
    if queue.oldest_interactive_at is not None:
        since = max(queue.oldest_interactive_at, left_at)
    if queue.oldest_at is not None and queue.batch:
        since = min(since, max(queue.oldest_at, left_at) + batch_later_s)
    return since


def _since(head: Head) -> float:
    return head.since
