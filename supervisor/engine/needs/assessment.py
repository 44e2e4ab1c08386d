"""What a start is going to take on its device, assessed once for all who ask.

Preflight, `fit`, `check` and the learner see the same: `examine()` looks at a model with its
profile as the chosen engine takes both, `assess()` holds that against a device.

What counts is, in this order: the need that the profile states; the learned peak of the same files,
settings and build, where it is higher than the estimate; the estimate from the file's header.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

from supervisor.config.configuration import ResolvedModel
from supervisor.core.byte_size import MIB, format_bytes
from supervisor.core.machine.footprint import Footprint
from supervisor.core.machine.values import Mode, TargetNeed
from supervisor.core.sizing.estimate import (
    EMBEDDING_ARCHITECTURES,
    MemoryEstimate,
    MemorySettings,
    estimate_memory,
)
from supervisor.core.sizing.fitting import Alternative, alternatives
from supervisor.core.sizing.kept_prompts import KeptPrompts, estimate_kept_prompts
from supervisor.core.sizing.kv_cache import keeps_no_kv
from supervisor.core.sizing.learned import LearnedPeak, count_need
from supervisor.engine.models.model_file import ModelFile, require_loadable
from supervisor.engine.models.model_source import look_at_model, require_stated_need
from supervisor.engine.needs.companions import (
    Companions,
    host_expert_layers,
    look_at_companions,
)
from supervisor.engine.needs.learned_store import LearnedStore
from supervisor.engine.needs.prompt_identity import prompt_identity
from supervisor.engine.port import Abilities, Engine, EngineIdentity
from supervisor.engine.prompts.prompt_cache import identity_of
from supervisor.errors import EngineError, ModelFileError
from supervisor.telemetry.port import HOST

DRIVER_CONTEXT_BYTES = 512 * MIB
"""What a GPU driver takes for a process that computes there: kernels, queues, its own tables.

About 500 MiB with CUDA and with HIP; the learned peak has the true figure.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEstimate:
    """What a model takes on one kind of device, in bytes, in parts.

    `output_bytes` are results, which are handed over in host memory and so count there alone;
    `context_bytes` is the driver's share for the process, on a GPU; `companions` what comes beside
    the model, by name. `total_bytes` is their sum. `host_bytes` is what is in host memory of a
    model that is on a GPU, and is not in it. `kept` are prompts in host memory: a bound, that most
    servers stay far below, and so neither in what is needed nor in what a stop gives back.
    """

    memory: MemoryEstimate
    output_bytes: int
    context_bytes: int
    companions: Mapping[str, int] = field(default_factory=dict)
    host_bytes: int = 0
    kept: KeptPrompts = field(default_factory=KeptPrompts)

    @property
    def companion_bytes(self) -> int:
        """What comes beside the model, on this device."""
        return sum(self.companions.values())

    @property
    def beside_bytes(self) -> int:
        """What comes on top of weights, KV cache and compute."""
        return self.output_bytes + self.context_bytes + self.companion_bytes

    @property
    def total_bytes(self) -> int:
        """Everything, on this device."""
        return self.memory.total_bytes + self.beside_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A start that is considered: a model with its profile, as the engine takes both.

    `build` is None where the engine cannot say which it is: nothing is learned of such a start.
    `file` and `settings` are None where the model has no GGUF header, and the profile states the
    need. `keeps_checkpoints`: this build makes what `ctx_checkpoints` bounds.
    """

    resolved: ResolvedModel
    build: EngineIdentity | None
    file: ModelFile | None
    settings: MemorySettings | None
    companions: Companions = field(default_factory=Companions)
    keeps_checkpoints: bool = False

    @property
    def stated_bytes(self) -> int | None:
        """The need that the profile states."""
        return self.resolved.profile.memory.need_bytes

    def identity_on(self, device: str) -> str | None:
        """Return the name under which its peak on a device is learned; None: it is not.

        It changes with all that decides what a server takes there: what decides about its prompts
        (`prompt_identity`), and the device.
        """
        if self.build is None or self.file is None or self.stated_bytes is not None:
            return None
        server = prompt_identity(self.resolved, self.file, self.build)
        return identity_of({"server": server, "device": device})

    def settings_on(self, device: str, split_over: Sequence[str] = ()) -> MemorySettings | None:
        """Return the settings for what a device takes; None without a header.

        `split_over`: the GPUs that the layers are divided over, where they are.
        """
        if self.settings is None or self.file is None:
            return None
        if device == HOST:
            return replace(self.settings, gpu_layers=None, tensor_split=())
        if device not in split_over:
            return replace(self.settings, tensor_split=(), is_gpu=True)
        return replace(self.settings, part=split_over.index(device), is_gpu=True)

    def estimate_on(self, device: str, split_over: Sequence[str] = ()) -> DeviceEstimate | None:
        """Estimate the need on a device; None without a header. Raises EngineError."""
        settings = self.settings_on(device, split_over)
        if self.file is None or settings is None:
            return None
        is_host = device == HOST
        memory = estimate_memory(self.file.headers, settings)
        beside_bytes = memory.host_bytes + self.companions.host_bytes(settings)
        return DeviceEstimate(
            memory=memory,
            output_bytes=memory.host_output_bytes if is_host else 0,
            context_bytes=0 if is_host else DRIVER_CONTEXT_BYTES,
            companions=self.companions.bytes_beside(settings, is_host=is_host),
            host_bytes=0 if is_host else beside_bytes,
            kept=self._kept_prompts(self.file, settings),
        )

    def _kept_prompts(self, file: ModelFile, settings: MemorySettings) -> KeptPrompts:
        profile = self.resolved.profile
        if self.resolved.mode is Mode.EMBEDDING:
            return KeptPrompts()
        return estimate_kept_prompts(
            file.header,
            settings,
            checkpoints=profile.ctx_checkpoints if self.keeps_checkpoints else 0,
            cache_ram_mib=profile.cache_ram_mib,
        )

    def stated_on(self, device: str, split_over: Sequence[str] = ()) -> int | None:
        """Return the stated need of a device: all of it, or its share by `tensor_split`."""
        shares = self.resolved.profile.shares
        if self.stated_bytes is None or device not in split_over:
            return self.stated_bytes
        return ceil(self.stated_bytes * shares[split_over.index(device)] / sum(shares))


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """What a candidate will take on a device.

    `need_bytes` is what counts there; `estimate` and `learned` are what it was made from, None
    where there is none (`learned_sentence` says how far the peak counts). `identity` is the name
    under which its peak is learned. `split_over`: the GPUs that its layers are divided over, the
    device among them; empty where it is alone.
    """

    candidate: Candidate
    device: str
    need_bytes: int
    split_over: tuple[str, ...] = ()
    identity: str | None = None
    estimate: DeviceEstimate | None = None
    learned: LearnedPeak | None = None
    learned_sentence: str = ""

    @property
    def is_stated(self) -> bool:
        """Whether the profile states the need: no setting changes it then."""
        return self.candidate.stated_bytes is not None

    @property
    def unseen_bytes(self) -> int:
        """What was seen beyond the estimate; it is taken for something that no setting changes."""
        return self.need_bytes - self.estimate.total_bytes if self.estimate else 0

    @property
    def explanation(self) -> str:
        """How the need comes about, in one line."""
        if self.estimate is None or self.is_stated:
            return "memory.need_bytes of its profile"
        sentences = [self.learned_sentence] if self.learned_sentence else []
        sentences.append(self.estimate.memory.explanation)
        sentences += [
            f"and {format_bytes(size_bytes)} for {name}"
            for name, size_bytes in self.estimate.companions.items()
            if size_bytes
        ]
        if self.estimate.context_bytes:
            context = format_bytes(self.estimate.context_bytes)
            sentences.append(f"and {context} for the driver's context")
        kept = self.estimate.kept
        if kept.explanation:
            sentences.append(f"beside it, in host memory, at most {kept.explanation}")
        sentences += (*self.candidate.companions.uncounted, *kept.uncounted)
        return "; ".join(sentences)

    @property
    def footprint(self) -> Mapping[str, int]:
        """What it takes of each device, in bytes: its own, other GPUs, the host for layers there.

        Of other GPUs nothing is learned: what they take is stated, or estimated.
        """
        needs = {device: self._need_on(device) for device in (self.split_over or (self.device,))}
        host_bytes = self.estimate.host_bytes if self.estimate else 0
        return needs | ({HOST: host_bytes} if host_bytes and not self.is_stated else {})

    def _need_on(self, device: str) -> int:
        if device == self.device:
            return self.need_bytes
        stated_bytes = self.candidate.stated_on(device, self.split_over)
        if stated_bytes is not None:
            return stated_bytes
        estimate = self.candidate.estimate_on(device, self.split_over)
        return estimate.total_bytes if estimate else 0

    def footprint_with(self, settings: MemorySettings) -> Mapping[str, int]:
        """Return the footprint of the same model with other settings. Raises EngineError."""
        candidate = replace(self.candidate, settings=settings)
        changed = candidate.estimate_on(self.device, self.split_over)
        if changed is None:
            return self.footprint
        need_bytes = changed.total_bytes + self.unseen_bytes
        other = replace(self, candidate=candidate, estimate=changed, need_bytes=need_bytes)
        return other.footprint

    def smaller(self) -> tuple[Alternative, ...]:
        """Return what each smaller setting would need here; nothing where the need is stated."""
        file = self.candidate.file
        settings = self.candidate.settings_on(self.device, self.split_over)
        if file is None or settings is None or self.estimate is None or self.is_stated:
            return ()
        extra_bytes = self.estimate.beside_bytes + self.unseen_bytes
        return tuple(
            replace(one, need_bytes=one.need_bytes + extra_bytes)
            for one in alternatives(file.headers, settings)
        )

    def need(self) -> TargetNeed:
        """Return what the core asks: how much, why, and what would make it smaller."""
        return TargetNeed(
            footprint=Footprint.of(self.footprint),
            explanation=self.explanation,
            alternatives=self.smaller(),
        )


def examine(resolved: ResolvedModel, engine: Engine, known: ModelFile | None = None) -> Candidate:
    """Look at the model's file, and at how the engine takes the profile.

    `known` is the file as it was looked at before, where that still holds. May block: it reads the
    header, and asks a new binary for its flags. Raises EngineError and ModelFileError when the
    candidate could not start.
    """
    engine.check(resolved)
    abilities = engine.abilities(resolved)
    file = known or look_at_model(resolved, abilities)
    companions = look_at_companions(resolved)
    if file is None:
        require_stated_need(resolved)
    else:
        if abilities.runs_gguf_only:
            require_loadable(file)
            _refuse_generating_encoder(resolved, file)
        _refuse_uneven_slots(resolved, file)
    return Candidate(
        resolved=resolved,
        build=_build_of(engine),
        file=file,
        settings=memory_settings(resolved, abilities) if file is not None else None,
        companions=companions,
        keeps_checkpoints=abilities.keeps_checkpoints,
    )


def assess(
    candidate: Candidate,
    device: str,
    learned_store: LearnedStore | None,
    split_over: tuple[str, ...] = (),
) -> Assessment:
    """Return what the candidate will take on a device. May block for the disk.

    `split_over`: the GPUs that its layers are divided over; on a device that is none of them, all
    of it is assessed. Raises EngineError for settings that the model cannot have; a stated need
    takes precedence.
    """
    split_over = split_over if device in split_over else ()
    stated_bytes = candidate.stated_on(device, split_over)
    if stated_bytes is not None:
        estimate = None
        with contextlib.suppress(EngineError):
            estimate = candidate.estimate_on(device, split_over)
        return Assessment(
            candidate=candidate,
            device=device,
            need_bytes=stated_bytes,
            split_over=split_over,
            estimate=estimate,
        )
    estimate = candidate.estimate_on(device, split_over)
    if estimate is None:
        raise EngineError("a model without a header needs memory.need_bytes")
    identity = candidate.identity_on(device)
    learned = learned_store.get(identity) if learned_store and identity else None
    counted = count_need(estimate.total_bytes, learned)
    return Assessment(
        candidate=candidate,
        device=device,
        need_bytes=counted.need_bytes,
        split_over=split_over,
        identity=identity,
        estimate=estimate,
        learned=learned,
        learned_sentence=counted.sentence,
    )


def memory_settings(resolved: ResolvedModel, abilities: Abilities) -> MemorySettings:
    """Return the settings that decide about memory, as this engine will take them."""
    profile = resolved.profile
    return MemorySettings(
        ctx_size_per_slot=profile.ctx_size,
        parallel=profile.parallel,
        kv_unified=profile.kv_unified,
        cache_type_k=profile.cache_type_k,
        cache_type_v=profile.cache_type_v,
        ubatch_size=min(profile.ubatch_size, profile.batch_size),
        flash_attention=profile.flash_attn == "on"
        or (profile.flash_attn == "auto" and abilities.chooses_flash_attention),
        is_embedding=resolved.mode is Mode.EMBEDDING,
        gpu_layers=profile.n_gpu_layers if isinstance(profile.n_gpu_layers, int) else None,
        host_expert_layers=host_expert_layers(profile.extra_args),
        tensor_split=profile.shares,
    )


def slot_kv_bytes(file: ModelFile, settings: MemorySettings) -> int:
    """Estimate what the KV cache of one slot takes when its context is full.

    Raises EngineError for settings that do not fit the model.
    """
    one_slot = replace(settings, parallel=1, kv_unified=False, gpu_layers=None, tensor_split=())
    return estimate_memory(file.headers, one_slot).kv_bytes


def _build_of(engine: Engine) -> EngineIdentity | None:
    try:
        return engine.identity
    except EngineError:
        return None


def _refuse_generating_encoder(resolved: ResolvedModel, file: ModelFile) -> None:
    """Refuse for generation what llama-server loads, and then answers each chat with an error."""
    architecture = file.header.architecture
    if resolved.mode is Mode.GENERATION and architecture in EMBEDDING_ARCHITECTURES:
        raise ModelFileError(
            f"{file.path}: models of its architecture, {architecture}, make vectors only; write "
            "`type: embedding` for it"
        )


def _refuse_uneven_slots(resolved: ResolvedModel, file: ModelFile) -> None:
    """Refuse what makes llama-server abort while it loads (GGML_ASSERT in its pooling)."""
    profile = resolved.profile
    is_encoder = keeps_no_kv(file.header.architecture)
    if resolved.mode is Mode.EMBEDDING and is_encoder and profile.ubatch_size % profile.parallel:
        raise EngineError(
            f"'{resolved.name}' ({file.header.architecture}) needs a ubatch_size that is a "
            f"multiple of parallel; {profile.ubatch_size} is not a multiple of {profile.parallel}"
        )
