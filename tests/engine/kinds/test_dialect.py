"""Builds of llama-server, older and newer: flags that they spell in their own way, or lack."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from supervisor.config.configuration import ResolvedModel
from supervisor.config.holder import ConfigurationHolder
from supervisor.core.machine.values import Mode, Stop, Target
from supervisor.engine.kinds.engines import Engines
from supervisor.engine.kinds.llama_server import LlamaServer
from supervisor.engine.kinds.program_output import read_help
from supervisor.engine.launcher import Launcher
from supervisor.engine.port import Address, ServerStart
from supervisor.engine.servers.backend import Backend
from supervisor.errors import EngineError, UnfitProfile

ResolvedWith = Callable[..., ResolvedModel]
BuildOf = Callable[[str], LlamaServer]

SOCKET = Address(socket_path=Path("/run/ours/backend-1.sock"))

OLD_HELP = """\
----- common params -----

-h,    --help, --usage                  print usage and exit
-t,    --threads N                      number of threads (default: -1)
                                        (env: LLAMA_ARG_THREADS)
-c,    --ctx-size N                     size of the prompt context (default: 4096)
-b,    --batch-size N                   logical maximum batch size (default: 2048)
-ub,   --ubatch-size N                  physical maximum batch size (default: 512)
-fa,   --flash-attn                     enable Flash Attention (default: disabled)
                                        (env: LLAMA_ARG_FLASH_ATTN)
-ctk,  --cache-type-k TYPE              KV cache data type for K
-ctv,  --cache-type-v TYPE              KV cache data type for V
-np,   --parallel N                     number of parallel sequences to decode (default: 1)
--mlock                                 force system to keep model in RAM
--no-mmap                               do not memory-map model
-ngl,  --gpu-layers, --n-gpu-layers N   number of layers to store in VRAM
-m,    --model FNAME                    model path
--pooling {none,mean,cls,last,rank}     pooling type for embeddings
--host HOST                             ip address to listen on, or one that ends in .sock
--port PORT                             port to listen (default: 8080)
--embedding, --embeddings               restrict to only support embedding use case
--threads-http N                        number of threads used to process HTTP requests
--cache-reuse N                         min chunk size to attempt reusing from the cache
--metrics                               enable prometheus compatible metrics endpoint
--slots                                 enable slots monitoring endpoint (default: disabled)
"""
"""What builds of early 2025 list, shortened."""

MIDDLE_HELP = (
    OLD_HELP
    + """\
-kvu,  --kv-unified                     use single unified KV buffer (default: false)
-cram, --cache-ram N                    set the maximum cache size in MiB (default: 8192)
-dio,  --direct-io                      use DirectIO if available
--draft, --draft-n N                    the argument has been removed. use another one
"""
)


@pytest.fixture
def build_of(tmp_path: Path) -> BuildOf:
    """Writes a binary that prints a help, and else records its arguments, one on a line."""

    def write(text: str) -> LlamaServer:
        (tmp_path / "help").write_text(text)
        binary = tmp_path / "llama-server"
        binary.write_text(
            f"#!/bin/sh\n"
            f'[ "$1" = --help ] && exec cat {tmp_path}/help\n'
            f'printf "%s\\n" "$@" > {tmp_path}/argv\n'
        )
        binary.chmod(0o755)
        return LlamaServer(binary)

    return write


@pytest.fixture
async def end_later() -> AsyncIterator[list[Backend]]:
    """Backends to be stopped when the test is over."""
    backends: list[Backend] = []
    yield backends
    for backend in backends:
        await backend.give_up_memory(Stop(grace_s=5))


def words_of(build: LlamaServer, model: ResolvedModel) -> tuple[str, ...]:
    return build.argv(ServerStart(model=model, address=SOCKET))[1:]


def problems_of(build: LlamaServer, model: ResolvedModel) -> dict[str, str]:
    with pytest.raises(UnfitProfile) as refused:
        build.check(model)
    return refused.value.problems


# What a help says


def test_flags_are_read_with_whether_a_value_follows_them() -> None:
    entries = read_help(OLD_HELP)
    assert {"-fa", "--flash-attn", "-ngl", "--gpu-layers", "--n-gpu-layers"} <= entries.keys()
    assert [entries[flag].has_value for flag in ("-fa", "--mlock", "-ngl", "--pooling")] == [
        False,
        False,
        True,
        True,
    ]
    assert "LLAMA_ARG_FLASH_ATTN" in entries["-fa"].text
    assert "LLAMA_ARG_FLASH_ATTN" not in entries["-ctk"].text


def test_a_flag_that_is_listed_as_removed_is_not_known() -> None:
    assert {"--draft", "--draft-n"}.isdisjoint(read_help(MIDDLE_HELP))


def test_the_help_of_argparse_is_read_too() -> None:
    entries = read_help(
        "usage: it [-h] [--seed SEED]\n          [--host HOST]\n\noptions:\n"
        "  -h, --help            show this help message and exit\n"
        "  --seed SEED           a number\n  --host HOST           where; not\n"
        "                        --port, which is elsewhere\n"
    )
    assert entries.keys() == {"-h", "--help", "--seed", "--host"}
    assert entries["--seed"].has_value
    assert not entries["-h"].has_value


# Other spellings


@pytest.mark.parametrize(
    ("fields", "words", "without"),
    [
        ({"flash_attn": "on"}, "--flash-attn --cache-reuse", ""),
        ({"flash_attn": "off"}, "", "--flash-attn"),
        ({"load_mode": "auto"}, "", "--mlock --no-mmap --load-mode"),
        ({"load_mode": "mmap"}, "", "--mlock --no-mmap --load-mode"),
        ({"load_mode": "none"}, "--no-mmap", "--mlock --load-mode"),
        ({"load_mode": "mlock"}, "--no-mmap --mlock", "--load-mode"),
        ({"load_mode": "mmap+mlock"}, "--mlock", "--no-mmap --load-mode"),
        ({"n_gpu_layers": "all"}, "--n-gpu-layers 999", ""),
        ({"n_gpu_layers": 7}, "--n-gpu-layers 7", ""),
        ({"kv_unified": False, "parallel": 4}, "--parallel 4", "--no-kv-unified --kv-unified"),
        ({"kv_unified": True, "parallel": 1}, "--parallel 1", "--no-kv-unified --kv-unified"),
        ({"cache_ram_mib": 0}, "", "--cache-ram"),
        ({"fit": False}, "", "--fit"),
    ],
)
def test_an_old_build_gets_its_own_words(
    build_of: BuildOf, resolved_with: ResolvedWith, fields: dict[str, Any], words: str, without: str
) -> None:
    spoken = words_of(build_of(OLD_HELP), resolved_with(**fields))
    assert words in " ".join(spoken)
    assert not set(without.split()) & set(spoken)


def test_a_build_without_the_negation_shares_no_cache_unless_told(
    build_of: BuildOf, resolved_with: ResolvedWith
) -> None:
    build = build_of(MIDDLE_HELP)
    apart = words_of(build, resolved_with(kv_unified=False, parallel=2))
    shared = words_of(build, resolved_with(kv_unified=True, parallel=2))
    assert not {"--kv-unified", "--no-kv-unified"} & set(apart)
    assert "--kv-unified" in shared


def test_a_build_of_the_time_between_is_spoken_to_in_its_words(
    build_of: BuildOf, resolved_with: ResolvedWith
) -> None:
    spoken = words_of(build_of(MIDDLE_HELP), resolved_with(load_mode="dio", cache_ram_mib=64))
    assert "--direct-io" in spoken
    assert " --cache-ram 64 " in f" {' '.join(spoken)} "


def test_a_build_without_metrics_is_not_asked_for_them(
    build_of: BuildOf, resolved_with: ResolvedWith
) -> None:
    build = build_of(OLD_HELP.replace("--metrics ", "--other "))
    assert "--metrics" not in words_of(build, resolved_with())
    assert build.abilities(resolved_with()).metrics_path is None


async def test_the_child_of_an_old_build_is_started_with_its_words(
    build_of: BuildOf,
    configuration: Any,
    run_dir: Path,
    tmp_path: Path,
    end_later: list[Backend],
) -> None:
    binary = build_of(OLD_HELP).binary
    launcher = Launcher(
        configuration=ConfigurationHolder(configuration),
        engines=Engines({}, binary),
        run_dir=run_dir,
        device_env=lambda _: {},
    )
    target = Target(model="demo-chat", mode=Mode.GENERATION, profile="generation", device="host")
    end_later.append(launcher.launch(target, 1))
    await end_later[0].wait()
    asked = (tmp_path / "argv").read_text().split()
    assert asked[:4] == [
        "--model",
        str(configuration.resolve("demo-chat").path),
        "--host",
        str(run_dir / "backend-1.sock"),
    ]
    assert "--flash-attn" in asked
    assert not {"on", "--fit", "--load-mode", "--cache-ram"} & set(asked)


# What cannot be had


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"flash_attn": "auto"}, ("--flash-attn", "write on or off")),
        ({"cache_ram_mib": 512}, ("--cache-ram", "leave the field out")),
        ({"fit": True}, ("--fit", "leave the field out")),
        ({"kv_unified": True, "parallel": 2}, ("--kv-unified", "leave the field out")),
        ({"load_mode": "dio"}, ("--load-mode and --direct-io", "another build")),
        ({"n_gpu_layers": "auto"}, ("--n-gpu-layers", "write all or a number")),
        ({"extra_args": ("--top", "1")}, ("--top", "correct it")),
    ],
)
def test_what_an_old_build_cannot_honour_is_told_by_field_and_flag(
    build_of: BuildOf, resolved_with: ResolvedWith, fields: dict[str, Any], told: tuple[str, str]
) -> None:
    build = build_of(OLD_HELP)
    [(field, problem)] = problems_of(build, resolved_with(**fields)).items()
    assert field == next(iter(fields))
    assert all(words in problem for words in (str(build.binary), *told))


def test_a_field_that_nobody_wrote_is_left_to_the_build(
    build_of: BuildOf, resolved_with: ResolvedWith
) -> None:
    build = build_of(OLD_HELP)
    assert "--flash-attn" not in words_of(build, resolved_with())  # its default is auto
    assert not build.abilities(resolved_with()).chooses_flash_attention


def test_a_build_from_before_flash_attention_is_asked_for_it_in_vain(
    build_of: BuildOf, resolved_with: ResolvedWith
) -> None:
    build = build_of(OLD_HELP.replace("-fa,   --flash-attn ", "-x,    --extra-flag "))
    build.check(resolved_with())
    build.check(resolved_with(flash_attn="off"))
    for value in ("on", "auto"):
        problems = problems_of(build, resolved_with(flash_attn=value))
        assert "does not know --flash-attn; leave the field out" in problems["flash_attn"]


def test_a_build_whose_slots_are_off_by_default_is_not_asked_for_them(
    build_of: BuildOf, resolved_with: ResolvedWith, llama_server_bin: Path
) -> None:
    assert build_of(OLD_HELP).abilities(resolved_with()).slots_path is None
    assert LlamaServer(llama_server_bin).abilities(resolved_with()).slots_path == "/slots"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (OLD_HELP, "does not list its slots"),
        (OLD_HELP + "--slots  list slots (default: disabled)\n", "does not list its slots"),
        (OLD_HELP + "--slots  list slots (default: enabled)\n", "does not know --slot-save-path;"),
    ],
)
def test_a_build_that_cannot_save_its_slots_keeps_no_prompts(
    build_of: BuildOf, resolved_with: ResolvedWith, text: str, reason: str
) -> None:
    build = build_of(text)
    problems = problems_of(build, resolved_with(keep_prompt_cache=True))
    assert reason in problems["keep_prompt_cache"]
    assert not build.abilities(resolved_with()).saves_slots
    build.check(resolved_with(keep_prompt_cache=False))


def test_a_newer_build_that_dropped_a_flag_is_told_by_field_and_flag(
    build_of: BuildOf, resolved_with: ResolvedWith
) -> None:
    text = OLD_HELP.replace("--threads N ", "--workers N ").replace("--ubatch-size", "--micro")
    problems = problems_of(build_of(text), resolved_with(threads=2))
    assert problems.keys() == {"threads", "ubatch_size"}
    assert "does not know --threads;" in problems["threads"]
    assert "does not know --ubatch-size;" in problems["ubatch_size"]


def test_all_problems_are_told_at_once_with_the_profile(
    build_of: BuildOf, resolved_with: ResolvedWith
) -> None:
    model = resolved_with(fit=True, cache_ram_mib=1)
    with pytest.raises(EngineError, match=r"^profile 'test': cache_ram_mib: .*; fit: .*--fit"):
        build_of(OLD_HELP).argv(ServerStart(model=model, address=SOCKET))
