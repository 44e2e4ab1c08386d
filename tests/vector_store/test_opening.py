"""Which store is opened, and when."""

import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.config.settings import VectorSettings
from supervisor.errors import RequestRefused
from supervisor.vector_store.edge import EdgeStore
from supervisor.vector_store.opening import StoreOpener


@pytest.mark.parametrize(
    ("settings", "library"),
    [
        (VectorSettings(), "qdrant_edge"),
        (VectorSettings(url="http://127.0.0.1:6333"), "qdrant_client"),
    ],
    ids=["embedded", "server"],
)
async def test_without_its_library_the_remedy_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: VectorSettings, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    opener = StoreOpener(settings, lambda: tmp_path)
    with pytest.raises(RequestRefused, match=r"pip install 'llama-supervisor\[vectors\]'") as error:
        await opener.store()
    assert error.value.code == "extra_missing"


def test_who_writes_to_a_collection_waits_for_nobody_at_another(tmp_path: Path) -> None:
    """An index is built for minutes."""
    opener = StoreOpener(VectorSettings(), lambda: tmp_path)
    held = opener.replacing("big")
    assert opener.replacing("big") is held
    assert opener.replacing("other") is not held


async def test_the_embedded_store_is_the_default_and_opened_once(tmp_path: Path) -> None:
    opener = StoreOpener(VectorSettings(), lambda: tmp_path)
    store = await opener.store()
    assert isinstance(store, EdgeStore)
    assert await opener.store() is store
    await opener.close()


def test_what_serves_imports_no_store_before_it_is_used() -> None:
    program = "import sys, supervisor.running; print(*sys.modules, sep='\\n')"
    imported = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()
    assert "supervisor.running" in imported
    heavy = {"qdrant_edge", "qdrant_client", "supervisor.vector_store.edge"}
    assert not heavy & set(imported)
