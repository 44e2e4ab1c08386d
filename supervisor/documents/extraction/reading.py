"""A file into text, pages and chunks: what the child does, and nothing else touches the file."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from supervisor.documents.extraction.formats import Format, format_of
from supervisor.documents.extraction.html import text_of_html
from supervisor.documents.extraction.messages import (
    Limits,
    Outcome,
    Read,
    Task,
    Unread,
    UnreadableError,
)
from supervisor.documents.extraction.packages import require_harmless
from supervisor.documents.extraction.text import cleaned, decoded
from supervisor.documents.splitting import Splitter
from supervisor.documents.values import ReadDocument

_PAGE_END = "\n\n"
_LIBRARIES = {
    **dict.fromkeys(Format, "kreuzberg"),
    Format.TEXT: None,
    Format.MARKDOWN: None,
    Format.HTML: None,
    Format.PDF: "pypdfium2",
    Format.DOCX: "docx",
    Format.HWP: "olefile",
    Format.HWPX: "lxml",
}
_PACKAGES = frozenset({Format.DOCX, Format.PPTX, Format.XLSX, Format.ODT, Format.EPUB, Format.HWPX})


def read_document(path: str, task: Task, splitter: Splitter) -> Outcome:
    """Read a file, and divide its text. What is wrong with it is an outcome, too."""
    try:
        form = format_of(path, task.file_name, task.media_type)
        library = _LIBRARIES[form]
        if library is not None and find_spec(library) is None:
            return Unread(f"{library}, which reads {form.upper()}, is not installed", True)
        if form in _PACKAGES:
            require_harmless(path, task.limits.max_inflated)
        pages, are_pages = _pages(path, form, task.limits)
        text, page_starts = _joined(pages)
        _require_text(text, form, task.limits)
    except UnreadableError as error:
        return Unread(str(error))
    if not are_pages:
        page_starts = ()
    chunks = splitter.divide(text, page_starts, is_markdown=form is Format.MARKDOWN)
    return Read(ReadDocument(format=form.value, text=text, page_starts=page_starts, chunks=chunks))


def _require_text(text: str, form: Format, limits: Limits) -> None:
    if not text.strip():
        raise UnreadableError(
            f"there is no text in the {form.upper()}; if it is a scan, recognise its text first "
            "(OCR)"
        )
    if len(text) > limits.max_characters:
        raise UnreadableError(
            f"it has {len(text)} characters, and may have {limits.max_characters} "
            "(documents.max_characters)"
        )


def _pages(path: str, form: Format, limits: Limits) -> tuple[Sequence[str], bool]:
    """Return a document's texts, and whether they are its pages."""
    # A library is imported where a document needs it: it costs memory, and may be missing.
    text = _undivided(path, form, limits)
    if text is not None:
        return [text], False
    if form is Format.PDF:
        from supervisor.documents.extraction.pdf import pages_of_pdf  # noqa: PLC0415

        return list(pages_of_pdf(path, limits.max_pages)), True
    from supervisor.documents.extraction.office import pages_of_office  # noqa: PLC0415

    return pages_of_office(path, form)


def _undivided(path: str, form: Format, limits: Limits) -> str | None:
    """Return the text of a document of a format without pages; None for any other."""
    match form:
        case Format.TEXT | Format.MARKDOWN:
            return decoded(Path(path).read_bytes())
        case Format.HTML:
            return text_of_html(Path(path).read_bytes())
        case Format.DOCX:
            from supervisor.documents.extraction.docx import text_of_docx  # noqa: PLC0415

            return text_of_docx(path)
        case Format.HWP:
            from supervisor.documents.extraction.hwp import text_of_hwp  # noqa: PLC0415

            return text_of_hwp(path, limits.max_inflated)
        case Format.HWPX:
            from supervisor.documents.extraction.hwpx import text_of_hwpx  # noqa: PLC0415

            return text_of_hwpx(path)
        case _:
            return None


def _joined(pages: Sequence[str]) -> tuple[str, Sequence[int]]:
    """Return one text, and with which of its characters each page begins."""
    clean = [cleaned(page).strip() for page in pages]
    starts, at = [], 0
    for page in clean:
        starts.append(at)
        at += len(page) + len(_PAGE_END)
    return _PAGE_END.join(clean), starts
