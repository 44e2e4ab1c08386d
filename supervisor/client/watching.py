"""Embeds what is in folders, and then what changes in them."""

import asyncio
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import aclosing
from pathlib import Path

from watchfiles import Change, awatch

from supervisor.client.connection import NoController
from supervisor.client.embedding import Embedder
from supervisor.client.embedding_display import EmbeddingDisplay
from supervisor.client.files import find_files, is_gone, may_be_found

_COME_BACK_S = 5.0
"""Seconds until a controller that has gone is asked again."""

_LOOK_S = 1.0
"""Seconds until it is looked again whether another folder stands under a name that is watched."""

_Identity = tuple[int, int] | None
"""What tells a folder from the one that stands in its place later; None: there is none."""


async def embed_changes(
    embedder: Embedder, display: EmbeddingDisplay, roots: Sequence[Path]
) -> None:
    """Embed what is there, and what changes from then on. Runs until it is cancelled.

    While there is no controller, it waits for one, and then looks through everything again.
    """
    changed: asyncio.Queue[set[Path]] = asyncio.Queue()
    watching = asyncio.create_task(_watch(roots, changed, display), name="watching")
    folders = frozenset(root for root in roots if root.is_dir())
    await asyncio.sleep(0)  # it watches from here on, so that nothing is missed after the look
    try:
        paths = set(roots)
        while True:
            gone = await _embed(embedder, display, folders, paths)
            paths = await _next_of(changed, watching) if gone is None else {*roots, *gone}
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


async def _watch(
    roots: Sequence[Path], changed: asyncio.Queue[set[Path]], display: EmbeddingDisplay
) -> None:
    """Put paths that have changed, and all roots where another folder stands under a name.

    The kernel watches a folder and not its name: one that was deleted and made again, or moved
    away, mounted over and so on, would be watched no more. A file's folder is watched, because many
    editors replace files.
    """
    folders = {root if root.is_dir() else root.parent for root in roots}
    gone: set[Path] = set()
    while True:
        here = {folder: _identity(folder) for folder in folders}
        for folder in sorted(set(_missing(here)) - gone):
            display.note(f"{folder} is gone; what is stored of it stays until it is there again")
        gone = set(_missing(here))
        try:
            await _put_changes(roots, here, changed)
        except FileNotFoundError:  # it has gone since it was looked at
            await asyncio.sleep(_LOOK_S)
        changed.put_nowait(set(roots))  # and watches before anybody takes them


async def _put_changes(
    roots: Sequence[Path], here: Mapping[Path, _Identity], changed: asyncio.Queue[set[Path]]
) -> None:
    """Put paths that have changed, until one of the folders is not what it was any more."""
    replaced = asyncio.Event()
    looking = asyncio.create_task(_look_for_others(here, replaced), name="folders")
    changes = awatch(
        *(here.keys() - _missing(here)),
        watch_filter=lambda _, path: Path(path) in here or may_be_found(Path(path), roots),
        stop_event=replaced,
        ignore_permission_denied=True,  # a folder that cannot be read is left out, and said
    )
    try:
        async with aclosing(changes):
            async for some in changes:
                paths = {Path(path) for _, path in some}
                if found := {path for path in paths if may_be_found(path, roots)}:
                    changed.put_nowait(found)
                if any(change is Change.deleted and Path(path) in here for change, path in some):
                    return
    finally:
        looking.cancel()


async def _look_for_others(here: Mapping[Path, _Identity], replaced: asyncio.Event) -> None:
    """Set `replaced` once a folder is there that was not, or another one, or none."""
    while all(_identity(path) == known for path, known in here.items()):  # noqa: ASYNC110 - see below
        await asyncio.sleep(_LOOK_S)  # no event tells of a mount, or of what comes back
    replaced.set()


def _identity(folder: Path) -> _Identity:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _missing(here: Mapping[Path, _Identity]) -> set[Path]:
    return {folder for folder, identity in here.items() if identity is None}


async def _embed(
    embedder: Embedder, display: EmbeddingDisplay, folders: AbstractSet[Path], paths: set[Path]
) -> set[Path] | None:
    """Embed what has changed. Without a controller, returns after a pause which paths are gone."""
    there = {path for path in paths if not is_gone(path)}
    files = list(find_files(sorted(there)))
    display.expect(files)
    try:
        for path in paths:
            if (path in folders or path not in there) and _tells_of_the_lost(path, folders):
                await embedder.remove_gone(path)
        await embedder.embed(files)
    except NoController as error:
        display.note(f"{error}; trying again every {_COME_BACK_S:g} s")
        await asyncio.sleep(_COME_BACK_S)
        return paths - there
    return None


def _tells_of_the_lost(path: Path, folders: AbstractSet[Path]) -> bool:
    """Whether files are gone for good that are not there, at a path or below it.

    A folder that was named says nothing of what was in it where it is gone, or found empty: as
    where nothing is mounted.
    """
    if path not in folders:
        return not any(path.is_relative_to(folder) and is_gone(folder) for folder in folders)
    try:
        return any(path.iterdir())
    except OSError:
        return False
