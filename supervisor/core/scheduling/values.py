"""What a policy sees, and what it decides. All times are monotonic seconds, all costs seconds.

A view is made of heads, counts and sums, never of lists of requests, so that a decision costs the
same with ten requests that wait as with a hundred thousand.
"""

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol

from msgspec import Struct


class Priority(StrEnum):
    """How urgent a request is: somebody looks on, or it is work for whenever there is time."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class Queue(Struct, frozen=True, kw_only=True):
    """The requests that wait for one model.

    `oldest_at`: when its head arrived, and `oldest_interactive_at`: when the first interactive one
    did; None where there is none. `arrived_at_sum` is the sum over all of them: n·now less that is
    what they have waited in all. `left_at`: when the last stay of the model ended, its last request
    answered; None where it had none. With three models and more it keeps a long backlog from
    passing a younger head again and again.
    """

    model: str
    interactive: int = 0
    batch: int = 0
    oldest_at: float | None = None
    oldest_interactive_at: float | None = None
    arrived_at_sum: float = 0.0
    left_at: float | None = None

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self.interactive + self.batch


class Stay(Struct, frozen=True, kw_only=True):
    """The time in which a model holds the device: from when it admits until it must give way.

    `queued` interactive requests waited when it began. `granted` requests were admitted in it so
    far, of which `in_flight` are not answered yet, and `interactive_in_flight` of those are
    interactive. `empty_since`: since when none is, None while one is.
    """

    model: str
    since: float
    queued: int = 0
    granted: int = 0
    in_flight: int = 0
    interactive_in_flight: int = 0
    empty_since: float | None = None


class Costs(Struct, frozen=True, kw_only=True):
    """What was learned of one model.

    `switch_s`: a switch to it, the drain before it left out. `drain_s`: from the end of its
    admission until its last request is answered. `service_s`: seconds per answered request at the
    concurrency that it has. `arrivals_per_s`: how often it is asked for. `return_s`: how long after
    it was left those came who asked for it while it was away, on average; None: nobody has yet.
    """

    switch_s: float
    drain_s: float = 0.0
    service_s: float = 0.0
    arrivals_per_s: float = 0.0
    return_s: float | None = None


BATCH_AGES_S = 600.0
"""The longest wait after which a batch request counts as interactive."""


class SchedulingRules(Struct, frozen=True, kw_only=True):
    """What the operator wants.

    `switching_share` (f): the largest share of the time that switches may take while several
    models have work. `max_wait_s`: how long a head may wait, where that is possible; None: as long
    as follows from f. `hold_timeout_s`: after so long, whoever waits is refused. `batch_ages_s`:
    after so long a wait, a batch request counts as interactive.
    """

    policy: str = "turns"
    switching_share: float = 0.15
    max_wait_s: float | None = None
    hold_timeout_s: float = math.inf
    interactive_weight: float = 10.0
    batch_weight: float = 1.0
    batch_ages_s: float = BATCH_AGES_S


class View(Struct, frozen=True, kw_only=True):
    """What a policy decides upon: the models that contend for one device.

    `stay` is of the model that holds the device, None where nothing is live there. `queues` are
    those in which somebody waits, the resident's own among them. `costs` has every model of both.
    """

    at: float
    stay: Stay | None
    queues: tuple[Queue, ...]
    costs: Mapping[str, Costs]
    rules: SchedulingRules = SchedulingRules()


class Decision(Struct, frozen=True, kw_only=True):
    """What is done: switch to `model` now, or (None) stay, and look again at `wake_at`.

    Whatever changes a queue asks the policy anew, too; `wake_at` None waits for that. How many
    requests the resident works on does not: a decision to stay stands as long as the resident has
    work, of the same urgency, and for `linger_s` after it has none (0: it is asked at once). To
    one that had none, work of its own is no reason to be left earlier. `reason` is a sentence for
    log, history and status.
    """

    model: str | None = None
    wake_at: float | None = None
    linger_s: float = 0.0
    reason: str = ""


class Policy(Protocol):
    """A rule for who gets the device next. Pure: what it knows stands in the view."""

    def __call__(self, view: View) -> Decision:
        """Decide. Asked only while no switch runs."""
