"""The policies that the setting `scheduler.policy` names."""

from collections.abc import Mapping

from supervisor.core.scheduling.fifo import fifo
from supervisor.core.scheduling.turns import turns
from supervisor.core.scheduling.values import Policy

POLICIES: Mapping[str, Policy] = {"turns": turns, "fifo": fifo}
"""By their names: `turns` is the default, `fifo` for comparison and for those who want it."""
