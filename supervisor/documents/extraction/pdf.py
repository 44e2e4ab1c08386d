"""The text of PDF files, page by page, by PDFium."""

from collections.abc import Iterator

import pypdfium2

from supervisor.documents.extraction.messages import UnreadableError


def pages_of_pdf(path: str, max_pages: int) -> Iterator[str]:
    """Yield each page's text. Raises UnreadableError."""
    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        reason = "it is encrypted; save it without a password" if "assword" in str(error) else error
        raise UnreadableError(f"the PDF cannot be opened: {reason}") from error
    with document:
        if len(document) > max_pages:
            raise UnreadableError(
                f"the PDF has {len(document)} pages, and may have {max_pages} (documents.max_pages)"
            )
        for number in range(len(document)):
            try:
                page = document[number]
                yield page.get_textpage().get_text_range()
                page.close()
            except pypdfium2.PdfiumError as error:
                raise UnreadableError(
                    f"page {number + 1} of the PDF is damaged: {error}"
                ) from error
