"""The generated pages of docs/reference tell what the code does."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_reference.py"
_spec = importlib.util.spec_from_file_location("make_reference", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
make_reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_reference)


@pytest.mark.parametrize(("path", "content"), make_reference.pages().items())
def test_reference_page_is_what_the_code_says(path: Path, content: str) -> None:
    assert path.read_text(encoding="utf-8") == content, "stale: run scripts/make_reference.py"
