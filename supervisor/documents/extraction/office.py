"""The formats that kreuzberg reads: slides, sheets, e-mail, and those of older offices."""

from collections.abc import Sequence
from pathlib import Path

from supervisor.documents.extraction.formats import Format
from supervisor.documents.extraction.messages import UnreadableError

_MEDIA_TYPES = {
    Format.PPTX: "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    Format.XLSX: "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    Format.ODT: "application/vnd.oasis.opendocument.text",
    Format.EPUB: "application/epub+zip",
    Format.EMAIL: "message/rfc822",
    Format.OUTLOOK: "application/vnd.ms-outlook",
    Format.DOC: "application/msword",
    Format.PPT: "application/vnd.ms-powerpoint",
    Format.XLS: "application/vnd.ms-excel",
    Format.RTF: "application/rtf",
}


def pages_of_office(path: str, form: Format) -> tuple[Sequence[str], bool]:
    """Return the texts of pages or slides, and whether they are such. Raises UnreadableError."""
    import kreuzberg  # noqa: PLC0415 - 76 MB, for some documents only

    config = kreuzberg.ExtractionConfig(
        use_cache=False,
        enable_quality_processing=False,
        disable_ocr=True,  # type: ignore[call-arg]  # its stub is behind
        pages=kreuzberg.PageConfig(extract_pages=True),
    )
    try:
        result = kreuzberg.extract_bytes_sync(
            Path(path).read_bytes(), _MEDIA_TYPES[form], config=config
        )
    except Exception as error:  # whatever its readers raise
        raise UnreadableError(f"the {form.value.upper()} is damaged: {error}") from error
    content, pages = result.content.encode(), result.metadata.get("pages")
    boundaries = (pages or {}).get("boundaries") or ()
    if len(boundaries) < 2:
        return [result.content], False
    bounds = [(each["byte_start"], each["byte_end"]) for each in boundaries]
    return [content[start:end].decode(errors="ignore") for start, end in bounds], True
