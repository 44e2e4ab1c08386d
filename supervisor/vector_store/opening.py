"""Which store there is, by the settings; it is opened at its first use."""

import asyncio
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from weakref import WeakValueDictionary

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
        self._replacing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def replacing(self, collection: str) -> asyncio.Lock:
        """Return what is held by whoever puts a document in place of what is stored of it.

        Of two states that are stored at once, each would else delete the other. Each collection has
        its own, since one whose index is built keeps who writes waiting.
        """
        return self._replacing.setdefault(collection, asyncio.Lock())

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
        if settings.url is not None:
            return await open_server(settings.url, settings.api_key_env)
        _require("qdrant_edge")
        from supervisor.vector_store.edge import EdgeStore  # noqa: PLC0415 - most serve without

        return EdgeStore(self._make_folder())


async def open_server(url: str, api_key_env: str | None) -> VectorStore:
    """Open the store in a Qdrant server, whose key is in an environment variable.

    Nothing is asked of it yet. Raises RequestRefused `extra_missing`.
    """
    _require("qdrant_client")
    api_key = os.environ.get(api_key_env) if api_key_env else None
    return await asyncio.to_thread(_server_store, url, api_key)


def _server_store(url: str, api_key: str | None) -> VectorStore:
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
