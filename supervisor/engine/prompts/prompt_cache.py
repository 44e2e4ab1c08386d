"""Where the prompts of a server lie between its stop and its next start: one file for each slot.

    prompt-cache/<identity>/slot-0.bin, slot-2.bin …   as the server wrote them
    prompt-cache/<identity>/manifest.json              the files that are whole, written last

What a manifest does not list, or lists with another size, is never restored. The manifest is taken
away before anything is restored, so that a server that dies of it starts empty the next time.

The files hold what clients wrote: the folder is for its owner only.
"""

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog

from supervisor.core.byte_size import MIB, format_bytes

log = structlog.get_logger()

RESERVE_BYTES = 512 * MIB
"""What a save leaves free on the disk, for the log, the history and whoever else writes there."""

_MANIFEST = "manifest.json"


def identity_of(parts: Mapping[str, Any]) -> str:
    """Return the folder name for all that must be the same for a saved prompt to be of use."""
    written = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(written.encode()).hexdigest()[:32]


def free_bytes_at(folder: Path) -> int:
    """Return the bytes that may be written to the disk of a folder."""
    return shutil.disk_usage(folder).free


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedSlot:
    """The prompt of one slot: how many tokens of it were computed, and the size of its file."""

    slot: int
    tokens: int
    size_bytes: int

    @property
    def file_name(self) -> str:
        """The file's name in its folder."""
        return slot_file_name(self.slot)


def slot_file_name(slot: int) -> str:
    """Return the name of the file that a slot is saved to."""
    return f"slot-{slot}.bin"


class PromptCache:
    """A folder of saved prompts, of all models. Its methods may be called from any thread.

    `max_bytes` bounds what is in it; the prompts that have not been used for the longest time make
    room. Unless `keeps_at_exit`, it is emptied at its start, where a killed controller may have
    left something, and removed by `close()`. Both may be changed. `free_bytes` returns what its
    disk has left.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        keeps_at_exit: bool,
        free_bytes: Callable[[Path], int] = free_bytes_at,
    ) -> None:
        """Make the folder. Raises OSError when that fails."""
        self._folder = folder
        self.max_bytes = max_bytes
        self.keeps_at_exit = keeps_at_exit
        self._free_bytes = free_bytes
        self._lock = threading.Lock()
        self._busy: set[Path] = set()
        if not keeps_at_exit:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        self._shrink_others(max_bytes, None)

    def files_for(self, identity: str, *, slot_kv_bytes: int) -> "PromptFiles":
        """Return the place of what is saved under an identity, and make its folder.

        `slot_kv_bytes`: what the KV cache of one slot takes when its context is full. Raises
        OSError.
        """
        path = self._folder / identity
        self._make(path)
        return PromptFiles(cache=self, path=path, slot_kv_bytes=slot_kv_bytes)

    def close(self) -> None:
        """Remove everything, unless it is to be kept."""
        if not self.keeps_at_exit:
            shutil.rmtree(self._folder, ignore_errors=True)

    def begin(self, path: Path, expected_bytes: int) -> str | None:
        """Make room for files of that size in a folder, and remove what was saved there before.

        Returns the reason where there is no room; nothing is touched then. Else `finish` must
        follow. Raises OSError.
        """
        with self._lock:
            self._make(path)
            free_bytes = self._free_bytes(path)
            own_bytes = _size_bytes(path)
            others_bytes = _size_bytes(self._folder) - own_bytes
            cap_bytes = self.max_bytes - expected_bytes
            disk_bytes = free_bytes + own_bytes + others_bytes - expected_bytes - RESERVE_BYTES
            if cap_bytes < 0:
                return (
                    f"about {format_bytes(expected_bytes)} are more than "
                    f"switch.prompt_cache_max_bytes ({format_bytes(self.max_bytes)})"
                )
            if disk_bytes < 0:
                return (
                    f"the disk of {self._folder} is nearly full: {format_bytes(free_bytes)} are "
                    f"free, the prompts take about {format_bytes(expected_bytes)}, and "
                    f"{format_bytes(RESERVE_BYTES)} must stay free"
                )
            self._shrink_others(min(cap_bytes, disk_bytes), path)
            _clear(path, keep=())
            self._busy.add(path)
            return None

    def take(self, path: Path) -> tuple[SavedSlot, ...]:
        """Return what may be restored from a folder, and take its manifest away.

        Where that is anything, `finish` must follow.
        """
        with self._lock:
            slots = _read_manifest(path)
            (path / _MANIFEST).unlink(missing_ok=True)
            if slots:
                self._busy.add(path)
            return slots

    def finish(self, path: Path, slots: tuple[SavedSlot, ...]) -> str | None:
        """List the files that are whole, and remove all others of the folder.

        Returns the reason where they were dropped because they alone are too large. Raises
        OSError, with nothing kept.
        """
        with self._lock:
            self._busy.discard(path)
            _clear(path, keep={slot.file_name for slot in slots})
            own_bytes = _size_bytes(path)
            if own_bytes > self.max_bytes:
                _clear(path, keep=())
                return (
                    f"{format_bytes(own_bytes)} are more than switch.prompt_cache_max_bytes "
                    f"({format_bytes(self.max_bytes)})"
                )
            if slots:
                _write_manifest(path, slots)
            self._shrink_others(self.max_bytes - own_bytes, path)
            return None

    def _make(self, path: Path) -> None:
        """Make the folder of an identity, and ours where it was deleted since our start."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)

    def _shrink_others(self, limit_bytes: int, own: Path | None) -> None:
        """Remove what other models saved, the oldest first, until it is no more than the limit.

        What is being saved or restored right now stays; so does the folder of a running server.
        """
        entries = [path for path in self._folder.iterdir() if not path.is_symlink()]
        folders = [path for path in entries if path.is_dir() and path != own]
        sizes = {path: _size_bytes(path) for path in sorted(folders, key=_age_key)}
        total_bytes = sum(sizes.values())
        for path, size_bytes in sizes.items():
            if total_bytes <= limit_bytes:
                return
            if path not in self._busy and size_bytes:
                _clear(path, keep=())
                total_bytes -= size_bytes
                log.info("prompts.evicted", folder=path.name, size_bytes=size_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFiles:
    """The place for the prompts of one identity: what a server saves there, only its like restores.

    `slot_kv_bytes`: what the KV cache of one slot takes when its context is full.
    """

    cache: PromptCache
    path: Path
    slot_kv_bytes: int

    def begin(self, expected_bytes: int) -> str | None:
        """See `PromptCache.begin`."""
        return self.cache.begin(self.path, expected_bytes)

    def take(self) -> tuple[SavedSlot, ...]:
        """See `PromptCache.take`."""
        return self.cache.take(self.path)

    def finish(self, slots: tuple[SavedSlot, ...]) -> str | None:
        """See `PromptCache.finish`."""
        return self.cache.finish(self.path, slots)


def _read_manifest(path: Path) -> tuple[SavedSlot, ...]:
    """Return what is listed and is there with the size that is listed."""
    try:
        listed = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        slots = [SavedSlot(**entry) for entry in listed]
        return tuple(s for s in slots if (path / s.file_name).stat().st_size == s.size_bytes)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError) as error:
        log.warning("prompts.unreadable", folder=str(path), reason=str(error))
        return ()


def _write_manifest(path: Path, slots: tuple[SavedSlot, ...]) -> None:
    temporary = path / f"{_MANIFEST}.new"
    try:
        temporary.write_text(json.dumps([asdict(slot) for slot in slots]), encoding="utf-8")
        temporary.replace(path / _MANIFEST)
    except OSError:
        _clear(path, keep=())
        raise


def _clear(path: Path, *, keep: Iterable[str]) -> None:
    """Remove the files of a folder, the manifest first, but for those of the names given."""
    (path / _MANIFEST).unlink(missing_ok=True)
    kept = set(keep)
    for file in path.iterdir():
        if file.name not in kept:
            file.unlink(missing_ok=True)


def _size_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _age_key(folder: Path) -> float:
    """Return when a folder was saved or restored last; one without a manifest comes first."""
    manifest = folder / _MANIFEST
    return manifest.stat().st_mtime if manifest.exists() else 0.0
