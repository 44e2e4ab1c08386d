"""What the docs name is there: paths, phases, states, modules, and the files behind links."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.core.machine.draft import BACKEND_TRANSITIONS
from supervisor.core.machine.phases import PHASES
from tests.conftest import ROOT

ARCHITECTURE = ROOT / "docs" / "explanation" / "architecture.md"
GLOSSARY = ROOT / "docs" / "reference" / "glossary.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

PATH = re.compile(r"`(?P<path>[\w.-]+(?:/[\w.-]+)*(?:/|\.(?:py|md|yaml|toml|c)))`")
LINK = re.compile(r"\]\((?P<target>[^)#:]+)(?:#[^):]*)?\)")


def rows_under(page: Path, heading: str) -> Iterator[list[str]]:
    """Yield the cells of each row of the first table below a heading, without its header."""
    below = page.read_text().partition(f"# {heading}\n")[2]
    table = re.search(r"^\|.*\n\|[-|]+\n(?P<rows>(?:\|.*\n)+)", below, re.MULTILINE)
    assert table is not None, heading
    for row in table["rows"].splitlines():
        yield [cell.strip() for cell in row.strip("|").split(" | ")]


@pytest.mark.parametrize("page", [ARCHITECTURE, GLOSSARY, CONTRIBUTING], ids=lambda p: p.name)
def test_every_path_that_is_named_is_there(page: Path) -> None:
    named = {match["path"] for match in PATH.finditer(page.read_text())}
    roots = (ROOT, ROOT / "supervisor", ROOT / "profiles")
    assert named
    assert not {path for path in named if not any((root / path).exists() for root in roots)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    targets = {match["target"] for match in LINK.finditer(page.read_text())}
    assert not {target for target in targets if not (page.parent / target).exists()}


def test_each_phase_of_the_code_has_its_rows_and_no_other() -> None:
    rows = [cells[0] for cells in rows_under(ARCHITECTURE, "The phases of a switch")]
    assert list(filter(None, rows)) == [phase.name for phase in PHASES]


def test_each_phase_leads_to_those_that_the_code_allows() -> None:
    """The last column names them; a switch may also end in every phase."""
    phases = {phase.name: {after.name for after in rules.next} for phase, rules in PHASES.items()}
    written: dict[str, set[str]] = {}
    last = ""
    for phase, *_, then in rows_under(ARCHITECTURE, "The phases of a switch"):
        last = phase or last
        named = {name for name in phases if re.search(rf"\b{name}\b", then)}
        written.setdefault(last, set()).update(named - {last})
    assert written == phases


def test_each_move_of_a_backend_is_a_row() -> None:
    rows = list(rows_under(ARCHITECTURE, "The states of a backend"))
    written = {(before, after.partition(":")[0]) for before, _, after in rows}
    moves = {
        (before.name, after.name) for before, many in BACKEND_TRANSITIONS.items() for after in many
    }
    assert written - {("–", "STARTING"), ("any", "gone")} == moves


def test_each_word_is_explained_once() -> None:
    words = re.findall(r"^\| ([^|]+) \| [^|]+ \| `", GLOSSARY.read_text(), re.MULTILINE)
    assert len(words) == len(set(words)) > 60


def test_each_room_is_in_the_table_of_rooms() -> None:
    rooms = {
        path.name for path in (ROOT / "supervisor").iterdir() if (path / "__init__.py").exists()
    }
    table = "\n".join(cells[1] for cells in rows_under(ARCHITECTURE, "The rooms"))
    assert rooms == {match["path"].partition("/")[0] for match in PATH.finditer(table)} & rooms


def test_rooms_import_each_other_as_the_page_says() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = contracts["contracts"][0]["layers"]
    checked = [layer.replace("supervisor.", "").replace(" | ", ", ") for layer in layers]
    written = re.search(r"`(cli → [^`]+)`", ARCHITECTURE.read_text())
    assert written is not None
    assert checked == " ".join(written[1].split()).split(" → ")
