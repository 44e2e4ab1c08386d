"""The text of HWPX, the XML format of Hancom's word processor (OWPML, KS X 6101).

kreuzberg 4.10 lists the format and has no reader for it.
"""

import re
import zipfile
from collections.abc import Iterator
from typing import Any

from lxml import etree

from supervisor.documents.extraction.messages import UnreadableError

_SECTION = re.compile(r"Contents/section(\d+)\.xml")
_PARAGRAPH, _TEXT, _TABLE, _ROW, _CELL = "p", "t", "tbl", "tr", "tc"
_IN_TEXT = {"tab": "\t", "lineBreak": "\n", "nbSpace": " ", "fwSpace": " "}


def text_of_hwpx(path: str) -> str:
    """Return paragraphs and tables as they follow. Raises UnreadableError."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True)
    try:
        with zipfile.ZipFile(path) as package:
            names = [name for name in package.namelist() if _SECTION.fullmatch(name)]
            names.sort(key=lambda name: int(_SECTION.fullmatch(name)[1]))  # type: ignore[index]
            sections = [etree.fromstring(package.read(name), parser) for name in names]
    except (zipfile.BadZipFile, etree.XMLSyntaxError, OSError, RuntimeError) as error:
        raise UnreadableError(f"the HWPX is damaged: {error}") from error
    return "\n".join(block for section in sections for block in _blocks(section))


def _blocks(parent: Any) -> Iterator[str]:
    for child in parent.iterchildren(tag=etree.Element):
        if _name(child) == _PARAGRAPH:
            yield _words(child)
            yield from _tables(child)
        else:
            yield from _blocks(child)


def _words(paragraph: Any) -> str:
    """Return a paragraph's own text; that of tables in it is theirs."""
    return "".join(_pieces(paragraph))


def _pieces(element: Any) -> Iterator[str]:
    for child in element.iterchildren(tag=etree.Element):
        if _name(child) == _TEXT:
            yield child.text or ""
            for mark in child.iterchildren(tag=etree.Element):
                yield _IN_TEXT.get(_name(mark), "") + (mark.tail or "")
        elif _name(child) != _TABLE:
            yield from _pieces(child)


def _tables(element: Any) -> Iterator[str]:
    for child in element.iterchildren(tag=etree.Element):
        if _name(child) == _TABLE:
            rows = (row for row in child.iterchildren(tag=etree.Element) if _name(row) == _ROW)
            yield "\n".join(" | ".join(_cells(row)) for row in rows)
        else:
            yield from _tables(child)


def _cells(row: Any) -> Iterator[str]:
    for cell in row.iterchildren(tag=etree.Element):
        if _name(cell) == _CELL:
            yield " ".join(" ".join(_blocks(cell)).split())


def _name(element: Any) -> str:
    return str(etree.QName(element).localname)
