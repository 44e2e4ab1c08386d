"""Which backends give way to a target, and to what use the device must return."""

from dataclasses import replace

from immutables import Map

from supervisor.core.memory import MIB
from supervisor.core.residency import baselines_after, choose_leaving, without
from supervisor.core.values import (
    Backend,
    BackendState,
    Device,
    Mode,
    Refusal,
    Snapshot,
    Target,
)

GIB = 1024 * MIB

SHARED = Device(name="gpu0", budget_bytes=24 * GIB)
EXCLUSIVE = replace(SHARED, is_exclusive=True)
RERANK = Target(model="rerank", mode=Mode.EMBEDDING, profile="rerank", device="gpu0")


def backend(epoch: int, model: str, need_gib: int, **changes: str | int | None) -> Backend:
    """Build a live backend that started when all of the older ones' 8 GiB were in use."""
    target = Target(
        model=model, mode=Mode.GENERATION, profile=model, device=str(changes.get("device", "gpu0"))
    )
    return Backend(
        epoch=epoch,
        target=target,
        state=BackendState.READY,
        need_bytes=need_gib * GIB,
        started_at=float(epoch),
        baseline_used_bytes=(epoch - 1) * 8 * GIB,
    )


CHAT = backend(1, "chat", 8)
EMBED = backend(2, "embed", 8)
CODE = backend(3, "code", 8)
ELSEWHERE = backend(2, "embed", 8, device="gpu1")


def leaving(
    device: Device, need_gib: int, *backends: Backend, target: Target = RERANK
) -> list[int]:
    snapshot = Snapshot(
        devices=Map({"gpu0": device, "gpu1": replace(device, name="gpu1")}), backends=backends
    )
    chosen = choose_leaving(snapshot, target, need_gib * GIB)
    assert not isinstance(chosen, Refusal)
    return [b.epoch for b in chosen]


def test_nothing_gives_way_on_an_empty_device() -> None:
    assert leaving(EXCLUSIVE, 24) == []


def test_exclusive_device_is_emptied_although_its_budget_carries_both() -> None:
    assert leaving(EXCLUSIVE, 1, CHAT) == [1]


def test_shared_device_keeps_what_its_budget_just_carries() -> None:
    assert leaving(SHARED, 8, CHAT, EMBED) == []


def test_oldest_give_way_until_the_rest_fits() -> None:
    assert leaving(SHARED, 9, CHAT, EMBED) == [1]
    assert leaving(SHARED, 9, EMBED, CHAT) == [1]
    assert leaving(SHARED, 16, CHAT, EMBED, CODE) == [1, 2]
    assert leaving(SHARED, 24, CHAT, EMBED) == [1, 2]


def test_backends_on_other_devices_stay() -> None:
    assert leaving(EXCLUSIVE, 24, CHAT, ELSEWHERE) == [1]


def test_same_model_with_another_profile_gives_way_wherever_it_is() -> None:
    other_profile = replace(EMBED.target, profile="embed-long")

    assert leaving(SHARED, 1, CHAT, EMBED, target=other_profile) == [2]
    assert leaving(SHARED, 1, CHAT, ELSEWHERE, target=other_profile) == [2]


def test_target_larger_than_the_budget_is_refused_with_the_arithmetic() -> None:
    refusal = choose_leaving(
        Snapshot(devices=Map({"gpu0": SHARED}), backends=(CHAT,)), RERANK, 24 * GIB + 1
    )

    assert isinstance(refusal, Refusal)
    assert refusal.code == "target_does_not_fit"
    assert dict(refusal.details) == {"need_bytes": 24 * GIB + 1, "budget_bytes": 24 * GIB}
    assert "devices.gpu0.budget_bytes" in refusal.message


def test_baseline_is_the_use_before_the_first_that_leaves() -> None:
    everybody = (CHAT, EMBED, CODE)

    assert baselines_after(everybody, everybody) == (("gpu0", 0),)
    assert baselines_after(everybody, (CODE, EMBED)) == (("gpu0", 8 * GIB),)


def test_baseline_has_the_share_of_those_that_started_later_and_stay() -> None:
    assert baselines_after((CHAT, EMBED, CODE), (CHAT,)) == (("gpu0", 16 * GIB),)


def test_each_device_has_a_baseline_of_its_own() -> None:
    everybody = (CHAT, ELSEWHERE)

    assert baselines_after(everybody, everybody) == (("gpu0", 0), ("gpu1", 8 * GIB))


def test_device_whose_use_before_is_unknown_has_no_baseline() -> None:
    unknown = replace(CHAT, baseline_used_bytes=None)

    assert baselines_after((unknown,), (unknown,)) == ()


def baselines_gib(backends: tuple[Backend, ...]) -> dict[int, int]:
    return {b.epoch: (b.baseline_used_bytes or 0) // GIB for b in backends}


def test_backend_that_is_gone_takes_its_share_out_of_later_baselines() -> None:
    everybody = (CHAT, EMBED, CODE)

    assert baselines_gib(without(everybody, 1)) == {2: 0, 3: 8}
    assert baselines_gib(without(everybody, 2)) == {1: 0, 3: 8}
    assert baselines_gib(without(everybody, 3)) == {1: 0, 2: 8}


def test_order_in_which_backends_leave_does_not_change_the_last_baseline() -> None:
    everybody = (CHAT, EMBED, CODE)

    assert baselines_gib(without(without(everybody, 1), 2)) == {3: 0}
    assert baselines_gib(without(without(everybody, 2), 1)) == {3: 0}


def test_share_is_what_was_measured_and_not_the_estimate() -> None:
    overestimated = replace(CHAT, need_bytes=20 * GIB)

    assert baselines_gib(without((overestimated, EMBED), 1)) == {2: 0}


def test_baselines_of_other_devices_stay_as_they_are() -> None:
    assert without((CHAT, ELSEWHERE), 1) == (ELSEWHERE,)


def test_foreign_tenant_that_left_in_between_raises_no_baseline() -> None:
    crowded = replace(CHAT, baseline_used_bytes=12 * GIB)

    assert baselines_gib(without((crowded, EMBED), 1)) == {2: 8}
