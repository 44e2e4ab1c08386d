"""Bad values are refused before anything reaches the cluster, and the key is named.

The texts of helm 3 and 4 differ; that the key stands in them does not.
"""

from typing import Any

import pytest

from tests.helm.conftest import CHART, Helm

DEEP = "devices:\n  gpu0:\n    exclusive: true\n"
TEXT = "    # exclusive: false\n  gpu1: &one\n    required: true\n"
ITEMS = "schedule:\n  entries:\n  - {to: 1}\n  - to: 2\n"


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"replicaCount": 2}, ["replicaCount"]),
        ({"gpu": {"cuont": 1}}, ["gpu", "cuont"]),
        ({"gpu": {"count": 0.5}}, ["gpu", "count"]),
        ({"gpu": {"count": "1"}}, ["gpu", "count"]),
        ({"gpu": {"count": -1}}, ["gpu", "count"]),
        ({"gpu": {"resourceName": "gpu"}}, ["gpu", "resourceName"]),
        ({"runtimeClasName": "nvidia"}, ["runtimeClasName"]),
        ({"resources": {"limits": {"nvidia.com/gpu": 1}}}, ["resources", "limits", "nvidia.com"]),
        ({"image": {"digest": "sha256:abc"}}, ["image", "digest"]),
        ({"image": {"pullPolicy": "Sometimes"}}, ["image", "pullPolicy"]),
        ({"service": {"port": 70000}}, ["service", "port"]),
        ({"service": {"type": "NodePort"}}, ["service", "type"]),
        ({"models": {"hostPath": "models"}}, ["models", "hostPath"]),
        ({"data": {"sizeLimit": "1 GB"}}, ["data", "sizeLimit"]),
        ({"data": {"persistence": {"size": "20"}}}, ["data", "persistence", "size"]),
        ({"data": {"persistence": {"class": "fast"}}}, ["data", "persistence", "class"]),
        ({"jobs": {"queueUrl": "redis://redis"}}, ["jobs", "queueUrl"]),
        ({"jobs": {"queueUrlSecret": {"key": ""}}}, ["jobs", "queueUrlSecret", "key"]),
        ({"securityContext": {"runAsUser": 0}}, ["securityContext", "runAsUser"]),
        ({"securityContext": {"privileged": True}}, ["securityContext", "privileged"]),
        ({"labels": {"answer": 42}}, ["labels", "answer"]),
        ({"labels": {"answer": "two words"}}, ["labels", "answer"]),
        ({"podLabels": {"a/b/c": "x"}}, ["podLabels", "a/b/c"]),
        ({"nodeSelector": {"kubernetes.io/hostname": "-a"}}, ["nodeSelector", "hostname"]),
        ({"podAnnotations": {"two words": "x"}}, ["podAnnotations", "two words"]),
        ({"resources": {"limits": {"memory": "32 GB"}}}, ["resources", "limits", "memory"]),
        ({"resources": {"requests": {"cpu": -1}}}, ["resources", "requests", "cpu"]),
        ({"models": {"existingClaim": "Not_A_Claim"}}, ["models", "existingClaim"]),
        ({"check": {"enabled": "yes"}}, ["check", "enabled"]),
        ({"env": [{"value": "x"}]}, ["env", "name"]),
        ({"probes": {"liveness": {"exec": {}}}}, ["probes", "liveness", "exec"]),
        ({"termination": {"gracePeriodSeconds": 5}}, ["termination", "gracePeriodSeconds"]),
        ({"configuration": {"models.yml": {}}}, ["configuration", "models.yml"]),
        ({"configuration": {"../models.yaml": {}}}, ["configuration", "../models.yaml"]),
        ({"configuration": {"models.yaml": ["a"]}}, ["configuration", "models.yaml"]),
    ],
)
def test_schema_names_the_key_that_is_wrong(
    helm: Helm, values: dict[str, Any], named: list[str]
) -> None:
    text = helm.refuse(values)

    for key in named:
        assert key in text


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"models": {"existingClaim": ""}}, "models.existingClaim: name the claim"),
        ({"models": {"hostPath": "/srv/models"}}, "models: set existingClaim or hostPath, not"),
        (
            {"labels": {"app.kubernetes.io/name": "mine"}},
            "labels: app.kubernetes.io/name is set by the chart",
        ),
        (
            {"podLabels": {"app.kubernetes.io/instance": "mine"}},
            "podLabels: app.kubernetes.io/instance is set by the chart",
        ),
        (
            {"env": [{"name": "MODEL_CONFIG_PATH", "value": "/models.yaml"}]},
            "env: MODEL_CONFIG_PATH is set by the image and the chart",
        ),
        (
            {"env": [{"name": "TOKEN", "value": "a"}, {"name": "TOKEN", "value": "b"}]},
            "env: TOKEN is given twice; keep one",
        ),
        (
            {
                "env": [{"name": "JOBS_QUEUE_URL", "value": "redis://mine"}],
                "jobs": {"queueUrlSecret": {"name": "queue"}},
            },
            "env: JOBS_QUEUE_URL is set by the chart, out of jobs.queueUrlSecret; leave one",
        ),
        (
            {"podAnnotations": {"checksum/config": "mine"}},
            "podAnnotations: checksum/config is set by the chart; leave it out",
        ),
        *(
            (
                {"configuration": {"supervisor.yaml": text}},
                f"supervisor.yaml:{line}: {name} is given twice, first on line {first}; keep one",
            )
            for line, name, first, text in (
                (3, "queue", 1, "queue: {hold_timeout_s: 5}\nswitch: {}\nqueue: {}\n"),
                (3, "queue", 1, "queue:\n  hold_timeout_s: 5\nqueue :\n  model_share: 1\n"),
                (2, "queue", 1, "queue: {}\n'queue': {}\n"),
                (5, "server.port", 3, "server:\n    # it\n    port: 1\n    host: a\n    port: 2\n"),
                (4, "server.port", 3, "queue: {}\r\nserver:  # it\r\n  port: 1\r\n  port: 2\r\n"),
                (4, "devices.gpu0.exclusive", 3, DEEP + "    exclusive: false\n"),
                (4, "devices.gpu0", 2, DEEP + "  gpu0: {}\n"),
                (7, "devices.gpu1.required", 6, DEEP + TEXT + "    required: false\n"),
                (5, "schedule.entries.1.to", 4, ITEMS + "    to: 1\n"),
                (6, "schedule.entries", 2, ITEMS + "    mode: mixed\n  entries: []\n"),
                (5, "schedule.entries.0.to", 4, "schedule:\n entries:\n -\n  to: 1\n  to: 2\n"),
            )
        ),
        ({"fullnameOverride": "1st"}, 'fullnameOverride: set it, because "1st" cannot name'),
        (
            {"configuration": {"generation.yaml": "- a list"}},
            "configuration.generation.yaml: must be a YAML mapping",
        ),
        (
            {"configuration": {"supervisor.yaml": {"switch": {"shutdown_drain_timeout_s": "1y"}}}},
            "configuration.supervisor.yaml: shutdown_drain_timeout_s must be a duration",
        ),
        (
            {"data": {"sizeLimit": "8Gi"}},
            "data.sizeLimit: 8Gi does not hold the prompt cache and jobs",
        ),
        (
            {"data": {"persistence": {"enabled": True, "size": "8Gi"}}},
            "data.persistence.size: 8Gi does not hold the prompt cache and jobs",
        ),
        (
            {"data": {"existingClaim": "llm-data", "persistence": {"enabled": True}}},
            "data: set existingClaim or persistence.enabled, not both",
        ),
        (
            {
                "configuration": {
                    "supervisor.yaml": {"switch": {"prompt_cache_max_bytes": "8 GiBi"}}
                }
            },
            "configuration.supervisor.yaml: prompt_cache_max_bytes must be a size",
        ),
        (
            {"configuration": {"generation.yaml": {"stop_grace_s": True}}},
            "configuration.generation.yaml: stop_grace_s must be a duration",
        ),
    ],
)
def test_chart_says_what_is_wrong_and_what_to_do(
    helm: Helm, values: dict[str, Any], sentence: str
) -> None:
    assert sentence in helm.refuse(values)


def test_release_that_cannot_name_a_service_is_refused(helm: Helm) -> None:
    assert "fullnameOverride" in helm.refuse({}, release="7b")


def test_kubernetes_that_is_too_old_is_refused(helm: Helm) -> None:
    files = ("--values", CHART / "values-cpu.yaml", "--kube-version", "1.29.9")

    ended = helm.run("template", "llm", CHART, *files)

    assert ended.returncode != 0
    assert "kubeVersion" in ended.stderr
