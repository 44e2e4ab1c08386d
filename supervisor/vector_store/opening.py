"""Which store there is, by the settings; it is opened at its first use."""

import asyncio
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from supervisor.config.settings import VectorSettings
from supervisor.errors import RequestRefused
from supervisor.vector_store.port import VectorStore

FOLDER = "vectors"
"""Of the embedded store, in the data folder."""


class StoreOpener:
    """Holds the store, from when it is first asked for until the controller ends.

    `make_folder` makes the folder of the embedded one.
    """

    def __init__(self, settings: VectorSettings, make_folder: Callable[[], Path]) -> None:
        self._settings = settings
        self._make_folder = make_folder
        self._store: VectorStore | None = None
        self._opening = asyncio.Lock()

    async def store(self) -> VectorStore:
        """Return the store. Raises RequestRefused `extra_missing`."""
        if self._store is None:
            async with self._opening:
                if self._store is None:
                    self._store = await self._open()
        return self._store

    async def close(self) -> None:
        """Close the store, where there is one."""
        if self._store is not None:
            await self._store.close()

    async def _open(self) -> VectorStore:
        settings = self._settings
        if settings.url is None:
            _require("qdrant_edge")
            return _open_edge(self._make_folder())
        _require("qdrant_client")
        api_key = os.environ.get(settings.api_key_env) if settings.api_key_env else None
        return await asyncio.to_thread(_open_server, settings.url, api_key)


def _open_edge(folder: Path) -> VectorStore:
    from supervisor.vector_store.edge import EdgeStore  # noqa: PLC0415 - most serve without

    return EdgeStore(folder)


def _open_server(url: str, api_key: str | None) -> VectorStore:
    from supervisor.vector_store.server import ServerStore  # noqa: PLC0415 - takes a second

    return ServerStore(url, api_key)


def _require(library: str) -> None:
    """Raise RequestRefused `extra_missing` where a library is not installed."""
    if find_spec(library) is None:
        raise RequestRefused(
            "extra_missing",
            f"storing and searching vectors needs {library}, which is not installed: "
            "pip install 'llama-supervisor[vectors]'",
        )
