"""Targets: what is checked before the live backend is touched, and what a child is given."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from msgspec.structs import replace
from structlog.testing import capture_logs

from supervisor.config.holder import ConfigurationHolder
from supervisor.config.load import load
from supervisor.core.byte_size import MIB
from supervisor.core.machine.values import Mode, Stop, Target
from supervisor.core.sizing.learned import LearnedPeak
from supervisor.engine.kinds.engines import Engines
from supervisor.engine.launcher import Launcher
from supervisor.engine.needs.assessment import DRIVER_CONTEXT_BYTES
from supervisor.engine.needs.learned_store import FILE_NAME, LearnedStore
from supervisor.engine.prompts.prompt_cache import PromptCache
from supervisor.engine.servers.backend import Backend
from supervisor.errors import EngineError, ModelFileError
from tests.patience import PATIENCE_S

MakeLauncher = Callable[..., Launcher]

CHAT = Target(model="demo-chat", mode=Mode.GENERATION, profile="generation", device="host")
EMBEDDING = Target(model="minilm", mode=Mode.EMBEDDING, profile="embedding", device="host")


@pytest.fixture
def make_launcher(
    profiles_dir: Path, models_dir: Path, llama_server_bin: Path, run_dir: Path, tmp_path: Path
) -> MakeLauncher:
    """Builds launchers on the shipped profiles, with overrides for demo-chat."""

    def make(
        overrides: Mapping[str, Any] | None = None,
        *,
        binary: Path = llama_server_bin,
        models: Path = models_dir,
        environ: Mapping[str, str] = os.environ,
        device_env: Mapping[str, str] | None = None,
        files: Mapping[str, Any] | None = None,
        learned_store: LearnedStore | None = None,
        prompt_cache: PromptCache | None = None,
    ) -> Launcher:
        folder = tmp_path / "profiles"
        shutil.copytree(profiles_dir, folder)
        catalogue = yaml.safe_load((folder / "models.yaml").read_text())
        catalogue["models"]["demo-chat"]["overrides"] = dict(overrides or {})
        (folder / "models.yaml").write_text(yaml.safe_dump(catalogue))
        for name, content in (files or {}).items():
            (folder / name).write_text(yaml.safe_dump(content))
        return Launcher(
            configuration=ConfigurationHolder(load(folder, models, {})),
            engines=Engines(environ, binary),
            run_dir=run_dir,
            device_env=lambda _: device_env or {},
            learned_store=learned_store,
            prompt_cache=prompt_cache,
            environ=environ,
        )

    return make


@pytest.fixture
async def end_later() -> AsyncIterator[list[Backend]]:
    """Backends to be stopped when the test is over."""
    backends: list[Backend] = []
    yield backends
    for backend in backends:
        await backend.give_up_memory(Stop(grace_s=5))


# Before anything is touched


def test_the_need_is_estimated_from_the_file_and_the_profile(
    make_launcher: MakeLauncher, models_dir: Path
) -> None:
    launcher = make_launcher()
    weights = (models_dir / "minilm.gguf").stat().st_size
    assert weights < launcher.check(EMBEDDING).footprint.total_bytes < weights + 1024 * MIB


def test_more_slots_and_finer_caches_need_more(make_launcher: MakeLauncher, tmp_path: Path) -> None:
    needs = []
    for changes in ({"parallel": 1}, {"parallel": 8}, {"parallel": 8, "cache_type_k": "f32"}):
        needs.append(make_launcher(changes).check(CHAT).footprint.total_bytes)
        shutil.rmtree(tmp_path / "profiles")
    assert needs == sorted(set(needs))


def test_an_engine_that_does_without_flash_attention_needs_more(
    make_launcher: MakeLauncher, tmp_path: Path
) -> None:
    needs = {}
    for engine in ("llama-server", "llama-cpp-python"):
        profile = {"mode": "generation", "engine": engine, "ctx_size": 4096}
        launcher = make_launcher(files={"plain.yaml": profile})
        needs[engine] = launcher.check(replace(CHAT, profile="plain")).footprint.total_bytes
        shutil.rmtree(tmp_path / "profiles")
    assert needs["llama-server"] < needs["llama-cpp-python"]


def test_an_operator_may_state_the_need(make_launcher: MakeLauncher) -> None:
    assert (
        make_launcher({"memory": {"need_bytes": 12345}}).check(CHAT).footprint.total_bytes == 12345
    )


def test_a_start_on_a_gpu_counts_the_drivers_context_and_no_results(
    make_launcher: MakeLauncher,
) -> None:
    launcher = make_launcher()
    on_host, on_gpu = (launcher.check(replace(CHAT, device=d)) for d in ("host", "gpu0"))
    only_on_host = on_host.footprint.total_bytes - (
        on_gpu.footprint.total_bytes - DRIVER_CONTEXT_BYTES
    )
    assert 0 < only_on_host < 4 * MIB  # results, and the embeddings of tokens
    assert "512.0 MiB for the driver's context" in on_gpu.explanation


# What was learned


@pytest.fixture
def learned_store(tmp_path: Path) -> Iterator[LearnedStore]:
    needs = LearnedStore(tmp_path / FILE_NAME)
    yield needs
    needs.close()


def learn(launcher: Launcher, needs: LearnedStore, peak_bytes: int) -> None:
    assessment = launcher.assessed(CHAT)
    assert assessment is not None
    assert assessment.identity is not None
    needs.note(assessment.identity, LearnedPeak(peak_bytes=peak_bytes, seen_on="2026-11-21"))


def test_a_start_is_held_against_the_larger_of_learned_and_estimated(
    make_launcher: MakeLauncher, learned_store: LearnedStore
) -> None:
    launcher = make_launcher(learned_store=learned_store)
    estimated = launcher.check(CHAT)

    learn(launcher, learned_store, estimated.footprint.total_bytes // 2)
    assert launcher.check(CHAT).footprint.total_bytes == estimated.footprint.total_bytes

    learn(launcher, learned_store, estimated.footprint.total_bytes + 5 * MIB)
    need = launcher.check(CHAT)
    assert need.footprint.total_bytes == estimated.footprint.total_bytes + 5 * MIB
    assert " used at its peak on 2026-11-21, estimated " in need.explanation
    for before, now in zip(estimated.alternatives, need.alternatives, strict=True):
        assert now.need_bytes == before.need_bytes + 5 * MIB


def test_what_was_learned_with_other_settings_or_another_device_does_not_count(
    make_launcher: MakeLauncher, learned_store: LearnedStore, tmp_path: Path
) -> None:
    launcher = make_launcher(learned_store=learned_store)
    launcher.check(CHAT)
    learn(launcher, learned_store, 10**12)
    assert "learned" not in launcher.check(replace(CHAT, device="gpu0")).explanation
    shutil.rmtree(tmp_path / "profiles")
    other = make_launcher({"ctx_size": 2048}, learned_store=learned_store)
    assert "learned" not in other.check(CHAT).explanation
    shutil.rmtree(tmp_path / "profiles")
    same = make_launcher({"drain_timeout_s": 7}, learned_store=learned_store)
    assert "learned" in same.check(CHAT).explanation


def test_a_stated_need_goes_before_what_was_learned_and_nothing_more_is_learned(
    make_launcher: MakeLauncher, learned_store: LearnedStore, tmp_path: Path
) -> None:
    launcher = make_launcher(learned_store=learned_store)
    launcher.check(CHAT)
    learn(launcher, learned_store, 10**12)
    shutil.rmtree(tmp_path / "profiles")
    stating = make_launcher({"memory": {"need_bytes": 12345}}, learned_store=learned_store)
    assert stating.check(CHAT).footprint.total_bytes == 12345
    assessment = stating.assessed(CHAT)
    assert assessment is not None
    assert assessment.identity is None


# Files and arguments


def test_a_missing_projector_is_found_before_anything_is_touched(
    make_launcher: MakeLauncher,
) -> None:
    entry = {"path": "demo-chat.gguf", "mmproj": "mmproj-gone.gguf"}
    launcher = make_launcher(files={"models.yaml": {"models": {"demo-chat": entry}}})
    with pytest.raises(ModelFileError, match=r"mmproj-gone\.gguf: there is no such file"):
        launcher.check(CHAT)


def test_a_missing_file_is_found_before_anything_is_touched(
    make_launcher: MakeLauncher, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    with pytest.raises(ModelFileError, match=r"demo-chat\.gguf"):
        make_launcher(models=tmp_path / "models").check(CHAT)


def test_a_file_that_is_no_model_is_found_even_where_the_need_is_stated(
    make_launcher: MakeLauncher, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "demo-chat.gguf").write_text("<html>not found</html>")
    launcher = make_launcher({"memory": {"need_bytes": 1}}, models=tmp_path / "models")
    with pytest.raises(ModelFileError, match=r"demo-chat\.gguf"):
        launcher.check(CHAT)


def test_unknown_arguments_are_found_before_anything_is_touched(
    make_launcher: MakeLauncher,
) -> None:
    with pytest.raises(EngineError, match="--no-such-flag"):
        make_launcher({"extra_args": ["--no-such-flag"]}).check(CHAT)


def test_a_profile_runs_with_the_engine_that_it_names(
    make_launcher: MakeLauncher, tmp_path: Path
) -> None:
    stub = tmp_path / "llama-server"
    stub.write_text("#!/bin/sh\nexit 1\n")
    stub.chmod(0o755)
    assert make_launcher({"engine": "embedded"}, binary=stub).check(CHAT).footprint.total_bytes > 0
    shutil.rmtree(tmp_path / "profiles")
    with pytest.raises(EngineError, match="--help failed"):
        make_launcher({"engine": "llama-server"}, binary=stub).check(CHAT)


# What a child is given


async def test_each_start_has_a_key_and_a_socket_of_its_own(
    make_launcher: MakeLauncher, run_dir: Path, end_later: list[Backend]
) -> None:
    launcher = make_launcher()
    end_later += [launcher.launch(CHAT, 1), launcher.launch(CHAT, 2)]
    one, two = (backend.launch for backend in end_later)
    assert one.api_key != two.api_key
    assert one.address.socket_path == run_dir / "backend-1.sock"
    assert two.address.socket_path == run_dir / "backend-2.sock"


async def test_the_childs_environment_is_ours_cleared_and_then_the_profiles(
    make_launcher: MakeLauncher, end_later: list[Backend]
) -> None:
    launcher = make_launcher(
        {
            "env": {"LLAMA_ARG_VERBOSITY": "1", "MINE": "profile"},
            "env_passthrough": ["MINE", "OTH*"],
        },
        environ=os.environ
        | {"LLAMA_ARG_HOST": "0.0.0.0", "LLAMA_API_KEY": "guessable", "AIP_HTTP_PORT": "80"}
        | {"MINE": "ours", "OTHER": "ours", "DATABASE_PASSWORD": "secret"},
        device_env={"CUDA_VISIBLE_DEVICES": "GPU-1"},
    )
    backend = launcher.launch(CHAT, 1)
    end_later.append(backend)
    async with asyncio.timeout(PATIENCE_S):
        await backend.become_ready()  # until then it may be on its way to being llama-server
    environment = psutil.Process(backend.process.pid).environ()
    assert "LLAMA_ARG_HOST" not in environment
    assert "AIP_HTTP_PORT" not in environment
    assert environment["LLAMA_ARG_VERBOSITY"] == "1"
    assert (environment["MINE"], environment["OTHER"]) == ("profile", "ours")
    assert "DATABASE_PASSWORD" not in environment
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert environment["LLAMA_API_KEY"] == backend.launch.api_key != "guessable"


async def test_the_childs_output_is_logged_with_model_and_epoch(
    make_launcher: MakeLauncher, tmp_path: Path, llama_server_bin: Path
) -> None:
    stub = tmp_path / "llama-server"
    stub.write_text(
        f'#!/bin/sh\n[ "$1" = --help ] && exec {llama_server_bin} $1\necho hello from $0\n'
    )
    stub.chmod(0o755)
    with capture_logs() as lines:
        backend = make_launcher(binary=stub).launch(CHAT, 7)
        await backend.wait()
    assert lines == [
        {
            "event": "backend.output",
            "log_level": "info",
            "model": "demo-chat",
            "epoch": 7,
            "line": f"hello from {stub}",
        }
    ]


async def test_a_server_without_unix_sockets_gets_a_loopback_port(
    make_launcher: MakeLauncher, tmp_path: Path, llama_server_bin: Path
) -> None:
    stub = tmp_path / "llama-server"
    asked = f'[ "$1" = --help ] && exec {llama_server_bin} $1 | sed s/.sock//'
    stub.write_text(f'#!/bin/sh\n{asked}\necho "$@"\n')
    stub.chmod(0o755)
    backend = make_launcher(binary=stub).launch(CHAT, 1)
    await backend.wait()
    port = backend.launch.address.port
    assert f"--host 127.0.0.1 --port {port} " in backend.process.last_lines[0]


async def test_a_program_that_cannot_be_executed_is_an_engine_error(
    make_launcher: MakeLauncher, tmp_path: Path
) -> None:
    stub = tmp_path / "llama-server"
    stub.write_text("#!/no/such/interpreter\n")
    stub.chmod(0o755)
    with pytest.raises(EngineError, match="llama-server --help failed"):
        make_launcher(binary=stub).launch(CHAT, 1)


# Where prompts are kept


@pytest.fixture
def prompt_cache(tmp_path: Path) -> PromptCache:
    return PromptCache(tmp_path / "prompt-cache", max_bytes=MIB, keeps_at_exit=True)


async def test_a_start_does_not_ask_a_driver_that_fails_once_more(
    make_launcher: MakeLauncher,
    llama_server_bin: Path,
    prompt_cache: PromptCache,
    tmp_path: Path,
    end_later: list[Backend],
) -> None:
    asked, binary = tmp_path / "asked", tmp_path / "llama-server"
    write_program(
        binary,
        f"[ $1 = --list-devices ] && echo >> {asked} && exit 1",
        f'exec {llama_server_bin} "$@"',
    )
    launcher = make_launcher({"keep_prompt_cache": True}, binary=binary, prompt_cache=prompt_cache)
    launcher.check(CHAT)
    asked_before = asked.read_text()
    backend = launcher.launch(CHAT, 1)
    end_later.append(backend)
    assert backend.launch.prompt_files is not None
    assert asked.read_text() == asked_before


async def test_a_program_that_was_replaced_since_the_check_restores_no_prompts_of_the_old_one(
    make_launcher: MakeLauncher,
    llama_server_bin: Path,
    prompt_cache: PromptCache,
    tmp_path: Path,
    end_later: list[Backend],
) -> None:
    binary, runs = tmp_path / "llama-server", f'exec {llama_server_bin} "$@"'
    write_program(binary, runs)
    launcher = make_launcher({"keep_prompt_cache": True}, binary=binary, prompt_cache=prompt_cache)
    launcher.check(CHAT)
    end_later.append(launcher.launch(CHAT, 1))
    write_program(binary, "# another build", runs)
    end_later.append(launcher.launch(CHAT, 2))
    folders = {each.launch.prompt_files and each.launch.prompt_files.path for each in end_later}
    assert None not in folders
    assert len(folders) == 2


def write_program(path: Path, *lines: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)
