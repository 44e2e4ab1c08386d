"""The flags of llama-server that we set: one row for each, with all that is known of it.

Whoever deals with flags reads this table: the command line of llama-server and of the embedded
server, the spelling of older builds, the embedded server's parser and what it sets in the wheel,
the check of profiles, and the reference page. A new flag is a new row and its test.

The embedded server's process reads it, too, so it imports nothing that takes time to load.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from supervisor.config.profile import Profile
    from supervisor.engine.port import ServerStart

SPARE_THREADS = 8
"""Threads beyond one for each request that we send at once: for health checks, slots and tokens.

cpp-httplib adds a thread only while it counts none as idle, and a woken one leaves that count late:
of N connections on K idle threads, N - K wait until others are closed, 5 s later.
"""

_MIN_AT_ONCE = 120

_WHEEL_GPUS = 128

ALL_LAYERS = "999"
"""More layers than any model has, for builds that take no word for all of them."""


def requests_at_once(profile: "Profile") -> int:
    """Return how many requests llama-server is sent at a time: enough to keep each slot busy.

    Each takes a thread of it, and its queue of connections not yet accepted holds 128
    (cpp-httplib); a thousand at once take it twice as long as the same in turns. Where an operator
    gives it fewer threads, it is sent no more than these can take.
    """
    wanted = max(_MIN_AT_ONCE, 2 * profile.parallel)
    if profile.threads_http is None:
        return wanted
    return max(1, min(wanted, profile.threads_http - SPARE_THREADS))


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelParameter:
    """How the wheel `xllamacpp` takes a flag.

    `attributes`: those of its `CommonParams`, with dots for parts of parts. `read` turns the word
    into their value; where only some words are allowed, `words` has the value of each, which is
    the name of a constant where `enum` names the wheel's enumeration. `is_switch`: no word follows.
    """

    attributes: tuple[str, ...]
    read: Callable[[str], Any] = str
    words: Mapping[str, Any] | None = None
    enum: str | None = None
    is_switch: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A flag of llama-server.

    `name`: as builds of today spell it; `negation`: its opposite, for a switch that has one;
    `synonyms`: other spellings. `field`: the profile's field that decides it, under which its
    problems are reported. `value`: what is written after it; True and False for a switch, None
    where it is left out. By default that is the field's value.

    Older builds: one that lacks the flag behaves as all did before it came; `is_old_way` tells
    whether a profile wants just that (None: every usable build has the flag). `since`: values that
    came later than the flag, each with the words by which a help shows that the build takes it.
    `older`: the words of older builds for a value, where they differ, and `older_values` the values
    that these can take, as an operator would say it.

    `instead`: what to do instead of giving it in `extra_args`, which come last and would win; by
    default a field is to be written (`remedy`).
    `wheel`: how the embedded server takes it; None where it does not.
    """

    name: str
    field: str = "engine"
    negation: str | None = None
    synonyms: tuple[str, ...] = ()
    value: Callable[["ServerStart"], object] | None = None
    is_old_way: Callable[["Profile"], bool] | None = None
    since: Mapping[str, str] | None = None
    older: Mapping[str, tuple[str, ...]] | None = None
    older_values: str = ""
    instead: str = ""
    wheel: WheelParameter | None = None

    @property
    def spellings(self) -> tuple[str, ...]:
        """All its names, the opposite among them."""
        return (self.name, *self.synonyms, *((self.negation,) if self.negation else ()))

    @property
    def remedy(self) -> str:
        """What to do instead of giving it in `extra_args`; empty where it may be given there.

        What has a field is for the field alone to say: the need is worked out from it.
        """
        if self.instead or self.field in {"engine", "extra_args"}:
            return self.instead
        return field_remedy(self.field)

    def words(self, start: "ServerStart") -> tuple[str, ...]:
        """Return the flag with its value, as a build of today takes them; empty: left out."""
        value = self.value(start) if self.value else getattr(start.model.profile, self.field)
        if value is True:
            return (self.name,)
        if value is None or value is False:
            return (self.negation,) if value is False and self.negation else ()
        return (self.name, str(value))


def _shares(start: "ServerStart") -> str | None:
    return ",".join(f"{share:g}" for share in start.model.profile.shares) or None


def _padded_shares(word: str) -> list[float]:
    """Read shares as the wheel wants them: one for each GPU that llama.cpp has room for."""
    shares = [float(share) for share in word.split(",")]
    return shares + [0.0] * (_WHEEL_GPUS - len(shares))


def _layers(word: str) -> int:
    """Read a count of layers; `auto` and `all` are llama.cpp's -1 and -2."""
    return {"auto": -1, "all": -2}.get(word) or int(word)


def _number(*attributes: str) -> WheelParameter:
    return WheelParameter(attributes=attributes, read=int)


def _text(*attributes: str) -> WheelParameter:
    return WheelParameter(attributes=attributes)


def _switch(*attributes: str) -> WheelParameter:
    return WheelParameter(attributes=attributes, is_switch=True)


def _constant(attribute: str, enum: str, prefix: str, words: Mapping[str, str]) -> WheelParameter:
    names = {word: prefix + name for word, name in words.items()}
    return WheelParameter(attributes=(attribute,), words=names, enum=enum)


def _upper(*words: str) -> dict[str, str]:
    return {word: word.upper() for word in words}


_CACHE_TYPES = _upper("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")

_LOAD_MODES = {
    **_upper("auto", "none", "mmap", "mlock"),
    "mmap+mlock": "MMAP_MLOCK",
    "dio": "DIRECT_IO",
}

ADDRESS_REMEDY = (
    "the controller chooses where it listens; leave it out (`server.host` and `server.port` in "
    "supervisor.yaml are for clients)"
)
MODEL_REMEDY = "the model's `path` in models.yaml decides what is served; write it there"


def field_remedy(field: str) -> str:
    """Say what to write instead of an argument that has a field of its own."""
    return f"write the field {field} instead, by which the controller knows of it"


PLACE = (
    Flag(
        name="--model",
        synonyms=("-m",),
        value=lambda start: start.model.path,
        instead=MODEL_REMEDY,
        wheel=_text("model.path"),
    ),
    Flag(
        name="--host",
        value=lambda start: start.address.socket_path or "127.0.0.1",
        instead=ADDRESS_REMEDY,
        wheel=WheelParameter(attributes=("hostnames",), read=lambda word: [word]),
    ),
    Flag(
        name="--port",
        value=lambda start: None if start.address.socket_path else start.address.port,
        instead=ADDRESS_REMEDY,
        wheel=_number("port"),
    ),
)
"""What is served and where. A program that does not know these is not a llama-server."""

SETTINGS = (
    Flag(
        name="--ctx-size",
        field="ctx_size",
        synonyms=("-c",),
        value=lambda start: (
            start.model.profile.ctx_size
            * (1 if start.model.profile.kv_unified else start.model.profile.parallel)
        ),
        wheel=_number("n_ctx"),
    ),
    Flag(name="--batch-size", field="batch_size", synonyms=("-b",), wheel=_number("n_batch")),
    Flag(name="--ubatch-size", field="ubatch_size", synonyms=("-ub",), wheel=_number("n_ubatch")),
    Flag(name="--parallel", field="parallel", synonyms=("-np",), wheel=_number("n_parallel")),
    Flag(  # before: each slot had its share of the context; then it came without the negation
        name="--kv-unified",
        field="kv_unified",
        synonyms=("-kvu",),
        negation="--no-kv-unified",
        is_old_way=lambda profile: not profile.kv_unified or profile.parallel == 1,
        wheel=_switch("kv_unified"),
    ),
    Flag(
        name="--cache-type-k",
        field="cache_type_k",
        synonyms=("-ctk",),
        wheel=_constant("cache_type_k", "ggml_type", "GGML_TYPE_", _CACHE_TYPES),
    ),
    Flag(
        name="--cache-type-v",
        field="cache_type_v",
        synonyms=("-ctv",),
        wheel=_constant("cache_type_v", "ggml_type", "GGML_TYPE_", _CACHE_TYPES),
    ),
    Flag(  # before: a switch without a value, off by default
        name="--flash-attn",
        field="flash_attn",
        synonyms=("-fa",),
        is_old_way=lambda profile: profile.flash_attn == "off",
        older={"on": ("--flash-attn",), "off": ()},
        older_values="on or off",
        wheel=_constant(
            "flash_attn_type",
            "llama_flash_attn_type",
            "LLAMA_FLASH_ATTN_TYPE_",
            {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"},
        ),
    ),
    Flag(
        name="--cache-ram",
        field="cache_ram_mib",
        synonyms=("-cram",),
        is_old_way=lambda profile: profile.cache_ram_mib == 0,
        wheel=_number("cache_ram_mib"),
    ),
    Flag(  # before: the server made none
        name="--ctx-checkpoints",
        field="ctx_checkpoints",
        synonyms=("-ctxcp", "--swa-checkpoints"),
        is_old_way=lambda _: True,
        wheel=_number("n_ctx_checkpoints"),
    ),
    Flag(
        name="--cache-reuse",
        field="cache_reuse",
        is_old_way=lambda profile: profile.cache_reuse == 0,
        wheel=_number("n_cache_reuse"),
    ),
    Flag(  # before: a number only
        name="--n-gpu-layers",
        field="n_gpu_layers",
        synonyms=("--gpu-layers", "-ngl"),
        value=lambda start: (
            0 if start.model.profile.device == "cpu" else start.model.profile.n_gpu_layers
        ),
        since={"all": "'all'", "auto": "'all'"},
        older={"all": ("--n-gpu-layers", ALL_LAYERS)},
        older_values="all or a number",
        wheel=WheelParameter(attributes=("n_gpu_layers",), read=_layers),
    ),
    Flag(
        name="--tensor-split",
        field="tensor_split",
        synonyms=("-ts",),
        value=_shares,
        instead="write the field tensor_split, by which the controller knows what each GPU takes",
        wheel=WheelParameter(attributes=("tensor_split",), read=_padded_shares),
    ),
    Flag(  # where it is on one GPU, it sees no other
        name="--main-gpu",
        field="main_gpu",
        synonyms=("-mg",),
        value=lambda start: start.model.profile.main_gpu if start.model.profile.shares else None,
        instead="write the field main_gpu, by which the controller knows whose memory it takes",
        wheel=_number("main_gpu"),
    ),
    Flag(
        name="--fit",
        field="fit",
        synonyms=("-fit",),
        value=lambda start: "on" if start.model.profile.fit else "off",
        is_old_way=lambda profile: not profile.fit,
        wheel=WheelParameter(attributes=("fit_params",), words={"on": True, "off": False}),
    ),
    Flag(  # before: three switches
        name="--load-mode",
        field="load_mode",
        synonyms=("-lm",),
        older={
            "auto": (),
            "mmap": (),
            "none": ("--no-mmap",),
            "mlock": ("--no-mmap", "--mlock"),
            "mmap+mlock": ("--mlock",),
            "dio": ("--direct-io",),
        },
        wheel=_constant("load_mode", "llama_load_mode", "LLAMA_LOAD_MODE_", _LOAD_MODES),
    ),
    Flag(
        name="--pooling",
        field="pooling",
        wheel=_constant(
            "pooling_type",
            "llama_pooling_type",
            "LLAMA_POOLING_TYPE_",
            _upper("none", "mean", "cls", "last", "rank"),
        ),
    ),
    Flag(
        name="--threads",
        field="threads",
        synonyms=("-t",),
        wheel=_number("cpuparams.n_threads", "cpuparams_batch.n_threads"),
    ),
    Flag(
        name="--threads-http",
        field="threads_http",
        value=lambda start: (
            start.model.profile.threads_http
            or requests_at_once(start.model.profile) + SPARE_THREADS
        ),
        is_old_way=lambda profile: profile.threads_http is None,
        instead="write the field threads_http, by which the controller knows how much to send",
        wheel=_number("n_threads_http"),
    ),
    Flag(
        name="--embeddings",
        field="mode",
        synonyms=("--embedding",),
        value=lambda start: start.model.mode == "embedding",
        instead="the model's `type` in models.yaml decides it; write it there",
        wheel=_switch("embedding"),
    ),
    Flag(
        name="--slot-save-path",
        field="keep_prompt_cache",
        # The wheel's server joins folder and name as they are.
        value=lambda start: f"{start.slots_dir}/" if start.slots_dir else None,
        is_old_way=lambda profile: not profile.keep_prompt_cache,
        instead="write the field keep_prompt_cache; the controller chooses the folder",
        wheel=_text("slot_save_path"),
    ),
    Flag(  # before: its answers name the file as the model
        name="--alias",
        synonyms=("-a",),
        value=lambda start: start.model.name,
        is_old_way=lambda _: True,
        instead="the name in models.yaml decides it; write `aliases` there",
        wheel=WheelParameter(attributes=("model_alias",), read=lambda word: {word}),
    ),
    Flag(
        name="--metrics",
        value=lambda _: True,
        is_old_way=lambda _: True,
        wheel=_switch("endpoint_metrics"),
    ),
    Flag(
        name="--mmproj",
        synonyms=("-mm", "--mmproj-url", "-mmu"),
        value=lambda start: start.model.projector_path,
        instead="write its path as `mmproj` of the model in models.yaml",
    ),
)
"""What the profile decides, and our own wishes, in the order of the command line."""

FLAGS = PLACE + SETTINGS

WHEEL_EXTRAS = (
    Flag(name="--chat-template", field="extra_args", wheel=_text("chat_template")),
    Flag(name="--sse-ping-interval", field="extra_args", wheel=_number("sse_ping_interval")),
)
"""Further flags that the embedded server takes; llama-server takes all that its help lists."""
