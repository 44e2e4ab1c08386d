"""The chart, rendered by the real helm of both major versions."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "llama-supervisor"
VALUES_FILES = ("values-cpu.yaml", "values-k3s-amd.yaml", "values-k3s-nvidia.yaml")
OLDEST_KUBERNETES = "1.30.0"
NEWEST_KUBERNETES = "1.37.0"

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """What a release would put into the cluster, one object of each kind."""

    manifests: tuple[Manifest, ...]

    def one(self, kind: str, *, is_hook: bool = False) -> Manifest:
        """Return the only object of a kind that stays, or of those that hooks bring."""
        (found,) = (
            each
            for each in self.manifests
            if each["kind"] == kind
            and ("helm.sh/hook" in each["metadata"].get("annotations", {})) is is_hook
        )
        return found

    @property
    def pod(self) -> Manifest:
        """The Pod's specification."""
        return dict(self.one("Deployment")["spec"]["template"]["spec"])

    @property
    def container(self) -> Manifest:
        """The only container."""
        (container,) = self.pod["containers"]
        return dict(container)

    @property
    def selectors(self) -> tuple[Manifest, Manifest]:
        """What the Deployment and the Service select by."""
        deployment, service = self.one("Deployment"), self.one("Service")
        return deployment["spec"]["selector"], service["spec"]["selector"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Helm:
    """A helm binary that knows of no cluster."""

    binary: Path
    home: Path

    def run(
        self, *arguments: str | Path, values: Mapping[str, Any] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run helm; `values` are handed over as a last values file."""
        own_folders = {f"HELM_{each}_HOME": str(self.home) for each in ("CACHE", "CONFIG", "DATA")}
        return subprocess.run(
            [self.binary, *arguments, *(("--values", "-") if values is not None else ())],
            input=yaml.safe_dump(values) if values is not None else "",
            env={**os.environ, **own_folders, "KUBECONFIG": os.devnull},
            capture_output=True,
            text=True,
            check=False,
        )

    def render(
        self,
        values: Mapping[str, Any] | None = None,
        *,
        values_file: str = "values-cpu.yaml",
        release: str = "llm",
        chart: Path = CHART,
        kubernetes: str = NEWEST_KUBERNETES,
        namespace: str = "default",
    ) -> Rendered:
        """Render the chart with a shipped values file and further values."""
        files = ("--values", CHART / values_file, "--kube-version", kubernetes)
        where = ("--namespace", namespace)
        ended = self.run("template", release, chart, *files, *where, values=values or {})
        assert ended.returncode == 0, ended.stderr
        return Rendered(manifests=tuple(yaml.safe_load_all(ended.stdout)))

    def refuse(
        self,
        values: Mapping[str, Any],
        *,
        values_file: str = "values-cpu.yaml",
        release: str = "llm",
    ) -> str:
        """Return the error, without the lines before it, with which helm refuses to render."""
        files = ("--values", CHART / values_file)
        ended = self.run("template", release, CHART, *files, values=values)
        assert ended.returncode != 0, "these values were not refused"
        return ended.stderr.partition("Error:")[2]


HelmOfMajor = Callable[[str], Helm]


@pytest.fixture(scope="session")
def helm_of_major(tmp_path_factory: pytest.TempPathFactory) -> HelmOfMajor:
    """Gives helm 3 or 4, fetched into the user's cache the first time."""
    script = ROOT / "scripts" / "fetch_helm.py"
    fetched = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert fetched.returncode == 0, fetched.stderr
    binaries = dict(line.split(" ", 1) for line in fetched.stdout.splitlines())

    def choose(major: str) -> Helm:
        (binary,) = (path for version, path in binaries.items() if version.startswith(f"{major}."))
        return Helm(binary=Path(binary), home=tmp_path_factory.mktemp("helm"))

    return choose


@pytest.fixture(scope="session", params=["3", "4"])
def helm(request: pytest.FixtureRequest, helm_of_major: HelmOfMajor) -> Helm:
    """Each major version of helm in turn."""
    return helm_of_major(request.param)


@pytest.fixture(scope="session")
def newest_helm(helm_of_major: HelmOfMajor) -> Helm:
    """For what does not depend on the version of helm."""
    return helm_of_major("4")
