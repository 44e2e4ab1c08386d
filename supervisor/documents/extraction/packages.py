"""ZIP packages are looked through before anything reads them: bombs, and XML with entities."""

import zipfile

from supervisor.documents.extraction.messages import UnreadableError

_MAX_ENTRIES = 20_000
_FREE_BYTES = 64 * 1024 * 1024
"""A package may always grow to this: small ones that are mostly white space are no bombs."""

_PROLOGUE_BYTES = 4096
"""A document type declaration stands before the root element (XML 1.0, 2.8)."""


def require_harmless(path: str, max_inflated: int) -> None:
    """Raise UnreadableError for a package that would grow too large, or whose XML has entities.

    `max_inflated`: how many times larger than the file its entries may be together.
    """
    with zipfile.ZipFile(path) as package:
        entries = package.infolist()
        packed_bytes = sum(entry.compress_size for entry in entries)
        inflated_bytes = sum(entry.file_size for entry in entries)
        bound_bytes = max(_FREE_BYTES, packed_bytes * max_inflated)
        if len(entries) > _MAX_ENTRIES or inflated_bytes > bound_bytes:
            raise UnreadableError(
                f"the package would grow from {packed_bytes} to {inflated_bytes} bytes in "
                f"{len(entries)} entries, as a bomb does; {max_inflated} times is allowed"
            )
        if any(entry.flag_bits & 1 for entry in entries):
            raise UnreadableError("the package is encrypted; save it without a password")
        for entry in entries:
            if entry.filename.lower().endswith((".xml", ".rels", ".hpf", ".xhtml", ".opf")):
                _require_no_entities(package, entry)


def _require_no_entities(package: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    with package.open(entry) as part:
        beginning = part.read(_PROLOGUE_BYTES).replace(b"\0", b"")  # UTF-16 likewise
    if b"<!ENTITY" in beginning:
        raise UnreadableError(f"{entry.filename} in the package declares XML entities")
