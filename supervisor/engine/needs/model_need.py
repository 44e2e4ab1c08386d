"""What a model with its profile will take on a device: stated, learned, or estimated."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from supervisor.config.configuration import ResolvedModel
from supervisor.core.byte_size import MIB, format_bytes
from supervisor.core.machine.values import Mode, TargetNeed
from supervisor.core.sizing.fitting import Alternative, alternatives
from supervisor.core.sizing.gguf import GgufHeader
from supervisor.core.sizing.kv_cache import keeps_no_kv
from supervisor.core.sizing.learned_need import LearnedNeed, count_need
from supervisor.core.sizing.need import MemoryNeed, NeedSettings, estimate_need
from supervisor.engine.models.model_file import ModelFile
from supervisor.engine.needs.prompt_identity import prompt_identity
from supervisor.engine.port import Abilities, EngineIdentity
from supervisor.engine.prompts.prompt_cache import identity_of
from supervisor.errors import EngineError
from supervisor.telemetry.port import HOST

DRIVER_CONTEXT_BYTES = 512 * MIB
"""What a GPU driver takes for a process that computes there: kernels, queues, its own tables.

About 500 MiB with CUDA and with HIP; the learned need has the true figure.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceNeed:
    """What a model takes on one kind of device, in bytes, in parts.

    `output_bytes` are results, which are handed over in host memory and so count there alone;
    `context_bytes` is the driver's share for the process, on a GPU. `total_bytes` is their sum.
    """

    estimate: MemoryNeed
    output_bytes: int
    context_bytes: int

    @property
    def beside_bytes(self) -> int:
        """What comes on top of weights, KV cache and compute."""
        return self.output_bytes + self.context_bytes

    @property
    def total_bytes(self) -> int:
        """Everything, on this device."""
        return self.estimate.total_bytes + self.beside_bytes


def need_settings(resolved: ResolvedModel, abilities: Abilities) -> NeedSettings:
    """Return the settings that decide about memory, as this engine will take them."""
    profile = resolved.profile
    return NeedSettings(
        ctx_size_per_slot=profile.ctx_size,
        parallel=profile.parallel,
        kv_unified=profile.kv_unified,
        cache_type_k=profile.cache_type_k,
        cache_type_v=profile.cache_type_v,
        ubatch_size=min(profile.ubatch_size, profile.batch_size),
        flash_attention=profile.flash_attn == "on"
        or (profile.flash_attn == "auto" and abilities.chooses_flash_attention),
        is_embedding=resolved.mode is Mode.EMBEDDING,
    )


def estimate_on(headers: Sequence[GgufHeader], settings: NeedSettings, device: str) -> DeviceNeed:
    """Estimate what a model takes on a device. Raises EngineError for settings it cannot have."""
    estimate = estimate_need(headers, settings)
    is_host = device == HOST
    return DeviceNeed(
        estimate=estimate,
        output_bytes=estimate.host_output_bytes if is_host else 0,
        context_bytes=0 if is_host else DRIVER_CONTEXT_BYTES,
    )


def smaller_settings(
    headers: Sequence[GgufHeader], settings: NeedSettings, extra_bytes: int
) -> tuple[Alternative, ...]:
    """Return what smaller settings would need, with `extra_bytes` that no setting changes."""
    return tuple(
        replace(smaller, need_bytes=smaller.need_bytes + extra_bytes)
        for smaller in alternatives(headers, settings)
    )


def stated_need(resolved: ResolvedModel) -> TargetNeed | None:
    """Return the need that the profile states, which goes before all else; None: it states none."""
    stated_bytes = resolved.profile.memory.need_bytes
    if stated_bytes is None:
        return None
    return TargetNeed(need_bytes=stated_bytes, explanation="memory.need_bytes of its profile")


def need_of(
    file: ModelFile, settings: NeedSettings, need: DeviceNeed, learned: LearnedNeed | None
) -> TargetNeed:
    """Return the larger of what was learned and `need`, the estimate for these settings."""
    counted = count_need(need.total_bytes, learned)
    sentences = [counted.sentence] if counted.sentence else []
    sentences.append(need.estimate.explanation)
    if need.context_bytes:
        sentences.append(f"and {format_bytes(need.context_bytes)} for the driver's context")
    # What was seen beyond the estimate is taken for something that no setting changes.
    extra_bytes = need.beside_bytes + counted.need_bytes - need.total_bytes
    return TargetNeed(
        need_bytes=counted.need_bytes,
        explanation="; ".join(sentences),
        alternatives=smaller_settings(file.headers, settings, extra_bytes),
    )


def slot_kv_bytes(file: ModelFile, settings: NeedSettings) -> int:
    """Estimate what the KV cache of one slot takes when its context is full.

    Raises EngineError for settings that do not fit the model.
    """
    return estimate_need(file.headers, replace(settings, parallel=1, kv_unified=False)).kv_bytes


def need_identity(
    resolved: ResolvedModel, file: ModelFile, engine: EngineIdentity, device: str
) -> str:
    """Return a name that changes with all that decides what a server takes on a device.

    That is what decides about its prompts (`prompt_identity`), and the device.
    """
    return identity_of({"server": prompt_identity(resolved, file, engine), "device": device})


def refuse_uneven_slots(resolved: ResolvedModel, file: ModelFile) -> None:
    """Refuse what makes llama-server abort while it loads (GGML_ASSERT in its pooling).

    Raises EngineError.
    """
    profile = resolved.profile
    is_encoder = keeps_no_kv(file.header.architecture)
    if resolved.mode is Mode.EMBEDDING and is_encoder and profile.ubatch_size % profile.parallel:
        raise EngineError(
            f"'{resolved.name}' ({file.header.architecture}) needs a ubatch_size that is a "
            f"multiple of parallel; {profile.ubatch_size} is none of {profile.parallel}"
        )
