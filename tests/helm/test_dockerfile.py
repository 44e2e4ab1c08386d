"""The image holds what the product needs and no more, and starts it as the chart expects.

The image itself is not built here: its base cannot be had in every place where the tests run.
"""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from itertools import chain
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

from supervisor.cli import cli
from tests.helm.conftest import CHART, ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
IMAGE_EXTRAS = ("documents", "embedding", "redis", "vectors")
EMBEDDED_WHEEL = "xllamacpp"


def test_dockerfile_passes_hadolint() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")

    linted = subprocess.run(
        [hadolint, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )

    assert linted.returncode == 0, linted.stdout


def test_image_holds_exactly_what_the_product_needs_beside_a_native_engine() -> None:
    locked = locked_packages()
    (left_out,) = re.findall(r"/\^\((.+)\)==/", DOCKERFILE)

    assert locked - set(left_out.split("|")) == needed_packages() - {EMBEDDED_WHEEL}


def test_what_is_left_out_of_the_image_still_stands_in_the_lock() -> None:
    (left_out,) = re.findall(r"/\^\((.+)\)==/", DOCKERFILE)

    assert set(left_out.split("|")) <= locked_packages()


def test_command_of_the_image_is_one_that_the_product_takes() -> None:
    (command,) = re.findall(r"^CMD (\[.+\])$", DOCKERFILE, re.MULTILINE)

    ended = CliRunner().invoke(cli, [*json.loads(command), "--help"])

    assert ended.exit_code == 0, ended.output


def test_command_is_on_the_path_of_the_image() -> None:
    entrypoint = json.loads(re.findall(r"^ENTRYPOINT (\[.+\])$", DOCKERFILE, re.MULTILINE)[0])
    links = dict(re.findall(r"ln --symbolic (\S+) (\S+)", DOCKERFILE))

    assert links[entrypoint[-1]] == "/usr/local/bin/llama-supervisor"


def test_image_and_chart_run_as_the_same_numeric_user() -> None:
    ids = yaml.safe_load((CHART / "values.yaml").read_text())["securityContext"]
    users = re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE)

    assert users[-1:] == [f"{ids['runAsUser']}:{ids['runAsGroup']}"]


def test_all_that_the_dockerfile_copies_is_let_into_the_build() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = {
        source
        for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
        for source in sources.split()
    }

    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)


def locked_packages() -> set[str]:
    """What requirements.lock would install on this kind of machine."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = (Requirement(line.rstrip(" \\")) for line in lines if re.match("[a-z]", line))
    return {pin.name for pin in pins if pin.marker is None or pin.marker.evaluate()}


def needed_packages() -> set[str]:
    """The product's own requirements, those of the extras in the image, and theirs.

    The shipped catalogue names a tokenizer.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = (project["optional-dependencies"][extra] for extra in IMAGE_EXTRAS)
    todo = [Requirement(each) for each in (*project["dependencies"], *chain(*extras))]
    found = set[tuple[str, str]]()
    while todo:
        requirement = todo.pop()
        for extra in {"", *requirement.extras}:
            name = canonicalize_name(requirement.name)
            if (name, extra) not in found:
                found.add((name, extra))
                todo += needs_of(name, extra)
    return {name for name, _ in found}


def needs_of(name: str, extra: str) -> list[Requirement]:
    """What an installed package requires here, by itself or for one of its extras."""
    listed = [Requirement(each) for each in requires(name) or []]
    return [each for each in listed if not each.marker or each.marker.evaluate({"extra": extra})]
