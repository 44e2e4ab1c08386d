"""Whether what operators ask of waiting times can be kept, by what was learned of the models."""

from collections.abc import Iterator

from supervisor.config.configuration import Configuration
from supervisor.core.scheduling.bounds import bounds
from supervisor.core.scheduling.estimates import Estimates, costs_of
from supervisor.core.scheduling.values import View


def wait_warnings(configuration: Configuration, estimates: Estimates) -> Iterator[str]:
    """Yield a sentence for each setting that cannot be kept while all known models have work.

    A request that waits for its turn must be allowed to: the longest wait of a head, and a switch.
    Nothing is said where fewer than two models of the catalogue were switched to yet.
    """
    settings = configuration.settings
    known = {
        name: costs_of(estimates, name)
        for name in configuration.catalogue.models
        if name in estimates.models and estimates.models[name].switches_s
    }
    if len(known) < 2 or not settings.scheduler.auto_switch:
        return
    rules = settings.scheduler.rules(settings.queue.hold_timeout_s)
    held = bounds(View(at=0.0, stay=None, queues=(), costs=known, rules=rules))
    longest_s = max(each.longest_wait_s for each in held.models.values())
    needed_s = longest_s + max(each.switch_s for each in held.models.values())
    if not held.keeps_max_wait:
        yield (
            f"supervisor.yaml: scheduler.max_wait_s: {rules.max_wait_s:g} s cannot be kept: with "
            f"the switches measured so far, a head waits up to {longest_s:.1f} s; raise it, or "
            "scheduler.switching_share"
        )
    if settings.queue.hold_timeout_s < needed_s:
        yield (
            f"supervisor.yaml: queue.hold_timeout_s: {settings.queue.hold_timeout_s:g} s is less "
            f"than a request may have to wait for its turn ({needed_s:.1f} s with the switches "
            "measured so far); raise it"
        )
