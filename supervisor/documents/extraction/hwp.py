"""The text of HWP 5.0, the binary format of Hancom's word processor.

A compound file with a stream of records for each section (Hancom, "HWP Document File Formats 5.0",
3.2, 4.3). kreuzberg 4.10 looks for other record numbers, and finds no text in real files.
"""

import os
import re
import zlib
from collections.abc import Iterator
from struct import unpack_from

import olefile

from supervisor.documents.extraction.messages import UnreadableError

_IS_COMPRESSED, _IS_ENCRYPTED, _IS_FOR_DISTRIBUTION = 1, 2, 4  # properties of the file header
_PARAGRAPH_TEXT = 16 + 51  # HWPTAG_PARA_TEXT
_EXTENDED_SIZE = 0xFFF
"""The size in a record's head where it has not enough bits: four more bytes follow."""

_LONG_CONTROL = re.compile(r"[\x01-\x09\x0b\x0c\x0e-\x17].{7}", re.DOTALL)
"""Inline and extended controls take eight UTF-16 units; the ninth is a tab (table 6)."""

_SHORT_CONTROL = str.maketrans(
    {0: None, 10: "\n", 13: None, 24: "-", 30: "\xa0", 31: " ", **dict.fromkeys(range(25, 30))}
)


def text_of_hwp(path: str, max_inflated: int) -> str:
    """Return the paragraphs of all sections, those in tables where they stand.

    `max_inflated`: how many times larger than the file its sections may be. Raises UnreadableError.
    """
    try:
        with olefile.OleFileIO(path) as file:
            properties = unpack_from("<I", file.openstream("FileHeader").read(40), 36)[0]
            _require_readable(properties)
            bound_bytes = max_inflated * max(1024 * 1024, os.stat(path).st_size)  # noqa: PTH116
            sections: list[str] = []
            while file.exists(name := f"BodyText/Section{len(sections)}"):
                content = file.openstream(name).read()
                if properties & _IS_COMPRESSED:
                    content = zlib.decompressobj(-15).decompress(content, bound_bytes)
                sections.append("\n".join(_paragraphs(content)))
    except (OSError, zlib.error, ValueError) as error:
        raise UnreadableError(f"the HWP is damaged: {error}") from error
    return "\n".join(sections)


def _require_readable(properties: int) -> None:
    if properties & _IS_ENCRYPTED:
        raise UnreadableError("the HWP is encrypted; save it without a password")
    if properties & _IS_FOR_DISTRIBUTION:
        raise UnreadableError("the HWP is saved for distribution, which is encrypted; save it anew")


def _paragraphs(content: bytes) -> Iterator[str]:
    at = 0
    while at + 4 <= len(content):
        (head,) = unpack_from("<I", content, at)
        at, size = at + 4, head >> 20
        if size == _EXTENDED_SIZE and at + 4 <= len(content):
            (size,) = unpack_from("<I", content, at)
            at += 4
        if head & 0x3FF == _PARAGRAPH_TEXT:
            text = content[at : at + size].decode("utf-16-le", "replace")
            text = _LONG_CONTROL.sub(lambda control: "\t" if control[0][0] == "\t" else "", text)
            yield text.translate(_SHORT_CONTROL)
        at += size
