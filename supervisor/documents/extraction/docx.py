"""The text of DOCX files: paragraphs and tables as they follow, between headers and footers."""

from collections.abc import Iterator
from typing import Any

import docx
from docx.oxml.ns import qn
from docx.table import Table

from supervisor.documents.extraction.messages import UnreadableError

_WRAPPERS = tuple(
    qn(f"w:{name}")
    for name in ("sdt", "sdtContent", "ins", "moveTo", "smartTag", "customXml", "fldSimple")
)
"""What stands around paragraphs and runs without being a part of the text, such as content controls
and insertions that are tracked (ECMA-376); the library looks into none of them."""


def text_of_docx(path: str) -> str:
    """Return what a document says. Raises UnreadableError."""
    try:
        document = docx.Document(path)
        for part in (document, *_headers_and_footers(document)):
            _unwrap(part._element)  # noqa: SLF001 - the library has no other way to its XML
        headers = [line for section in document.sections for line in _blocks(section.header)]
        footers = [line for section in document.sections for line in _blocks(section.footer)]
        body = list(_blocks(document))
    except Exception as error:  # the library lets out whatever its XML and ZIP readers raise
        raise UnreadableError(f"the DOCX is damaged: {type(error).__name__}: {error}") from error
    # Each section repeats its header where it has none of its own.
    return "\n\n".join([*dict.fromkeys(headers), *body, *dict.fromkeys(footers)])


def _headers_and_footers(document: Any) -> Iterator[Any]:
    for section in document.sections:
        yield from (
            each for each in (section.header, section.footer) if not each.is_linked_to_previous
        )


def _unwrap(element: Any) -> None:
    """Put what is wrapped in the place of its wrapper."""
    for wrapper in list(element.iter(*_WRAPPERS)):
        for child in list(wrapper):
            wrapper.addprevious(child)
        wrapper.getparent().remove(wrapper)


def _blocks(container: Any) -> Iterator[str]:
    """Yield paragraphs, and tables row by row; cells that are joined are told once."""
    for block in container.iter_inner_content():
        if isinstance(block, Table):
            yield "\n".join(" | ".join(_cells(row)) for row in block.rows)
        elif block.text.strip():
            yield block.text


def _cells(row: Any) -> Iterator[str]:
    cells = {id(cell._tc): cell for cell in row.cells}  # noqa: SLF001 - a joined cell is one of it
    for cell in cells.values():
        yield " ".join(" ".join(_blocks(cell)).split())
