"""The configuration that the chart mounts is one that the product runs on, with time to end."""

import json
import math
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml

from supervisor.config.configuration import Configuration
from supervisor.config.load import load
from tests.helm.conftest import ROOT, VALUES_FILES, Helm, Rendered

PRE_STOP_S = 5
MARGIN_S = 10

MountFiles = Callable[[Rendered], Path]


@pytest.fixture
def mount_files(tmp_path: Path) -> MountFiles:
    """Lays the ConfigMap out as the kubelet does: links to a folder that can be swapped at once."""

    def mount(rendered: Rendered) -> Path:
        folder = tmp_path / "etc"
        (folder / "..first").mkdir(parents=True)
        (folder / "..data").symlink_to("..first")
        for name, text in rendered.one("ConfigMap")["data"].items():
            (folder / "..first" / name).write_text(text)
            (folder / name).symlink_to(Path("..data", name))
        return folder

    return mount


def test_shipped_configuration_is_that_of_the_repository(helm: Helm) -> None:
    shipped = {path.name: path.read_text() for path in (ROOT / "profiles").glob("*.yaml")}

    assert helm.render().one("ConfigMap")["data"] == shipped


@pytest.mark.parametrize("values_file", VALUES_FILES)
def test_product_takes_the_configuration_of_each_values_file(
    helm: Helm, mount_files: MountFiles, values_file: str
) -> None:
    configuration = load(mount_files(helm.render(values_file=values_file)), Path("/models"), {})

    assert {"generation", "embedding"} <= configuration.profiles.keys()


def test_file_given_as_text_is_mounted_as_it_is(helm: Helm) -> None:
    text = "# my own\nmodels: {}   # none yet\n"

    files = helm.render({"configuration": {"models.yaml": text}}).one("ConfigMap")["data"]

    assert files["models.yaml"] == text


def test_file_given_as_fields_replaces_the_shipped_one_whole(
    helm: Helm, mount_files: MountFiles
) -> None:
    configuration = load(
        mount_files(
            helm.render(
                {
                    "configuration": {
                        "models.yaml": {
                            "default_model": "big",
                            "models": {"big": {"path": "big.gguf", "profile": "wide"}},
                        },
                        "wide.yaml": {"extends": "generation", "flash_attn": "on", "parallel": 16},
                        "supervisor.yaml": {"devices": {"gpu0": {"budget_bytes": 68719476736}}},
                    }
                }
            )
        ),
        Path("/models"),
        {},
    )

    assert [*configuration.catalogue.models] == ["big"]
    assert configuration.resolve("big").profile.parallel == 16
    assert configuration.settings.devices["gpu0"].budget_bytes == 68719476736
    assert "host" not in configuration.settings.devices


def test_values_of_the_how_to_name_the_models_that_it_copies(
    helm: Helm, mount_files: MountFiles
) -> None:
    page = (ROOT / "docs" / "how-to" / "install-on-k3s.md").read_text()
    (block,) = re.findall(r"^```yaml$(.+?)^```$", page, re.MULTILINE | re.DOTALL)

    configuration = load(mount_files(helm.render(yaml.safe_load(block))), Path("/models"), {})

    models = configuration.catalogue.models.values()
    assert {entry.path for entry in models} == set(re.findall(r":/models/(\S+\.gguf)", page))


def test_pod_restarts_for_another_configuration_and_for_that_alone(helm: Helm) -> None:
    def checksum(values: Mapping[str, Any]) -> str:
        template = helm.render(values).one("Deployment")["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    first = checksum({})

    assert checksum({"labels": {"example.com/team": "search"}}) == first
    assert checksum({"configuration": {"models.yaml": {"models": {}}}}) != first


@pytest.mark.parametrize(
    "files",
    [
        pytest.param({}, id="as shipped"),
        pytest.param({"supervisor.yaml": {"queue": {}}}, id="default of the drain"),
        pytest.param({"supervisor.yaml": {"switch": {"shutdown_drain_timeout_s": 0}}}, id="none"),
        *(
            pytest.param({"supervisor.yaml": {"switch": {"shutdown_drain_timeout_s": drain}}})
            for drain in (90.5, "1500ms", "90s", "2m", "2min", "0.5 h", "1d")
        ),
        pytest.param({"generation.yaml": {"mode": "generation", "stop_grace_s": "45s"}}),
        pytest.param(
            {
                "generation.yaml": {"mode": "generation", "stop_grace_s": 2},
                "embedding.yaml": {"mode": "embedding", "stop_grace_s": 3},
                "embedding-cpu.yaml": {"extends": "embedding", "device": "cpu"},
            },
            id="profile that extends",
        ),
        pytest.param(
            {
                f"{name}.yaml": {"mode": name.partition("-")[0]}
                for name in ("generation", "embedding", "embedding-cpu")
            },
            id="default of the grace",
        ),
        pytest.param(
            {
                "models.yaml": {
                    "models": {
                        "a": {"path": "a.gguf", "overrides": {"stop_grace_s": 33.2}},
                        "b": {"path": "b.gguf", "overrides": {"parallel": 2}},
                    }
                }
            },
            id="override of one model",
        ),
        pytest.param({"models.yaml": {"models_dir": "."}}, id="no models named"),
    ],
)
def test_time_to_end_is_the_sum_of_what_the_product_may_take(
    helm: Helm, mount_files: MountFiles, files: Mapping[str, Any]
) -> None:
    rendered = helm.render({"configuration": files})

    configuration = load(mount_files(rendered), Path("/models"), {})

    assert rendered.pod["terminationGracePeriodSeconds"] == (
        PRE_STOP_S + math.ceil(seconds_to_stop(configuration)) + MARGIN_S
    )


def seconds_to_stop(configuration: Configuration) -> float:
    """From SIGTERM until the last server is gone, whatever profile it runs with."""
    profiles = [
        *configuration.profiles.values(),
        *(configuration.resolve(name).profile for name in configuration.catalogue.models),
    ]
    drain_s = configuration.settings.switch.shutdown_drain_timeout_s
    return drain_s + max(profile.stop_grace_s for profile in profiles)


def test_controller_started_as_the_pod_starts_it_answers_its_probes(
    newest_helm: Helm, mount_files: MountFiles, tmp_path: Path
) -> None:
    rendered = newest_helm.render(
        {
            "configuration": {
                "models.yaml": {"models": {}},
                "supervisor.yaml": {"server": {"log_format": "json"}},
            }
        }
    )
    container = rendered.container
    here = {
        "--host": "127.0.0.1",
        "--port": "0",
        "--profiles": str(mount_files(rendered)),
        "--models": str(tmp_path),
        "--data": str(tmp_path / "data"),
    }
    command, *options = container["args"]
    arguments = [f"{name}={here[name]}" for name, _, _ in (o.partition("=") for o in options)]

    with subprocess.Popen(
        [Path(sys.executable).with_name("llama-supervisor"), command, *arguments],
        stderr=subprocess.PIPE,
        text=True,
    ) as controller:
        try:
            assert controller.stderr is not None
            events = (json.loads(line) for line in controller.stderr)
            url = next(e["url"] for e in events if e["event"] == "controller.listening")
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                with urlopen(url + container[probe]["httpGet"]["path"], timeout=10) as answer:
                    assert answer.status == 200
            with urlopen(f"{url}/management/health", timeout=10) as answer:
                assert json.load(answer)["status"] == "healthy"
        finally:
            controller.send_signal(signal.SIGTERM)
    assert controller.returncode == 0
