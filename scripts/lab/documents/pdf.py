"""PDF files with text in any script, made without a library or a font.

The font is a composite one that is not embedded: its codes are UTF-16 units, which a ToUnicode map
gives back (ISO 32000-1, 9.7 and 9.10.3). Readers extract the text; what they would draw is
another matter.
"""

from collections.abc import Sequence
from pathlib import Path

_TO_UNICODE = b"""/CIDInit /ProcSet findresource begin 12 dict begin begincmap
/CMapName /UTF-16 def /CMapType 2 def
1 begincodespacerange <0000> <FFFF> endcodespacerange
%s
endcmap CMapName currentdict /CMap defineresource pop end end"""
_LINE_HEIGHT = 14
_LINES_PER_PAGE = 55


def write_pdf(path: Path, pages: Sequence[str], *, padding_bytes: int = 0) -> None:
    """Write a PDF with a page for each text; `padding_bytes`: of a stream that nobody reads."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", *_font()]
    first_page = len(objects) + 1
    for text in pages:
        number = len(objects) + 1
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents %d 0 R "
            b"/Resources << /Font << /F 3 0 R >> >> >>" % (number + 1)
        )
        objects.append(_stream(_content(text)))
    kids = b" ".join(b"%d 0 R" % (first_page + 2 * index) for index in range(len(pages)))
    objects[1] = b"<< /Type /Pages /Kids [%b] /Count %d >>" % (kids, len(pages))
    if padding_bytes:
        objects.append(_stream(bytes(padding_bytes)))
    path.write_bytes(_file(objects))


def _font() -> tuple[bytes, ...]:
    """Return objects 3 to 6: the font, its descendant, the descendant's metrics, the map."""
    ranges = [b"<%02X00> <%02XFF> <%02X00>" % (high, high, high) for high in range(256)]
    parts = [ranges[at : at + 100] for at in range(0, len(ranges), 100)]  # as many as one may have
    maps = b"\n".join(
        b"%d beginbfrange\n%b\nendbfrange" % (len(part), b"\n".join(part)) for part in parts
    )
    font = (
        b"<< /Type /Font /Subtype /Type0 /BaseFont /Batang /Encoding /Identity-H "
        b"/DescendantFonts [4 0 R] /ToUnicode 6 0 R >>"
    )
    descendant = (
        b"<< /Type /Font /Subtype /CIDFontType2 /BaseFont /Batang /FontDescriptor 5 0 R /DW 600 "
        b"/CIDSystemInfo << /Registry (Adobe) /Ordering (Identity) /Supplement 0 >> >>"
    )
    metrics = (
        b"<< /Type /FontDescriptor /FontName /Batang /Flags 4 /FontBBox [0 -200 1000 900] "
        b"/ItalicAngle 0 /Ascent 900 /Descent -200 /CapHeight 700 /StemV 80 >>"
    )
    return font, descendant, metrics, _stream(_TO_UNICODE % maps)


def _content(text: str) -> bytes:
    lines = text.split("\n")[:_LINES_PER_PAGE]
    shown = b" T*\n".join(b"<%b> Tj" % line.encode("utf-16-be").hex().encode() for line in lines)
    return b"BT /F 10 Tf %d TL 40 800 Td\n%b\nET" % (_LINE_HEIGHT, shown)


def _stream(content: bytes) -> bytes:
    return b"<< /Length %d >>\nstream\n%b\nendstream" % (len(content), content)


def _file(objects: Sequence[bytes]) -> bytes:
    file = bytearray(b"%PDF-1.7\n")
    places = []
    for number, content in enumerate(objects, 1):
        places.append(len(file))
        file += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    at = len(file)
    file += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    file += b"".join(b"%010d 00000 n \n" % place for place in places)
    file += b"trailer << /Size %d /Root 1 0 R >>\n" % (len(objects) + 1)
    return bytes(file + b"startxref\n%d\n%%%%EOF\n" % at)
