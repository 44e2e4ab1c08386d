"""A mode profile: how a server is started for generation or for embedding.

Each field's description names its unit. The llama-server flag that it becomes stands in the table
of flags (`supervisor/engine/kinds/flag_table.py`), from which the reference takes it.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from supervisor.config.command import CommandSettings, unknown_placeholder
from supervisor.config.device_choice import DeviceChoice
from supervisor.config.fields import Settings
from supervisor.config.units import Bytes, EnvText, Seconds
from supervisor.core.byte_size import MIB
from supervisor.core.machine.memory import MemoryPolicy, OnUnconfirmed
from supervisor.core.machine.values import Mode


def _switch_word(value: Any) -> Any:
    """YAML 1.1 reads an unquoted `on` as true, and operators write it unquoted."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


def _layers(value: Any) -> Any:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if is_count or value in {"auto", "all"}:
        return value
    raise ValueError(f"must be all, auto or a number of layers, not {value!r}")


def _variable_pattern(value: Any) -> Any:
    if not isinstance(value, str) or not _VARIABLE_PATTERN.fullmatch(value):
        raise ValueError(
            f"must be a variable's name, or HF_* for all that begin with HF_, not {value!r}"
        )
    if value.startswith(("LLAMA_", "AIP_")):
        raise ValueError(
            f"{value} cannot be passed on: such variables change the server's settings; write "
            "it into env"
        )
    return value


_VARIABLE_PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\*?|\*")

VariablePattern = Annotated[str, BeforeValidator(_variable_pattern)]
Share = Annotated[float, Field(gt=0, allow_inf_nan=False)]
GpuLayers = Annotated[int | Literal["auto", "all"], BeforeValidator(_layers)]
OnOffAuto = Annotated[Literal["on", "off", "auto"], BeforeValidator(_switch_word)]
EngineName = Literal["auto", "llama-server", "embedded", "llama-cpp-python", "command"]
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]
Pooling = Literal["none", "mean", "cls", "last", "rank"]
LoadMode = Literal["auto", "none", "mmap", "mlock", "mmap+mlock", "dio"]


class ProfileMemory(Settings):
    """How memory is accounted for and how its release is proven."""

    need_bytes: Bytes | None = Field(
        default=None,
        gt=0,
        description="Bytes that the server takes on its device; default: estimated from the file.",
    )
    parked_bytes: Bytes | None = Field(
        default=None,
        gt=0,
        description="Bytes of host memory that it is taken to hold while it is parked; default: "
        "as many as the last time, or, before that, as it takes of its GPUs.",
    )
    margin_bytes: Bytes = Field(
        default=256 * MIB,
        ge=0,
        description="Bytes that must be free beyond the need before a start is confirmed.",
    )
    tolerance_bytes: Bytes = Field(
        default=64 * MIB,
        ge=0,
        description="Bytes by which use may exceed the baseline and still count as released.",
    )
    stable_samples: int = Field(
        default=3,
        ge=1,
        le=64,
        description="Consecutive samples of a GPU that must show the memory free; of the host's, "
        "which is given back with the process, one.",
    )
    release_timeout_s: Seconds = Field(
        default=10.0,
        gt=0,
        description="Seconds after which a release counts as not confirmed.",
    )
    on_unconfirmed: OnUnconfirmed = Field(
        default=OnUnconfirmed.REFUSE,
        description="Then, and where the device cannot be read at all: `refuse` fails the switch, "
        "`wait` goes on asking, `proceed` starts anyway, at the operator's risk.",
    )

    def policy(self) -> MemoryPolicy:
        """Return the part that the release gate works with."""
        return MemoryPolicy(
            margin_bytes=self.margin_bytes,
            tolerance_bytes=self.tolerance_bytes,
            stable_samples=self.stable_samples,
            release_timeout_s=self.release_timeout_s,
            on_unconfirmed=self.on_unconfirmed,
        )


class ProfileBatching(Settings):
    """How the embedding service puts the inputs of callers together for this server."""

    max_concurrent: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Batches that the server is sent at once; default: 4, of which no more than "
        "2 are full.",
    )
    max_batch_size: int = Field(
        default=32, ge=1, le=2048, description="Inputs that are sent in one batch."
    )
    max_batch_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Tokens of all inputs of a batch, unless it is a single one; default: "
        "`ubatch_size`.",
    )
    batch_wait_ms: float = Field(
        default=0,
        ge=0,
        le=60_000,
        description="Milliseconds that a batch which is not full waits for more, from its first "
        "input on. 0: it is sent as soon as fewer than `max_concurrent` are at the server.",
    )


class Profile(Settings):
    """How to start a server for one mode. Names follow llama.cpp's."""

    extends: str | None = Field(
        default=None,
        description="Another profile, whose fields apply where this one does not set them.",
    )
    mode: Mode = Field(description="`generation` or `embedding`: which models it is for.")
    engine: EngineName = Field(
        default="auto",
        description="What runs the model: the native `llama-server`, the `embedded` wheel, "
        "`llama-cpp-python`, any other server by its `command`, or `auto`: the first of the first "
        "three that is there.",
    )
    fallback_profile: str | None = Field(
        default=None,
        description="The profile to run with instead where there is no room for this one, such as "
        "`embedding-cpu`; default: the switch is refused. A model's overrides are laid over it, "
        "too; one that is used as a fallback has none itself.",
    )
    command: CommandSettings | None = Field(
        default=None, description="With `engine: command`: how the server is started."
    )
    give_up_memory: Literal["stop", "park"] = Field(
        default="stop",
        description="How it makes room for another model: `stop` ends it; `park` has it give its "
        "GPUs' memory up and live on, from where it comes back sooner. For `park`, a server with "
        "`engine: command` needs `command.park`, and any other `switch.cuda_checkpoint`. One that "
        "does not give it up, or for which the host has no room, is stopped.",
    )
    device: DeviceChoice = Field(
        default="gpu",
        description="Whose memory it takes. `gpu`: a GPU, and where there are several, the one on "
        "which the fewest models must give way (host memory where there is none). `cpu`: the "
        "host's, and no GPU is visible to the server. Else one device by its name (`gpu1`) or its "
        "vendor's UUID, or a list of these, over which the layers are divided: `[gpu0, gpu1]`.",
    )
    ctx_size: int = Field(
        default=0,
        ge=0,
        description="Tokens of context per slot; 0 = the model's own. Its flag gets "
        "ctx_size × parallel, or ctx_size with `kv_unified`.",
    )
    batch_size: int = Field(default=2048, ge=1, description="Tokens submitted at once.")
    ubatch_size: int = Field(default=512, ge=1, description="Tokens computed at once.")
    parallel: int = Field(default=1, ge=1, description="Slots: sequences served at a time.")
    kv_unified: bool = Field(default=False, description="One KV cache shared by all slots.")
    cache_type_k: CacheType = Field(default="f16", description="Type of cached keys.")
    cache_type_v: CacheType = Field(
        default="f16",
        description="Type of cached values; a quantised one needs `flash_attn: on`.",
    )
    flash_attn: OnOffAuto = Field(default="auto", description="Flash attention: on, off or auto.")
    cache_ram_mib: int = Field(
        default=0,
        ge=-1,
        description="MiB of host memory for the prompt cache of idle slots; 0 = none, -1 = no "
        "limit.",
    )
    ctx_checkpoints: int = Field(
        default=4,
        ge=0,
        description="Copies of a slot's state that are kept in host memory at most, for models "
        "that cannot go back in a conversation otherwise (sliding windows, recurrent layers).",
    )
    cache_reuse: int = Field(
        default=0,
        ge=0,
        description="Minimum length of a cached chunk that is shifted into a new prompt, in "
        "tokens; 0 = off.",
    )
    keep_prompt_cache: bool = Field(
        default=False,
        description="Save the prompt of every slot before a switch stops the server, and restore "
        "it when the same model starts again with the same settings. For generation, with "
        "`kv_unified: false` or `cache_ram_mib: 0`.",
    )
    n_gpu_layers: GpuLayers = Field(
        default="all", description="Layers kept on the GPU: all, auto or a number."
    )
    tensor_split: tuple[Share, ...] | None = Field(
        default=None,
        min_length=2,
        max_length=16,
        description="How the layers on GPUs are divided over the GPUs that `device` lists, or over "
        "the first ones, a number for each: `[3, 1]` puts three quarters on the first, the rest on "
        "the second. Default: those that `device` lists take the same; else one GPU takes all.",
    )
    main_gpu: int | None = Field(
        default=None,
        ge=0,
        description="The number of the GPU that it runs on: 1 is `gpu1`, as with `device: gpu1`. "
        "Where layers are divided: the one of these GPUs, from 0 on, that the server takes for its "
        "main one.",
    )
    fit: bool = Field(
        default=False,
        description="Let the server shrink itself to what is free when it starts; off, so that "
        "the profile means the same every time.",
    )
    pooling: Pooling | None = Field(
        default=None, description="How token vectors become one; default: the model's."
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads; default: the engine's."
    )
    threads_http: int | None = Field(
        default=None,
        ge=1,
        description="Threads that answer HTTP; default: 8 more than requests are sent at once "
        "(120, or two for each slot). With fewer, 8 less than these are sent at once.",
    )
    load_mode: LoadMode = Field(default="auto", description="How the file is read.")
    extra_args: tuple[str, ...] = Field(
        default=(),
        description="Further arguments, passed as they are, without a shell. Those that the "
        "controller relies on (address, model, key and the like), and those that are fields of a "
        "profile, are refused.",
    )
    env: dict[str, EnvText] = Field(
        default_factory=dict,
        description="Environment for the server, over what it inherits. Values may name variables: "
        "`${HF_TOKEN}`.",
    )
    env_passthrough: tuple[VariablePattern, ...] = Field(
        default=(),
        description="Further variables of the controller that the server inherits: `HF_TOKEN`, or "
        "`HF_*` for all that begin with `HF_`. It always gets those that programs, GPU drivers and "
        "their libraries need (PATH, HOME, CUDA_*, GGML_* and so on); LLAMA_* and AIP_* never.",
    )
    start_timeout_s: Seconds = Field(
        default=120.0, gt=0, description="Seconds within which the server must be ready."
    )
    drain_timeout_s: Seconds = Field(
        default=30.0,
        ge=0,
        description="Seconds that requests in flight get before the server is stopped.",
    )
    stop_grace_s: Seconds = Field(
        default=5.0, ge=0, description="Seconds between SIGTERM and SIGKILL."
    )
    stall_timeout_s: Seconds = Field(
        default=120.0,
        ge=0,
        description="Seconds without a byte of an answer or a movement of a slot after which a "
        "server with requests is reported as stalled; 0 = never.",
    )
    restart_on_stall: bool = Field(
        default=False,
        description="Replace a stalled server; what is safe to repeat is served by its successor.",
    )
    memory: ProfileMemory = Field(
        default_factory=ProfileMemory, description="Need, and proof of release."
    )
    batching: ProfileBatching = Field(
        default_factory=ProfileBatching, description="For embedding: how inputs become batches."
    )

    @property
    def shares(self) -> tuple[float, ...]:
        """How the layers are divided over several GPUs, a number for each; empty: they are not."""
        listed = len(self.device) if isinstance(self.device, tuple) else 0
        return self.tensor_split or (1.0,) * listed

    @property
    def batch_tokens(self) -> int:
        """The most tokens of a batch of the embedding service, unless it is a single input."""
        return self.batching.max_batch_tokens or self.ubatch_size

    @field_validator("tensor_split")
    @classmethod
    def _divide_over_devices(cls, split: Any, info: ValidationInfo) -> Any:
        device = info.data.get("device", "gpu")
        if split is None or device == "gpu":
            return split
        if isinstance(device, str):
            raise ValueError(
                "is for device: gpu; leave it out"
                if device == "cpu"
                else f"divides layers over several GPUs, and device names one, {device}; list them "
                "all in device, or leave it out"
            )
        if len(split) != len(device):
            raise ValueError(
                f"must have a number for each of the {len(device)} GPUs of device, not {len(split)}"
            )
        return split

    @field_validator("main_gpu")
    @classmethod
    def _choose_main_gpu(cls, number: Any, info: ValidationInfo) -> Any:
        device, split = info.data.get("device", "gpu"), info.data.get("tensor_split")
        if number is None:
            return number
        if isinstance(device, str) and device != "gpu":
            raise ValueError(
                "is for device: gpu; leave it out"
                if device == "cpu"
                else f"is said already by device: {device}; leave it out"
            )
        listed = device if isinstance(device, tuple) else split
        if listed is not None and number >= len(listed):
            field = "tensor_split" if device == "gpu" else "device"
            raise ValueError(f"must be one of the {len(listed)} GPUs of {field}, from 0 on")
        return number

    @field_validator("give_up_memory")
    @classmethod
    def _know_how_to_park(cls, value: str, info: ValidationInfo) -> str:
        command, is_command = info.data.get("command"), info.data.get("engine") == "command"
        if value == "park" and is_command and command is not None and command.park is None:
            raise ValueError("park needs command.park, with engine: command; write it, or stop")
        return value

    @field_validator("keep_prompt_cache")
    @classmethod
    def _keep_whole_prompts(cls, value: bool, info: ValidationInfo) -> bool:
        if not value:
            return value
        if info.data.get("mode") is Mode.EMBEDDING:
            raise ValueError("is for generation: embedding keeps no prompts; write false")
        if info.data.get("kv_unified") and info.data.get("cache_ram_mib", 0) != 0:
            raise ValueError(
                "needs kv_unified: false or cache_ram_mib: 0; with one cache for all slots and a "
                "prompt cache in host memory, idle slots move there, and only one of several "
                "conversations would be saved"
            )
        return value

    @field_validator("batching")
    @classmethod
    def _batch_for_embedding(cls, value: ProfileBatching, info: ValidationInfo) -> ProfileBatching:
        if info.data.get("mode") is Mode.GENERATION:
            raise ValueError("is for embedding: generation is not batched here; leave it out")
        return value

    @field_validator("command")
    @classmethod
    def _know_profile_fields(cls, command: CommandSettings | None) -> CommandSettings | None:
        for name in command.placeholders() if command else ():
            section, _, field = name.partition(".")
            if section == "profile" and field not in cls.model_fields:
                raise ValueError(unknown_placeholder(name, tuple(cls.model_fields)))
        return command
