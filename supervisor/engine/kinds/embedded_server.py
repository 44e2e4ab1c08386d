"""The child process of the embedded engine: llama-server's command line over the wheel's server.

It imports nothing of the product, so that it starts as quickly as the wheel allows.
"""

import argparse
import os
import signal
import sys
from typing import Any

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
LOAD_MODES = ("auto", "none", "mmap", "mlock", "mmap+mlock", "dio")


def flag_parser() -> argparse.ArgumentParser:
    """Parser for the llama-server flags that this server can honour."""
    parser = argparse.ArgumentParser(prog="embedded-server", add_help=False, allow_abbrev=False)
    parser.add_argument("--model", "-m", required=True)
    parser.add_argument("--alias")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, default=0)
    for flag in ("--ctx-size", "--batch-size", "--ubatch-size", "--parallel"):
        parser.add_argument(flag, type=int)
    for flag in ("--cache-ram", "--cache-reuse", "--threads", "--threads-http"):
        parser.add_argument(flag, type=int)
    parser.add_argument("--kv-unified", action=argparse.BooleanOptionalAction)
    parser.add_argument("--cache-type-k", choices=CACHE_TYPES)
    parser.add_argument("--cache-type-v", choices=CACHE_TYPES)
    parser.add_argument("--flash-attn", choices=("on", "off", "auto"))
    parser.add_argument("--n-gpu-layers", type=_layers)
    parser.add_argument("--fit", choices=("on", "off"))
    parser.add_argument("--load-mode", choices=LOAD_MODES)
    parser.add_argument("--pooling", choices=("none", "mean", "cls", "last", "rank"))
    parser.add_argument("--slot-save-path")
    parser.add_argument("--chat-template")
    parser.add_argument("--sse-ping-interval", type=int)
    parser.add_argument("--embeddings", action="store_true")
    parser.add_argument("--metrics", action="store_true")
    return parser


def _layers(word: str) -> int:
    """Read a count of layers; `auto` and `all` are llama.cpp's -1 and -2."""
    return {"auto": -1, "all": -2}.get(word) or int(word)


def build_params(flags: argparse.Namespace, api_key: str | None) -> Any:
    """Translate parsed flags into the wheel's `CommonParams`; None leaves its default."""
    import xllamacpp  # noqa: PLC0415 - only the child process loads the wheel

    params = xllamacpp.CommonParams()
    params.model.path = flags.model
    params.hostnames = [flags.host]
    params.port = flags.port
    if flags.alias is not None:
        params.model_alias = {flags.alias}
    params.api_keys = [api_key] if api_key else []
    params.embedding = flags.embeddings
    params.endpoint_metrics = flags.metrics
    params.ui = False
    params.kv_unified = bool(flags.kv_unified)
    for name, value in _plain_fields(flags).items():
        if value is not None:
            setattr(params, name, value)
    for name, value in _enum_fields(flags, xllamacpp).items():
        if value is not None:
            setattr(params, name, value)
    if flags.threads is not None:
        params.cpuparams.n_threads = flags.threads
        params.cpuparams_batch.n_threads = flags.threads
    return params


def _plain_fields(flags: argparse.Namespace) -> dict[str, Any]:
    return {
        "n_ctx": flags.ctx_size,
        "n_batch": flags.batch_size,
        "n_ubatch": flags.ubatch_size,
        "n_parallel": flags.parallel,
        "cache_ram_mib": flags.cache_ram,
        "n_cache_reuse": flags.cache_reuse,
        "n_threads_http": flags.threads_http,
        "n_gpu_layers": flags.n_gpu_layers,
        "fit_params": None if flags.fit is None else flags.fit == "on",
        "slot_save_path": flags.slot_save_path,
        "chat_template": flags.chat_template,
        "sse_ping_interval": flags.sse_ping_interval,
    }


def _enum_fields(flags: argparse.Namespace, wheel: Any) -> dict[str, Any]:
    flash = {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}
    load = {"dio": "DIRECT_IO", "mmap+mlock": "MMAP_MLOCK"}
    named = {
        "cache_type_k": (wheel.ggml_type, "GGML_TYPE_", flags.cache_type_k),
        "cache_type_v": (wheel.ggml_type, "GGML_TYPE_", flags.cache_type_v),
        "flash_attn_type": (
            wheel.llama_flash_attn_type,
            "LLAMA_FLASH_ATTN_TYPE_",
            flash.get(flags.flash_attn),
        ),
        "load_mode": (
            wheel.llama_load_mode,
            "LLAMA_LOAD_MODE_",
            load.get(flags.load_mode, flags.load_mode),
        ),
        "pooling_type": (wheel.llama_pooling_type, "LLAMA_POOLING_TYPE_", flags.pooling),
    }
    return {
        field: getattr(enum, prefix + word.upper()) if word else None
        for field, (enum, prefix, word) in named.items()
    }


def main() -> None:
    """Serve until a signal ends the process."""
    flags = flag_parser().parse_args()
    # Nothing needs saving on the way out, and the wheel's teardown may wait for clients: SIGTERM
    # keeps its default action, which returns the memory at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    params = build_params(flags, os.environ.get("LLAMA_API_KEY"))
    import xllamacpp  # noqa: PLC0415 - only the child process loads the wheel

    try:
        server = xllamacpp.Server(params)
    except Exception as error:  # noqa: BLE001 - the wheel raises bare C++ exceptions
        sys.exit(f"the embedded server cannot load {flags.model}: {error}")
    print(f"listening on {server.listening_address}", file=sys.stderr, flush=True)  # noqa: T201
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
