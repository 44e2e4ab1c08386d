"""What is measured of a queue: how fast it is served, how long callers waited, who was refused."""

import math
from collections import deque
from statistics import median
from typing import NamedTuple

RECENT_BATCHES = 32
RECENT_WAITS = 1000

FIRST_RETRY_AFTER_S = 5
"""Retry-After before any batch was measured."""

LONGEST_RETRY_AFTER_S = 60
"""Clients do not wait longer than that (OpenAI's: a minute)."""


class Waits(NamedTuple):
    """Quantiles of recent waits, in seconds."""

    p50_s: float
    p95_s: float


class Measures:
    """What was measured of late of the queue of one model."""

    __slots__ = ("_speeds", "_waits", "accepted", "refused")

    def __init__(self) -> None:
        self._speeds: deque[float] = deque(maxlen=RECENT_BATCHES)
        self._waits: deque[float] = deque(maxlen=RECENT_WAITS)
        self.accepted = 0
        """Callers that were let in since the start."""
        self.refused = 0
        """Callers that were sent away because of the queue's bounds."""

    def note_batch(self, tokens: int, took_s: float) -> None:
        """Note a batch of a server that had as much as it takes.

        `tokens` were with it when the batch was sent, its own included. It computes one after the
        other, so that all of these were done when this one was: tokens ÷ time is its speed, however
        many batches it is sent at once (Little's law). One that has less to do than it could shows
        how little came, and not how fast it is.
        """
        if took_s > 0:
            self._speeds.append(tokens / took_s)

    def note_wait(self, waited_s: float) -> None:
        """Note how long a caller waited until the first of its pieces was sent."""
        self._waits.append(waited_s)

    @property
    def tokens_per_s(self) -> float | None:
        """The server's speed: the median of recent batches. None before it was busy."""
        return median(self._speeds) if self._speeds else None

    def waits(self) -> Waits | None:
        """Return how long recent callers waited. None before the first."""
        if not self._waits:
            return None
        ordered = sorted(self._waits)
        return Waits(ordered[len(ordered) // 2], ordered[math.ceil(0.95 * len(ordered)) - 1])

    def expected_wait_s(self, tokens_ahead: int) -> float | None:
        """Return how long it takes until so many tokens are computed. None where unknown."""
        speed = self.tokens_per_s
        return None if speed is None else tokens_ahead / speed

    def retry_after_s(self, tokens_ahead: int) -> int:
        """Return when to come back, in whole seconds: once so many tokens may be computed."""
        wait_s = self.expected_wait_s(tokens_ahead)
        if wait_s is None:
            return FIRST_RETRY_AFTER_S
        return max(1, min(math.ceil(wait_s), LONGEST_RETRY_AFTER_S))
