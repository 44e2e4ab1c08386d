"""Estimate what a multimodal projector takes: its tensors, and room to encode images and sound.

Source: clip.cpp, clip-model.h and mtmd.cpp of llama.cpp (build 11434). Its compute buffer grows
with the images that it is given; this is a bound for the largest, with flash attention where that
is not switched off.
"""

from collections.abc import Sequence
from typing import NamedTuple

from supervisor.core.byte_size import MIB
from supervisor.core.sizing.gguf import GgufHeader

_FIXED_SIZE = frozenset({"gemma3", "idefics3", "internvl", "ldp", "ldpv2", "llama4", "mlp"})
"""Projectors that get images, or tiles of them, of one size, and whose layers have no gate. Others
take images as they come."""

_IMAGES_AT_ONCE = 4
"""Of fixed size, of 256 tokens each: a batch has 1024 (`--mtmd-batch-max-tokens`)."""

_MAX_PATCHES = 4 * 4096
"""Assumed of the largest image of other projectors: most allow 4096 tokens of 2 × 2 patches."""

_AUDIO_FRAMES = 3000
"""Frames of the 30 seconds of sound that are encoded at a time."""

_FLOAT_BYTES = 4
_UNKNOWN_BYTES = 1024 * MIB
"""Assumed to encode an image where the header does not name the encoder's sizes."""


def estimate_projector(headers: Sequence[GgufHeader], *, has_flash_attention: bool) -> int:
    """Return the bytes that a projector takes where it runs: weights, and compute at most."""
    header = headers[0]
    is_fixed = header.metadata.get("clip.projector_type") in _FIXED_SIZE
    image = _image_patches(header, is_fixed=is_fixed)
    images = _Work(
        sequence=_scored(header, image, has_flash_attention=has_flash_attention),
        positions=image * (_IMAGES_AT_ONCE if is_fixed else 1),
        is_gated=not is_fixed,
    )
    sound = _Work(
        sequence=0 if has_flash_attention else _AUDIO_FRAMES,
        positions=_AUDIO_FRAMES,
        is_gated=True,
    )
    weights_bytes = sum(one.tensors.total_bytes for one in headers)
    return weights_bytes + max(
        _compute_bytes(header, "vision", images), _compute_bytes(header, "audio", sound)
    )


class _Work(NamedTuple):
    """What is encoded at a time. `sequence`: positions that each is scored against, and kept so."""

    sequence: int
    positions: int
    is_gated: bool


def _image_patches(header: GgufHeader, *, is_fixed: bool) -> int:
    trained = _trained_patches(header)
    if is_fixed:
        return trained
    patch = header.count_parameter("vision.patch_size") or 1
    pixels = header.count_parameter("vision.image_max_pixels") or 0
    return max(_MAX_PATCHES, trained, pixels // (patch * patch))


def _trained_patches(header: GgufHeader) -> int:
    """Return the patches of an image of the size that the encoder was trained on; 0: untold."""
    patch = header.count_parameter("vision.patch_size") or 1
    side = (header.count_parameter("vision.image_size") or 0) // patch
    return side * side


def _scored(header: GgufHeader, image: int, *, has_flash_attention: bool) -> int:
    """Return the positions that each is scored against at once.

    Without flash attention that is all of them, squared. Of images of any size, the one that the
    encoder was trained on counts: the largest would not fit on most GPUs on which it runs.
    """
    return 0 if has_flash_attention else _trained_patches(header) or image


def _compute_bytes(header: GgufHeader, modality: str, work: _Work) -> int:
    """Return a bound of an encoder's compute buffer, made as the one of a model's layers is."""
    if not header.parameter(f"has_{modality}_encoder"):
        return 0
    width = header.count_parameter(f"{modality}.embedding_length")
    if not width:
        return _UNKNOWN_BYTES
    feed_forward = header.count_parameter(f"{modality}.feed_forward_length") or 4 * width
    heads = header.count_parameter(f"{modality}.attention.head_count") or 1
    values = 4 * width + max(4 * width, feed_forward * (3 if work.is_gated else 1))
    bound = work.positions * (values + heads * work.sequence) * _FLOAT_BYTES
    return bound + bound // 8 + 8 * MIB
