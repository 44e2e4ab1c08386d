"""A llama-server that computes on the GPU: one that is named or found, or built here.

The build stands beside the CPU's in the user's cache (`supervisor/engine/kinds/cached_build.py`);
one that was cut short is taken up again where it was.
"""

import os
import platform
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import build_llama_server as building

from lab.harness.command import LabError, say
from supervisor.engine.kinds.cached_build import (
    CMAKE_FLAGS,
    COMPLETE_STAMP,
    LLAMA_CPP_PYTHON_VERSION,
    build_key,
    cached_build_dir,
)
from supervisor.engine.kinds.llama_server import LlamaServer
from supervisor.engine.port import EngineIdentity
from supervisor.errors import EngineError

CUDA_FLAGS = (
    "-DGGML_CUDA=ON",
    "-DCMAKE_CUDA_ARCHITECTURES=native",  # of this machine's GPUs alone: all of them take an hour
    "-DCMAKE_INSTALL_RPATH_USE_LINK_PATH=ON",  # CUDA's libraries stand where the linker found them
)
USUAL_NVCC = Path("/usr/local/cuda/bin/nvcc")
SOURCE_UNPACKED = "unpacked"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundServer:
    """The binary, where it came from, and what it tells of itself."""

    binary: Path
    origin: str
    identity: EngineIdentity


def find_server(environ: Mapping[str, str], source: Path | None) -> FoundServer:
    """Return $LLAMA_SERVER_BIN, else one on PATH or in the cache that finds a GPU, else build one.

    `source` is the archive to build from; None downloads the pinned one. Raises LabError.
    """
    named = environ.get("LLAMA_SERVER_BIN")
    if named:
        return _describe(Path(named), "LLAMA_SERVER_BIN")
    on_path = shutil.which("llama-server", path=environ.get("PATH"))
    if on_path:
        found = _describe(Path(on_path), "PATH")
        if found.identity.devices:
            return found
        say(f"  {on_path} finds no GPU")
    flags = cuda_flags(environ)
    folder = cuda_build_dir(flags)
    binary = folder / "bin" / "llama-server"
    if (folder / COMPLETE_STAMP).is_file():
        return _describe(binary, "an earlier build")
    try:
        building.require_compiler()
        with building.only_builder(folder):
            if not (folder / COMPLETE_STAMP).is_file():
                build(folder, flags, source)
    except EngineError as error:
        raise LabError(str(error)) from error
    return _describe(binary, "built here")


def cuda_flags(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return cmake's flags: ours, the compiler's path, and what CMAKE_ARGS adds.

    Raises LabError where there is no CUDA compiler.
    """
    on_path = shutil.which("nvcc", path=environ.get("PATH"))
    nvcc = environ.get("CUDACXX") or on_path
    if nvcc is None and USUAL_NVCC.exists():
        nvcc = str(USUAL_NVCC)
    if nvcc is None:
        raise LabError(
            "no llama-server for the GPU is here, and none can be built: nvcc was not found. "
            "Install the CUDA toolkit, or name a llama-server: LLAMA_SERVER_BIN=/path/to/it"
        )
    # Where nvcc is on PATH, cmake asks it where the toolkit stands; it may be a wrapper.
    root = () if on_path else (f"-DCUDAToolkit_ROOT={Path(nvcc).parents[1]}",)
    own = shlex.split(environ.get("CMAKE_ARGS", ""))
    return (*CMAKE_FLAGS, *CUDA_FLAGS, f"-DCMAKE_CUDA_COMPILER={nvcc}", *root, *own)


def cuda_build_dir(flags: tuple[str, ...]) -> Path:
    """Tell where the build with these flags stands or would stand."""
    key = build_key(version=LLAMA_CPP_PYTHON_VERSION, machine=platform.machine(), flags=flags)
    return cached_build_dir().with_name(key)


def build(folder: Path, flags: tuple[str, ...], source: Path | None) -> None:
    """Compile llama-server into `folder`, which appears whole or not at all. Raises EngineError."""
    work = folder.with_name(f"{folder.name}.building")
    work.mkdir(exist_ok=True)
    log = work / "build.log"
    unpacked = work / f"{building.SOURCE_NAME}/vendor/llama.cpp"
    with building.step(1, "source archive"):
        archive = work / f"{building.SOURCE_NAME}.tar.gz"
        if source is not None:
            shutil.copy(source, archive)
        elif not archive.exists():
            building.download_source(work, log)
    with building.step(2, "unpack"):
        if not (work / SOURCE_UNPACKED).exists():
            unpacked = building.unpack_source(work)
            (work / SOURCE_UNPACKED).touch()
    with building.step(3, "configure"):
        configure(unpacked, work / "build", flags, log)
    with building.step(4, "compile"):
        building.compile_server(work / "build", log)
    with building.step(5, "into the cache"):
        building.keep(work / "build" / "bin", folder, log)
        shutil.rmtree(work)


def configure(source: Path, build_tree: Path, flags: tuple[str, ...], log: Path) -> None:
    """Let cmake write the build files, for ninja. Raises EngineError."""
    places = ["-S", str(source), "-B", str(build_tree)]
    ninja = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={building.build_tool('ninja')}"]
    building.run_logged([building.build_tool("cmake"), *places, *ninja, *flags], log)


def _describe(binary: Path, origin: str) -> FoundServer:
    if not os.access(binary, os.X_OK):
        raise LabError(f"{origin}: {binary} is not an executable file")
    try:
        identity = LlamaServer(binary).identity
    except EngineError as error:
        raise LabError(f"{origin}: {error}") from error
    return FoundServer(binary=binary.absolute(), origin=origin, identity=identity)
