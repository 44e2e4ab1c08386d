"""llama-server's command line and environment, as llama.cpp of today takes them.

The embedded server takes the same, so that what an operator sees in `ps` reads the
same. How other builds of llama-server spell them stands in `dialect.py`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from supervisor.config.configuration import ResolvedModel
from supervisor.config.profile import Profile
from supervisor.core.machine.values import Mode
from supervisor.engine.port import Address

API_KEY_VARIABLE = "LLAMA_API_KEY"
"""The variable by which llama-server takes its API key; never an argument, which `ps` shows."""

SERVER_FIELDS = frozenset(
    {
        *("ctx_size", "batch_size", "ubatch_size", "parallel", "kv_unified"),
        *("cache_type_k", "cache_type_v", "flash_attn", "cache_ram_mib", "cache_reuse"),
        *("n_gpu_layers", "fit", "load_mode", "pooling", "threads", "threads_http", "extra_args"),
        "keep_prompt_cache",
    }
)
"""The fields of a profile that speak to the server; all others but `command` are the controller's.

Each engine declares which of them it honours.
"""


_LEAST_AT_ONCE = 120


def requests_at_once(profile: Profile) -> int:
    """Return how many requests llama-server is sent at a time: enough to keep each slot busy.

    It gives each connection a thread, and its queue of unaccepted ones holds 128 (cpp-httplib);
    a thousand at once take it twice as long as the same by turns. Some places are left for us.
    """
    return max(_LEAST_AT_ONCE, 2 * (profile.parallel or 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A field of the profile, and the words that it becomes. `engine` stands for our own wishes."""

    field: str
    words: tuple[str, ...]


def unhonoured(engine: str, profile: Profile, honoured: Collection[str]) -> dict[str, str]:
    """Return the fields that somebody wrote and that the engine cannot honour, with the reason."""
    written = profile.model_fields_set & (SERVER_FIELDS | {"command"})
    return {
        field: f"the engine {engine} cannot honour it; leave it out, or use another engine"
        for field in sorted(written - set(honoured))
        if getattr(profile, field) is not None
    }


def server_flags(
    resolved: ResolvedModel, address: Address, slots_dir: Path | None = None
) -> tuple[str, ...]:
    """Return the arguments that follow the program's name."""
    settings = (*place_settings(resolved, address), *profile_settings(resolved, slots_dir))
    return tuple(word for setting in settings for word in setting.words)


def place_settings(resolved: ResolvedModel, address: Address) -> tuple[Setting, ...]:
    """Return what is served and where, which no field of a profile decides."""
    words: tuple[tuple[str, ...], ...] = (("--model", str(resolved.path)),)
    if address.socket_path is not None:
        words += (("--host", str(address.socket_path)),)
    else:
        words += (("--host", "127.0.0.1"), ("--port", str(address.port)))
    return tuple(Setting(field="engine", words=pair) for pair in words)


def profile_settings(resolved: ResolvedModel, slots_dir: Path | None = None) -> tuple[Setting, ...]:
    """Return what each field of the profile becomes, in the order of the command line.

    `slots_dir`: the folder that a profile which keeps its prompts saves them in.
    """
    profile, projector = resolved.profile, resolved.projector_path
    by_field = {
        **_context_flags(profile),
        **_cache_flags(profile),
        **_device_flags(profile),
        **_optional_flags(profile),
        "mode": ("--embeddings",) if resolved.mode is Mode.EMBEDDING else (),
        # The wheel's server joins folder and name as they are.
        "keep_prompt_cache": ("--slot-save-path", f"{slots_dir}/") if slots_dir else (),
    }
    return (
        *(Setting(field=field, words=words) for field, words in by_field.items() if words),
        Setting(field="engine", words=("--alias", resolved.name)),
        Setting(field="engine", words=("--metrics",)),
        *((Setting(field="engine", words=("--mmproj", str(projector))),) if projector else ()),
        Setting(field="extra_args", words=profile.extra_args),
    )


def _context_flags(profile: Profile) -> dict[str, tuple[str, ...]]:
    ctx_total = profile.ctx_size if profile.kv_unified else profile.ctx_size * profile.parallel
    return {
        "ctx_size": ("--ctx-size", str(ctx_total)),
        "batch_size": ("--batch-size", str(profile.batch_size)),
        "ubatch_size": ("--ubatch-size", str(profile.ubatch_size)),
        "parallel": ("--parallel", str(profile.parallel)),
        "kv_unified": ("--kv-unified" if profile.kv_unified else "--no-kv-unified",),
    }


def _cache_flags(profile: Profile) -> dict[str, tuple[str, ...]]:
    return {
        "cache_type_k": ("--cache-type-k", profile.cache_type_k),
        "cache_type_v": ("--cache-type-v", profile.cache_type_v),
        "flash_attn": ("--flash-attn", profile.flash_attn),
        "cache_ram_mib": ("--cache-ram", str(profile.cache_ram_mib)),
        "cache_reuse": ("--cache-reuse", str(profile.cache_reuse)),
    }


def _device_flags(profile: Profile) -> dict[str, tuple[str, ...]]:
    layers = 0 if profile.device == "cpu" else profile.n_gpu_layers
    return {
        "n_gpu_layers": ("--n-gpu-layers", str(layers)),
        "fit": ("--fit", "on" if profile.fit else "off"),
        "load_mode": ("--load-mode", profile.load_mode),
    }


def _optional_flags(profile: Profile) -> dict[str, tuple[str, ...]]:
    given = {
        "pooling": ("--pooling", profile.pooling),
        "threads": ("--threads", profile.threads),
        "threads_http": ("--threads-http", profile.threads_http),
    }
    return {
        field: (flag, str(value)) for field, (flag, value) in given.items() if value is not None
    }


def server_environment(
    profile: Profile, inherited: Mapping[str, str], api_key: str
) -> dict[str, str]:
    """Return what the child inherits, the profile's variables over it, and the key."""
    return {**inherited, **profile.env, API_KEY_VARIABLE: api_key}


def flag_names(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words of a command line that are flags, without `=value` and not numbers."""
    return tuple(
        word.split("=", 1)[0]
        for word in arguments
        if word.startswith("-") and not word.lstrip("-").replace(".", "", 1).isdigit()
    )
