"""What the operator chose for requests that wait, for models, and for switches.

They reach the core as an event (`RulesChanged`), so that others may apply while it runs.
"""

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct

from supervisor.core.machine.values import Target
from supervisor.core.scheduling.values import SchedulingRules


class DrainPolicy(StrEnum):
    """What happens to requests that are still in flight when the drain deadline passes."""

    WAIT = "wait"
    CANCEL = "cancel"
    REFUSE = "refuse"


class Limits(Struct, frozen=True, kw_only=True):
    """Bounds on requests that wait for a switch, and on restarts of a model that dies.

    `hold_max_per_model` None: as many as may wait in all.
    """

    hold_max_requests: int = 10_000
    hold_max_per_model: int | None = None
    hold_timeout_s: float = 300.0
    breaker_deaths: int = 5
    breaker_window_s: float = 120.0


class ModelRules(Struct, frozen=True, kw_only=True):
    """What the operator chose for one model.

    `is_pinned`: it never gives way to another. `idle_unload_s`: it is unloaded after so long
    without work. `max_concurrency`: so many requests use it at once.
    """

    is_pinned: bool = False
    idle_unload_s: float | None = None
    max_concurrency: int | None = None


_AS_ALL = ModelRules()


class SwitchRules(Struct, frozen=True, kw_only=True):
    """How switches go about their work, as the operator chose.

    `replaces`: a switch leaves only its target live, even where more would fit. `warms`: the
    target's file is read into the page cache meanwhile. `keeps_prompts_at_exit`: prompt caches are
    also saved when the controller ends. `parked_max_bytes`: host memory that parked servers may
    hold together (None: as the host's budget allows). `scheduling`: what the scheduler's policy is
    held to; `scheduler_drains`: what its switches do to requests in flight; `manual_hold_s`: how
    long it leaves alone what was switched to by hand. `models` has those for which something was
    chosen. `idle_target` is made live again once nothing was asked for during `idle_after_s`.
    """

    replaces: bool = False
    warms: bool = True
    keeps_prompts_at_exit: bool = False
    parked_max_bytes: int | None = None
    scheduling: SchedulingRules = SchedulingRules()
    scheduler_drains: DrainPolicy = DrainPolicy.WAIT
    manual_hold_s: float = 10.0
    models: Mapping[str, ModelRules] = {}
    idle_target: Target | None = None
    idle_after_s: float = 600.0

    def of(self, target: Target) -> ModelRules:
        """Return what was chosen for a target's model."""
        return self.models.get(target.model) or _AS_ALL

    def unloads(self, target: Target, only: str | None) -> bool:
        """Whether an unload stops a target: of one model by name, or of all that are not pinned."""
        return not self.of(target).is_pinned if only is None else target.model == only
