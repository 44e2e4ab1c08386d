"""Profile fields as flags: what each becomes, and that both real engines understand it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supervisor.config.configuration import Configuration, ResolvedModel
from supervisor.config.profile import Profile
from supervisor.core.machine.values import Mode
from supervisor.engine.kinds.embedded import EmbeddedEngine
from supervisor.engine.kinds.flag_table import FLAGS, requests_at_once
from supervisor.engine.kinds.flags import SERVER_FIELDS, server_flags
from supervisor.engine.kinds.llama_server import LlamaServer
from supervisor.engine.port import Address, Engine, ServerStart
from supervisor.errors import EngineError, UnfitProfile

Resolve = Callable[..., ResolvedModel]

SOCKET = Address(socket_path=Path("/run/ours/backend-1.sock"))

FLAG_OF_FIELD: dict[str, tuple[Any, tuple[str, ...]]] = {
    "ctx_size": (1024, ("--ctx-size", "1024")),
    "batch_size": (300, ("--batch-size", "300")),
    "ubatch_size": (200, ("--ubatch-size", "200")),
    "parallel": (3, ("--parallel", "3")),
    "kv_unified": (True, ("--kv-unified",)),
    "cache_type_k": ("q4_0", ("--cache-type-k", "q4_0")),
    "cache_type_v": ("bf16", ("--cache-type-v", "bf16")),
    "flash_attn": ("off", ("--flash-attn", "off")),
    "cache_ram_mib": (-1, ("--cache-ram", "-1")),
    "ctx_checkpoints": (7, ("--ctx-checkpoints", "7")),
    "cache_reuse": (64, ("--cache-reuse", "64")),
    "n_gpu_layers": (12, ("--n-gpu-layers", "12")),
    "tensor_split": ((3, 1.5), ("--tensor-split", "3,1.5")),
    "fit": (True, ("--fit", "on")),
    "pooling": ("last", ("--pooling", "last")),
    "threads": (5, ("--threads", "5")),
    "threads_http": (6, ("--threads-http", "6")),
    "load_mode": ("mmap+mlock", ("--load-mode", "mmap+mlock")),
    "extra_args": (("--sse-ping-interval", "3"), ("--sse-ping-interval", "3")),
}
"""A value for each field that is a flag, other than its default, and what it becomes."""

NO_FLAGS = {
    "extends",
    "mode",  # decides about --embeddings, from the model's type
    "engine",
    "fallback_profile",
    "give_up_memory",
    "command",  # of another engine
    "device",  # cpu: no layers on the GPU
    "env",
    "env_passthrough",
    "start_timeout_s",
    "drain_timeout_s",
    "stop_grace_s",
    "stall_timeout_s",
    "restart_on_stall",
    "memory",
    "batching",
    "keep_prompt_cache",  # --slot-save-path, where there is a folder
    "main_gpu",  # whose memory it takes; --main-gpu, where it sees several
}


@pytest.fixture(params=["llama-server", "embedded"])
def server(request: pytest.FixtureRequest, llama_server_bin: Path) -> Engine:
    """Each real engine in turn."""
    return LlamaServer(llama_server_bin) if request.param == "llama-server" else EmbeddedEngine()


def resolved(mode: Mode = Mode.GENERATION, **fields: Any) -> ResolvedModel:
    return ResolvedModel(
        name="mine",
        path=Path("/models/mine.gguf"),
        reference="mine.gguf",
        mode=mode,
        profile_name="test",
        profile=Profile(mode=mode, **fields),
    )


def flags_of(
    model: ResolvedModel, address: Address, slots_dir: Path | None = None
) -> tuple[str, ...]:
    return server_flags(ServerStart(model=model, address=address, slots_dir=slots_dir))


def has_run(words: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    """Whether the wanted words stand in a row."""
    starts = range(len(words) - len(wanted) + 1)
    return any(words[at : at + len(wanted)] == wanted for at in starts)


def value_of(words: tuple[str, ...], flag: str) -> str:
    return words[words.index(flag) + 1]


@pytest.mark.parametrize("field", FLAG_OF_FIELD)
def test_a_field_becomes_its_flag(field: str) -> None:
    value, wanted = FLAG_OF_FIELD[field]
    assert has_run(flags_of(resolved(**{field: value}), SOCKET), wanted)
    assert not has_run(flags_of(resolved(), SOCKET), wanted)


def test_every_field_is_a_flag_or_meant_for_the_controller() -> None:
    assert FLAG_OF_FIELD.keys() | NO_FLAGS == set(Profile.model_fields)


def test_a_field_that_was_left_out_leaves_the_choice_to_the_engine() -> None:
    flags = flags_of(resolved(), SOCKET)
    assert not {"--pooling", "--threads"} & set(flags)


@pytest.mark.parametrize(("kv_unified", "tokens"), [(False, "4096"), (True, "1024")])
def test_the_context_is_counted_per_slot_unless_all_slots_share_it(
    *, kv_unified: bool, tokens: str
) -> None:
    flags = flags_of(resolved(ctx_size=1024, parallel=4, kv_unified=kv_unified), SOCKET)
    assert value_of(flags, "--ctx-size") == tokens
    assert ("--kv-unified" in flags) is kv_unified
    assert ("--no-kv-unified" in flags) is not kv_unified


def test_a_context_of_zero_is_the_models_own_whatever_the_number_of_slots() -> None:
    assert value_of(flags_of(resolved(ctx_size=0, parallel=4), SOCKET), "--ctx-size") == "0"


def test_a_profile_on_the_cpu_has_no_layers_on_the_gpu_whatever_it_says() -> None:
    flags = flags_of(resolved(device="cpu", n_gpu_layers="all"), SOCKET)
    assert value_of(flags, "--n-gpu-layers") == "0"


def test_only_a_model_for_embedding_is_served_with_embeddings() -> None:
    assert "--embeddings" in flags_of(resolved(Mode.EMBEDDING), SOCKET)
    assert "--embeddings" not in flags_of(resolved(Mode.GENERATION), SOCKET)


def test_a_child_listens_on_its_socket_or_on_loopback_only() -> None:
    assert has_run(flags_of(resolved(), SOCKET), ("--host", "/run/ours/backend-1.sock"))
    flags = flags_of(resolved(), Address(port=4711))
    assert has_run(flags, ("--host", "127.0.0.1", "--port", "4711"))


def test_extra_arguments_come_last_so_that_they_win() -> None:
    extra = ("--top-k", "7", "--verbose-prompt")
    assert flags_of(resolved(extra_args=extra), SOCKET)[-3:] == extra


def test_slots_are_saved_to_the_folder_given_and_without_one_not_at_all() -> None:
    model = resolved(keep_prompt_cache=True)
    flags = flags_of(model, SOCKET, Path("/data/prompts"))
    assert has_run(flags, ("--slot-save-path", "/data/prompts/"))
    assert "--slot-save-path" not in flags_of(model, SOCKET)


def test_the_table_has_one_row_for_each_field_that_the_servers_are_told() -> None:
    fields = [flag.field for flag in FLAGS if flag.field != "engine"]
    assert sorted({*fields} - {"mode"} | {"extra_args"}) == sorted(SERVER_FIELDS)
    assert len(fields) == len(set(fields))
    assert FLAG_OF_FIELD.keys() | {"keep_prompt_cache", "main_gpu"} == SERVER_FIELDS


def test_a_server_that_sees_one_gpu_is_named_none() -> None:
    assert "--main-gpu" not in flags_of(resolved(main_gpu=1), SOCKET)
    flags = flags_of(resolved(tensor_split=(1, 1), main_gpu=1), SOCKET)
    assert value_of(flags, "--main-gpu") == "1"


# Threads for what is sent at once


@pytest.mark.parametrize(
    ("fields", "at_once", "threads"),
    [
        ({}, 120, "128"),
        ({"parallel": 100}, 200, "208"),
        ({"threads_http": 1000}, 120, "1000"),
        ({"threads_http": 64}, 56, "64"),
        ({"threads_http": 64, "parallel": 100}, 56, "64"),
        ({"threads_http": 8}, 1, "8"),
        ({"threads_http": 1}, 1, "1"),
    ],
)
def test_a_server_has_a_thread_for_each_request_that_it_is_sent_at_once_and_eight_more(
    server: Engine, fields: dict[str, Any], at_once: int, threads: str
) -> None:
    model = resolved(**fields)
    assert (
        value_of(server.argv(ServerStart(model=model, address=SOCKET)), "--threads-http") == threads
    )
    assert server.abilities(model).requests_at_once == at_once
    assert requests_at_once(model.profile) == at_once


# Further arguments


@pytest.mark.parametrize(
    "extra",
    [
        ("--grammar", "-1e-5"),
        ("--reverse-prompt", "-END-", "--temp", "0.5"),
        ("--grammar", "--flag=-x"),
        ("--chat-template", "--host"),
        ("--control-vector-layer-range", "1", "2"),
        ("--backend_sampling", "--top_k", "4"),
        ("-lv", "4"),
        ("--xtc-threshold", "-1e-5"),
    ],
)
def test_what_follows_a_flag_that_takes_a_value_is_a_value_whatever_it_looks_like(
    llama_server_bin: Path, extra: tuple[str, ...]
) -> None:
    argv = LlamaServer(llama_server_bin).argv(
        ServerStart(model=resolved(extra_args=extra), address=SOCKET)
    )
    assert argv[-len(extra) :] == extra


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (("--temp=0.5",), "write the value of --temp as a word of its own"),
        (("--temp",), "--temp needs a value"),
        (("--control-vector-layer-range", "1"), "--control-vector-layer-range needs a value"),
        (("--temp", "1", "stray"), "does not know stray"),
        (("-backend_sampling",), "does not know -backend_sampling"),
    ],
)
def test_arguments_at_which_llama_server_would_exit_are_refused(
    llama_server_bin: Path, extra: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(UnfitProfile) as refused:
        LlamaServer(llama_server_bin).check(resolved(extra_args=extra))
    assert reason in refused.value.problems["extra_args"]
    run = subprocess.run(
        [llama_server_bin, "--model", "none", *extra], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "error" in run.stderr


@pytest.mark.parametrize(
    ("extra", "remedy"),
    [
        (("--host", "0.0.0.0"), "server.host"),
        (("--port", "1"), "server.port"),
        (("--reuse_port",), "the controller chooses where it listens"),
        (("--model", "other.gguf"), "`path` in models.yaml"),
        (("-m", "other.gguf"), "`path` in models.yaml"),
        (("-hf", "org/name"), "`path` in models.yaml"),
        (("--hf_repo", "org/name"), "`path` in models.yaml"),
        (("--gpt-oss-20b-default",), "`path` in models.yaml"),
        (("--models-dir", "/m"), "`path` in models.yaml"),
        (("-a", "other"), "`aliases`"),
        (("--alias", "other"), "`aliases`"),
        (("--api-key", "k"), "a key of its own"),
        (("--api_key_file", "k"), "a key of its own"),
        (("--api-prefix", "/x"), "its routes at /"),
        (("--ssl-key-file", "k"), "TLS"),
        (("--ssl_cert_file", "k"), "TLS"),
        (("--slot-save-path", "/x"), "keep_prompt_cache"),
        (("--slot_save_path=/x",), "keep_prompt_cache"),
        (("--no-slots",), "reads the slots"),
        (("--mmproj", "x"), "mmproj"),
        (("-mm", "x"), "mmproj"),
        (("--embedding",), "`type`"),
        (("--rerank",), "`pooling: rank`"),
        (("--threads-http", "4"), "threads_http"),
        (("--version",), "prints something and ends"),
    ],
)
def test_extra_arguments_take_nothing_away_that_the_controller_relies_on(
    server: Engine, extra: tuple[str, ...], remedy: str
) -> None:
    with pytest.raises(UnfitProfile) as refused:
        server.check(resolved(extra_args=("--metrics", *extra)))
    problem = refused.value.problems["extra_args"]
    if remedy == "`path` in models.yaml" and isinstance(server, EmbeddedEngine):
        assert remedy in problem or "does not know" in problem  # it has no models of its own
    else:
        assert remedy in problem
    assert extra[0].split("=")[0] in problem


def test_variables_take_nothing_away_either(llama_server_bin: Path) -> None:
    native = LlamaServer(llama_server_bin)
    for name in ("LLAMA_ARG_SSL_KEY_FILE", "LLAMA_ARG_CTX_SIZE", "LLAMA_API_KEY"):
        with pytest.raises(UnfitProfile) as refused:
            native.check(resolved(env={name: "x"}))
        assert f"{name} stands for -" in refused.value.problems["env"]
    native.check(resolved(env={"LLAMA_ARG_TOP_K": "3", "GGML_CUDA_NO_VMM": "1"}))


def test_the_embedded_engine_reads_values_that_begin_with_a_dash() -> None:
    extra = ("--chat_template", "-END-", "--sse-ping-interval", "-1")
    told = embedded_params(*flags_of(resolved(extra_args=extra), SOCKET))
    assert (told["chat_template"], told["sse_ping_interval"]) == ("-END-", -1)


def test_both_engines_know_every_flag_that_a_profile_can_become(server: Engine) -> None:
    everything = {field: value for field, (value, _) in FLAG_OF_FIELD.items()}
    for mode in Mode:
        server.check(resolved(mode, **everything))
        server.check(resolved(mode))


def test_both_engines_know_the_shipped_profiles(
    server: Engine, configuration: Configuration
) -> None:
    for name, entry in configuration.catalogue.models.items():
        for profile_name, profile in configuration.profiles.items():
            if profile.mode is entry.type:
                server.check(configuration.resolve(name, profile_name))


def test_arguments_that_an_engine_does_not_know_are_named(server: Engine) -> None:
    extra = ("--no-such-flag", "--metrics", "--nor-this=1", "-zz")
    with pytest.raises(EngineError) as failure:
        server.check(resolved(extra_args=extra))
    message = str(failure.value)
    assert all(word in message for word in ("--no-such-flag", "--nor-this", "-zz", "'test'"))
    assert "extra_args" in message
    assert "--metrics" not in message


@pytest.mark.parametrize(
    "extra",
    [("--sse-ping-interval", "many"), ("--sse-ping-interval",)],
)
def test_the_embedded_engine_refuses_a_value_that_it_cannot_read(extra: tuple[str, ...]) -> None:
    with pytest.raises(EngineError, match=rf"'test': extra_args: .*{extra[0]}"):
        EmbeddedEngine().check(resolved(extra_args=extra))


READ_PARAMS = """
import json, sys
import xllamacpp
from supervisor.engine.kinds.embedded_server import build_params, flag_parser, joined

params = build_params(flag_parser().parse_args(joined(sys.argv[1:])), "the-key")
names = (
    "hostnames port api_keys embedding endpoint_metrics ui kv_unified n_ctx n_batch n_ubatch "
    "n_parallel cache_ram_mib n_ctx_checkpoints n_cache_reuse n_threads_http n_gpu_layers "
    "fit_params slot_save_path chat_template sse_ping_interval tensor_split main_gpu"
).split()
told = {name: getattr(params, name) for name in names}
told["path"] = params.model.path
told["threads"] = params.cpuparams.n_threads
told["threads_batch"] = params.cpuparams_batch.n_threads
enums = {
    "cache_type_k": xllamacpp.ggml_type,
    "cache_type_v": xllamacpp.ggml_type,
    "flash_attn_type": xllamacpp.llama_flash_attn_type,
    "load_mode": xllamacpp.llama_load_mode,
    "pooling_type": xllamacpp.llama_pooling_type,
}
told |= {name: enum(getattr(params, name)).name for name, enum in enums.items()}
print(json.dumps(told))
"""


def embedded_params(*flags: str) -> dict[str, Any]:
    """What the wheel is told, read in a process of its own: the library is large."""
    run = subprocess.run(
        [sys.executable, "-c", READ_PARAMS, *flags], capture_output=True, text=True, check=True
    )
    told: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return told


def test_the_embedded_engine_sets_the_wheels_parameters() -> None:
    everything = {field: value for field, (value, _) in FLAG_OF_FIELD.items()}
    everything["main_gpu"] = 1
    told = embedded_params(*flags_of(resolved(Mode.EMBEDDING, **everything), SOCKET))
    assert told["path"] == "/models/mine.gguf"
    assert told["hostnames"] == ["/run/ours/backend-1.sock"]
    assert told["api_keys"] == ["the-key"]
    assert (told["embedding"], told["endpoint_metrics"], told["ui"]) == (True, True, False)
    assert (told["n_ctx"], told["n_parallel"], told["kv_unified"]) == (1024, 3, True)
    assert (told["n_batch"], told["n_ubatch"]) == (300, 200)
    assert (told["cache_ram_mib"], told["n_cache_reuse"]) == (-1, 64)
    assert told["n_ctx_checkpoints"] == 7
    assert (told["n_gpu_layers"], told["fit_params"]) == (12, True)
    assert (told["tensor_split"][:3], told["main_gpu"]) == ([3, 1.5, 0], 1)
    assert (told["threads"], told["threads_batch"], told["n_threads_http"]) == (5, 5, 6)
    assert told["sse_ping_interval"] == 3
    assert told["cache_type_k"].endswith("GGML_TYPE_Q4_0")
    assert told["cache_type_v"].endswith("GGML_TYPE_BF16")
    assert told["flash_attn_type"].endswith("DISABLED")
    assert told["load_mode"].endswith("MMAP_MLOCK")
    assert told["pooling_type"].endswith("LAST")


TRANSLATE_ALL = """
from supervisor.engine.kinds.embedded_server import build_params, flag_parser

parser = flag_parser()
for action in parser._actions:
    for word in action.choices or ():
        flags = ["--model", "m", "--host", "h", action.option_strings[0], word]
        build_params(parser.parse_args(flags), None)
        print(*flags[4:])
"""


def test_the_embedded_engine_translates_every_word_that_it_accepts() -> None:
    run = subprocess.run(
        [sys.executable, "-c", TRANSLATE_ALL], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    translated = run.stdout.splitlines()
    assert "--load-mode dio" in translated
    assert "--pooling rank" in translated
    assert len(translated) > 30


def test_the_embedded_engine_takes_all_layers_and_leaves_what_is_not_said() -> None:
    said = embedded_params(*flags_of(resolved(n_gpu_layers="all"), Address(port=4711)))
    assert said["n_gpu_layers"] == -2
    assert (said["hostnames"], said["port"]) == (["127.0.0.1"], 4711)
    assert said["fit_params"] is False
    bare = embedded_params("--model", "m", "--host", "h")
    assert bare["threads"] == -1
    assert bare["pooling_type"].endswith("UNSPECIFIED")
    assert bare["fit_params"] is True
