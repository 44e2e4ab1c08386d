"""What a machine without a network needs, in one folder of few megabytes.

    scripts/gpu_check --pack DIR

    DIR/wheels/            the product's dependencies for Python 3.12
    DIR/llama.cpp.tar.xz   the part of the pinned source archive that a server is built from
    DIR/models/            the small embedding model, where it was made and there is room for it

Left out are the extras of the product and the embedded engine, which the check can do without, and
what stands on machines for GPU work anyway (numpy, uvloop).
"""

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import requires
from pathlib import Path

import build_llama_server as building
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lab.harness.command import MODELS, ROOT, LabError, run, say

SOURCE_ARCHIVE = "llama.cpp.tar.xz"
PRODUCT = "llama-supervisor"
LEFT_OUT_WHEELS = frozenset({"xllamacpp", "numpy", "uvloop"})
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")

LEFT_OUT_SOURCES = re.compile(
    r"(docs|models|media|benches|tests|examples|pocs|conversion|gguf-py|ci|tools/ui/(src|static|tests)|"
    r"ggml/src/ggml-(openvino|webgpu|et|metal|hexagon|sycl|vulkan|opencl|cann|musa|hip|zdnn|"
    r"virtgpu|zendnn))/"
)
"""Folders of llama.cpp that a server with CUDA is built without."""

MODEL = "minilm.gguf"
MOST_BYTES = 60 * 1024 * 1024
"""The whole, that a machine which takes 64 MiB of files at a time takes it beside this checkout."""


def main(arguments: list[str] | None = None) -> int:
    """Fill the folder. Returns the exit status: 0, or 1 with the reason said."""
    parser = argparse.ArgumentParser(prog="gpu_check --pack")
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args(arguments).folder
    return run("gpu_check", lambda: _pack(folder))


def _pack(folder: Path) -> int:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="pack-") as work:
        pack_wheels(folder / "wheels", Path(work))
        pack_source(folder / SOURCE_ARCHIVE, Path(work))
    pack_model(folder)
    say(f"{folder}: {_size(folder) / 1e6:.1f} MB")
    return 0


def pack_wheels(folder: Path, work: Path) -> None:
    """Download the wheels of the lock for Python 3.12, by hash. Raises LabError."""
    pinned = work / "wheels.lock"
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pinned.write_text(reduced(lock, needed_packages()), encoding="utf-8")
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    command = [
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"),
        *("--no-deps", "--only-binary=:all:", "--python-version", "3.12"),
        *("--implementation", "cp", *platforms, "--require-hashes"),
        *("--requirement", str(pinned), "--dest", str(folder)),
    ]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise LabError(f"the wheels could not be downloaded: {finished.stderr.strip()}")


def needed_packages() -> frozenset[str]:
    """Name what the product and the models of the check need, with all that those need."""
    found: set[str] = set()
    asked = [(PRODUCT, ""), (PRODUCT, "demo")]
    while asked:
        package, extra = asked.pop()
        for requirement in map(Requirement, requires(package) or ()):
            name = canonicalize_name(requirement.name)
            is_needed = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            if is_needed and name not in found | LEFT_OUT_WHEELS:
                found.add(name)
                asked += [(name, each) for each in ("", *requirement.extras)]
    return frozenset(found)


def reduced(lock: str, names: frozenset[str]) -> str:
    """Return a lock with the entries of these packages; each begins at the line's start."""
    entries = re.split(r"(?m)^(?=[A-Za-z0-9])", lock)
    return "".join(
        entry for entry in entries if canonicalize_name(entry.partition("==")[0]) in names
    )


def pack_source(target: Path, work: Path) -> None:
    """Write the part of the pinned archive that is needed. Raises EngineError."""
    building.download_source(work, work / "download.log")
    prefix = f"{building.SOURCE_NAME}/vendor/llama.cpp/"
    archive_path = work / f"{building.SOURCE_NAME}.tar.gz"
    with tarfile.open(archive_path) as archive, tarfile.open(target, "w:xz") as packed:
        for member in archive:
            path = member.name.removeprefix(prefix)
            if path != member.name and member.isfile() and not LEFT_OUT_SOURCES.match(path):
                packed.addfile(member, archive.extractfile(member))


def pack_model(folder: Path) -> None:
    """Add the small embedding model, where it is there and the whole stays small enough."""
    model = MODELS / MODEL
    if not model.exists() or _size(folder) + model.stat().st_size > MOST_BYTES:
        say(f"  without {MODEL}: the large embedding model stands in for it")
        return
    (folder / "models").mkdir()
    shutil.copy(model, folder / "models")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(main())
