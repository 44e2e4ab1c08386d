"""Stores of both kinds."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
import pytest_asyncio
import uvloop

from supervisor.vector_store.edge import EdgeStore
from supervisor.vector_store.port import VectorStore
from supervisor.vector_store.server import ServerStore
from tests.conftest import ROOT
from tests.vector_store.points import DIMENSION, MODEL


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the tests of this room on the loop that the command line runs on."""
    return {"uvloop": uvloop.new_event_loop}


API_KEY = "a-key"


@contextmanager
def serving_qdrant(folder: Path) -> Iterator[str]:
    """Yield the URL of a Qdrant server, or of what stands in for it (qdrant_server.py)."""
    arguments = ["-m", "tests.vector_store.qdrant_server", str(folder), API_KEY]
    with subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


@pytest.fixture(scope="session")
def qdrant_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server that all tests share."""
    with serving_qdrant(tmp_path_factory.mktemp("qdrant")) as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["edge", "server"])
async def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[VectorStore]:
    """Each kind of store in turn, shared by the tests of a module."""
    store: VectorStore
    if request.param == "edge":
        store = EdgeStore(tmp_path_factory.mktemp("vectors"))
    else:
        store = ServerStore(request.getfixturevalue("qdrant_url"), API_KEY)
    yield store
    await store.close()


_numbers = count()


@pytest_asyncio.fixture(loop_scope="module")
async def collection(store: VectorStore) -> str:
    """A collection that nobody else uses."""
    name = f"notes-{next(_numbers)}"
    await store.ensure_collection(name, MODEL, DIMENSION)
    return name
