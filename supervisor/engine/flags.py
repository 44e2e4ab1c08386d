"""Profile fields as llama-server flags.

Both engines share them: the embedded server takes the same command line, so that what an operator
sees in `ps` reads the same.
"""

from supervisor.config.configuration import ResolvedModel
from supervisor.config.profile import Profile
from supervisor.core.values import Mode
from supervisor.engine.port import Address


def server_flags(resolved: ResolvedModel, address: Address) -> tuple[str, ...]:
    """Return the arguments that follow the program's name."""
    profile = resolved.profile
    return (
        "--model",
        str(resolved.path),
        *_listen_flags(address),
        *_context_flags(profile),
        *_cache_flags(profile),
        *_device_flags(profile),
        *_optional_flags(profile),
        *(("--embeddings",) if resolved.mode is Mode.EMBEDDING else ()),
        "--metrics",
        *(("--mmproj", str(resolved.projector_path)) if resolved.projector_path else ()),
        *profile.extra_args,
    )


def _listen_flags(address: Address) -> tuple[str, ...]:
    if address.socket_path is not None:
        return ("--host", str(address.socket_path))
    return ("--host", "127.0.0.1", "--port", str(address.port))


def _context_flags(profile: Profile) -> tuple[str, ...]:
    ctx_total = profile.ctx_size if profile.kv_unified else profile.ctx_size * profile.parallel
    return (
        *("--ctx-size", str(ctx_total)),
        *("--batch-size", str(profile.batch_size)),
        *("--ubatch-size", str(profile.ubatch_size)),
        *("--parallel", str(profile.parallel)),
        "--kv-unified" if profile.kv_unified else "--no-kv-unified",
    )


def _cache_flags(profile: Profile) -> tuple[str, ...]:
    return (
        *("--cache-type-k", profile.cache_type_k),
        *("--cache-type-v", profile.cache_type_v),
        *("--flash-attn", profile.flash_attn),
        *("--cache-ram", str(profile.cache_ram_mib)),
        *("--cache-reuse", str(profile.cache_reuse)),
    )


def _device_flags(profile: Profile) -> tuple[str, ...]:
    layers = 0 if profile.device == "cpu" else profile.n_gpu_layers
    return (
        *("--n-gpu-layers", str(layers)),
        *("--fit", "on" if profile.fit else "off"),
        *("--load-mode", profile.load_mode),
    )


def _optional_flags(profile: Profile) -> tuple[str, ...]:
    given = {
        "--pooling": profile.pooling,
        "--threads": profile.threads,
        "--threads-http": profile.threads_http,
    }
    return tuple(
        word for flag, value in given.items() if value is not None for word in (flag, str(value))
    )


def flag_names(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words of a command line that are flags, without `=value` and not numbers."""
    return tuple(
        word.split("=", 1)[0]
        for word in arguments
        if word.startswith("-") and not word.lstrip("-").replace(".", "", 1).isdigit()
    )
