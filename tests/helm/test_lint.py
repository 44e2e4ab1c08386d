"""The chart and its values are clean to the linters that operators use, and agree on names."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from supervisor import __version__
from tests.helm.conftest import CHART, OLDEST_KUBERNETES, VALUES_FILES, Helm


@pytest.mark.parametrize("values_file", VALUES_FILES)
def test_chart_passes_strict_lint_with_each_values_file(helm: Helm, values_file: str) -> None:
    linted = helm.run("lint", "--strict", CHART, "--values", CHART / values_file)

    assert linted.returncode == 0, linted.stdout


def test_every_shipped_values_file_is_under_test() -> None:
    assert {path.name for path in CHART.glob("values-*.yaml")} == set(VALUES_FILES)


def test_values_are_clean_yaml() -> None:
    yamllint = Path(sys.executable).with_name("yamllint")
    rules = CHART.with_name("yamllint.yaml")
    files = [CHART / "Chart.yaml", *CHART.glob("values*.yaml")]

    linted = subprocess.run(
        [yamllint, "--strict", "--config-file", rules, *files],
        capture_output=True,
        text=True,
        check=False,
    )

    assert linted.returncode == 0, linted.stdout


def test_chart_deploys_the_version_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())

    assert chart["appVersion"] == __version__


def test_oldest_kubernetes_under_test_is_the_oldest_that_the_chart_accepts() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())

    assert chart["kubeVersion"] == f">={OLDEST_KUBERNETES}-0"


def test_schema_and_values_name_the_same_keys() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    in_schema = set(keys_of_schema(schema, schema["definitions"]))

    # `global` is put there by helm when this chart is another one's dependency.
    assert {
        key for key in in_schema if not key.startswith("resources.") and key != "global"
    } == set(keys_of_values(values))


def test_every_value_is_described_in_the_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    def undescribed(part: Any, name: str) -> Iterator[str]:
        for key, value in part.get("properties", {}).items():
            if not value.get("description"):
                yield f"{name}.{key}"
            yield from undescribed(value, f"{name}.{key}")
        yield from undescribed(part["items"], f"{name}[]") if "items" in part else ()

    parts = {"": schema, **schema["definitions"]}
    assert [each for name, part in parts.items() for each in undescribed(part, name)] == []


def keys_of_schema(
    schema: dict[str, Any], definitions: dict[str, Any], prefix: str = ""
) -> Iterator[str]:
    for name, part in schema.get("properties", {}).items():
        named = part.get("$ref", "").rpartition("/")[2]
        yield f"{prefix}{name}"
        yield from keys_of_schema(definitions.get(named, part), definitions, f"{prefix}{name}.")


def keys_of_values(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from keys_of_values(value, f"{prefix}{name}.")
