"""What is loaded beside a model counts where it is loaded, and what is not known is named."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from supervisor.config.configuration import ResolvedModel
from supervisor.core.byte_size import MIB
from supervisor.core.sizing.projector import estimate_projector
from supervisor.engine.kinds.llama_server import LlamaServer
from supervisor.engine.models.model_file import inspect_model_file
from supervisor.engine.needs.assessment import Assessment, assess, examine
from supervisor.errors import ModelFileError

ResolvedWith = Callable[..., ResolvedModel]
Assess = Callable[..., Assessment]
SPLIT = ("gpu0", "gpu1")
DRAFT_BYTES = 3 * MIB
EXPERT_BYTES = 4 * MIB


def write_gguf(
    path: Path,
    architecture: str,
    size_bytes: int,
    names: Sequence[str] = ("blk.0.any.weight",),
    /,
    **numbers: int,
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in numbers.items():
        writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_tokenizer_model("none")
    if architecture == "clip":
        writer.add_bool("clip.has_vision_encoder", True)
        writer.add_uint32("clip.vision.embedding_length", 64)
    for name in names:
        writer.add_tensor(name, np.zeros(size_bytes // 4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_llama(path: Path, size_bytes: int) -> Path:
    numbers = {"block_count": 1, "context_length": 512, "embedding_length": 64}
    return write_gguf(path, "llama", size_bytes, **numbers, **{"attention.head_count": 2})


@pytest.fixture
def projector(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "mmproj.gguf", "clip", 2 * MIB)


@pytest.fixture
def expert_model(tmp_path: Path) -> Path:
    """Two layers with a tensor of experts each."""
    numbers = {"block_count": 2, "context_length": 512, "embedding_length": 64}
    numbers |= {"attention.head_count": 2, "expert_count": 2, "expert_used_count": 1}
    names = [f"blk.{layer}.ffn_up_exps.weight" for layer in (0, 1)]
    return write_gguf(tmp_path / "experts.gguf", "llama", EXPERT_BYTES, names, **numbers)


@pytest.fixture
def sliding_model(tmp_path: Path) -> Path:
    """Five of six layers have a window."""
    numbers = {"block_count": 6, "context_length": 512, "embedding_length": 64}
    numbers |= {"attention.head_count": 2, "attention.sliding_window": 64}
    numbers |= {"attention.layer_norm_rms_epsilon": 0}
    return write_gguf(tmp_path / "sliding.gguf", "gemma3", MIB, **numbers)


@pytest.fixture
def assessed(resolved_with: ResolvedWith, models_dir: Path, llama_server_bin: Path) -> Assess:
    """Assess the demo model with further arguments on a device."""
    engine = LlamaServer(llama_server_bin)

    def build(
        device: str = "gpu0",
        split_over: tuple[str, ...] = (),
        *,
        path: Path | None = None,
        projector: Path | None = None,
        keeps_checkpoints: bool = True,
        **fields: Any,
    ) -> Assessment:
        resolved = resolved_with(
            path=path or models_dir / "demo-chat.gguf",
            device=split_over or "gpu",
            ctx_size=512,
            **fields,
        )
        candidate = examine(replace(resolved, projector_path=projector), engine)
        assert candidate.keeps_checkpoints
        candidate = replace(candidate, keeps_checkpoints=keeps_checkpoints)
        return assess(candidate, device, None, split_over)

    return build


def test_a_projector_counts_where_the_server_loads_it(assessed: Assess, projector: Path) -> None:
    size_bytes = estimate_projector(inspect_model_file(projector).headers, has_flash_attention=True)
    assert size_bytes > 2 * MIB
    for device in ("gpu0", "host"):
        alone, both = (assessed(device, projector=each) for each in (None, projector))
        assert both.need_bytes == alone.need_bytes + size_bytes
        assert both.footprint.keys() == {device}
        assert "for the projector" in both.explanation


def test_of_several_gpus_the_first_takes_the_projector(assessed: Assess, projector: Path) -> None:
    alone, both = (assessed("gpu0", SPLIT, projector=each) for each in (None, projector))
    assert both.footprint["gpu0"] > alone.footprint["gpu0"]
    assert both.footprint["gpu1"] == alone.footprint["gpu1"]


def test_a_projector_may_stay_in_host_memory(assessed: Assess, projector: Path) -> None:
    plain = assessed(projector=projector)
    kept = assessed(projector=projector, extra_args=["--no-mmproj-offload"])
    moved_bytes = plain.need_bytes - kept.need_bytes
    assert moved_bytes > 2 * MIB
    assert kept.footprint == {"gpu0": kept.need_bytes, "host": moved_bytes}


def test_a_projector_that_cannot_be_read_is_refused(assessed: Assess, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no-such\.gguf"):
        assessed(projector=tmp_path / "no-such.gguf")


@pytest.mark.parametrize("flag", ["-md", "--model-draft", "--model_draft", "--spec-draft-model"])
def test_a_draft_model_counts_with_a_context_of_its_own(
    assessed: Assess, tmp_path: Path, flag: str
) -> None:
    draft = write_llama(tmp_path / "draft.gguf", DRAFT_BYTES)
    alone, both = assessed(), assessed(extra_args=[flag, str(draft)])
    assert both.need_bytes - alone.need_bytes > DRAFT_BYTES
    assert "for the draft model" in both.explanation


@pytest.mark.parametrize(
    ("extra_args", "sentence"),
    [
        (("-md", "/no/such.gguf"), "the draft model is not counted (/no/such.gguf:"),
        (("-hfd", "org/name"), "the draft model of -hfd is not counted"),
        (("-ot", "exps=CPU"), "what -ot changes is not known to the estimate"),
        (("-ncmoed", "4"), "what -ncmoed changes is not known to the estimate"),
        (("--n_cpu_ffn", "4"), "what --n-cpu-ffn changes is not known to the estimate"),
        (("--swa-full",), "what --swa-full changes is not known to the estimate"),
    ],
)
def test_what_the_estimate_does_not_know_is_named(
    assessed: Assess, extra_args: tuple[str, ...], sentence: str
) -> None:
    assert sentence in assessed(extra_args=extra_args).explanation
    assert assessed(extra_args=extra_args).need_bytes == assessed().need_bytes


def test_what_a_variable_changes_is_named(assessed: Assess) -> None:
    variables = {"LLAMA_ARG_N_CPU_MOE": "4", "LLAMA_ARG_NUMA": "isolate"}
    explanation = assessed(env=variables).explanation
    assert "what LLAMA_ARG_N_CPU_MOE in env changes is not known" in explanation
    assert "NUMA" not in explanation


@pytest.mark.parametrize(
    ("extra_args", "layers"),
    [
        (("--n-cpu-moe", "1"), 1),
        (("-ncmoe", "2"), 2),
        (("--cpu_moe",), 2),
        (("-ncmoe", "1", "-cmoe"), 2),
        (("-ncmoe", "0"), 0),
        (("-ncmoe", "one"), 0),
    ],
)
def test_experts_that_stay_in_host_memory_count_there(
    assessed: Assess, expert_model: Path, extra_args: tuple[str, ...], layers: int
) -> None:
    whole = assessed(path=expert_model)
    part = assessed(path=expert_model, extra_args=extra_args)
    passed_bytes = EXPERT_BYTES if layers else 0  # what one layer's are handed over in
    assert whole.need_bytes - part.need_bytes == layers * EXPERT_BYTES - passed_bytes
    assert part.footprint.get("host", 0) >= layers * EXPERT_BYTES
    assert "not known to the estimate" not in part.explanation


def test_experts_of_the_model_say_nothing_of_the_draft_model(
    assessed: Assess, expert_model: Path
) -> None:
    plain, kept = (
        assessed(extra_args=("-md", str(expert_model), *more)) for more in ((), ("-cmoe",))
    )
    assert kept.need_bytes == plain.need_bytes


@pytest.mark.parametrize("device", ["gpu0", "host"])
def test_prompts_in_host_memory_are_told_and_are_no_part_of_the_need(
    assessed: Assess, device: str
) -> None:
    plain, cached = (assessed(device, cache_ram_mib=size_mib) for size_mib in (0, 64))
    assert cached.footprint == plain.footprint
    assert "beside it, in host memory, at most prompt cache 64.0 MiB" in cached.explanation


@pytest.mark.parametrize("is_made", [True, False])
def test_checkpoints_are_told_where_the_build_makes_them(
    assessed: Assess, sliding_model: Path, *, is_made: bool
) -> None:
    none, some = (
        assessed(path=sliding_model, parallel=4, ctx_checkpoints=count, keeps_checkpoints=is_made)
        for count in (0, 2)
    )
    assert some.need_bytes == none.need_bytes
    # Of each: 5 layers, 512 cells, keys and values of 2 heads in f16.
    assert ("4 × 2 checkpoints 5.0 MiB" in some.explanation) is is_made
