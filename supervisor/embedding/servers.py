"""Questions to models' servers, which wait for their model's turn as all work does."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from supervisor.arbiter.arbiter import Arbiter
from supervisor.config.holder import ConfigurationHolder
from supervisor.core.machine.values import Target
from supervisor.core.scheduling.values import Priority
from supervisor.engine.servers.backend import MAX_REPEATS, Backend
from supervisor.engine.targets import Targets
from supervisor.errors import BackendUnreachable

_Told = TypeVar("_Told")


class Servers:
    """Asks the servers of models."""

    def __init__(
        self, *, arbiter: Arbiter, configuration: ConfigurationHolder, targets: Targets
    ) -> None:
        self._arbiter = arbiter
        self._configuration = configuration
        self._targets = targets

    async def ask(
        self,
        target: Target,
        priority: Priority,
        question: Callable[[Backend], Awaitable[_Told]],
        *,
        may_spill: bool = False,
    ) -> _Told:
        """Return what a model's server tells; waits for its turn. One that dies is followed.

        `may_spill`: its twin may tell it, to whoever asks interactively. Raises
        BackendUnreachable, RequestRefused as a lease is refused, and what `question` raises.
        """
        may_spill = may_spill and target.spill is not None and priority is Priority.INTERACTIVE
        target = self._targets.usable(target, may_spill=may_spill)
        may_switch = self._configuration.current.settings.scheduler.auto_switch
        repeats_left = MAX_REPEATS
        while True:
            async with self._arbiter.lease(
                target, may_switch=may_switch, may_spill=may_spill, priority=priority
            ) as lease:
                try:
                    return await question(lease.backend)
                except BackendUnreachable:
                    patience_s = self._arbiter.snapshot.limits.hold_timeout_s
                    if not repeats_left or not await lease.backend.is_found_dead(patience_s):
                        raise
            repeats_left -= 1
