"""What the doctor finds out by itself: folders, models, memory, engines, and what is allowed."""

import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from supervisor.doctor.gathering import (
    Surroundings,
    ask_engines,
    find_largest_model,
    gather,
    look_at_data_folder,
    look_at_host,
    look_at_process,
    read_configuration,
    uses_amx,
)
from supervisor.telemetry.telemetry import Telemetry
from tests.conftest import ROOT
from tests.doctor.conftest import unprivileged

MIB = 1024**2


@pytest.fixture
def surroundings(tmp_path: Path, llama_server_bin: Path) -> Surroundings:
    """An empty machine, but for the shipped configuration and a real llama-server."""
    return Surroundings(
        profiles=ROOT / "profiles",
        models=tmp_path / "models",
        data=tmp_path / "data",
        environ={"LLAMA_SERVER_BIN": str(llama_server_bin)},
        root=tmp_path / "root",
    )


def write_cgroup(root: Path, limit_bytes: int) -> None:
    folder = root / "sys/fs/cgroup"
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text(f"{limit_bytes}\n")
    (folder / "memory.current").write_text(f"{3 * MIB}\n")
    (folder / "memory.stat").write_text(f"inactive_file {MIB}\nactive_file {MIB}\n")
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text("MemTotal: 65536 kB\nCached:  2048 kB\nHugePages_Total: 0\n")


async def test_everything_is_gathered_without_leaving_a_trace(surroundings: Surroundings) -> None:
    facts = await gather(surroundings, Telemetry(environ={}, vendors=()))

    assert [info.device for info in facts.devices.devices] == ["host"]
    assert facts.engines.chosen == "llama-server"
    assert facts.configuration.problem is None
    assert (facts.data.exists, facts.data.problem) == (False, None)
    assert not surroundings.data.exists()


async def test_variables_of_visibility_are_told_as_they_are_set(surroundings: Surroundings) -> None:
    environ = {**surroundings.environ, "CUDA_VISIBLE_DEVICES": "", "HOME": "/"}

    facts = await gather(replace(surroundings, environ=environ), Telemetry(environ={}, vendors=()))

    assert facts.visibility == {"CUDA_VISIBLE_DEVICES": ""}


async def test_configuration_that_cannot_be_used_is_a_fact(
    surroundings: Surroundings, tmp_path: Path
) -> None:
    missing = replace(surroundings, profiles=tmp_path / "none")

    facts = await gather(missing, Telemetry(environ={}, vendors=()))

    assert "there is no such folder" in (facts.configuration.problem or "")
    assert facts.engines.chosen == "llama-server"


async def test_what_of_the_configuration_concerns_the_machine_is_read(
    surroundings: Surroundings, tmp_path: Path
) -> None:
    profiles = tmp_path / "profiles"
    shutil.copytree(surroundings.profiles, profiles)
    (profiles / "supervisor.yaml").write_text(
        "server: {host: 0.0.0.0}\ndevices: {gpu0: {required: true}, gpu1: {}}\n"
    )

    configuration = read_configuration(replace(surroundings, profiles=profiles))

    assert configuration.hosts == ("0.0.0.0",)
    given = read_configuration(replace(surroundings, profiles=profiles, hosts=("127.0.0.1",)))
    assert given.hosts == ("127.0.0.1",)
    assert configuration.required_devices == ("gpu0",)
    assert configuration.configured_devices == ("gpu0", "gpu1")
    told = {where.rpartition(": ")[2]: each.mode for where, each in configuration.profiles.items()}
    assert (told["'demo-chat'"], told["'minilm'"]) == ("generation", "embedding")


async def test_servers_that_settings_name_are_reached_or_not_without_their_passwords(
    surroundings: Surroundings, tmp_path: Path
) -> None:
    profiles = tmp_path / "profiles"
    shutil.copytree(surroundings.profiles, profiles)
    settings = profiles / "supervisor.yaml"
    given = replace(surroundings, profiles=profiles)
    with socket.create_server(("127.0.0.1", 0)) as store:
        port = store.getsockname()[1]
        settings.write_text(
            "jobs: {queue_url: 'redis://:hidden@redis.invalid'}\n"
            f"vectors: {{url: 'http://127.0.0.1:{port}'}}\n"
        )
        facts = await gather(given, Telemetry(environ={}, vendors=()))
    settings.write_text(
        f"jobs: {{queue_url: 'unix://{tmp_path}/none.sock'}}\n"
        f"vectors: {{url: 'http://127.0.0.1:{port}'}}\n"
    )
    later = await gather(given, Telemetry(environ={}, vendors=()))

    queue, reached = facts.configuration.services
    assert (queue.place, reached.place) == ("redis.invalid:6379", f"127.0.0.1:{port}")
    assert queue.problem is not None
    assert reached.problem is None
    assert "hidden" not in str(facts)
    told = [(each.place, each.problem) for each in later.configuration.services]
    assert told == [
        (f"{tmp_path}/none.sock", "No such file or directory"),
        (f"127.0.0.1:{port}", "Connection refused"),
    ]


def test_memory_limit_of_the_container_is_told_with_the_page_cache(
    surroundings: Surroundings,
) -> None:
    write_cgroup(surroundings.root, 8 * MIB)

    host = look_at_host(surroundings)

    (limit,) = host.limits
    assert (limit.limit_bytes, limit.used_bytes, limit.source) == (8 * MIB, MIB, "cgroup v2")
    assert (host.machine_bytes, host.page_cache_bytes) == (64 * MIB, 2 * MIB)
    assert host.memory is not None
    assert host.memory.total_bytes == 8 * MIB


def test_limit_whose_use_cannot_be_read_leaves_the_memory_unknown(
    surroundings: Surroundings,
) -> None:
    write_cgroup(surroundings.root, 8 * MIB)
    (surroundings.root / "sys/fs/cgroup/memory.stat").unlink()

    assert (look_at_host(surroundings).memory, look_at_host(surroundings).limits) == (None, ())


def test_processor_and_builds_with_matrix_extensions_are_told(
    surroundings: Surroundings, tmp_path: Path
) -> None:
    assert not look_at_host(surroundings).has_amx
    (surroundings.root / "proc").mkdir(parents=True, exist_ok=True)
    (surroundings.root / "proc/cpuinfo").write_text("flags\t: avx amx_bf16 amx_tile amx_int8\n")
    assert look_at_host(surroundings).has_amx
    binary = tmp_path / "llama-server"
    binary.write_bytes(b"a program")
    assert not uses_amx(binary)
    (tmp_path / "libggml-cpu-x64.so").write_bytes(b"\0ggml_backend_amx_mul_mat\0")
    assert uses_amx(binary)


def test_largest_model_counts_all_of_its_shards(tmp_path: Path) -> None:
    for name, size in (
        ("small.gguf", 5),
        ("large-00001-of-00002.gguf", 4),
        ("deep/large-00002-of-00002.gguf", 3),
        ("large.txt", 100),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))

    assert find_largest_model(tmp_path) == ("large", 7)
    assert find_largest_model(tmp_path / "none") is None


def test_data_folder_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    told = look_at_data_folder(tmp_path)

    assert (told.exists, told.problem) == (True, None)
    assert told.free_bytes
    assert list(tmp_path.iterdir()) == []


def test_data_folder_that_is_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "data").touch()

    assert look_at_data_folder(tmp_path / "data").problem == "Not a directory"
    assert look_at_data_folder(tmp_path / "data/below").problem is not None


def test_data_folder_that_is_closed_to_us_says_so(open_folder: Path) -> None:
    closed = open_folder / "closed"
    closed.mkdir(mode=0o555)

    with unprivileged():
        assert look_at_data_folder(closed).problem == "Permission denied"
        below = look_at_data_folder(closed / "data")
    assert below.problem == f"it is not there, and cannot be made in {closed}"


def test_engine_that_is_named_and_not_there_is_a_fact(
    surroundings: Surroundings, tmp_path: Path
) -> None:
    told = ask_engines(surroundings, tmp_path / "none")

    assert f"{tmp_path}/none is not an executable file" in (told.problem or "")
    assert (told.found, told.chosen) == ((), None)


def test_engine_that_does_not_run_is_told_with_its_last_words(
    surroundings: Surroundings, tmp_path: Path
) -> None:
    broken = tmp_path / "llama-server"
    broken.write_text(
        "#!/bin/sh\necho libcuda.so.1: cannot open shared object file >&2\nexit 127\n"
    )
    broken.chmod(0o700)

    told = ask_engines(surroundings, broken)

    assert "libcuda.so.1: cannot open" in (told.problem or "")
    assert told.chosen is None
    assert "embedded" in {identity.name for identity in told.found}


def test_this_kernel_has_what_the_care_of_processes_needs() -> None:
    told = look_at_process()

    assert (told.pidfd_problem, told.setpriv_problem) == (None, None)
    assert told.uid == os.geteuid()
    assert told.open_files_limit > 0
