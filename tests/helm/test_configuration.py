"""The configuration that the chart mounts is one that the product runs on, with time to end."""

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml
from typer.testing import CliRunner

from supervisor.cli import cli
from supervisor.config.configuration import Configuration
from supervisor.config.load import load
from supervisor.core.machine.saving import time_for_prompts_s
from tests.helm.conftest import CHART, ROOT, VALUES_FILES, Helm, Rendered

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


def test_profiles_of_the_chart_are_those_of_the_repository() -> None:
    """Links get lost, so they are copies: `cp profiles/*.yaml helm/llama-supervisor/profiles/`."""
    ours = CHART / "profiles"

    assert files_of(ours) == files_of(ROOT / "profiles")
    assert not any(path.is_symlink() for path in (ours, *ours.iterdir()))


def test_shipped_configuration_is_mounted(helm: Helm, mount_files: MountFiles) -> None:
    rendered = helm.render()
    mounted = rendered.one("ConfigMap")["data"]
    shipped = files_of(ROOT / "profiles")

    assert mounted.keys() == shipped.keys()
    for name in shipped.keys() - {"supervisor.yaml"}:
        assert mounted[name] == shipped[name]
    ours, theirs = (
        load(folder, Path("/models"), {}).settings
        for folder in (mount_files(rendered), ROOT / "profiles")
    )
    assert ours.model_copy(update={"server": theirs.server}) == theirs


@pytest.mark.parametrize(
    ("count", "written", "required"),
    [
        (0, {}, {}),
        (1, {}, {"gpu0": True}),
        (2, {"gpu0": {"exclusive": True}}, {"gpu0": True, "gpu1": True}),
        (1, {"gpu0": {"required": False}, "host": {}}, {"gpu0": False, "host": False}),
    ],
)
def test_gpu_that_is_asked_for_must_be_seen_unless_the_operator_says_otherwise(
    helm: Helm,
    mount_files: MountFiles,
    count: int,
    written: Mapping[str, Any],
    required: Mapping[str, bool],
) -> None:
    files = {"supervisor.yaml": {"devices": written}}
    rendered = helm.render({"gpu": {"count": count}, "configuration": files})

    devices = load(mount_files(rendered), Path("/models"), {}).settings.devices
    assert {name: device.required for name, device in devices.items()} == required


def test_service_is_called_by_its_four_names_and_those_that_are_given(
    helm: Helm, mount_files: MountFiles
) -> None:
    values = {
        "service": {"hosts": ["llm.example.com"]},
        "configuration": {"supervisor.yaml": {"server": {"allowed_hosts": ["other.example.com"]}}},
    }
    rendered = helm.render(values, namespace="ai")

    assert load(mount_files(rendered), Path("/models"), {}).settings.server.allowed_hosts == (
        "llm-llama-supervisor",
        "llm-llama-supervisor.ai",
        "llm-llama-supervisor.ai.svc",
        "llm-llama-supervisor.ai.svc.cluster.local",
        "llm.example.com",
        "other.example.com",
    )


def test_chart_that_lost_its_profiles_is_refused(newest_helm: Helm, tmp_path: Path) -> None:
    chart = Path(shutil.copytree(CHART, tmp_path / "chart"))
    shutil.rmtree(chart / "profiles")

    ended = newest_helm.run("template", "llm", chart, "--values", CHART / "values-cpu.yaml")

    assert ended.returncode != 0
    assert "holds no profiles/*.yaml" in ended.stderr


def test_packaged_chart_renders_as_the_folder_does(helm: Helm, tmp_path: Path) -> None:
    packaged = helm.run("package", CHART, "--destination", tmp_path)
    assert packaged.returncode == 0, packaged.stderr
    (package,) = tmp_path.glob("*.tgz")

    assert helm.render(chart=package) == helm.render()


def files_of(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*.yaml")}


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


def test_settings_as_text_may_name_a_field_in_several_sections(
    helm: Helm, mount_files: MountFiles
) -> None:
    text = """
devices:
  gpu0:
    exclusive: true
    budget_bytes: 1GiB
  host:
    exclusive: true
documents: {max_bytes: 1MiB,
  timeout_s: 5}
jobs:
  max_bytes: 2GiB
schedule:
  time_zone: Asia/Seoul
  baseline: {mode: generation}
  entries:
  - from: "08:00"
    to: "18:00"
    mode: embedding
  - from: "18:00"
    to: "19:00"
    mode: mixed
  - {from: "19:00",
     to: "20:00", mode: embedding}
  - {from: "20:00",
     to: "21:00", mode: mixed}
  -
    from: "21:00"
    to: "22:00"
    mode: embedding
"""
    rendered = helm.render({"configuration": {"supervisor.yaml": text}})

    settings = load(mount_files(rendered), Path("/models"), {}).settings
    assert (settings.jobs.max_bytes, settings.documents.timeout_s) == (2 * 1024**3, 5)
    assert settings.schedule is not None
    assert len(settings.schedule.entries) == 5


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
        *(
            pytest.param(
                {"supervisor.yaml": {"switch": {"keep_prompt_cache_at_exit": True} | sized}},
                id=f"prompts saved at exit {sized}",
            )
            for sized in (
                {},
                {"prompt_cache_max_bytes": "1.5GiB"},
                {"prompt_cache_max_bytes": "500 MB"},
                {"prompt_cache_max_bytes": 68719476736},
                {"prompt_cache_max_bytes": 0},
            )
        ),
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
    switch = configuration.settings.switch
    saving_s = time_for_prompts_s(switch.prompt_cache_max_bytes)
    return (
        switch.shutdown_drain_timeout_s
        + max(profile.stop_grace_s for profile in profiles)
        + (saving_s if switch.keep_prompt_cache_at_exit else 0)
    )


def test_roll_out_gets_the_time_that_the_old_pod_the_image_and_the_model_may_take(
    helm: Helm, mount_files: MountFiles
) -> None:
    rendered = helm.render(
        {
            "configuration": {
                "generation.yaml": {"mode": "generation", "start_timeout_s": "30m"},
                "supervisor.yaml": {"switch": {"shutdown_drain_timeout_s": "15m"}},
            },
            "probes": {"startup": {"periodSeconds": 3, "failureThreshold": 50}},
        }
    )

    loading_s = load(mount_files(rendered), Path("/models"), {}).profiles["generation"]
    assert rendered.one("Deployment")["spec"]["progressDeadlineSeconds"] == (
        rendered.pod["terminationGracePeriodSeconds"] + 3 * 50 + loading_s.start_timeout_s + 600
    )


@pytest.mark.parametrize("size", [0, 1, "500 MB", "8GiB", "8.5GiB", 100 * 1024**3, "1TB"])
def test_prompt_cache_and_jobs_at_their_largest_get_no_pod_evicted(
    helm: Helm, mount_files: MountFiles, size: int | str
) -> None:
    settings = {"switch": {"prompt_cache_max_bytes": size}, "jobs": {"max_bytes": "3GiB"}}
    rendered = helm.render({"configuration": {"supervisor.yaml": settings}})

    read = load(mount_files(rendered), Path(), {}).settings
    grown_bytes = read.switch.prompt_cache_max_bytes + read.jobs.max_bytes
    (data,) = (volume for volume in rendered.pod["volumes"] if volume["name"] == "data")
    limit_bytes = int(data["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 1024**3
    assert grown_bytes + 2 * 1024**3 <= limit_bytes < grown_bytes + 3 * 1024**3


def test_jobs_on_a_shared_queue_take_nothing_of_the_data_volume(newest_helm: Helm) -> None:
    rendered = newest_helm.render({"jobs": {"queueUrlSecret": {"name": "queue"}}})

    (data,) = (volume for volume in rendered.pod["volumes"] if volume["name"] == "data")
    assert data["emptyDir"]["sizeLimit"] == "10Gi"


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


def test_job_before_a_roll_out_checks_the_very_files(helm: Helm, tmp_path: Path) -> None:
    def checked(files: Mapping[str, Any]) -> subprocess.CompletedProcess[str]:
        rendered = helm.render({"configuration": files})
        job = rendered.one("Job", is_hook=True)["spec"]["template"]["spec"]
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        for name, text in rendered.one("ConfigMap", is_hook=True)["data"].items():
            (folder / name).write_text(text)
        command, _, *options = job["containers"][0]["args"]
        return subprocess.run(
            [Path(sys.executable).with_name("llama-supervisor"), command, folder, *options],
            env={"PATH": ""},  # neither models nor an engine
            capture_output=True,
            text=True,
            check=False,
        )

    good, bad = checked({}), checked({"generation.yaml": {"mode": "generation", "paralel": 4}})

    assert good.returncode == 0, good.stdout + good.stderr
    assert bad.returncode == 2
    assert "paralel" in bad.stdout


def test_product_takes_every_option_of_the_pod(newest_helm: Helm) -> None:
    rendered = newest_helm.render({"data": {"existingClaim": "llm-data"}})
    command, *options = rendered.container["args"]

    told = CliRunner().invoke(cli, [command, *options, "--help"])

    assert told.exit_code == 0, told.output
    for option in options:
        assert option.partition("=")[0] in told.output
