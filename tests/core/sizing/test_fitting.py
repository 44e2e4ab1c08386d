"""What would make a model fit: the largest context, the most slots, the mildest smaller setting."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.byte_size import MIB
from supervisor.core.sizing.estimate import MemorySettings, estimate_memory
from supervisor.core.sizing.fitting import (
    CTX_STEP,
    MAX_CTX_SIZE,
    MAX_PARALLEL,
    Alternative,
    Fits,
    alternatives,
    largest_ctx_size,
    largest_parallel,
    mildest_fitting,
)
from supervisor.core.sizing.gguf import GgufHeader, MetadataValue, read_header
from supervisor.core.sizing.tensor_parts import TensorSummary


def header_of(architecture: str, **parameters: MetadataValue) -> GgufHeader:
    """A header that no file need hold: 8 layers of 8 heads."""
    usual: dict[str, MetadataValue] = {
        "block_count": 8,
        "embedding_length": 256,
        "feed_forward_length": 1024,
        "attention.head_count": 8,
        "attention.sliding_window": 512,
        "vocab_size": 20_000,
    }
    return GgufHeader(
        version=3,
        architecture=architecture,
        name="",
        metadata={f"{architecture}.{n}": value for n, value in (usual | parameters).items()},
        array_lengths={},
        tensors=TensorSummary(count=1, total_bytes=10 * MIB, types={}),
        alignment=32,
        data_offset=0,
        split_count=1,
        split_no=0,
    )


def within(header: GgufHeader, room_bytes: int) -> Fits:
    return lambda settings: estimate_memory([header], settings).total_bytes <= room_bytes


rooms = st.integers(0, 3000).map(lambda mib: mib * MIB)
trained_contexts = st.none() | st.integers(1, 200_000)
all_settings = st.builds(
    MemorySettings,
    ctx_size_per_slot=st.integers(0, 40_000),
    parallel=st.integers(1, 40),
    kv_unified=st.booleans(),
    ubatch_size=st.sampled_from([64, 512, 2048]),
    flash_attention=st.booleans(),
)
headers = st.builds(
    lambda architecture, trained: header_of(
        architecture, **({} if trained is None else {"context_length": trained})
    ),
    st.sampled_from(["llama", "gemma3", "bert"]),
    trained_contexts,
)


@given(headers, all_settings, rooms)
def test_largest_context_fits_and_the_next_step_does_not(
    header: GgufHeader, settings: MemorySettings, room: int
) -> None:
    fits = within(header, room)

    largest = largest_ctx_size(header, settings, fits)

    if largest.value is None:
        assert not fits(replace(settings, ctx_size_per_slot=CTX_STEP))
        return
    assert fits(replace(settings, ctx_size_per_slot=largest.value))
    if largest.is_maximum:
        assert largest.value == largest.maximum
    else:
        assert largest.value % CTX_STEP == 0
        assert not fits(replace(settings, ctx_size_per_slot=largest.value + CTX_STEP))


@given(headers, all_settings, rooms, rooms)
def test_more_room_never_means_a_smaller_context_or_fewer_slots(
    header: GgufHeader, settings: MemorySettings, room: int, more: int
) -> None:
    for largest in (largest_ctx_size, largest_parallel):
        small = largest(header, settings, within(header, room)).value or 0
        assert small <= (largest(header, settings, within(header, room + more)).value or 0)


@given(headers, all_settings, rooms)
def test_most_slots_fit_and_no_larger_number_does(
    header: GgufHeader, settings: MemorySettings, room: int
) -> None:
    fits = within(header, room)

    value = largest_parallel(header, settings, fits).value

    assert value is None or fits(replace(settings, parallel=value))
    for slots in range((value or 0) + 1, MAX_PARALLEL + 1, 17):
        assert not fits(replace(settings, parallel=slots))


@given(headers, all_settings, st.integers(1, 100))
def test_a_larger_context_never_needs_less(
    header: GgufHeader, settings: MemorySettings, steps: int
) -> None:
    """Bisection rests on this."""
    needs = [
        estimate_memory([header], replace(settings, ctx_size_per_slot=tokens)).total_bytes
        for tokens in (steps * CTX_STEP, (steps + 1) * CTX_STEP)
    ]
    assert needs == sorted(needs)


@pytest.mark.parametrize(
    ("trained", "settings", "value", "is_maximum"),
    [
        (4096, MemorySettings(), 4096, True),
        (1000, MemorySettings(), 1000, True),  # and not 1024
        (100, MemorySettings(), 100, True),
        (None, MemorySettings(), MAX_CTX_SIZE, True),
        (512, MemorySettings(parallel=8, kv_unified=True), 8 * 512, True),  # each slot uses as much
        (512, MemorySettings(parallel=8), 512, True),
    ],
)
def test_context_is_bounded_by_what_the_model_was_trained_for(
    trained: int | None, settings: MemorySettings, value: int, is_maximum: bool
) -> None:
    header = header_of("llama", **({} if trained is None else {"context_length": trained}))

    largest = largest_ctx_size(header, settings, lambda _: True)

    assert (largest.value, largest.is_maximum) == (value, is_maximum)


def test_an_encoder_takes_only_slots_that_divide_its_batch() -> None:
    settings = MemorySettings(ubatch_size=1500, is_embedding=True)

    assert largest_parallel(header_of("bert"), settings, lambda _: True).value == 250
    assert largest_parallel(header_of("llama"), settings, lambda _: True).value == MAX_PARALLEL


def test_of_each_setting_the_mildest_that_fits_is_named() -> None:
    smaller = [
        Alternative(setting="ctx_size: 4096", need_bytes=40),
        Alternative(setting="ctx_size: 2048", need_bytes=30),
        Alternative(setting="ctx_size: 1024", need_bytes=20),
        Alternative(setting="parallel: 1", need_bytes=50),
    ]

    assert [one.setting for one in mildest_fitting(smaller, 30)] == ["ctx_size: 2048"]


def test_alternatives_need_what_the_estimate_says_of_them(
    write_model: Callable[..., Path],
) -> None:
    path = write_model("llama")
    header = read_header(path.read_bytes(), file_size=path.stat().st_size)
    settings = MemorySettings(ctx_size_per_slot=4096, parallel=4)

    smaller = {one.setting: one.need_bytes for one in alternatives([header], settings)}

    halved = replace(settings, ctx_size_per_slot=2048)
    assert smaller["ctx_size: 2048"] == estimate_memory([header], halved).total_bytes
    assert smaller["ctx_size: 2048"] < estimate_memory([header], settings).total_bytes
