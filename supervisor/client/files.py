"""Which files of folders are documents, and what is left out, with the reason."""

import re
import stat
from collections.abc import Iterable, Iterator
from hashlib import file_digest
from pathlib import Path

import msgspec

from supervisor.documents.extraction.formats import Format

SUFFIXES = frozenset(
    {
        *(f".{each}" for each in Format),
        *(".htm", ".xhtml", ".markdown", ".text", ".rst", ".csv"),
    }
)
"""How the names of documents end. The controller has the last word: it looks at what is in them."""

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
"""Characters that move a terminal's cursor, or more; a tab does no harm."""


class FoundFile(msgspec.Struct, frozen=True):
    """A file to be embedded."""

    path: Path
    size_bytes: int


class LeftOut(msgspec.Struct, frozen=True):
    """A file or folder that is not, and why."""

    path: Path
    reason: str


def find_files(roots: Iterable[Path]) -> Iterator[FoundFile | LeftOut]:
    """Yield what is in folders, in a stable order; a file that is named itself is taken as it is.

    A folder that is left out is yielded once, and nothing in it. Links to folders are not followed,
    for they may lead in circles.
    """
    for root in roots:
        yield from _in_folder(root) if root.is_dir() else (_as_found(root),)


def may_be_found(path: Path, roots: Iterable[Path]) -> bool:
    """Whether `find_files` would yield a path as a file, or look into it, if it were there."""
    for root in roots:
        if path == root:
            return True
        if path.is_relative_to(root):
            is_hidden = any(_is_hidden(part) for part in path.relative_to(root).parts)
            return not is_hidden and (path.suffix.lower() in SUFFIXES or not path.is_file())
    return False


def is_gone(path: Path) -> bool:
    """Whether nothing stands there; what cannot be looked at may be there."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def from_here(document: str) -> str:
    """Write a document's id for people: a file below the current folder as it is called there."""
    path, here = Path(document), Path.cwd()
    is_below = path.is_absolute() and path.is_relative_to(here)
    return printable(str(path.relative_to(here) if is_below else document))


def shown(path: Path) -> str:
    """Write a path for people and JSON: bytes of it that are no text as question marks."""
    return printable(str(path).encode(errors="surrogateescape").decode(errors="replace"))


def printable(text: str) -> str:
    """Write what others have made up for a terminal: control characters as question marks."""
    return _CONTROL.sub("?", text)


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a file's content. Raises OSError."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _in_folder(folder: Path) -> Iterator[FoundFile | LeftOut]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        yield LeftOut(folder, error.strerror or str(error))
        return
    for entry in entries:
        if _is_hidden(entry.name):
            yield LeftOut(entry, "hidden")
        elif entry.is_dir():
            yield from (LeftOut(entry, "link"),) if entry.is_symlink() else _in_folder(entry)
        elif entry.suffix.lower() not in SUFFIXES:
            yield LeftOut(entry, "unsupported")
        else:
            yield _as_found(entry)


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _as_found(path: Path) -> FoundFile | LeftOut:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # to read a pipe would wait for its writer for ever
            return LeftOut(path, "not a plain file")
        return FoundFile(path, found.st_size)
    except OSError as error:
        return LeftOut(path, error.strerror or str(error))
