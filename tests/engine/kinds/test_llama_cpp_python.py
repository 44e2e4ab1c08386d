"""The llama-cpp-python engine: what fields become, what it refuses, and the real server."""

import asyncio
import json
import math
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from supervisor.config.configuration import Configuration, ResolvedModel
from supervisor.core.machine.values import Mode
from supervisor.engine.kinds.cached_build import (
    COMPLETE_STAMP,
    cached_build_dir,
    cached_llama_server,
)
from supervisor.engine.kinds.engines import Engines
from supervisor.engine.kinds.llama_cpp_python import LlamaCppPython
from supervisor.engine.model_check import model_problems
from supervisor.engine.port import Address, ServerStart
from supervisor.errors import EngineError, UnfitProfile
from tests.conftest import RunningController

Resolved = Callable[..., ResolvedModel]
StartController = Callable[..., Awaitable[RunningController]]

PORT = Address(port=4711)

PYTHON = {"engine": "llama-cpp-python", "parallel": 1}
FILES = {
    "python-chat.yaml": {
        "extends": "generation",
        **PYTHON,
        "cache_reuse": 0,
        "keep_prompt_cache": False,
    },
    "python-embedding.yaml": {
        "extends": "embedding",
        **PYTHON,
        "flash_attn": "off",
        "ctx_size": 512,
        "batch_size": 512,
        "ubatch_size": 512,
    },
    "models.yaml": {
        "models": {
            "demo-chat": {"path": "demo-chat.gguf"},
            "minilm": {
                "path": "minilm.gguf",
                "type": "embedding",
                "overrides": {"ctx_size": 512},
            },
            "python-chat": {"path": "demo-chat.gguf", "profile": "python-chat"},
            "python-bench": {"path": "bench-chat.gguf", "profile": "python-chat"},
            "python-minilm": {
                "path": "minilm.gguf",
                "type": "embedding",
                "profile": "python-embedding",
            },
        }
    },
}
"""The shipped profiles, each with what this engine wants otherwise."""


@pytest.fixture(scope="module")
def server() -> LlamaCppPython:
    return LlamaCppPython(os.environ)


def setting(argv: tuple[str, ...], name: str) -> str:
    return argv[argv.index(f"--{name}") + 1]


# What fields become


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({"ctx_size": 1024}, {"n_ctx": "1024"}),
        ({"batch_size": 300, "ubatch_size": 200}, {"n_batch": "300", "n_ubatch": "200"}),
        ({"cache_type_k": "q8_0", "cache_type_v": "q4_0"}, {"type_k": "8", "type_v": "2"}),
        ({"cache_type_k": "bf16", "cache_type_v": "iq4_nl"}, {"type_k": "30", "type_v": "20"}),
        ({"flash_attn": "on"}, {"flash_attn": "true"}),
        ({"flash_attn": "off"}, {"flash_attn": "false"}),
        ({}, {"flash_attn": "false", "n_gpu_layers": "-1", "embedding": "false"}),
        ({"n_gpu_layers": 7}, {"n_gpu_layers": "7"}),
        ({"device": "cpu"}, {"n_gpu_layers": "0"}),
        ({"threads": 3}, {"n_threads": "3", "n_threads_batch": "3"}),
        ({"load_mode": "auto"}, {"use_mmap": "true", "use_mlock": "false"}),
        ({"load_mode": "none"}, {"use_mmap": "false", "use_mlock": "false"}),
        ({"load_mode": "mlock"}, {"use_mmap": "false", "use_mlock": "true"}),
        ({"load_mode": "mmap+mlock"}, {"use_mmap": "true", "use_mlock": "true"}),
        ({"mode": Mode.EMBEDDING}, {"embedding": "true"}),
        ({"extra_args": ("--seed", "7")}, {"seed": "7"}),
    ],
)
def test_a_field_becomes_its_setting(
    server: LlamaCppPython,
    resolved_with: Resolved,
    fields: dict[str, Any],
    settings: dict[str, str],
) -> None:
    argv = server.argv(ServerStart(model=resolved_with(**fields), address=PORT, api_key="the-key"))
    assert {name: setting(argv, name) for name in settings} == settings


def test_the_server_runs_in_our_python_on_loopback_and_its_model_can_be_seen(
    server: LlamaCppPython, resolved_with: Resolved
) -> None:
    argv = server.argv(ServerStart(model=resolved_with(), address=PORT, api_key="the-key"))
    assert argv[:4] == (sys.executable, "-P", "-m", "llama_cpp.server")
    assert setting(argv, "model") == "/models/mine.gguf"
    assert (setting(argv, "host"), setting(argv, "port")) == ("127.0.0.1", "4711")
    assert "the-key" not in argv


# What it refuses


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"parallel": 4}, "must be 1, not 4: it serves one sequence at a time"),
        ({"cache_ram_mib": 64}, "must be 0, not 64"),
        ({"cache_reuse": 256}, "must be 0, not 256"),
        ({"keep_prompt_cache": True}, "must be false, not true"),
        ({"fit": True}, "must be false, not true"),
        ({"flash_attn": "auto"}, "must be on or off, not auto"),
        ({"n_gpu_layers": "auto"}, "must be all or a number, not auto"),
        ({"load_mode": "dio"}, "not dio"),
        ({"pooling": "mean"}, "cannot honour it"),
        ({"threads_http": 2}, "cannot honour it"),
        (
            {"extra_args": ("--n_ctx", "9")},
            "--n_ctx cannot be given here: write the field ctx_size",
        ),
        ({"extra_args": ("--use_mlock", "true")}, "write the field load_mode"),
        ({"extra_args": ("--split_mode", "2")}, "write the field device"),
        ({"extra_args": ("--jinja", "--seed", "1")}, "does not know --jinja;"),
        ({"ubatch_size": 500, "batch_size": 500, "mode": Mode.EMBEDDING}, "a multiple of 256"),
        ({"ubatch_size": 60, "batch_size": 100, "mode": Mode.EMBEDDING}, "a multiple of 100"),
    ],
)
def test_what_it_cannot_honour_is_told_by_field(
    server: LlamaCppPython, resolved_with: Resolved, fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(UnfitProfile) as refused:
        server.check(resolved_with(**fields))
    [(field, problem)] = refused.value.problems.items()
    assert field == next(iter(fields))
    assert told in problem


def test_a_profile_that_says_nothing_fits_in_either_mode(
    server: LlamaCppPython, resolved_with: Resolved
) -> None:
    for mode in Mode:
        server.check(resolved_with(mode))
        server.check(resolved_with(mode, threads_http=None, pooling=None, kv_unified=True))


def test_the_shipped_profiles_are_refused_by_file_line_and_field(
    configuration: Configuration, llama_server_bin: Path, profiles_dir: Path
) -> None:
    engines = Engines(os.environ, llama_server_bin, "llama-cpp-python")
    problems = list(model_problems(configuration, engines))
    for file, field in (("generation", "parallel"), ("generation", "cache_reuse")):
        lines = (profiles_dir / f"{file}.yaml").read_text().splitlines()
        [line] = [n for n, text in enumerate(lines, start=1) if text.startswith(f"{field}:")]
        place = f"{profiles_dir}/{file}.yaml:{line}: {field}: "
        assert len([each for each in problems if each.startswith(place)]) == 1


# What the child's environment holds


def test_no_variable_of_ours_becomes_a_setting_of_the_server(
    server: LlamaCppPython, resolved_with: Resolved
) -> None:
    strange = ("HOST", "Port", "CONFIG_FILE", "MODEL", "seed", "API_KEY", "N_CTX", "CACHE")
    inherited = dict.fromkeys(strange, "strange") | {"HOME": "/root", "PATH": "/bin"}
    environment = server.environment(
        ServerStart(model=resolved_with(), address=PORT, api_key="the-key"), inherited
    )
    assert environment.pop("LLAMA_CPP_LIB_PATH", "cached")
    assert environment == {
        "HOME": "/root",
        "PATH": "/bin",
        "HOST": "127.0.0.1",
        "PORT": "4711",
        "API_KEY": "the-key",
    }


def test_a_profile_may_set_variables_but_not_where_the_server_listens(
    server: LlamaCppPython, resolved_with: Resolved
) -> None:
    model = resolved_with(env={"SEED": "7", "HOST": "0.0.0.0", "PORT": "80", "API_KEY": "mine"})
    environment = server.environment(ServerStart(model=model, address=PORT, api_key="the-key"), {})
    named = {name: environment[name] for name in ("SEED", "HOST", "PORT", "API_KEY")}
    assert named == {"SEED": "7", "HOST": "127.0.0.1", "PORT": "4711", "API_KEY": "the-key"}


def test_the_libraries_are_the_named_ones_the_packages_own_or_the_cached_builds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, resolved_with: Resolved
) -> None:
    def library_of(environ: dict[str, str]) -> str | None:
        monkeypatch.setattr(LlamaCppPython, "_help", lambda _: "  --seed SEED\n")
        server = LlamaCppPython(environ)
        return server.environment(ServerStart(model=resolved_with(), address=PORT), {}).get(
            "LLAMA_CPP_LIB_PATH"
        )

    package = tmp_path / "packages" / "llama_cpp"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert library_of({}) is None
    with pytest.raises(EngineError, match=r"no libllama\.so: .*LLAMA_CPP_LIB_PATH"):
        LlamaCppPython({}).check(resolved_with())

    binary = cached_build_dir() / "bin" / "llama-server"
    binary.parent.mkdir(parents=True)
    binary.touch(mode=0o755)
    (cached_build_dir() / COMPLETE_STAMP).touch()
    assert library_of({}) == str(binary.parent)
    (package / "lib").mkdir()
    (package / "lib" / "libllama.so").touch()
    assert library_of({}) is None
    assert library_of({"LLAMA_CPP_LIB_PATH": "/opt/lib"}) == "/opt/lib"


# Who it is


def test_it_tells_its_version_and_its_libraries_and_is_not_loaded(server: LlamaCppPython) -> None:
    identity = server.identity
    assert identity.name == "llama-cpp-python"
    assert identity.version[0].isdigit()
    assert identity.location.endswith("llama_cpp")
    assert str(cached_llama_server() and cached_build_dir()) in identity.build
    assert "cpu" in identity.devices
    assert "llama_cpp" not in sys.modules


# The real server


async def chat(controller: RunningController, model: str, **options: Any) -> Any:
    body = {"model": model, "max_tokens": 6, "messages": [{"role": "user", "content": "Hello"}]}
    return await controller.json("POST", "/v1/chat/completions", body | options)


async def events_of(controller: RunningController, path: str, body: dict[str, Any]) -> list[str]:
    """Ask for a stream and return its events to the end."""
    async with controller.client.post(controller.url + path, json=body | {"stream": True}) as said:
        assert said.status == 200, await said.text()
        return [
            line.decode().removeprefix("data: ").strip()
            async for line in said.content
            if line.startswith(b"data: ")
        ]


def cosine(one: list[float], other: list[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / math.hypot(*one) / math.hypot(*other)


async def test_it_serves_both_modes_and_is_switched_to_and_from(
    start_controller: StartController, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOST", "CONFIG_FILE", "MODEL", "API_KEY", "PORT", "N_CTX"):
        monkeypatch.setenv(name, "strange")
    controller = await start_controller(files=FILES)
    await controller.switch_to("minilm")
    body = {"input": ["A cat sits on the mat.", "Where is the station?"]}
    native = await controller.json("POST", "/v1/embeddings", body | {"model": "minilm"})

    await controller.switch_to("python-chat")
    answer = await chat(controller, "python-chat")
    assert answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] > 0
    *chunks, last = await events_of(
        controller,
        "/v1/chat/completions",
        {
            "model": "python-chat",
            "max_tokens": 6,
            "messages": [{"role": "user", "content": "Hello"}],
        },
    )
    assert last == "[DONE]"
    deltas = [json.loads(chunk)["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert len("".join(deltas)) > 0
    assert json.loads(chunks[-1])["choices"][0]["finish_reason"]

    [backend] = (await controller.json("GET", "/status"))["backends"]
    async with (
        aiohttp.ClientSession() as stranger,
        stranger.get(f"http://{backend['address']}/v1/models") as refused,
    ):
        assert refused.status == 401
    sockets = psutil.Process(backend["pid"]).net_connections("tcp")
    listening = {each.laddr for each in sockets if each.status == psutil.CONN_LISTEN}
    assert {f"{ip}:{port}" for ip, port in listening} == {backend["address"]}
    assert backend["address"].startswith("127.0.0.1:")

    await controller.switch_to("python-minilm")
    own = await controller.json("POST", "/v1/embeddings", body | {"model": "python-minilm"})
    for ours, theirs in zip(native["data"], own["data"], strict=True):
        assert cosine(ours["embedding"], theirs["embedding"]) > 0.999

    await controller.switch_to("demo-chat")
    assert not psutil.pid_exists(backend["pid"])
    assert (await chat(controller, "demo-chat"))["choices"][0]["message"]["content"]
    assert "llama_cpp" not in sys.modules


async def test_a_further_request_waits_and_does_not_cut_the_stream_that_runs(
    start_controller: StartController,
) -> None:
    controller = await start_controller(files=FILES)
    await controller.switch_to("python-bench")
    body = {"model": "python-bench", "prompt": "on and on", "max_tokens": 48}
    streams = (events_of(controller, "/v1/completions", body) for _ in range(2))
    for *chunks, last in await asyncio.gather(*streams):
        assert last == "[DONE]"
        assert json.loads(chunks[-1])["choices"][0]["finish_reason"] == "length"
