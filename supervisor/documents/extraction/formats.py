"""Which format a file is in: by its content, and by its name only where that does not tell."""

import zipfile
from enum import StrEnum
from pathlib import Path, PurePath

from supervisor.documents.extraction.messages import UnreadableError


class Format(StrEnum):
    """The formats that are read; each value is the usual suffix of file names."""

    PDF = "pdf"
    DOCX = "docx"
    HTML = "html"
    MARKDOWN = "md"
    TEXT = "txt"
    PPTX = "pptx"
    XLSX = "xlsx"
    ODT = "odt"
    EPUB = "epub"
    EMAIL = "eml"
    OUTLOOK = "msg"
    DOC = "doc"
    PPT = "ppt"
    XLS = "xls"
    RTF = "rtf"
    HWP = "hwp"
    HWPX = "hwpx"


_MAIN_PARTS = {
    "word/document.xml": Format.DOCX,
    "ppt/presentation.xml": Format.PPTX,
    "xl/workbook.xml": Format.XLSX,
}
"""The part of an Office Open XML package by which its kind is known (ECMA-376, part 1)."""

_MIMETYPES = {
    b"application/hwp+zip": Format.HWPX,
    b"application/epub+zip": Format.EPUB,
    b"application/vnd.oasis.opendocument.text": Format.ODT,
}
"""The first entry, `mimetype`, of a package that has one (ODF 1.3, part 2; OCF 3.3; OWPML)."""

_COMPOUND_FORMATS = (Format.HWP, Format.DOC, Format.PPT, Format.XLS, Format.OUTLOOK)
_COMPOUND_FILE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # [MS-CFB], 2.2
PLAIN_TEXT = "text/plain"
_TEXTS = {
    "htm": Format.HTML,
    "html": Format.HTML,
    "xhtml": Format.HTML,
    "md": Format.MARKDOWN,
    "markdown": Format.MARKDOWN,
    "eml": Format.EMAIL,
}
_MEDIA_TYPES = {
    "text/html": Format.HTML,
    "application/xhtml+xml": Format.HTML,
    "text/markdown": Format.MARKDOWN,
    "message/rfc822": Format.EMAIL,
}
_TEXT_BEGINNINGS = {
    b"{\\rtf": Format.RTF,
    b"<!doctype html": Format.HTML,
    b"<html": Format.HTML,
}
_LOOKED_AT_BYTES = 1024


def format_of(path: str, file_name: str | None, media_type: str | None) -> Format:
    """Return a file's format. Raises UnreadableError for one that is not read."""
    with Path(path).open("rb") as file:
        beginning = file.read(_LOOKED_AT_BYTES)
    if not beginning:
        raise UnreadableError("the file is empty")
    suffix = PurePath(file_name or "").suffix.lower().removeprefix(".")
    named = (media_type or "").partition(";")[0].strip().lower()
    if named == PLAIN_TEXT and file_name is None:
        return Format.TEXT  # a text that was written into a request may tell of any format
    if b"%PDF-" in beginning:
        return Format.PDF
    if beginning.startswith(b"PK\x03\x04"):
        return _format_of_package(path)
    if beginning.startswith(_COMPOUND_FILE):
        return _format_of_compound_file(suffix)
    if b"\0" in beginning and not beginning.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        raise _unknown("it is neither text nor in a format that is known")
    shown = beginning.lstrip().lower()
    told = [form for mark, form in _TEXT_BEGINNINGS.items() if shown.startswith(mark)]
    return told[0] if told else _TEXTS.get(suffix) or _MEDIA_TYPES.get(named) or Format.TEXT


def _format_of_package(path: str) -> Format:
    try:
        with zipfile.ZipFile(path) as package:
            names = set(package.namelist())
            mimetype = b""
            if "mimetype" in names:
                with package.open("mimetype") as entry:
                    mimetype = entry.read(100).strip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
        raise UnreadableError(f"the file is a damaged ZIP package: {error}") from error
    if mimetype in _MIMETYPES:
        return _MIMETYPES[mimetype]
    found = [form for part, form in _MAIN_PARTS.items() if part in names]
    if not found:
        raise _unknown("it is a ZIP package without a document in it")
    return found[0]


def _format_of_compound_file(suffix: str) -> Format:
    if suffix not in _COMPOUND_FORMATS:
        raise _unknown(f"its name does not tell which of {', '.join(_COMPOUND_FORMATS)} it is")
    return Format(suffix)


def _unknown(reason: str) -> UnreadableError:
    known = ", ".join(form.value.upper() for form in Format)
    return UnreadableError(f"the file is not read: {reason}; what is read: {known}")
