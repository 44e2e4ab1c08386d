"""The section `scheduler` of `supervisor.yaml`."""

from typing import Literal

from pydantic import Field

from supervisor.config.fields import Settings
from supervisor.config.units import Seconds
from supervisor.core.machine.rules import DrainPolicy
from supervisor.core.scheduling.values import BATCH_AGES_S, SchedulingRules


class SchedulerSettings(Settings):
    """Who gets the device when requests for several models contend for it."""

    auto_switch: bool = Field(
        default=True,
        description="A request for a model that is not live waits for its turn, and the scheduler "
        "switches. False: it gets 409, and only POST /switch-backend switches.",
    )
    policy: Literal["turns", "fifo"] = Field(
        default="turns",
        description="`turns`: models take turns, long enough that switching stays below "
        "switching_share. `fifo`: the model of the request that has waited longest is next.",
    )
    switching_share: float = Field(
        default=0.15,
        gt=0,
        lt=1,
        description="The largest share of the time that switches may take while several models "
        "have work; smaller is more throughput and longer waits.",
    )
    max_wait_s: Seconds | None = Field(
        default=None,
        gt=0,
        description="Seconds that the first in a queue may wait: turns become as long as that "
        "allows, and no longer. Default: turns as they follow from switching_share; those of long "
        "queues up to four times as long.",
    )
    drain_policy: DrainPolicy = Field(
        default=DrainPolicy.WAIT,
        description="What happens to requests that are in flight at drain_timeout_s in a switch of "
        "the scheduler: `wait` never cuts an answer; `cancel` and `refuse` as in `switch`.",
    )
    manual_hold_s: Seconds = Field(
        default=10.0,
        ge=0,
        description="Seconds after a switch or an unload by hand in which the scheduler does not "
        "switch away.",
    )

    idle_model_after_s: Seconds = Field(
        default=600.0,
        gt=0,
        description="Seconds without any request after which `idle_model` of models.yaml is made "
        "live again.",
    )

    def rules(self, hold_timeout_s: float) -> SchedulingRules:
        """Return what the policies are held to, where requests are refused after so long."""
        return SchedulingRules(
            policy=self.policy,
            switching_share=self.switching_share,
            max_wait_s=self.max_wait_s,
            hold_timeout_s=hold_timeout_s,
            batch_ages_s=min(BATCH_AGES_S, hold_timeout_s / 2),
        )
