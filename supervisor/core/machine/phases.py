"""The phases of a switch as a table, which drives: what each waits for, and what may follow.

PREFLIGHT, WARMING, DRAINING, STOPPING, CONFIRMING, STARTING, READY; and, where something was
stopped for a switch that fails, ROLLING_BACK and RESTORING for each model that comes back.
"""

from collections.abc import Callable
from typing import NamedTuple

from supervisor.core.machine.confirming import take_sample
from supervisor.core.machine.draft import Draft
from supervisor.core.machine.leaving import reap_deadline
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.starting import start_deadline
from supervisor.core.machine.switch import Switch
from supervisor.core.machine.switching import (
    CHECK_TIMEOUT_S,
    WARM_TIMEOUT_S,
    begin_leaving,
    fail_unchecked,
    pass_start_deadline,
    progress_drain,
    progress_stop,
)
from supervisor.core.machine.values import Phase
from supervisor.errors import InvalidTransition


class PhaseRules(NamedTuple):
    """What is done in a phase, and what may follow it; each phase may also end the switch.

    `deadline`: the moment that it waits for, None while there is none. `on_time`: what is done
    then. `on_progress`: what is done when a lease came back, or a backend that leaves is gone.
    """

    deadline: Callable[[Snapshot, Switch], float | None]
    on_time: Callable[[Draft], None]
    on_progress: Callable[[Draft], None]
    next: frozenset[Phase]


def _nothing(_draft: Draft) -> None:
    """Nothing is waited for here that this would bring."""


PHASES: dict[Phase, PhaseRules] = {
    Phase.PREFLIGHT: PhaseRules(
        deadline=lambda _, switch: switch.order.started_at + CHECK_TIMEOUT_S,
        on_time=fail_unchecked,
        on_progress=_nothing,
        # Passed over: WARMING, by an unload and where files are not warmed; DRAINING, where
        # nothing gives way.
        next=frozenset({Phase.WARMING, Phase.DRAINING, Phase.CONFIRMING}),
    ),
    Phase.WARMING: PhaseRules(
        deadline=lambda _, switch: switch.phase_started_at + WARM_TIMEOUT_S,
        on_time=begin_leaving,
        on_progress=_nothing,
        next=frozenset({Phase.DRAINING, Phase.CONFIRMING}),
    ),
    Phase.DRAINING: PhaseRules(
        deadline=lambda _, switch: switch.leaving.drain_deadline,
        on_time=progress_drain,
        on_progress=progress_drain,
        # CONFIRMING, where what leaves dies while it drains.
        next=frozenset({Phase.STOPPING, Phase.CONFIRMING}),
    ),
    Phase.STOPPING: PhaseRules(
        deadline=reap_deadline,
        on_time=progress_stop,
        on_progress=progress_stop,
        next=frozenset({Phase.CONFIRMING}),
    ),
    Phase.CONFIRMING: PhaseRules(
        deadline=lambda _, switch: switch.gate.next_sample_at,
        on_time=take_sample,
        on_progress=_nothing,
        # DRAINING, where the target was to start beside others, and the memory for all of them
        # cannot be confirmed; STOPPING, where that of one that was parked cannot.
        next=frozenset({Phase.STARTING, Phase.DRAINING, Phase.STOPPING, Phase.ROLLING_BACK}),
    ),
    Phase.STARTING: PhaseRules(
        deadline=start_deadline,
        on_time=pass_start_deadline,
        on_progress=_nothing,
        next=frozenset({Phase.READY, Phase.ROLLING_BACK}),
    ),
    Phase.READY: PhaseRules(
        deadline=lambda *_: None, on_time=_nothing, on_progress=_nothing, next=frozenset()
    ),
    Phase.ROLLING_BACK: PhaseRules(
        deadline=lambda _, switch: switch.gate.next_sample_at,
        on_time=take_sample,
        on_progress=_nothing,
        next=frozenset({Phase.RESTORING}),
    ),
    Phase.RESTORING: PhaseRules(
        deadline=start_deadline,
        on_time=pass_start_deadline,
        on_progress=_nothing,
        next=frozenset({Phase.ROLLING_BACK}),
    ),
}


def phase_deadline(snapshot: Snapshot) -> float | None:
    """Return the moment that the running switch waits for, None while there is none."""
    switch = snapshot.switch
    return None if switch is None else PHASES[switch.phase].deadline(snapshot, switch)


def pass_phase_deadline(draft: Draft) -> None:
    """Do what the running switch's phase does on time, if its moment has come."""
    due_at = phase_deadline(draft.snapshot)
    if due_at is not None and draft.at >= due_at:
        PHASES[draft.running_switch().phase].on_time(draft)


def progress_phase(draft: Draft) -> None:
    """Do what the running switch's phase does on progress, if one runs."""
    switch = draft.snapshot.switch
    if switch is not None:
        PHASES[switch.phase].on_progress(draft)


def check_moves(draft: Draft) -> None:
    """Raise InvalidTransition where a phase was entered that the table forbids."""
    for left, entered in draft.moves:
        if entered not in PHASES[left].next:
            raise InvalidTransition(f"the switch: {left} → {entered}")
