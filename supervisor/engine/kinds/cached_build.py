"""Where a llama-server that was compiled on this machine is kept.

Compiling takes minutes, so the result stands in the user's cache, apart from any checkout:

    $XDG_CACHE_HOME/llama-supervisor/llama-server/<version>-<machine>-<flags>/
        bin/        llama-server and its shared libraries; the folder can be moved as a whole
        complete    written last, so that a half-copied folder is never taken for a build

The folder's name carries all that decides what was built: another version or another flag is
another folder. `scripts/build_llama_server.py` fills it; this module only names it and looks.
"""

import hashlib
import os
import platform
import re
from pathlib import Path

from supervisor.errors import EngineError

LLAMA_CPP_PYTHON_VERSION = "0.3.36"
"""The release of llama-cpp-python whose `vendor/llama.cpp` is built.

One source serves two engines: llama-server itself, and llama-cpp-python, which loads the shared
libraries of this very build and so must come from the same release.
"""

CMAKE_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",  # llama-cpp-python loads the same libraries
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",  # models come from disk: no downloads, no TLS
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DCMAKE_INSTALL_RPATH=$ORIGIN",  # libraries are found beside the binary, wherever that is
)

WITHOUT_AMX = "-U__AMX_INT8__"
"""What leaves out llama.cpp's code for AMX, whatever else the compiler is told."""

_FIXED_IN = {11: 5, 12: 4, 13: 3}
_GNU = re.compile(r"GNU (\d+)\.(\d+)")

COMPLETE_STAMP = "complete"
"""Name of the file that says that a build folder is whole."""


def miscompiles_amx(compiler: str) -> bool:
    """Whether a compiler, as llama.cpp tells it (`GNU 12.2.0 …`), breaks llama.cpp's code for AMX.

    GCC took the configuration of the tiles to be of eight bytes and dropped what is written to the
    rest (its bug 114098, mended in 11.5, 12.4, 13.3 and 14): where the processor has AMX, a server
    dies of the first text that it computes with quantised weights.
    """
    version = _GNU.match(compiler)
    if version is None:
        return False
    major, minor = int(version[1]), int(version[2])
    return major < 14 and minor < _FIXED_IN.get(major, minor + 1)


def build_key(*, version: str, machine: str, flags: tuple[str, ...]) -> str:
    """Name the folder of one build: equal inputs, equal name; any difference, another name."""
    digest = hashlib.sha256("\n".join(flags).encode()).hexdigest()
    return f"{version}-{machine}-{digest[:8]}"


def cached_build_dir() -> Path:
    """Tell where this machine's build of the pinned version stands or would stand.

    The XDG Base Directory specification decides the place: `$XDG_CACHE_HOME` when it is an
    absolute path, else `~/.cache`. Raises EngineError for a user who has no home.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():
        try:
            cache = Path.home() / ".cache"
        except RuntimeError as error:  # neither HOME nor an entry in passwd
            raise EngineError("this user has no home folder; set XDG_CACHE_HOME") from error
    key = build_key(version=LLAMA_CPP_PYTHON_VERSION, machine=platform.machine(), flags=CMAKE_FLAGS)
    return cache / "llama-supervisor" / "llama-server" / key


def cached_llama_server() -> Path | None:
    """Return the llama-server built on this machine, or None when no complete build stands."""
    try:
        folder = cached_build_dir()
    except EngineError:
        return None
    binary = folder / "bin" / "llama-server"
    if (folder / COMPLETE_STAMP).is_file() and os.access(binary, os.X_OK):
        return binary
    return None
