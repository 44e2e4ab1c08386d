"""How long an input may be, from header and settings; on real servers: tests/embedding."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from supervisor.core.sizing.gguf import GgufHeader
from supervisor.core.sizing.input_limit import longest_input
from supervisor.engine.models.model_file import inspect_model_file

SETTINGS = {"ctx_size": 512, "parallel": 8, "kv_unified": True, "ubatch_size": 2048}


@pytest.fixture(scope="module")
def bert(models_dir: Path) -> GgufHeader:
    return inspect_model_file(models_dir / "minilm.gguf").header


@pytest.fixture(scope="module")
def causal(long_reader: Path) -> GgufHeader:
    return inspect_model_file(long_reader).header


def limit(header: GgufHeader, **changes: Any) -> int:
    settings: dict[str, Any] = {**SETTINGS, "pooling": None, **changes}
    return longest_input(header, **settings)


def test_model_that_cannot_split_an_input_is_bound_by_its_micro_batch_and_its_slot(
    bert: GgufHeader,
) -> None:
    assert limit(bert) == 512
    assert limit(bert, ubatch_size=128) == 128
    assert limit(bert, kv_unified=False, ctx_size=256) == 256
    assert limit(bert, ctx_size=0) == 512
    assert limit(bert, ctx_size=32768) == 512  # its own context


def test_model_that_splits_inputs_is_bound_by_its_context_alone(causal: GgufHeader) -> None:
    own = causal.count_parameter("context_length")
    assert own is not None
    assert limit(causal, ctx_size=0, ubatch_size=512) == own - 1
    assert limit(causal, ctx_size=1024, ubatch_size=512) == 1023
    assert limit(causal, ctx_size=0, ubatch_size=512, pooling="mean") == 512


def test_reranker_splits_where_it_is_causal(causal: GgufHeader) -> None:
    key = f"{causal.architecture}.attention.causal"
    looks_back = replace(causal, metadata={**causal.metadata, key: False})
    assert limit(causal, ctx_size=1024, ubatch_size=512, pooling="rank") == 1023
    assert limit(looks_back, ctx_size=1024, ubatch_size=512, pooling="rank") == 512
