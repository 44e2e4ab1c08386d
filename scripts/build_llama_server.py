#!/usr/bin/env python3
"""Compile llama-server once per machine and keep it in the user's cache.

    .venv/bin/python scripts/build_llama_server.py

Takes about five minutes on two cores the first time. Later runs only say where the build stands.
The source is the pinned archive of `llama_cpp_source.lock`, checked by its hash; cmake and ninja
come from the virtual environment; a C++ compiler must be on this machine.
"""

import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from supervisor.engine.kinds.cached_build import (
    CMAKE_FLAGS,
    COMPLETE_STAMP,
    LLAMA_CPP_PYTHON_VERSION,
    WITHOUT_AMX,
    cached_build_dir,
    cached_llama_server,
    miscompiles_amx,
)
from supervisor.errors import EngineError

SOURCE_LOCK = Path(__file__).with_name("llama_cpp_source.lock")
SOURCE_NAME = f"llama_cpp_python-{LLAMA_CPP_PYTHON_VERSION}"
STEP_COUNT = 5
PROGRESS_INTERVAL_S = 30.0
LOG_TAIL_LINES = 30
CXX_NAMES = ("c++", "g++", "clang++")


def main() -> int:
    """Make sure that the build stands. Returns the exit status: 0, or 1 with the reason said."""
    started = time.monotonic()
    try:
        if cached_llama_server() is None:
            require_compiler()
            with only_builder(cached_build_dir()):
                # Whoever held the lock before us may have finished the same build.
                if cached_llama_server() is None:
                    build(cached_build_dir())
    except EngineError as exc:
        print(f"\n{exc}", file=sys.stderr)
        return 1
    print(f"llama-server stands in {cached_build_dir()} (total {time.monotonic() - started:.1f} s)")
    return 0


def require_compiler() -> None:
    """Raise EngineError when no C++ compiler can be found: `$CXX` if set, else the usual names."""
    named = shlex.split(os.environ.get("CXX", ""))[:1]
    if any(shutil.which(name) for name in named or CXX_NAMES):
        return
    looked_for = f"CXX names {named[0]}, which is not there" if named else "no c++, g++ or clang++"
    raise EngineError(
        f"llama-server cannot be compiled: no C++ compiler was found ({looked_for}).\n"
        "Install one: `apt-get install g++` (Debian, Ubuntu) or `dnf install gcc-c++` (Fedora)."
    )


@contextmanager
def only_builder(folder: Path) -> Iterator[None]:
    """Hold the lock of this build; wait, and say so, while another process holds it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another process is building llama-server; waiting for it …", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(folder: Path) -> None:
    """Download, compile, and put the result at `folder`, which appears whole or not at all.

    Works in a folder beside it, so that the last step is a rename within one file system. That
    folder goes when the build succeeds; after a failure it stays, with the log, until the next run.
    """
    work = folder.with_name(f"{folder.name}.building")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    log = work / "build.log"
    with step(1, "source archive"):
        download_source(work, log)
    with step(2, "unpack"):
        source = unpack_source(work)
    with step(3, "configure"):
        configure(source, work / "build", log)
    with step(4, "compile"):
        compile_server(work / "build", log)
    with step(5, "into the cache"):
        keep(work / "build" / "bin", folder, log)
        shutil.rmtree(work)


@contextmanager
def step(number: int, title: str) -> Iterator[None]:
    """Print one line for a step: its number and title now, its duration when it has succeeded."""
    print(f"[{number}/{STEP_COUNT}] {title} … ", end="", flush=True)
    started = time.monotonic()
    yield
    print(f"({time.monotonic() - started:.1f} s)", flush=True)


def download_source(work: Path, log: Path) -> None:
    """Fetch the source archive into `work`; pip refuses it unless its hash is the pinned one."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
    options = ["--no-deps", "--no-binary", "llama-cpp-python", "--progress-bar", "off"]
    pinned = ["--require-hashes", "--requirement", str(SOURCE_LOCK), "--dest", str(work)]
    run_logged([*pip, *options, *pinned], log)


def unpack_source(work: Path) -> Path:
    """Unpack llama.cpp alone, without the Python package around it. Returns its folder."""
    prefix = f"{SOURCE_NAME}/vendor/llama.cpp/"
    with tarfile.open(work / f"{SOURCE_NAME}.tar.gz") as archive:
        # Releases of Python before 3.11.4 know no filter; the archive's hash was checked.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(work, [each for each in archive if each.name.startswith(prefix)])
    return work / prefix


def configure(source: Path, build_tree: Path, log: Path) -> None:
    """Let cmake write the build files, for ninja, with the flags that name the cache folder."""
    places = ["-S", str(source), "-B", str(build_tree)]
    ninja = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={build_tool('ninja')}"]
    run_logged([build_tool("cmake"), *places, *ninja, *CMAKE_FLAGS, *compiler_flags()], log)


def compiler_flags() -> Iterator[str]:
    """Yield what a compiler needs that breaks the code for AMX: that it is left out."""
    if not miscompiles_amx(compiler()):
        return
    for name in ("C", "CXX"):
        flags = f"{os.environ.get(f'{name}FLAGS', '')} {WITHOUT_AMX}".strip()
        yield f"-DCMAKE_{name}_FLAGS={flags}"


def compiler() -> str:
    """Return the C++ compiler's name and version as llama.cpp tells them; empty if not GNU's."""
    named = shlex.split(os.environ.get("CXX", ""))
    command = named or [next(filter(shutil.which, CXX_NAMES))]
    asked = [*command, "-dM", "-E", "-x", "c++", "/dev/null"]
    told = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    macros = dict(line.split(" ", 2)[1:] for line in told.splitlines() if line.count(" ") > 1)
    if "__clang__" in macros or "__GNUC__" not in macros:
        return ""
    return f"GNU {macros['__GNUC__']}.{macros['__GNUC_MINOR__']}"


def compile_server(build_tree: Path, log: Path) -> None:
    """Compile the server on the cores that this process may use."""
    jobs = len(os.sched_getaffinity(0))
    command = ["--build", str(build_tree), "--target", "llama-server", "--parallel", str(jobs)]
    run_logged([build_tool("cmake"), *command], log, on_line=progress_reporter())


def build_tool(name: str) -> str:
    """Find cmake or ninja: the one of the virtual environment, else the machine's own."""
    here = Path(sys.executable).with_name(name)
    found = str(here) if here.exists() else shutil.which(name)
    if found is None:
        raise EngineError(
            f"llama-server cannot be compiled: {name} was not found. "
            f"Install it: `{sys.executable} -m pip install {name}`."
        )
    return found


def progress_reporter() -> Callable[[str], None]:
    """Make a reader of ninja's lines that says how far it is, at most twice a minute."""
    started = last_said = time.monotonic()

    def report(line: str) -> None:
        nonlocal last_said
        now = time.monotonic()
        counted = re.match(r"\[(\d+)/(\d+)\]", line)
        if counted and now - last_said >= PROGRESS_INTERVAL_S:
            last_said = now
            done, total = counted.groups()
            print(f"\n      {done} of {total} after {now - started:.0f} s ", end="", flush=True)

    return report


def keep(binaries: Path, folder: Path, log: Path) -> None:
    """Move the binaries, with log and stamp, to `folder` in one rename, once they have run."""
    finished = binaries.parent.parent / "finished"
    finished.mkdir()
    binaries.rename(finished / "bin")
    # Run from its new place: proves that it finds its libraries after a move.
    run_logged([str(finished / "bin" / "llama-server"), "--version"], log)
    shutil.copy(log, finished / log.name)
    (finished / COMPLETE_STAMP).write_text(f"{SOURCE_NAME}\n", encoding="utf-8")
    # A folder without the stamp may stand there; a rename would refuse to replace it.
    shutil.rmtree(folder, ignore_errors=True)
    finished.rename(folder)


def run_logged(
    command: list[str], log: Path, *, on_line: Callable[[str], None] = lambda _: None
) -> None:
    """Run a command to its end, its output appended to `log` and passed on line by line.

    Raises EngineError with the end of the output when the command fails.
    """
    tail = deque[str](maxlen=LOG_TAIL_LINES)
    # ninja's own variable: a user's other format would hide how far it is.
    environment = {**os.environ, "NINJA_STATUS": "[%f/%t] "}
    with (
        log.open("a", buffering=1, encoding="utf-8") as sink,
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        sink.write(f"$ {shlex.join(command)}\n")
        for line in process.stdout or ():
            sink.write(line)
            tail.append(line)
            on_line(line)
    if process.returncode:
        raise EngineError(
            f"{''.join(tail)}\n"
            f"llama-server was not built: {Path(command[0]).name} ended with status "
            f"{process.returncode}. The whole output is in {log}."
        )


if __name__ == "__main__":
    sys.exit(main())
