"""The shipped YAML files explain themselves."""

import re
from pathlib import Path

import pytest

from supervisor.config.profile import Profile, ProfileMemory


@pytest.mark.parametrize("name", ["generation", "embedding"])
def test_shipped_profile_explains_every_field(profiles_dir: Path, name: str) -> None:
    text = (profiles_dir / f"{name}.yaml").read_text()
    fields = re.findall(r"^(?:  )?(?:# )?([a-z_]+):.*(?:#|$)", text, re.MULTILINE)
    known = {*Profile.model_fields, *ProfileMemory.model_fields}
    missing = known - set(fields) - {"command"}
    assert missing == set()


@pytest.mark.parametrize("name", ["models", "supervisor", "generation", "embedding-cpu"])
def test_shipped_file_names_its_schema_in_the_first_line(profiles_dir: Path, name: str) -> None:
    first = (profiles_dir / f"{name}.yaml").read_text().splitlines()[0]
    schema = re.fullmatch(r"# yaml-language-server: \$schema=(.+)", first)
    assert schema is not None
    assert (profiles_dir / schema[1]).is_file()
