"""What the workers of a model are held to."""

from collections.abc import Callable

import msgspec

from supervisor.core.machine.values import Target
from supervisor.embedding.batching.queue import BatchLimits


class WorkRules(msgspec.Struct, frozen=True, kw_only=True):
    """What holds, as it is configured now."""

    limits: BatchLimits
    may_switch: bool
    hold_timeout_s: float


RulesOf = Callable[[Target, str], WorkRules]
"""Tells what holds for a target whose server runs with a profile, by its name."""
