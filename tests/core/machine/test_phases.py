"""The table of phases drives: it knows all, forbids what it does not name, lets none hang."""

import pytest
from msgspec.structs import replace

from supervisor.core.machine.commands import ReleaseMemory, StartBackend
from supervisor.core.machine.draft import Draft
from supervisor.core.machine.events import SwitchRequested, TargetAccepted, TimePassed
from supervisor.core.machine.leaving import REAP_TIMEOUT_S
from supervisor.core.machine.phases import PHASES, check_moves, phase_deadline
from supervisor.core.machine.rules import SwitchRules
from supervisor.core.machine.step import step
from supervisor.core.machine.switching import WARM_TIMEOUT_S
from supervisor.core.machine.values import Phase, TargetNeed
from supervisor.errors import InvalidTransition
from tests.core.machine.story import CHAT, EMBED, GIB, Story, failure_in
from tests.core.machine.surroundings import taking


def test_every_phase_has_its_rules_and_leads_only_to_phases() -> None:
    assert set(PHASES) == set(Phase)
    reached = set().union(*(rules.next for rules in PHASES.values()))
    assert reached | {Phase.PREFLIGHT} == set(Phase)


def test_a_move_that_the_table_does_not_name_is_a_bug() -> None:
    story = Story()
    story.ask_for(CHAT)
    draft = Draft(story.snapshot, story.now)
    draft.enter_phase(Phase.STARTING)
    with pytest.raises(InvalidTransition, match="preflight → starting"):
        check_moves(draft)


def test_a_switch_goes_on_where_nobody_says_that_the_file_is_being_read() -> None:
    asked = SwitchRequested(at=1.0, switch_id="s1", target=CHAT, requested_by="test")
    accepted = TargetAccepted(
        at=2.0, switch_id="s1", need=TargetNeed(footprint=taking(GIB)), readings=()
    )
    snapshot = replace(Story().snapshot, rules=SwitchRules(warms=True))
    for event in (asked, accepted):
        snapshot, _ = step(snapshot, event)
    assert phase_deadline(snapshot) == 2.0 + WARM_TIMEOUT_S
    snapshot, _ = step(snapshot, TimePassed(at=2.0 + WARM_TIMEOUT_S))
    assert snapshot.switch is not None
    assert snapshot.switch.phase is Phase.CONFIRMING


def late(story: Story) -> float:
    """Let what starts be late, so that it is stopped. Returns when it must be gone."""
    assert isinstance(story.wake()[0], ReleaseMemory)
    return story.now + CHAT.patience.stop_grace_s + REAP_TIMEOUT_S


def test_a_start_that_was_given_up_and_does_not_end_ends_the_switch() -> None:
    story = Story()
    story.ask_for(CHAT)
    story.accept()
    story.confirm()
    gone_by = late(story)
    code, message = failure_in(story.wake())
    assert (story.now, code) == (gone_by, "backend_not_reaped")
    assert "the kernel holds it" in message
    assert story.reap(1) == ()  # nobody waits for it any more
    assert story.snapshot.recoveries == ()


def test_a_restored_server_that_does_not_end_either_is_tried_again_later() -> None:
    story = Story()
    story.make_live(CHAT)
    story.ask_for(EMBED)
    story.accept()
    story.reap(1)
    story.confirm()
    story.reap(2, exit_code=1)
    (start,) = story.confirm()
    assert isinstance(start, StartBackend)
    assert story.phase is Phase.RESTORING
    late(story)
    commands = story.wake()
    code, message = failure_in(commands)
    assert code == "backend_died"
    assert "and the rollback failed: 'chat' (pid None) cannot be ended" in message
    assert story.attempts() == [("chat", 1)]
