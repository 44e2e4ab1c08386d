"""The release gate: when it opens, when it waits, and when it says no."""

from collections.abc import Sequence
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from supervisor.core.byte_size import MIB
from supervisor.core.machine.memory import (
    MAX_SAMPLE_PAUSE_S,
    GateDecision,
    GateState,
    Holder,
    HolderRole,
    MemoryPolicy,
    MemorySample,
    OnUnconfirmed,
    ReleaseQuestion,
    judge_release,
    pause_before_sample,
)

GIB = 1024 * MIB
TOTAL_BYTES = 24 * GIB
POLICY = MemoryPolicy(
    margin_bytes=256 * MIB, tolerance_bytes=64 * MIB, stable_samples=3, release_timeout_s=10.0
)
ASKED_AT = 100.0


def question(
    *,
    need: int | None = 8 * GIB,
    baseline: int | None = None,
    policy: MemoryPolicy = POLICY,
    is_freed_at_exit: bool = False,
    own_baseline: int | None = None,
) -> ReleaseQuestion:
    return ReleaseQuestion(
        device="gpu0",
        need_bytes=need,
        baseline_used_bytes=baseline,
        policy=policy,
        asked_at=ASKED_AT,
        is_freed_at_exit=is_freed_at_exit,
        own_baseline_bytes=own_baseline,
    )


def sample(
    used: int, *, after_s: float = 0.0, free: int | None = None, children: int | None = None
) -> MemorySample:
    return MemorySample(
        device="gpu0",
        taken_at=ASKED_AT + after_s,
        total_bytes=TOTAL_BYTES,
        used_bytes=used,
        free_bytes=TOTAL_BYTES - used if free is None else free,
        source="test",
        children_bytes=children,
    )


def in_a_row(*used: int, every_s: float = 0.05) -> list[MemorySample]:
    return [sample(u, after_s=i * every_s) for i, u in enumerate(used)]


def state(asked: ReleaseQuestion, samples: Sequence[MemorySample]) -> GateState:
    return judge_release(asked, samples).state


def test_gate_waits_while_there_is_no_sample() -> None:
    assert state(question(), []) is GateState.WAITING


def test_gate_opens_when_enough_is_free_for_the_next_backend_with_the_margin() -> None:
    used = TOTAL_BYTES - 8 * GIB - POLICY.margin_bytes

    assert state(question(), in_a_row(used, used, used)) is GateState.CONFIRMED
    assert state(question(), in_a_row(used + 1, used + 1, used + 1)) is GateState.WAITING


def test_what_ran_before_returns_at_the_baseline_although_less_is_free_than_it_needs() -> None:
    """Its need is an estimate; that it ran from this baseline is a fact."""
    asked = question(need=23 * GIB, baseline=4 * GIB, own_baseline=4 * GIB)
    back = 4 * GIB + POLICY.tolerance_bytes

    assert state(asked, in_a_row(back, back, back)) is GateState.CONFIRMED
    assert state(asked, in_a_row(back + 1, back + 1, back + 1)) is GateState.WAITING


def test_other_target_at_the_baseline_may_lack_the_margin_and_not_its_need() -> None:
    free = TOTAL_BYTES - 4 * GIB
    need = free + POLICY.tolerance_bytes
    fits, exceeds = (question(need=n, baseline=4 * GIB) for n in (need, need + 1))
    back = in_a_row(4 * GIB, 4 * GIB, 4 * GIB)

    assert state(fits, back) is GateState.CONFIRMED
    assert state(exceeds, back) is GateState.WAITING


def test_use_below_the_baseline_counts_as_released() -> None:
    """A foreign tenant left, too: the difference is negative, and must not wrap or be absolute."""
    asked = question(need=23 * GIB, baseline=9 * GIB, own_baseline=9 * GIB)

    assert state(asked, in_a_row(3 * GIB, 3 * GIB, 3 * GIB)) is GateState.CONFIRMED


def test_foreign_tenant_that_came_keeps_the_gate_shut_until_enough_is_free() -> None:
    asked = question(need=8 * GIB, baseline=1 * GIB)
    crowded = in_a_row(20 * GIB, 20 * GIB, 20 * GIB)
    relieved = [*crowded, *(sample(15 * GIB, after_s=1 + i) for i in range(3))]

    assert state(asked, crowded) is GateState.WAITING
    assert state(asked, relieved) is GateState.CONFIRMED


def test_crashed_child_that_released_before_anybody_looked_is_confirmed_without_a_change() -> None:
    asked = question(need=23 * GIB, baseline=2 * GIB, own_baseline=2 * GIB)

    assert state(asked, in_a_row(2 * GIB, 2 * GIB, 2 * GIB)) is GateState.CONFIRMED


def test_first_backend_needs_enough_free_memory() -> None:
    """Nothing was stopped: there is no baseline to be back at."""
    asked = question(need=8 * GIB, baseline=None)

    assert state(asked, in_a_row(0, 0, 0)) is GateState.CONFIRMED
    assert state(asked, in_a_row(20 * GIB, 20 * GIB, 20 * GIB)) is GateState.WAITING


def test_free_memory_is_read_and_not_derived_from_the_total() -> None:
    """Reserved or carved-out memory is neither used nor free."""
    samples = [sample(0, after_s=i, free=8 * GIB) for i in range(3)]

    assert state(question(need=8 * GIB), samples) is GateState.WAITING


def test_unload_is_confirmed_when_the_old_share_is_back() -> None:
    asked = question(need=None, baseline=2 * GIB)

    assert state(asked, in_a_row(2 * GIB, 2 * GIB, 2 * GIB)) is GateState.CONFIRMED


def test_unload_is_not_confirmed_by_memory_that_happens_to_be_free() -> None:
    asked = question(need=None, baseline=2 * GIB)

    assert state(asked, in_a_row(3 * GIB, 3 * GIB, 3 * GIB)) is GateState.WAITING


def test_unload_of_host_memory_is_confirmed_when_our_children_hold_nothing() -> None:
    asked = question(need=None, baseline=2 * GIB, is_freed_at_exit=True)
    held_by_others = [sample(20 * GIB, after_s=i, children=0) for i in range(3)]
    still_ours = [sample(20 * GIB, after_s=i, children=1) for i in range(3)]

    assert state(asked, held_by_others) is GateState.CONFIRMED
    assert state(asked, still_ours) is GateState.WAITING


def test_unload_of_a_gpu_is_not_confirmed_by_children_that_are_gone() -> None:
    """The driver gives their memory back some time after they were reaped."""
    asked = question(need=None, baseline=2 * GIB)
    late = [sample(20 * GIB, after_s=i, children=0) for i in range(3)]

    assert state(asked, late) is GateState.WAITING


def test_children_that_the_platform_does_not_tell_of_are_not_counted_as_zero() -> None:
    asked = question(need=None, baseline=2 * GIB)
    unknown = [sample(20 * GIB, after_s=i, children=None) for i in range(3)]

    assert state(asked, unknown) is GateState.WAITING


def test_unload_of_a_device_with_nothing_stopped_is_confirmed() -> None:
    asked = question(need=None, baseline=None)

    assert state(asked, in_a_row(9 * GIB, 9 * GIB, 9 * GIB)) is GateState.CONFIRMED


def test_passing_dip_does_not_open_the_gate() -> None:
    asked = question(need=8 * GIB)
    low, high = 0, 20 * GIB

    assert state(asked, in_a_row(low, low)) is GateState.WAITING
    assert state(asked, in_a_row(low, low, high)) is GateState.WAITING
    assert state(asked, in_a_row(low, low, high, low, low)) is GateState.WAITING
    assert state(asked, in_a_row(low, low, high, low, low, low)) is GateState.CONFIRMED


@pytest.mark.parametrize("wanted", [1, 2, 5])
def test_gate_asks_for_as_many_stable_samples_as_the_policy_says(wanted: int) -> None:
    asked = question(policy=MemoryPolicy(stable_samples=wanted))

    assert state(asked, in_a_row(*[0] * (wanted - 1))) is GateState.WAITING
    assert state(asked, in_a_row(*[0] * wanted)) is GateState.CONFIRMED


def test_host_memory_is_given_back_with_the_process_so_that_one_sample_is_proof() -> None:
    asked = question(is_freed_at_exit=True)

    assert state(asked, in_a_row(20 * GIB)) is GateState.WAITING
    assert state(asked, in_a_row(20 * GIB, 0)) is GateState.CONFIRMED


def test_gate_fails_closed_at_the_timeout_and_says_what_is_missing() -> None:
    asked = question(need=8 * GIB, baseline=1 * GIB)
    before = [sample(20 * GIB, after_s=9.9)]
    after = [*before, sample(20 * GIB, after_s=10.0)]

    assert state(asked, before) is GateState.WAITING
    decision = judge_release(asked, after)
    assert decision.state is GateState.REFUSED
    for fact in ("10.0 s", "gpu0", "4.0 GiB free", "8.0 GiB needed", "1.0 GiB expected"):
        assert fact in decision.reason


def test_release_that_is_seen_late_has_the_time_that_its_last_readings_take() -> None:
    """Where a driver answers slowly, memory that is free is no reason to give up."""
    full, seen = sample(20 * GIB, after_s=5), [sample(0, after_s=s) for s in (9.9, 13.0, 16.0)]

    assert state(question(), [full, *seen[:2]]) is GateState.WAITING
    assert state(question(), [full, *seen]) is GateState.CONFIRMED


def test_release_that_passes_behind_the_timeout_is_refused() -> None:
    samples = [sample(0, after_s=9.9), sample(20 * GIB, after_s=10)]

    assert state(question(), samples) is GateState.REFUSED


def test_release_that_is_stable_just_at_the_timeout_is_confirmed() -> None:
    samples = [sample(0, after_s=after_s) for after_s in (9.6, 9.8, 10.0)]

    assert state(question(), samples) is GateState.CONFIRMED


def test_immediate_release_is_confirmed_after_samples_at_0_5_and_10_ms() -> None:
    moments_s = list(accumulate(pause_before_sample(i) for i in range(3)))
    samples = [sample(0, after_s=after_s) for after_s in moments_s]

    assert moments_s == pytest.approx([0.0, 0.005, 0.010])
    assert state(question(), samples[:2]) is GateState.WAITING
    assert state(question(), samples) is GateState.CONFIRMED


def test_pauses_grow_from_50_ms_to_250_ms() -> None:
    pauses_ms = [1000 * pause_before_sample(i) for i in range(11)]

    expected = [0, 5, 5, 10, 20, 50, 75, 112.5, 168.75, MAX_SAMPLE_PAUSE_S * 1000, 250]
    assert pauses_ms == pytest.approx(expected)


@given(index=st.integers(0, 10**6))
def test_pause_is_never_longer_than_the_maximum_nor_shorter_than_the_one_before(index: int) -> None:
    assert 0 <= pause_before_sample(index) <= pause_before_sample(index + 1) <= MAX_SAMPLE_PAUSE_S


sizes = st.integers(0, TOTAL_BYTES)
policies = st.builds(
    MemoryPolicy,
    margin_bytes=st.integers(0, GIB),
    tolerance_bytes=st.integers(0, GIB),
    stable_samples=st.integers(1, 5),
    release_timeout_s=st.floats(0.1, 60),
)
questions = st.builds(
    question,
    need=st.none() | sizes,
    baseline=st.none() | sizes,
    policy=policies,
    is_freed_at_exit=st.booleans(),
    own_baseline=st.none() | sizes,
)


@st.composite
def sample_rows(draw: st.DrawFn) -> list[MemorySample]:
    moments_s = sorted(draw(st.lists(st.floats(0, 90), max_size=12)))
    return [
        sample(draw(sizes), after_s=after_s, children=draw(st.none() | st.just(0) | sizes))
        for after_s in moments_s
    ]


def shows_release(asked: ReleaseQuestion, one: MemorySample) -> bool:
    """The rule of the gate, written the other way round: which quantities are too small."""
    short_of_need = (
        asked.need_bytes is None
        or asked.need_bytes + asked.policy.margin_bytes - one.free_bytes > 0
    )
    above_baseline = (
        asked.baseline_used_bytes is None
        or one.used_bytes - asked.baseline_used_bytes - asked.policy.tolerance_bytes > 0
    )
    above_own_baseline = (
        asked.own_baseline_bytes is None
        or one.used_bytes - asked.own_baseline_bytes - asked.policy.tolerance_bytes > 0
    )
    no_room = (
        asked.need_bytes is not None
        and above_own_baseline
        and asked.need_bytes - one.free_bytes - asked.policy.tolerance_bytes > 0
    )
    ours_remain = asked.need_bytes is not None or (
        asked.baseline_used_bytes is not None
        and not (asked.is_freed_at_exit and one.children_bytes == 0)
    )
    return not (short_of_need and (above_baseline or no_room) and ours_remain)


@given(asked=questions, samples=sample_rows())
def test_gate_confirms_exactly_when_the_last_samples_all_show_release(
    asked: ReleaseQuestion, samples: list[MemorySample]
) -> None:
    wanted = 1 if asked.is_freed_at_exit else asked.policy.stable_samples
    last = samples[-wanted:]
    is_released = len(last) == wanted and all(shows_release(asked, one) for one in last)

    assert (state(asked, samples) is GateState.CONFIRMED) == is_released


@given(asked=questions, samples=sample_rows())
def test_gate_never_waits_longer_than_the_timeout_but_for_readings_in_a_row_that_show_enough(
    asked: ReleaseQuestion, samples: list[MemorySample]
) -> None:
    waited_s = samples[-1].taken_at - asked.asked_at if samples else 0.0
    is_late = waited_s >= asked.policy.release_timeout_s
    last = samples[-asked.wanted_samples :]
    is_short_of_readings = len(last) < asked.wanted_samples or not all(
        shows_release(asked, one) for one in last
    )
    found = state(asked, samples)

    if is_late and found is GateState.WAITING:
        assert is_short_of_readings
        assert shows_release(asked, samples[-1])
    assert is_late or found is not GateState.REFUSED


@given(asked=questions, samples=sample_rows(), freed=sizes)
def test_memory_that_others_free_never_shuts_the_gate(
    asked: ReleaseQuestion, samples: list[MemorySample], freed: int
) -> None:
    """Less use on the device can turn a no into a yes, and never a yes into a no."""
    relieved = [
        sample(
            one.used_bytes - min(freed, one.used_bytes),
            after_s=one.taken_at - ASKED_AT,
            children=one.children_bytes,
        )
        for one in samples
    ]

    if state(asked, samples) is GateState.CONFIRMED:
        assert state(asked, relieved) is GateState.CONFIRMED


@given(asked=questions, samples=sample_rows())
def test_gate_always_gives_a_reason(asked: ReleaseQuestion, samples: list[MemorySample]) -> None:
    assert judge_release(asked, samples).reason


# Who holds the memory


def held(
    *holders: tuple[int, int | None, HolderRole], used: int, after_s: float = 0.0
) -> MemorySample:
    """Make a reading with processes: pid, bytes, whose."""
    return replace(
        sample(used, after_s=after_s),
        holders=tuple(
            Holder(pid=pid, used_bytes=size, role=role, name="python")
            for pid, size, role in holders
        ),
    )


def thrice(*holders: tuple[int, int | None, HolderRole], used: int) -> list[MemorySample]:
    return [held(*holders, used=used, after_s=0.05 * i) for i in range(3)]


def with_foreign(asked: ReleaseQuestion, before: int) -> ReleaseQuestion:
    return replace(asked, baseline_foreign_bytes=before)


FOREIGN, SURVIVOR, UNSEEN = HolderRole.FOREIGN, HolderRole.SURVIVOR, HolderRole.UNSEEN


def test_what_a_stopped_server_left_is_named_and_keeps_the_gate_shut() -> None:
    asked = question(need=1 * GIB)
    samples = thrice((4711, 3 * GIB, SURVIVOR), used=3 * GIB)
    decision = judge_release(asked, samples)
    assert decision.state is GateState.WAITING
    assert "still held by what a stopped server left: python (pid 4711) 3.0 GiB" in decision.reason


def test_memory_that_a_foreign_tenant_gave_back_does_not_pass_for_ours() -> None:
    """Before: others held 6 GiB. Now they hold none, and 8 GiB of ours are still there."""
    asked = with_foreign(question(need=20 * GIB, baseline=9 * GIB), before=6 * GIB)
    assert state(asked, thrice(used=8 * GIB)) is GateState.WAITING
    assert state(asked, thrice(used=3 * GIB)) is GateState.CONFIRMED


def test_foreign_growth_is_told_apart_when_nothing_follows() -> None:
    asked = with_foreign(question(need=None, baseline=1 * GIB), before=1 * GIB)
    grown = thrice((7, 9 * GIB, FOREIGN), used=9 * GIB)
    with_ours = thrice((7, 9 * GIB, FOREIGN), used=17 * GIB)
    assert state(asked, grown) is GateState.CONFIRMED
    assert state(asked, with_ours) is GateState.WAITING


def test_foreign_growth_takes_the_room_of_what_follows_and_is_named() -> None:
    asked = with_foreign(question(need=20 * GIB, baseline=1 * GIB), before=1 * GIB)
    decision = judge_release(asked, thrice((7, 9 * GIB, FOREIGN), used=9 * GIB))
    assert decision.state is GateState.WAITING
    assert "others hold memory, 8.0 GiB more than before: python (pid 7) 9.0 GiB" in decision.reason


def test_process_that_is_not_seen_from_here_is_not_taken_for_foreign() -> None:
    """A container: the driver lists our own server under its process id on the host."""
    asked = with_foreign(question(need=None, baseline=1 * GIB), before=1 * GIB)
    samples = thrice((90210, 8 * GIB, UNSEEN), used=9 * GIB)
    assert samples[0].foreign_bytes is None
    assert state(asked, samples) is GateState.WAITING


def test_share_that_is_not_told_is_unknown_and_not_zero() -> None:
    assert held((7, None, FOREIGN), (8, GIB, FOREIGN), used=0).foreign_bytes is None
    assert held((8, GIB, FOREIGN), used=0).foreign_bytes == GIB
    assert sample(0).foreign_bytes is None


# What the operator wants done without a proof


def late(policy: MemoryPolicy) -> GateDecision:
    return judge_release(question(policy=policy), [sample(20 * GIB, after_s=3600.0)])


def test_operator_may_want_to_wait_for_ever() -> None:
    assert late(replace(POLICY, on_unconfirmed=OnUnconfirmed.WAIT)).state is GateState.WAITING


def test_operator_may_want_to_start_without_a_proof_and_that_is_told() -> None:
    decision = late(replace(POLICY, on_unconfirmed=OnUnconfirmed.PROCEED))
    assert decision.state is GateState.UNPROVEN
    assert "not confirmed within 3600.0 s" in decision.reason
    assert "on_unconfirmed" in decision.reason


def test_start_without_a_proof_waits_for_the_timeout_all_the_same() -> None:
    policy = replace(POLICY, on_unconfirmed=OnUnconfirmed.PROCEED)
    assert state(question(policy=policy), [sample(20 * GIB, after_s=9.0)]) is GateState.WAITING
