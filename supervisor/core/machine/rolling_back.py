"""How a failed switch brings back what it stopped, one backend after the other.

Each is confirmed (ROLLING_BACK) and started (RESTORING) as a target is. Uses up `to_restore` of
the switch's `rollback`, which `leaving` noted.
"""

from msgspec.structs import replace

from supervisor.core.machine.confirming import expect_devices, expect_more_use, question_device
from supervisor.core.machine.draft import Draft
from supervisor.core.machine.ending import end_switch
from supervisor.core.machine.making_room import may_make_room
from supervisor.core.machine.memory import MemorySample
from supervisor.core.machine.recovery import note_failed_recovery
from supervisor.core.machine.starting import forget_start, place
from supervisor.core.machine.values import Phase, Refusal


def roll_back(draft: Draft, failure: Refusal) -> None:
    """Bring back what was stopped, and then report the failure."""
    draft.enter_phase(Phase.ROLLING_BACK)
    draft.set_switch("rollback", failure=failure)
    forget_start(draft)
    _restore_next(draft, None)


def note_restored(draft: Draft, memory: MemorySample | None) -> None:
    """What was brought back is ready: go on with the next."""
    draft.enter_phase(Phase.ROLLING_BACK)
    restored, *left = draft.running_switch().rollback.to_restore
    draft.set_switch("rollback", to_restore=tuple(left))
    forget_start(draft)
    expect_more_use(draft, restored)
    _restore_next(draft, memory)


def fail_rollback(draft: Draft, refusal: Refusal) -> None:
    """What was stopped cannot be brought back either: report both, and keep trying."""
    switch = draft.running_switch()
    failure = switch.rollback.failure or refusal
    for lost in switch.rollback.to_restore:
        note_failed_recovery(draft, lost.target, refusal.message)
    message = f"{failure.message}; and the rollback failed: {refusal.message}"
    details = (*failure.details, ("rolled_back", False))
    end_switch(draft, refusal=replace(failure, message=message, details=details))


def _restore_next(draft: Draft, memory: MemorySample | None) -> None:
    """Ask for the memory of the next that was stopped; when all are back, the switch is over."""
    rollback = draft.running_switch().rollback
    if rollback.to_restore:
        place(draft, rollback.to_restore[0])
        expect_devices(draft, ())
        device = draft.running_switch().gate.devices[0]
        question_device(draft, device, may_make_room=may_make_room(draft, device))
        return
    failure = rollback.failure
    assert failure is not None  # noqa: S101 - a rollback begins with one
    details = (*failure.details, ("rolled_back", True))
    end_switch(draft, refusal=replace(failure, details=details), memory_after=memory)
