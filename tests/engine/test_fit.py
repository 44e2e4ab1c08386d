"""Whether a model fits a device: what counts as room, and what was learned counts as needed."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from supervisor.config.load import load
from supervisor.core.byte_size import MIB
from supervisor.core.sizing.fitting import CTX_STEP
from supervisor.core.sizing.learned import LearnedPeak
from supervisor.engine.fit import DeviceFit, DeviceRoom, judge_fit
from supervisor.engine.kinds.engines import Engines
from supervisor.engine.needs.assessment import Candidate, assess, examine
from supervisor.engine.needs.learned_store import FILE_NAME, LearnedStore

MARGIN_BYTES = 256 * MIB  # of the shipped profile
PLENTY = DeviceRoom(device="host", name="host", budget_bytes=10**12, free_bytes=10**12)


@pytest.fixture
def candidate(profiles_dir: Path, models_dir: Path, llama_server_bin: Path) -> Candidate:
    """demo-chat as shipped: 4 slots of 4096 tokens."""
    configuration = load(profiles_dir, models_dir, {})
    engines = Engines(os.environ, llama_server_bin, "llama-server")
    return examine(configuration.resolve("chat"), engines.choose("auto"))


@pytest.fixture
def needs(tmp_path: Path) -> Iterator[LearnedStore]:
    store = LearnedStore(tmp_path / FILE_NAME)
    yield store
    store.close()


def judge(candidate: Candidate, room: DeviceRoom, store: LearnedStore | None = None) -> DeviceFit:
    return judge_fit(assess(candidate, "host", store), room)


def need_of(candidate: Candidate) -> int:
    return judge(candidate, PLENTY).assessment.need_bytes


def test_margin_must_be_free_beside_the_need(candidate: Candidate) -> None:
    just_enough = need_of(candidate) + MARGIN_BYTES

    assert judge(candidate, replace(PLENTY, free_bytes=just_enough)).fits is True
    assert judge(candidate, replace(PLENTY, free_bytes=just_enough - 1)).fits is False


def test_what_our_servers_hold_counts_as_free(candidate: Candidate) -> None:
    just_enough = need_of(candidate) + MARGIN_BYTES
    held = replace(PLENTY, free_bytes=just_enough - 1000, ours_bytes=1000)

    assert judge(candidate, held).fits is True
    assert judge(candidate, replace(held, ours_bytes=None)).fits is False


def test_budget_bounds_the_need_without_a_margin(candidate: Candidate) -> None:
    need_bytes = need_of(candidate)

    assert judge(candidate, replace(PLENTY, budget_bytes=need_bytes)).fits is True
    assert (
        judge_fit(
            assess(candidate, "host", None), replace(PLENTY, budget_bytes=need_bytes - 1)
        ).fits
        is False
    )


def test_a_device_that_cannot_be_read_is_not_said_to_fit(candidate: Candidate) -> None:
    unread = replace(PLENTY, free_bytes=None, problem="the driver hangs")

    assert judge(candidate, unread).fits is None


def test_what_was_learned_beyond_the_estimate_leaves_less_for_the_context(
    candidate: Candidate, needs: LearnedStore
) -> None:
    estimated = need_of(candidate)
    room = replace(PLENTY, budget_bytes=estimated)
    before = judge(candidate, room, needs)
    assert largest_ctx(before) == 4096

    identity = candidate.identity_on("host")
    assert identity is not None
    needs.note(identity, LearnedPeak(peak_bytes=estimated + MIB, seen_on="2026-11-21"))
    after = judge(candidate, room, needs)

    assert (after.assessment.need_bytes, after.fits) == (estimated + MIB, False)
    assert largest_ctx(after) <= 4096 - CTX_STEP
    assert all(one.need_bytes <= estimated for one in after.would_fit)


def largest_ctx(fit: DeviceFit) -> int:
    assert fit.largest_ctx_size is not None
    assert fit.largest_ctx_size.value is not None
    return fit.largest_ctx_size.value


def test_layers_in_host_memory_leave_room_on_the_gpu_and_need_it_on_the_host(
    candidate: Candidate,
) -> None:
    assert candidate.settings is not None
    partly = replace(candidate, settings=replace(candidate.settings, gpu_layers=1))
    whole, part = (assess(one, "gpu0", None) for one in (candidate, partly))
    assert [*whole.footprint] == ["gpu0"]
    assert part.footprint["gpu0"] == part.need_bytes < whole.need_bytes
    assert part.footprint["host"] > 0
    assert assess(partly, "host", None).footprint == assess(candidate, "host", None).footprint

    gpu, margin = replace(PLENTY, device="gpu0"), MARGIN_BYTES
    tight = replace(PLENTY, free_bytes=part.footprint["host"] + margin)

    assert judge_fit(part, gpu, (gpu, tight)).fits is True
    short = replace(tight, free_bytes=part.footprint["host"] + margin - 1)
    assert judge_fit(part, gpu, (gpu, short)).fits is False
    assert judge_fit(part, gpu, (gpu, replace(tight, free_bytes=None))).fits is None
    assert judge_fit(whole, gpu, (gpu, short)).fits is True


def test_each_gpu_that_layers_are_divided_over_must_have_room_for_its_share(
    candidate: Candidate,
) -> None:
    assert candidate.settings is not None
    halves = replace(candidate, settings=replace(candidate.settings, tensor_split=(1, 1)))
    gpus = ("gpu0", "gpu1")

    first, second = (assess(halves, device, None, gpus) for device in gpus)

    assert first.footprint == {"gpu0": first.need_bytes, "gpu1": second.need_bytes}
    assert second.footprint == first.footprint
    assert assess(halves, "host", None, gpus).footprint == assess(candidate, "host", None).footprint
    rooms = [replace(PLENTY, device=device) for device in gpus]
    assert judge_fit(first, rooms[0], rooms).fits is True
    tight = (rooms[0], replace(rooms[1], budget_bytes=second.need_bytes - 1))
    assert judge_fit(first, rooms[0], tight).fits is False
    assert largest_ctx(judge_fit(first, rooms[0], tight)) < 4096
