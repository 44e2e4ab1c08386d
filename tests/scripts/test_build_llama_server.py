"""Building the native llama-server. The compilation itself runs as a step of `scripts/test`."""

import fcntl
import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from supervisor.engine.kinds.cached_build import (
    CMAKE_FLAGS,
    COMPLETE_STAMP,
    LLAMA_CPP_PYTHON_VERSION,
    build_key,
    cached_build_dir,
    cached_llama_server,
    miscompiles_amx,
)

SCRIPTS = Path(__file__).parents[2] / "scripts"
COMMAND = (sys.executable, str(SCRIPTS / "build_llama_server.py"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, for this process and for those that it starts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bare_machine(cache: Path, tmp_path: Path) -> Mapping[str, str]:
    """The environment of a machine on which no program can be found."""
    (tmp_path / "nothing").mkdir()
    return {**os.environ, "CXX": "", "PATH": str(tmp_path / "nothing")}


def run_script(environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(COMMAND, env=environment, capture_output=True, text=True, check=False)


def put_complete_build() -> Path:
    """Write what a finished build leaves. Returns its folder."""
    folder = cached_build_dir()
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "llama-server").touch(mode=0o755)
    (folder / COMPLETE_STAMP).touch()
    return folder


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_missing_compiler_is_named_with_the_packages_that_bring_one(
    cache: Path, bare_machine: Mapping[str, str]
) -> None:
    ended = run_script(bare_machine)

    assert ended.returncode == 1
    assert "no C++ compiler was found" in ended.stderr
    assert "apt-get install g++" in ended.stderr
    assert "dnf install gcc-c++" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert files_below(cache) == set()


def test_compiler_named_by_cxx_must_exist(cache: Path) -> None:
    ended = run_script({**os.environ, "CXX": "no-such-compiler"})

    assert ended.returncode == 1
    assert "CXX names no-such-compiler" in ended.stderr
    assert files_below(cache) == set()


def test_second_run_tells_where_the_build_stands_and_builds_nothing(
    cache: Path, bare_machine: Mapping[str, str]
) -> None:
    folder = put_complete_build()
    before = files_below(cache)

    # No compiler, no cmake, no ninja: a run that tried to build would fail.
    ended = run_script(bare_machine)

    assert ended.returncode == 0, ended.stderr
    assert str(folder) in ended.stdout
    assert "[1/" not in ended.stdout
    assert files_below(cache) == before


def test_run_beside_another_waits_and_takes_its_build(cache: Path) -> None:
    folder = cached_build_dir()
    folder.parent.mkdir(parents=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with subprocess.Popen(
            COMMAND, env={**os.environ, "CXX": sys.executable}, stdout=subprocess.PIPE, text=True
        ) as waiting:
            assert waiting.stdout is not None
            hang_guard = threading.Timer(30, waiting.kill)
            hang_guard.start()
            first_line = waiting.stdout.readline()
            put_complete_build()
            fcntl.flock(lock, fcntl.LOCK_UN)
            said = waiting.stdout.read()
            hang_guard.cancel()

    assert "waiting" in first_line
    assert waiting.returncode == 0
    assert "[1/" not in said
    assert str(folder) in said


def test_failed_step_shows_the_end_of_its_log_and_leaves_no_build(
    cache: Path, tmp_path: Path
) -> None:
    # pip finds no index: the first step fails without a word to the network.
    isolated = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}

    ended = run_script({**os.environ, **isolated, "CXX": sys.executable})

    assert ended.returncode == 1
    assert "No matching distribution found for llama-cpp-python" in ended.stderr
    log = re.search(r"The whole output is in (\S+build\.log)\.", ended.stderr)
    assert log is not None
    assert "No matching distribution found" in Path(log[1]).read_text(encoding="utf-8")
    assert cached_llama_server() is None


@pytest.mark.parametrize(
    "different",
    [
        {"version": "0.3.37"},
        {"machine": "aarch64"},
        {"flags": (*CMAKE_FLAGS, "-DGGML_CUDA=ON")},
        {"flags": CMAKE_FLAGS[1:]},
    ],
)
def test_another_version_machine_or_flag_is_another_build(different: Mapping[str, object]) -> None:
    pinned = {"version": "0.3.36", "machine": "x86_64", "flags": CMAKE_FLAGS}

    assert build_key(**{**pinned, **different}) != build_key(**pinned)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("compiler", "is_broken"),
    [
        ("GNU 12.2.0 for Linux x86_64", True),
        ("GNU 12.4.0 for Linux x86_64", False),
        ("GNU 13.2.0", True),
        ("GNU 10.2.1", True),
        ("GNU 14.1.0", False),
        ("Clang 12.0.1 for Linux x86_64", False),
        ("", False),
    ],
)
def test_compilers_that_break_the_code_for_amx_are_known(compiler: str, is_broken: bool) -> None:
    assert miscompiles_amx(compiler) is is_broken


def test_cache_stands_in_the_xdg_cache_home(cache: Path) -> None:
    assert cached_build_dir().is_relative_to(cache)
    assert cached_build_dir().name.startswith(f"{LLAMA_CPP_PYTHON_VERSION}-")


def test_relative_xdg_cache_home_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")

    assert cached_build_dir().is_relative_to(Path.home() / ".cache")


@pytest.mark.usefixtures("cache")
def test_build_without_its_stamp_or_without_its_binary_does_not_count() -> None:
    folder = put_complete_build()
    assert cached_llama_server() == folder / "bin" / "llama-server"

    (folder / COMPLETE_STAMP).unlink()
    assert cached_llama_server() is None

    (folder / COMPLETE_STAMP).touch()
    (folder / "bin" / "llama-server").unlink()
    assert cached_llama_server() is None


def test_source_lock_pins_the_version_that_names_the_cache() -> None:
    pinned = (SCRIPTS / "llama_cpp_source.lock").read_text(encoding="utf-8")

    assert f"llama-cpp-python=={LLAMA_CPP_PYTHON_VERSION} " in pinned
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", pinned)) == 1
