"""What a multimodal projector takes, against what llama-server prints of a small one."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supervisor.core.byte_size import MIB
from supervisor.core.sizing.gguf import GgufHeader, read_header
from supervisor.core.sizing.projector import estimate_projector
from tests.core.sizing.server_output import lines_until
from tests.core.sizing.small_models import WIDTH as TEXT_WIDTH
from tests.core.sizing.small_models import Tensors

Writer = Callable[..., Path]
WIDTH, FEED_FORWARD, HEADS = 128, 512, 4
VISION = {
    "has_vision_encoder": True,
    "projector_type": "gemma3",
    "use_gelu": True,
    "vision.image_size": 896,
    "vision.patch_size": 14,
    "vision.embedding_length": WIDTH,
    "vision.feed_forward_length": FEED_FORWARD,
    "vision.block_count": 1,
    "vision.attention.head_count": HEADS,
    "vision.projection_dim": TEXT_WIDTH,
    "vision.attention.layer_norm_epsilon": 1e-6,
    "vision.image_mean": [0.5, 0.5, 0.5],
    "vision.image_std": [0.5, 0.5, 0.5],
}


def pair(name: str, *shape: int) -> Tensors:
    return [(f"{name}.weight", shape), (f"{name}.bias", shape[-1:])]


TENSORS: Tensors = [
    *pair("v.patch_embd", 14, 14, 3, WIDTH),
    ("v.position_embd.weight", (WIDTH, 4096)),
    *pair("v.post_ln", WIDTH),
    ("mm.input_projection.weight", (TEXT_WIDTH, WIDTH)),
    ("mm.soft_emb_norm.weight", (WIDTH,)),
    *(one for n in ("q", "k", "v", "out") for one in pair(f"v.blk.0.attn_{n}", WIDTH, WIDTH)),
    *(one for n in ("ln1", "ln2") for one in pair(f"v.blk.0.{n}", WIDTH)),
    *pair("v.blk.0.ffn_down", WIDTH, FEED_FORWARD),  # named the wrong way round in such files
    *pair("v.blk.0.ffn_up", FEED_FORWARD, WIDTH),
]


def read(path: Path) -> GgufHeader:
    return read_header(path.read_bytes(), file_size=path.stat().st_size)


def printed_compute(binary: Path, model: Path, projector: Path, flash: str) -> float:
    """Start llama-server until it has told what it takes to encode an image, in MiB."""
    words: dict[str, object] = {"-m": model, "--mmproj": projector}
    words["--host"] = model.with_name("s.sock")
    words |= {"-c": 512, "-fa": flash, "-lv": 4, "--fit": "off"}
    argv = [str(binary), *(str(word) for each in words.items() for word in each)]
    lines = lines_until("warmup: flash attention is", argv)
    pattern = r"reserve_compute_meta: .* buffer size = +([\d.]+) MiB"
    found = [float(size[1]) for line in lines if (size := re.search(pattern, line))]
    return found[-1]


@pytest.mark.parametrize("flash", ["on", "off"])
def test_bound_holds_for_what_the_server_takes_to_encode_an_image(
    write_gguf: Writer, write_model: Writer, llama_server_bin: Path, flash: str
) -> None:
    """It prints what one image takes; four may be in a batch."""
    model = write_model("gemma3")
    projector = write_gguf("clip", VISION, TENSORS, file_name="mmproj.gguf")
    header = read(projector)

    printed_mib = printed_compute(llama_server_bin, model, projector, flash)

    found = estimate_projector([header], has_flash_attention=flash == "on")
    compute_mib = (found - header.tensors.total_bytes) / MIB
    assert 4 * printed_mib <= compute_mib <= 8 * printed_mib


@pytest.mark.parametrize(
    ("changes", "at_least_mib"),
    [
        ({"projector_type": "qwen2vl_merger"}, 16384 * WIDTH * 8 * 4 / MIB),
        ({"projector_type": "pixtral", "vision.image_max_pixels": 14 * 14 * 40_000}, 150),
        ({"projector_type": "unheard_of", "vision.embedding_length": 0}, 1024),
    ],
)
def test_images_that_are_taken_as_they_come_are_counted_at_their_largest(
    write_gguf: Writer, changes: dict[str, Any], at_least_mib: float
) -> None:
    header = read(write_gguf("clip", VISION | changes, TENSORS))
    found = estimate_projector([header], has_flash_attention=True)
    assert found - header.tensors.total_bytes >= at_least_mib * MIB


def test_an_encoder_of_sound_alone_has_no_images(write_gguf: Writer) -> None:
    sound = {
        "has_audio_encoder": True,
        "projector_type": "ultravox",
        "audio.embedding_length": WIDTH,
        "audio.feed_forward_length": FEED_FORWARD,
    }
    header = read(write_gguf("clip", sound, TENSORS))
    found = estimate_projector([header], has_flash_attention=True) - header.tensors.total_bytes
    assert 0 < found < 64 * MIB
