"""How long a reader may keep a server waiting that is quicker than it: not for ever.

A little is buffered for each, so a reader is held against only once that is full; then its server
waits, and with it whoever wants the permit, or the memory.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

PATIENCE_S = 60.0
"""Seconds that one reader may keep its server waiting, all its pauses together."""

CROWDED_PATIENCE_S = 10.0
"""The same, while others wait for a permit of that server."""

_LOOKS_PER_LIMIT = 10


class Held(Protocol):
    """A request whose answer is not read on, because its reader does not keep up."""

    def held_s(self, now: float) -> float:
        """Return how long it has waited for its reader in all, by the loop's clock."""

    def give_up(self, reason: str) -> None:
        """End it, and cut its connection. Before `reason` stands the server."""


class SlowReaders:
    """The requests of one server that wait for their readers now, and their limit.

    `is_crowded`: whether others wait for a permit.
    """

    def __init__(self, is_crowded: Callable[[], bool]) -> None:
        self._is_crowded = is_crowded
        self._held: set[Held] = set()
        self._next_look: asyncio.TimerHandle | None = None

    def hold(self, request: Held) -> None:
        """Take note of one that waits from now on."""
        self._held.add(request)
        if self._next_look is None:
            self._look_later()

    def let_go(self, request: Held) -> None:
        """Forget one that goes on, or is over."""
        self._held.discard(request)

    def _look_later(self) -> None:
        pause_s = CROWDED_PATIENCE_S / _LOOKS_PER_LIMIT
        self._next_look = asyncio.get_running_loop().call_later(pause_s, self._look)

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        for request in tuple(self._held):
            limit_s, others = PATIENCE_S, ""
            if self._is_crowded():
                limit_s, others = CROWDED_PATIENCE_S, ", while others waited for the server"
            if request.held_s(now) >= limit_s:
                request.give_up(
                    f"had to wait {limit_s:g} s for its client, which reads more slowly than "
                    f"it is answered{others}"
                )
        self._next_look = None
        if self._held:
            self._look_later()
