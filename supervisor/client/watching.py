"""Embeds what is in folders, and then what changes in them."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from watchfiles import awatch

from supervisor.client.connection import NoController
from supervisor.client.embedding import Embedder
from supervisor.client.embedding_display import EmbeddingDisplay
from supervisor.client.files import find_files, may_be_found

_COME_BACK_S = 5.0
"""Seconds until a controller that has gone is asked again."""


async def embed_changes(
    embedder: Embedder, display: EmbeddingDisplay, roots: Sequence[Path]
) -> None:
    """Embed what is there, and what changes from then on. Runs until it is cancelled.

    While there is no controller, it waits for one, and then looks through everything again.
    """
    changed: asyncio.Queue[set[Path]] = asyncio.Queue()
    watching = asyncio.create_task(_watch(roots, changed))
    await asyncio.sleep(0)  # it watches from here on, so that nothing is missed after the look
    try:
        paths = set(roots)
        while True:
            paths = await _embed(embedder, display, roots, paths)
            paths = paths or await _next_of(changed, watching)
    finally:
        watching.cancel()


async def _next_of(changed: asyncio.Queue[set[Path]], watching: asyncio.Task[None]) -> set[Path]:
    """Wait for paths that change. Raises what has ended the watching, which would come to none."""
    changing = asyncio.create_task(changed.get(), name="changed")
    try:
        await asyncio.wait([changing, watching], return_when=asyncio.FIRST_COMPLETED)
        if not changing.done():
            watching.result()
        return await changing
    finally:
        changing.cancel()


async def _watch(roots: Sequence[Path], changed: asyncio.Queue[set[Path]]) -> None:
    """Put paths that have changed. A file's folder is watched: many editors replace files."""
    folders = {root if root.is_dir() else root.parent for root in roots}
    async for changes in awatch(
        *folders,
        watch_filter=lambda _, path: may_be_found(Path(path), roots),
        ignore_permission_denied=True,  # a folder that cannot be read is left out, and said
    ):
        changed.put_nowait({Path(path) for _, path in changes})


async def _embed(
    embedder: Embedder, display: EmbeddingDisplay, roots: Sequence[Path], paths: set[Path]
) -> set[Path]:
    """Embed what has changed; returns what is to be looked through again."""
    files = list(find_files(sorted(path for path in paths if path.exists())))
    display.expect(files)
    try:
        for path in paths:
            if not path.exists():
                await embedder.remove(path)
        await embedder.embed(files)
    except NoController as error:
        display.note(f"{error}; trying again every {_COME_BACK_S:g} s")
        await asyncio.sleep(_COME_BACK_S)
        return set(roots) | {path for path in paths if not path.exists()}
    return set()
