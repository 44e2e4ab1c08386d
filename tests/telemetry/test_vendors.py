"""What a GPU vendor means stands in one value, its own; nothing else knows vendors by name."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.telemetry.vendors import VENDORS, visibility_variables
from tests.conftest import ROOT

KINDS_OF_CONTAINERS = {"kubernetes", "docker", "podman", "unknown", ""}
WORDS = ("nvidia", "cuda", "amd", "rocm", "hip_", "hip ")
ROOMS = ("telemetry", "doctor")


def texts(file: Path) -> Iterator[str]:
    """Texts in a module that are not docstrings."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            node.value = ast.Constant(None)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_no_other_module_of_these_rooms_names_a_vendor() -> None:
    rooms = [ROOT / "supervisor" / room for room in ROOMS]
    homes = {room / vendor.lower() for room in rooms for vendor in VENDORS}
    named = [
        (file.name, text)
        for room in rooms
        for file in room.rglob("*.py")
        if homes.isdisjoint(file.parents)
        for text in texts(file)
        if any(word in text.lower() for word in WORDS)
    ]
    assert not named


@pytest.mark.parametrize("name", VENDORS)
def test_vendor_knows_how_every_kind_of_container_is_given_its_devices(name: str) -> None:
    assert set(VENDORS[name].grants) == KINDS_OF_CONTAINERS


@pytest.mark.parametrize("name", VENDORS)
def test_variables_of_a_vendor_that_hide_are_among_those_a_person_is_shown(name: str) -> None:
    rules = VENDORS[name].visibility
    hiding = {*rules.hiding, *dict(rules.hidden_as)}
    assert hiding <= set(rules.variables) <= set(visibility_variables())


@pytest.mark.parametrize("name", VENDORS)
def test_vendor_opens_a_reader_of_its_own(name: str) -> None:
    reader = VENDORS[name].open_reader()
    assert reader.vendor == name
    reader.close()
