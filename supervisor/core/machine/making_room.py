"""Who can still make way where the gate finds a device too full, and whether anybody can.

In the order in which they are asked to: what the switch has parked itself, whose release may be
what is missing; parked servers that a rollback does not bring back; what the target was to start
beside; and others, as `placing` chooses them by the last reading.
"""

from supervisor.core.machine.draft import Draft
from supervisor.core.machine.memory import MemorySample, ReleaseQuestion
from supervisor.core.machine.parking import parked_by_switch
from supervisor.core.machine.placing import leaving_after_all, may_leave_after_all
from supervisor.core.machine.values import Backend, Phase


def may_make_room(draft: Draft, device: str) -> bool:
    """Whether anything may still give way, so that a refusal of the gate is not the last word."""
    if parked_in_the_way(draft) or parked_beside(draft, device) or replaced_in_the_way(draft):
        return True
    switch = draft.running_switch()
    placement = switch.start.placement
    if switch.phase is not Phase.CONFIRMING or placement is None:
        return False
    return may_leave_after_all(draft.snapshot, switch.order, placement, device)


def was_made_to_refuse(draft: Draft, question: ReleaseQuestion) -> bool:
    """Whether the gate was to refuse because something might give way, and not as configured."""
    placement = draft.running_switch().start.placement
    return placement is not None and question.policy != placement.target.memory


def parked_in_the_way(draft: Draft) -> tuple[Backend, ...]:
    """What this switch has parked, and what may hold more than the target leaves room for."""
    switch = draft.running_switch()
    return parked_by_switch(draft) if switch.phase is Phase.CONFIRMING else ()


def parked_beside(draft: Draft, device: str) -> tuple[Backend, ...]:
    """The parked servers that keep some of a device, and are not what a rollback brings back."""
    snapshot, switch = draft.snapshot, draft.running_switch()
    if switch.phase is not Phase.ROLLING_BACK:
        return ()
    coming = [snapshot.parked_of(placement.target) for placement in switch.rollback.to_restore]
    pool = snapshot.pool(device)
    return tuple(b for b in snapshot.parked() if b.footprint.on(*pool) and b not in coming)


def replaced_in_the_way(draft: Draft) -> tuple[Backend, ...]:
    """What the target was to start beside, as long as nothing has stopped for it: make room."""
    switch = draft.running_switch()
    placement = switch.start.placement
    if switch.phase is not Phase.CONFIRMING or switch.leaving.epochs or placement is None:
        return ()
    here = draft.snapshot.sharing(*placement.footprint.devices)
    return tuple(b for b in here if b.epoch in switch.leaving.behind)


def others_in_the_way(draft: Draft, sample: MemorySample | None) -> tuple[Backend, ...]:
    """Who else can leave the device that the sample shows too full; unread, nobody does."""
    switch = draft.running_switch()
    placement = switch.start.placement
    if switch.phase is not Phase.CONFIRMING or placement is None:
        return ()
    if sample is None or sample not in switch.gate.samples:  # late, or of another device
        return ()
    return leaving_after_all(draft.snapshot, switch.order, placement, sample, draft.at)
