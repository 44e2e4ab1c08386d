"""Whether a model fits a device: what counts as room, and what was learned counts as needed."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from supervisor.config.load import load
from supervisor.core.byte_size import MIB
from supervisor.core.sizing.fitting import CTX_STEP
from supervisor.core.sizing.learned_need import LearnedNeed
from supervisor.engine.fit import DeviceFit, DeviceRoom, Subject, judge_fit
from supervisor.engine.fit import look_at_subject as look
from supervisor.engine.kinds.engines import Engines
from supervisor.engine.needs.learned_needs import FILE_NAME, LearnedNeeds

MARGIN_BYTES = 256 * MIB  # of the shipped profile
PLENTY = DeviceRoom(device="host", name="host", budget_bytes=10**12, free_bytes=10**12)


@pytest.fixture
def subject(profiles_dir: Path, models_dir: Path, llama_server_bin: Path) -> Subject:
    """demo-chat as shipped: 4 slots of 4096 tokens."""
    configuration = load(profiles_dir, models_dir, {})
    return look(
        configuration.resolve("chat"), Engines(os.environ, llama_server_bin, "llama-server")
    )


@pytest.fixture
def needs(tmp_path: Path) -> Iterator[LearnedNeeds]:
    store = LearnedNeeds(tmp_path / FILE_NAME)
    yield store
    store.close()


def need_of(subject: Subject) -> int:
    return judge_fit(subject, PLENTY, None).need_bytes


def test_margin_must_be_free_beside_the_need(subject: Subject) -> None:
    just_enough = need_of(subject) + MARGIN_BYTES

    assert judge_fit(subject, replace(PLENTY, free_bytes=just_enough), None).fits is True
    assert judge_fit(subject, replace(PLENTY, free_bytes=just_enough - 1), None).fits is False


def test_what_our_servers_hold_counts_as_free(subject: Subject) -> None:
    just_enough = need_of(subject) + MARGIN_BYTES
    held = replace(PLENTY, free_bytes=just_enough - 1000, ours_bytes=1000)

    assert judge_fit(subject, held, None).fits is True
    assert judge_fit(subject, replace(held, ours_bytes=None), None).fits is False


def test_budget_bounds_the_need_without_a_margin(subject: Subject) -> None:
    need_bytes = need_of(subject)

    assert judge_fit(subject, replace(PLENTY, budget_bytes=need_bytes), None).fits is True
    assert judge_fit(subject, replace(PLENTY, budget_bytes=need_bytes - 1), None).fits is False


def test_a_device_that_cannot_be_read_is_not_said_to_fit(subject: Subject) -> None:
    unread = replace(PLENTY, free_bytes=None, problem="the driver hangs")

    assert judge_fit(subject, unread, None).fits is None


def test_what_was_learned_beyond_the_estimate_leaves_less_for_the_context(
    subject: Subject, needs: LearnedNeeds
) -> None:
    estimated = need_of(subject)
    room = replace(PLENTY, budget_bytes=estimated)
    before = judge_fit(subject, room, needs)
    assert largest_ctx(before) == 4096

    identity = subject.identity_on("host")
    assert identity is not None
    needs.note(identity, LearnedNeed(peak_bytes=estimated + MIB, seen_on="2026-11-21"))
    after = judge_fit(subject, room, needs)

    assert (after.need_bytes, after.fits) == (estimated + MIB, False)
    assert largest_ctx(after) <= 4096 - CTX_STEP
    assert all(one.need_bytes <= estimated for one in after.would_fit)


def largest_ctx(fit: DeviceFit) -> int:
    assert fit.largest_ctx_size is not None
    assert fit.largest_ctx_size.value is not None
    return fit.largest_ctx_size.value
