"""What the chart renders: valid to Kubernetes, stable in its selectors, hardened, wired up."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.helm.conftest import (
    CHART,
    NEWEST_KUBERNETES,
    OLDEST_KUBERNETES,
    VALUES_FILES,
    Helm,
    Rendered,
)

EVERYTHING: dict[str, Any] = {
    "image": {"digest": f"sha256:{'0' * 64}", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "registry"}],
    "fullnameOverride": "llm-gateway",
    "gpu": {"resourceName": "nvidia.com/mig-3g.40gb", "count": 1},
    "runtimeClassName": "nvidia",
    "resources": {"requests": {"cpu": 2, "memory": "8Gi"}, "limits": {"memory": "32Gi"}},
    "configuration": {"fast.yaml": {"extends": "generation", "parallel": 8}},
    "models": {"existingClaim": "", "hostPath": "/srv/models"},
    "data": {"existingClaim": "llm-data"},
    "service": {"port": 80, "annotations": {"example.com/team": "search"}},
    "env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}],
    "labels": {"example.com/team": "search"},
    "podLabels": {"example.com/tier": "gpu"},
    "podAnnotations": {"example.com/scrape": "no"},
    "nodeSelector": {"kubernetes.io/hostname": "gpu-1"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "priorityClassName": "interactive",
    "securityContext": {"runAsUser": 1000650000, "supplementalGroups": [44, 992]},
    "termination": {"preStopSeconds": 1, "marginSeconds": 0},
    "probes": {"startup": {"failureThreshold": 300}},
}


@pytest.mark.parametrize("kubernetes", [OLDEST_KUBERNETES, NEWEST_KUBERNETES])
@pytest.mark.parametrize("values_file", VALUES_FILES)
@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["as shipped", "everything set"])
def test_manifests_are_valid_to_oldest_and_newest_kubernetes(
    helm: Helm, values: dict[str, Any], values_file: str, kubernetes: str
) -> None:
    rendered = helm.render(values, values_file=values_file, kubernetes=kubernetes)

    kinds = [each["kind"] for each in rendered.manifests]
    assert kinds == ["ConfigMap", "Service", "Deployment", "ConfigMap", "Job"]
    for manifest in rendered.manifests:
        validated_against = kubernetes_validate.validate(manifest, kubernetes, strict=True)
        assert kubernetes.startswith(validated_against)
    assert list(what_the_server_would_refuse(rendered)) == []


def test_newest_kubernetes_under_test_is_the_newest_that_there_is_a_schema_of() -> None:
    assert NEWEST_KUBERNETES.startswith(kubernetes_validate.latest_version())


def test_gpu_is_asked_for_by_the_name_of_each_vendor(helm: Helm) -> None:
    assert limits(helm.render(values_file="values-k3s-nvidia.yaml")) == {"nvidia.com/gpu": "1"}
    assert limits(helm.render(values_file="values-k3s-amd.yaml")) == {"amd.com/gpu": "1"}
    assert limits(helm.render(values_file="values-cpu.yaml")) == {}
    assert limits(helm.render(EVERYTHING)) == {"memory": "32Gi", "nvidia.com/mig-3g.40gb": "1"}


def test_runtime_class_is_nvidias_on_k3s_and_none_elsewhere(helm: Helm) -> None:
    assert helm.render(values_file="values-k3s-nvidia.yaml").pod["runtimeClassName"] == "nvidia"
    assert "runtimeClassName" not in helm.render(values_file="values-k3s-amd.yaml").pod
    assert "runtimeClassName" not in helm.render(values_file="values-cpu.yaml").pod


def test_amd_devices_are_reached_through_supplemental_groups(helm: Helm) -> None:
    pod = helm.render(values_file="values-k3s-amd.yaml").pod

    assert pod["securityContext"]["supplementalGroups"] == [44, 992]


def test_old_pod_ends_before_the_new_one_asks_for_the_gpu(helm: Helm) -> None:
    deployment = helm.render().one("Deployment")["spec"]

    assert deployment["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1},
    }
    assert deployment["replicas"] == 1


def test_configuration_is_checked_before_the_old_pod_is_touched(helm: Helm) -> None:
    rendered = helm.render(EVERYTHING)
    files, job = (rendered.one(kind, is_hook=True) for kind in ("ConfigMap", "Job"))

    for each in (files, job):
        about = each["metadata"]["annotations"]
        assert about["helm.sh/hook"] == "pre-install,pre-upgrade"
        # A Job that failed stays, so that its log can be read.
        assert about["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"
    assert files["data"] == rendered.one("ConfigMap")["data"]
    assert int(files["metadata"]["annotations"]["helm.sh/hook-weight"]) < 0
    assert job["spec"]["backoffLimit"] == 0


def test_check_asks_for_no_gpu_and_no_models_and_runs_where_the_pod_will(helm: Helm) -> None:
    rendered = helm.render(EVERYTHING)
    pod = rendered.one("Job", is_hook=True)["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    assert not [name for name in container["resources"]["limits"] if "/" in name]
    assert "runtimeClassName" not in pod
    assert [volume["name"] for volume in pod["volumes"]] == ["configuration", "tmp"]
    for field in ("nodeSelector", "tolerations", "affinity", "imagePullSecrets", "securityContext"):
        assert pod[field] == rendered.pod[field]
    for field in ("image", "env", "securityContext"):
        assert container[field] == rendered.container[field]


def test_pod_of_the_check_is_selected_by_nobody(helm: Helm) -> None:
    rendered = helm.render(EVERYTHING)
    labels = rendered.one("Job", is_hook=True)["spec"]["template"]["metadata"]["labels"]
    deployment, service = rendered.selectors

    for selector in (deployment["matchLabels"], service):
        assert not selector.items() <= labels.items()


def test_check_can_be_left_out(helm: Helm) -> None:
    rendered = helm.render({"check": {"enabled": False}})

    assert [each["kind"] for each in rendered.manifests] == ["ConfigMap", "Service", "Deployment"]


def test_names_of_digits_alone_stay_as_they_are(helm: Helm) -> None:
    names = {
        "models": {"existingClaim": 1234567},
        "data": {"existingClaim": 20260101},
        "jobs": {"queueUrlSecret": {"name": 7654321}},
    }
    rendered = helm.render(names)
    claims = [
        volume["persistentVolumeClaim"]["claimName"]
        for volume in rendered.pod["volumes"]
        if "persistentVolumeClaim" in volume
    ]
    own = helm.render({"data": {"persistence": {"enabled": True, "storageClass": 1000000}}})

    assert claims == ["1234567", "20260101"]
    assert rendered.container["env"][0]["valueFrom"]["secretKeyRef"]["name"] == "7654321"
    assert own.one("PersistentVolumeClaim")["spec"]["storageClassName"] == "1000000"


@pytest.mark.parametrize("release", ["true", "null", "1e3"])
def test_names_that_yaml_would_read_as_something_else_stay_names(helm: Helm, release: str) -> None:
    odd = {
        "fullnameOverride": "on",
        "models": {"existingClaim": 123},
        "data": {"existingClaim": "123"},
        "runtimeClassName": "yes",
    }
    rendered = helm.render(odd, release=release)
    claims = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in rendered.pod["volumes"]
        if "persistentVolumeClaim" in volume
    }

    for manifest in rendered.manifests:
        kubernetes_validate.validate(manifest, NEWEST_KUBERNETES, strict=True)
    assert rendered.one("Service")["metadata"]["name"] == "on"
    assert rendered.selectors[1]["app.kubernetes.io/instance"] == release
    assert claims == {"models": "123", "data": "123"}
    assert rendered.pod["runtimeClassName"] == "yes"


def test_folder_of_the_node_is_taken_as_it_is_written(helm: Helm) -> None:
    path = "/srv/models #1: mine"
    rendered = helm.render({"models": {"existingClaim": "", "hostPath": path}})

    (models,) = (each for each in rendered.pod["volumes"] if each["name"] == "models")
    assert models["hostPath"]["path"] == path


@pytest.mark.parametrize("is_enabled", [True, False])
def test_chart_can_be_a_part_of_another_that_turns_it_off(
    helm: Helm, tmp_path: Path, is_enabled: bool
) -> None:
    about = {
        "apiVersion": "v2",
        "name": "parent",
        "version": "1.0.0",
        "dependencies": [
            {
                "name": "llama-supervisor",
                "version": "*",
                "condition": "llama-supervisor.enabled",
            }
        ],
    }
    shutil.copytree(CHART, tmp_path / "charts" / "llama-supervisor")
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(about))
    (tmp_path / "values.yaml").write_text("{}")
    values = {"enabled": is_enabled, "models": {"existingClaim": "m"}}

    ended = helm.run("template", "llm", tmp_path, values={"llama-supervisor": values})

    assert ended.returncode == 0, ended.stderr
    assert ("kind: Deployment" in ended.stdout) is is_enabled


def test_selectors_do_not_follow_labels_names_or_versions(helm: Helm, tmp_path: Path) -> None:
    next_version = Path(shutil.copytree(CHART, tmp_path / "chart"))
    about = yaml.safe_load((next_version / "Chart.yaml").read_text())
    about |= {"version": "9.9.9", "appVersion": "9.9.9"}
    (next_version / "Chart.yaml").write_text(yaml.safe_dump(about))

    first = helm.render()
    later = helm.render(EVERYTHING, chart=next_version)

    assert later.selectors == first.selectors
    assert later.one("Deployment")["metadata"]["labels"]["app.kubernetes.io/version"] == "9.9.9"
    pod_labels = later.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert {"example.com/team": "search", "example.com/tier": "gpu"}.items() <= pod_labels.items()


def test_selectors_tell_two_releases_apart(helm: Helm) -> None:
    assert helm.render(release="one").selectors != helm.render(release="two").selectors


def test_service_is_named_after_the_release_and_listens_on_8000(helm: Helm) -> None:
    service = helm.render(release="xgen").one("Service")

    assert service["metadata"]["name"] == "xgen-llama-supervisor"
    assert service["spec"]["type"] == "ClusterIP"
    assert [(port["port"], port["appProtocol"]) for port in service["spec"]["ports"]] == [
        (8000, "http")
    ]


@pytest.mark.parametrize(
    ("release", "name"),
    [
        ("llama-supervisor", "llama-supervisor"),
        ("v1.2", "v1-2-llama-supervisor"),
        ("a" * 53, f"{'a' * 53}-llama-sup"),
    ],
)
def test_service_gets_a_name_that_the_server_takes(helm: Helm, release: str, name: str) -> None:
    assert helm.render(release=release).one("Service")["metadata"]["name"] == name


def test_pod_is_hardened(helm: Helm) -> None:
    rendered = helm.render(EVERYTHING)
    pod, container = rendered.pod, rendered.container

    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 1000650000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()


def test_only_data_and_temporary_files_can_be_written(helm: Helm) -> None:
    mounts = helm.render().container["volumeMounts"]

    assert {m["mountPath"] for m in mounts if not m.get("readOnly")} == {"/data", "/tmp"}
    assert {m["mountPath"] for m in mounts if m.get("readOnly")} == {
        "/models",
        "/etc/llama-supervisor",
    }


def test_configuration_is_mounted_as_a_folder_that_follows_its_configmap(helm: Helm) -> None:
    rendered = helm.render()
    volumes = {volume["name"]: volume for volume in rendered.pod["volumes"]}

    assert all("subPath" not in mount for mount in rendered.container["volumeMounts"])
    assert volumes["configuration"]["configMap"] == {
        "name": rendered.one("ConfigMap")["metadata"]["name"]
    }


def test_volumes_come_from_claims_a_folder_of_the_node_or_the_pod_itself(helm: Helm) -> None:
    def volume(rendered: Rendered, name: str) -> Any:
        (found,) = (each for each in rendered.pod["volumes"] if each["name"] == name)
        return {key: value for key, value in found.items() if key != "name"}

    shipped, everything = helm.render(), helm.render(EVERYTHING)

    assert volume(shipped, "models") == {
        "persistentVolumeClaim": {"claimName": "llama-models", "readOnly": True}
    }
    assert volume(shipped, "data") == {"emptyDir": {"sizeLimit": "26Gi"}}
    assert volume(everything, "models") == {
        "hostPath": {"path": "/srv/models", "type": "Directory"}
    }
    assert volume(everything, "data") == {"persistentVolumeClaim": {"claimName": "llm-data"}}


def test_claim_of_the_charts_own_is_kept_and_named_alike_by_every_version(
    helm: Helm, tmp_path: Path
) -> None:
    next_version = Path(shutil.copytree(CHART, tmp_path / "chart"))
    about = yaml.safe_load((next_version / "Chart.yaml").read_text())
    (next_version / "Chart.yaml").write_text(yaml.safe_dump(about | {"version": "9.9.9"}))
    values = {"data": {"persistence": {"enabled": True, "size": "30Gi", "storageClass": "fast"}}}

    now, later = helm.render(values), helm.render(values, chart=next_version)
    claim = now.one("PersistentVolumeClaim")

    kubernetes_validate.validate(claim, NEWEST_KUBERNETES, strict=True)
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert claim["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "fast",
        "resources": {"requests": {"storage": "30Gi"}},
    }
    assert later.one("PersistentVolumeClaim")["metadata"]["name"] == claim["metadata"]["name"]
    (data,) = (volume for volume in now.pod["volumes"] if volume["name"] == "data")
    assert data["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}


def test_storage_class_is_the_clusters_unless_one_is_named(helm: Helm) -> None:
    rendered = helm.render({"data": {"persistence": {"enabled": True}}})

    assert "storageClassName" not in rendered.one("PersistentVolumeClaim")["spec"]


def test_url_of_a_shared_queue_comes_out_of_a_secret_into_controller_and_check(helm: Helm) -> None:
    own = {"name": "TOKEN", "value": "x"}
    values = {"jobs": {"queueUrlSecret": {"name": "queue", "key": "redis"}}, "env": [own]}
    rendered = helm.render(values)
    pod = rendered.one("Job", is_hook=True)["spec"]["template"]["spec"]
    settings = yaml.safe_load(rendered.one("ConfigMap")["data"]["supervisor.yaml"])

    url = {"secretKeyRef": {"name": "queue", "key": "redis"}}
    assert rendered.container["env"] == [{"name": "JOBS_QUEUE_URL", "valueFrom": url}, own]
    assert pod["containers"][0]["env"] == rendered.container["env"]
    assert settings["jobs"]["queue_url"] == "${JOBS_QUEUE_URL}"
    assert "env" not in helm.render().container
    assert "jobs" not in yaml.safe_load(helm.render().one("ConfigMap")["data"]["supervisor.yaml"])


def test_image_is_named_by_version_tag_or_digest(helm: Helm) -> None:
    def image(**values: str) -> str:
        return str(helm.render({"image": {"repository": "r/x", **values}}).container["image"])

    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    digest = f"sha256:{'a' * 64}"

    assert image() == f"r/x:{version}"
    assert image(tag="edge") == "r/x:edge"
    assert image(tag="edge", digest=digest) == f"r/x@{digest}"


def test_probes_ask_the_controller_and_only_readiness_waits_for_a_model(helm: Helm) -> None:
    container = helm.render().container

    assert container["startupProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http"}


@pytest.mark.parametrize(
    "data", [{"existingClaim": "llm-data"}, {"persistence": {"enabled": True}}]
)
def test_new_pod_waits_as_long_for_its_data_as_the_old_one_may_take_to_end(
    helm: Helm, data: dict[str, Any]
) -> None:
    kept = helm.render({"data": data})
    own = helm.render()
    grace_s = kept.pod["terminationGracePeriodSeconds"]
    probe, shipped = kept.container["startupProbe"], own.container["startupProbe"]

    assert f"--data-wait={grace_s}" in kept.container["args"]
    assert not [word for word in own.container["args"] if "--data-wait" in word]
    added = probe["failureThreshold"] - shipped["failureThreshold"]
    assert added * probe["periodSeconds"] >= grace_s
    assert probe | {"failureThreshold": shipped["failureThreshold"]} == shipped


def test_pod_serves_on_while_the_service_forgets_it(helm: Helm) -> None:
    kept = helm.render({"termination": {"preStopSeconds": 7}}).container
    ended_at_once = helm.render({"termination": {"preStopSeconds": 0}}).container

    assert kept["lifecycle"] == {"preStop": {"sleep": {"seconds": 7}}}
    assert "lifecycle" not in ended_at_once


def test_notes_tell_the_address_inside_the_cluster_and_what_is_not_kept(
    newest_helm: Helm,
) -> None:
    def notes(values: dict[str, Any]) -> str:
        files = ("--values", CHART / "values-k3s-nvidia.yaml", "--namespace", "ai")
        ended = newest_helm.run("install", "llm", CHART, "--dry-run=client", *files, values=values)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.partition("NOTES:")[2]

    address = "http://llm-llama-supervisor.ai.svc.cluster.local:8000/management/health"
    shipped, kept = notes({}), notes({"data": {"existingClaim": "llm-data"}})
    own = notes({"data": {"persistence": {"enabled": True}}})

    assert address in shipped
    assert "data is an emptyDir: jobs, files and vectors, and all else" in shipped
    assert "data.persistence.enabled" in shipped
    assert "kubectl get runtimeclass nvidia" in shipped
    assert "Jobs, files and vectors last: they stand in the claim llm-data." in kept
    assert "go with the Pod" not in kept
    assert "kubectl -n ai delete pvc llm-llama-supervisor-data" in own
    shared = notes({"jobs": {"queueUrlSecret": {"name": "queue"}}})
    assert "the Redis server that Secret queue names" in shared
    assert "data is an emptyDir: vectors, and all else" in shared


def limits(rendered: Rendered) -> dict[str, Any]:
    return dict(rendered.container["resources"].get("limits", {}))


def what_the_server_would_refuse(rendered: Rendered) -> Iterator[str]:
    """Yield what passes the schema, and would fail at the server or leave the Pod unreachable."""
    deployment, service, pod = rendered.one("Deployment"), rendered.one("Service"), rendered.pod
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = (deployment["spec"]["selector"]["matchLabels"], service["spec"]["selector"])
    if any(not selector.items() <= labels.items() for selector in selectors):
        yield "a selector does not match the Pod's labels"
    container = rendered.container
    for what, names in (
        ("port", [port["name"] for port in container["ports"]]),
        ("service port", [port["name"] for port in service["spec"]["ports"]]),
        ("volume", [volume["name"] for volume in pod["volumes"]]),
        ("mount", [mount["mountPath"] for mount in container["volumeMounts"]]),
        ("variable", [variable["name"] for variable in container.get("env", [])]),
    ):
        if len(names) != len(set(names)):
            yield f"two of one {what}: {names}"
    if {mount["name"] for mount in container["volumeMounts"]} != {
        v["name"] for v in pod["volumes"]
    }:
        yield "mounts and volumes differ"
    ports = {port["name"] for port in container["ports"]}
    if {port["targetPort"] for port in service["spec"]["ports"]} != ports:
        yield "the Service's target is not a port of the container"
    resources = container["resources"]
    for name, count in resources.get("limits", {}).items():
        if "/" in name and not str(count).isdecimal():
            yield f"{name}: {count} is not a whole number"
    for name, count in resources.get("requests", {}).items():
        if "/" in name and resources["limits"].get(name) != count:
            yield f"{name}: the request differs from the limit"
