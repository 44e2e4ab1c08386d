"""Which engine runs a profile, and what is said when there is none."""

import os
import pwd
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from structlog.testing import capture_logs

from supervisor.config.configuration import ResolvedModel
from supervisor.engine.kinds.cached_build import (
    CMAKE_FLAGS,
    COMPLETE_STAMP,
    cached_build_dir,
    cached_llama_server,
)
from supervisor.engine.kinds.command import CommandEngine
from supervisor.engine.kinds.embedded import EmbeddedEngine
from supervisor.engine.kinds.engines import Engines
from supervisor.engine.kinds.llama_cpp_python import LlamaCppPython
from supervisor.engine.kinds.llama_server import LlamaServer, find_binary
from supervisor.engine.port import Address, ServerStart
from supervisor.errors import EngineError

Resolve = Callable[..., ResolvedModel]
Program = Callable[..., Path]

NAMES = ("llama-server", "embedded", "llama-cpp-python")


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Writes an executable script to a path below the test's folder."""

    def write(path: str, script: str = "exit 0") -> Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        return file

    return write


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache without a build, unless a test makes one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python without xllamacpp."""
    monkeypatch.setitem(sys.modules, "xllamacpp", None)


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python without llama-cpp-python."""
    monkeypatch.setitem(sys.modules, "llama_cpp", None)


def make_cached_build(program: Program, script: str = "exit 0") -> Path:
    binary = program(str(cached_build_dir() / "bin" / "llama-server"), script)
    (cached_build_dir() / COMPLETE_STAMP).touch()
    return binary


# Where the native server is looked for


def test_the_places_are_asked_in_their_order(program: Program) -> None:
    configured, named = program("configured/server"), program("named/server")
    on_path, cached = program("bin/llama-server"), make_cached_build(program)
    environ = {"LLAMA_SERVER_BIN": str(named), "PATH": str(on_path.parent)}
    assert find_binary(environ, configured) == configured
    assert find_binary(environ) == named
    del environ["LLAMA_SERVER_BIN"]
    assert find_binary(environ) == on_path
    environ["PATH"] = "/nowhere"
    assert find_binary(environ) == cached
    (cached_build_dir() / COMPLETE_STAMP).unlink()
    assert find_binary(environ) is None


@pytest.mark.parametrize("fault", ["missing", "folder", "not executable"])
def test_a_named_binary_that_cannot_run_is_an_error_not_a_reason_to_look_on(
    fault: str, tmp_path: Path, program: Program
) -> None:
    path = tmp_path / "llama-server"
    if fault == "folder":
        path.mkdir()
    elif fault == "not executable":
        program("llama-server").chmod(0o644)
    environ = {"PATH": str(program("bin/llama-server").parent)}
    with pytest.raises(EngineError, match=rf"LLAMA_SERVER_BIN: {path} is not an executable file"):
        find_binary(environ | {"LLAMA_SERVER_BIN": str(path)})
    with pytest.raises(EngineError, match=rf"engines.llama_server_bin: {path} is not an exec"):
        find_binary(environ, path)


def test_a_build_that_was_cut_short_is_not_taken(program: Program, empty_cache: Path) -> None:
    make_cached_build(program)
    assert cached_llama_server() == cached_build_dir() / "bin" / "llama-server"
    assert cached_build_dir().is_relative_to(empty_cache)
    (cached_build_dir() / COMPLETE_STAMP).unlink()
    assert cached_llama_server() is None


def test_the_cache_stands_in_the_home_folder_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for elsewhere in ("", "not/absolute"):
        monkeypatch.setenv("XDG_CACHE_HOME", elsewhere)
        assert cached_build_dir().is_relative_to(tmp_path / ".cache")


# Which engine a profile gets


def test_auto_is_the_native_server_where_there_is_one(program: Program) -> None:
    engines = Engines({"LLAMA_SERVER_BIN": str(program("llama-server"))}, None)
    assert isinstance(engines.choose("auto"), LlamaServer)
    assert isinstance(engines.choose("llama-server"), LlamaServer)
    assert isinstance(engines.choose("embedded"), EmbeddedEngine)


def test_auto_is_the_wheel_where_there_is_no_native_server() -> None:
    engines = Engines({"PATH": "/nowhere"}, None)
    assert isinstance(engines.choose("auto"), EmbeddedEngine)


def test_the_command_line_decides_what_auto_means(program: Program) -> None:
    environ = {"LLAMA_SERVER_BIN": str(program("llama-server"))}
    engines = Engines(environ, None, "embedded")
    assert isinstance(engines.choose("auto"), EmbeddedEngine)
    assert isinstance(engines.choose("llama-server"), LlamaServer)


def test_a_missing_native_server_is_told_with_the_remedy() -> None:
    engines = Engines({"PATH": "/nowhere"}, None)
    with pytest.raises(EngineError, match=r"LLAMA_SERVER_BIN.*scripts/build_llama_server\.py"):
        engines.choose("llama-server")
    with pytest.raises(EngineError, match=r"no llama-server was found"):
        Engines({"PATH": "/nowhere"}, None, "llama-server")


@pytest.mark.usefixtures("no_wheel")
def test_a_missing_wheel_is_told_with_the_remedy(program: Program, resolve: Resolve) -> None:
    engines = Engines({"LLAMA_SERVER_BIN": str(program("llama-server"))}, None)
    with pytest.raises(EngineError, match="pip install xllamacpp"):
        engines.choose("embedded")
    with pytest.raises(EngineError, match="pip install xllamacpp"):
        EmbeddedEngine().check(resolve("demo-chat"))


@pytest.mark.usefixtures("no_wheel", "no_package")
def test_a_machine_without_any_engine_is_told_both_remedies() -> None:
    with pytest.raises(EngineError, match=r"pip install xllamacpp.*LLAMA_SERVER_BIN"):
        Engines({"PATH": "/nowhere"}, None)


@pytest.mark.usefixtures("no_package")
def test_a_missing_package_is_told_with_the_remedy(program: Program, resolve: Resolve) -> None:
    engines = Engines({"LLAMA_SERVER_BIN": str(program("llama-server"))}, None)
    for ask in (
        lambda: engines.choose("llama-cpp-python"),
        lambda: LlamaCppPython({}).check(resolve("demo-chat")),
    ):
        with pytest.raises(EngineError, match=r"pip install 'llama-supervisor\[llama-cpp-python\]"):
            ask()


@pytest.mark.usefixtures("no_wheel", "no_package")
def test_a_machine_with_other_servers_only_is_told_so_on_the_command_line() -> None:
    engines = Engines({"PATH": "/nowhere"}, None, "command")
    assert isinstance(engines.choose("auto"), CommandEngine)


def test_all_engines_that_were_found_tell_who_they_are(program: Program) -> None:
    binary = program("llama-server", "exit 1")
    engines = Engines({"LLAMA_SERVER_BIN": str(binary), "PATH": os.environ["PATH"]}, None)
    native, wheel, package = engines.identities()
    assert (native.name, wheel.name, package.name) == NAMES
    assert "--version failed" in (native.problem or "")
    assert wheel.problem is None


# What the log says of it


def logged(engines: Engines) -> list[Any]:
    with capture_logs() as lines:
        engines.announce()
    return lines


def test_the_native_server_is_announced_with_its_place(program: Program) -> None:
    binary = program("llama-server")
    [line] = logged(Engines({"LLAMA_SERVER_BIN": str(binary)}, None))
    assert line["event"] == "engine.chosen"
    assert (line["engine"], line["location"]) == ("llama-server", str(binary))


def test_the_wheel_is_announced_with_what_it_costs() -> None:
    chosen, hint = logged(Engines({"PATH": "/nowhere"}, None))
    assert chosen["engine"] == "embedded"
    assert "1.6 times as fast" in hint["hint"]
    assert "scripts/build_llama_server.py" in hint["hint"]


# What a binary tells of itself


def test_the_real_server_tells_its_version_and_that_it_has_unix_sockets(
    llama_server_bin: Path,
) -> None:
    server = LlamaServer(llama_server_bin)
    identity = server.identity
    assert identity.location == str(llama_server_bin)
    assert any(digit in identity.version for digit in "0123456789")
    assert "Linux" in identity.build
    assert identity.problem is None
    assert ".sock" in server.help_entries["--host"].text
    assert {"-m", "--model", "--ctx-size", "-ngl", "--no-kv-unified"} <= server.help_entries.keys()
    assert "--no-such-flag" not in server.help_entries


def test_a_server_tells_its_devices_without_what_is_free_just_now(program: Program) -> None:
    binary = program(
        "llama-server",
        """case $1 in
        --help) echo '--list-devices  print list of available devices and exit';;
        --version) echo 'version: 7 (abc)'; echo 'built with GNU 12.2.0 for Linux x86_64' >&2;;
        --list-devices)
            echo 'ggml_cuda_init: found 1 CUDA devices:' >&2
            echo 'Available devices:'
            echo '  CUDA0: NVIDIA H200 (143771 MiB, 143001 MiB free)'
            echo '  BLAS: OpenBLAS';;
        esac""",
    )
    identity = LlamaServer(binary).identity
    assert identity.version == "7 (abc)"
    assert identity.build == "GNU 12.2.0 for Linux x86_64"
    assert identity.devices == ("CUDA0: NVIDIA H200 (143771 MiB)", "BLAS: OpenBLAS")


def test_the_cached_build_tells_the_flags_that_it_was_built_with(program: Program) -> None:
    make_cached_build(program, "echo built with GNU 12.2.0")
    binary = cached_llama_server()
    assert binary is not None
    assert LlamaServer(binary).identity.build == " ".join(("GNU 12.2.0;", *CMAKE_FLAGS))


def test_a_wheel_that_cannot_be_loaded_still_tells_its_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    identity = EmbeddedEngine().identity
    assert identity.version[0].isdigit()
    assert "failed" in (identity.problem or "")


def test_a_server_whose_driver_fails_still_tells_its_version(program: Program) -> None:
    binary = program(
        "llama-server",
        """case $1 in
        --help) echo '--list-devices  print list of available devices and exit';;
        --version) echo 'version: 7';;
        *) echo 'no driver' >&2; exit 3;;
        esac""",
    )
    identity = LlamaServer(binary).identity
    assert identity.version == "7"
    assert identity.devices == ()
    assert "no driver" in (identity.problem or "")


def test_the_wheel_tells_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = EmbeddedEngine().identity
    assert identity.name == "embedded"
    assert identity.version[0].isdigit()
    assert "Linux" in identity.build
    assert any(device.startswith("CPU") for device in identity.devices)
    monkeypatch.setattr(sys, "path", [])  # where importlib.metadata looks
    assert EmbeddedEngine().identity.version == "not installed"


def test_a_server_of_old_listens_on_tcp(program: Program, resolve: Resolve) -> None:
    server = LlamaServer(program("llama-server", "echo '--host HOST  address to listen on'"))
    assert not server.abilities(resolve("demo-chat")).has_unix_socket
    assert server.identity.version == "unknown"


def test_a_binary_is_asked_again_only_when_it_was_replaced(
    program: Program, tmp_path: Path
) -> None:
    script = f"echo $1 >> {tmp_path}/asked; echo 'version: %s'"
    binary = program("llama-server", script % "one")
    server = LlamaServer(binary)
    assert [server.identity.version for _ in range(3)] == ["one", "one", "one"]
    assert (tmp_path / "asked").read_text().split() == ["--version", "--help"]
    binary.rename(tmp_path / "old")
    program("llama-server", script % "two")
    assert server.identity.version == "two"


def test_a_replaced_binary_is_checked_by_its_own_flags(
    program: Program, resolve: Resolve, llama_server_bin: Path, tmp_path: Path
) -> None:
    binary = program("llama-server", f'exec "{llama_server_bin}" "$@"')
    server = LlamaServer(binary)
    server.check(resolve("demo-chat"))
    binary.rename(tmp_path / "old")
    program("llama-server", "echo '-m,    --model FNAME  the model'")
    with pytest.raises(EngineError, match=r"not a llama-server .* does not know --host, --port"):
        server.check(resolve("demo-chat"))


def test_a_binary_that_fails_or_is_gone_is_an_engine_error(
    program: Program, resolve: Resolve
) -> None:
    binary = program("llama-server", "echo no library >&2; exit 127")
    with pytest.raises(EngineError, match=rf"{binary} --help failed: .*127"):
        LlamaServer(binary).check(resolve("demo-chat"))
    binary.unlink()
    with pytest.raises(EngineError, match=rf"{binary} is gone: No such file"):
        LlamaServer(binary).check(resolve("demo-chat"))


def test_the_command_line_of_an_engine_begins_with_its_program(
    llama_server_bin: Path, resolve: Resolve
) -> None:
    model = resolve("demo-chat")
    native = LlamaServer(llama_server_bin).argv(
        ServerStart(model=model, address=Address(port=4711))
    )
    embedded = EmbeddedEngine().argv(ServerStart(model=model, address=Address(port=4711)))
    assert native[0] == str(llama_server_bin)
    assert embedded[0] == sys.executable
    assert native[1:] == embedded[embedded.index("--model") :]
    assert str(model.path) in native


def test_a_user_without_a_home_has_no_build_of_his_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: int) -> NoReturn:
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert cached_llama_server() is None
    assert find_binary({"PATH": "/nowhere"}) is None
