"""Files of each format that is read, as small as their readers take them."""

import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import docx

_XML = '<?xml version="1.0" encoding="UTF-8"?>'
_OOXML = "http://schemas.openxmlformats.org"
_OFFICE = f"{_OOXML}/officeDocument/2006/relationships"


def write_docx(path: Path) -> Path:
    document = docx.Document()
    document.sections[0].header.paragraphs[0].text = "머리글"
    document.sections[0].footer.paragraphs[0].text = "바닥글"
    document.add_paragraph("첫 문단입니다.")
    table = document.add_table(rows=2, cols=2)
    for cell, text in zip(table._cells, ("이름", "가격", "사과", "3,000원"), strict=True):
        cell.text = text
    document.add_paragraph("마지막 문단입니다.")
    document.save(str(path))
    return path


def write_pptx(path: Path, slides: Sequence[str]) -> Path:
    drawing, slide_type = f"{_OOXML}/drawingml/2006/main", f"{_OFFICE}/slide"
    main = f"{_OOXML}/presentationml/2006/main"
    parts = {
        "ppt/presentation.xml": f'{_XML}<p:presentation xmlns:p="{main}" xmlns:r="{_OFFICE}">'
        "<p:sldIdLst>"
        + "".join(f'<p:sldId id="{256 + n}" r:id="rId{n}"/>' for n in range(1, len(slides) + 1))
        + "</p:sldIdLst></p:presentation>",
        "ppt/_rels/presentation.xml.rels": _relations(
            {f"rId{n}": (slide_type, f"slides/slide{n}.xml") for n in range(1, len(slides) + 1)}
        ),
    }
    for number, text in enumerate(slides, 1):
        parts[f"ppt/slides/slide{number}.xml"] = (
            f'{_XML}<p:sld xmlns:p="{main}" xmlns:a="{drawing}"><p:cSld><p:spTree><p:sp><p:txBody>'
            f"<a:p><a:r><a:t>{text}</a:t></a:r></a:p></p:txBody></p:sp></p:spTree></p:cSld></p:sld>"
        )
    return _write_ooxml(path, "ppt/presentation.xml", parts)


def write_xlsx(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    main = f"{_OOXML}/spreadsheetml/2006/main"
    cells = "".join(
        f'<row r="{r}">'
        + "".join(
            f'<c r="{chr(64 + c)}{r}" t="inlineStr"><is><t>{text}</t></is></c>'
            for c, text in enumerate(row, 1)
        )
        + "</row>"
        for r, row in enumerate(rows, 1)
    )
    parts = {
        "xl/workbook.xml": f'{_XML}<workbook xmlns="{main}" xmlns:r="{_OFFICE}"><sheets>'
        '<sheet name="판매" sheetId="1" r:id="rId1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": _relations(
            {"rId1": (f"{_OFFICE}/worksheet", "worksheets/sheet1.xml")}
        ),
        "xl/worksheets/sheet1.xml": f'{_XML}<worksheet xmlns="{main}"><sheetData>{cells}'
        "</sheetData></worksheet>",
    }
    return _write_ooxml(path, "xl/workbook.xml", parts)


def write_hwpx(path: Path, paragraphs: Sequence[str], table: Sequence[Sequence[str]] = ()) -> Path:
    base = "http://www.hancom.co.kr/hwpml/2011"
    body = "".join(f"<hp:p><hp:run><hp:t>{text}</hp:t></hp:run></hp:p>" for text in paragraphs)
    if table:
        rows = "".join(
            "<hp:tr>"
            + "".join(
                f"<hp:tc><hp:subList><hp:p><hp:run><hp:t>{text}</hp:t></hp:run></hp:p>"
                "</hp:subList></hp:tc>"
                for text in row
            )
            + "</hp:tr>"
            for row in table
        )
        body += f"<hp:p><hp:run><hp:tbl>{rows}</hp:tbl></hp:run></hp:p>"
    section = f'{_XML}<hs:sec xmlns:hs="{base}/section" xmlns:hp="{base}/paragraph">{body}</hs:sec>'
    return write_package(
        path, {"mimetype": "application/hwp+zip", "Contents/section0.xml": section}
    )


def write_hwp(path: Path, paragraphs: Sequence[str]) -> Path:
    """Write an HWP 5.0 file: a compound file with a header and one section of records."""
    header = b"HWP Document File".ljust(32, b"\0") + struct.pack("<BBBB", 0, 1, 0, 5)
    header += struct.pack("<I", 1)  # compressed
    records = b"".join(_hwp_paragraph(text) for text in paragraphs)
    deflate = zlib.compressobj(wbits=-15)
    section = deflate.compress(records) + deflate.flush()
    path.write_bytes(_compound_file(header.ljust(256, b"\0"), section))
    return path


def write_package(path: Path, parts: Mapping[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as package:
        for name, content in parts.items():
            package.writestr(name, content)
    return path


def _write_ooxml(path: Path, main_part: str, parts: Mapping[str, str]) -> Path:
    kinds = {
        "ppt/presentation.xml": "presentationml.presentation",
        "xl/workbook.xml": "spreadsheetml.sheet",
    }
    kind = f"application/vnd.openxmlformats-officedocument.{kinds[main_part]}.main+xml"
    types = (
        f'{_XML}<Types xmlns="{_OOXML}/package/2006/content-types">'
        '<Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Default Extension="xml" ContentType="application/xml"/>'
        f'<Override PartName="/{main_part}" ContentType="{kind}"/></Types>'
    )
    relations = _relations({"rId1": (f"{_OFFICE}/officeDocument", main_part)})
    return write_package(path, {"[Content_Types].xml": types, "_rels/.rels": relations, **parts})


def _relations(targets: Mapping[str, tuple[str, str]]) -> str:
    lines = "".join(
        f'<Relationship Id="{name}" Type="{kind}" Target="{target}"/>'
        for name, (kind, target) in targets.items()
    )
    return (
        f'{_XML}<Relationships xmlns="{_OOXML}/package/2006/relationships">{lines}</Relationships>'
    )


def _hwp_paragraph(text: str) -> bytes:
    content = (text + "\r").encode("utf-16-le")
    head = struct.pack("<IIHBBHHHI", len(text) + 1, 0, 0, 0, 0, 1, 0, 1, 0)
    return _hwp_record(66, 0, head) + _hwp_record(67, 1, content)


def _hwp_record(tag: int, level: int, content: bytes) -> bytes:
    return struct.pack("<I", tag | level << 10 | len(content) << 20) + content


_SECTOR = 512
_END, _FREE, _FAT, _NONE = 0xFFFFFFFE, 0xFFFFFFFF, 0xFFFFFFFD, 0xFFFFFFFF


def _compound_file(header: bytes, section: bytes) -> bytes:
    """Return a compound file ([MS-CFB], version 3) with `FileHeader` and `BodyText/Section0`.

    Streams are padded to 4 KiB, from which on they need no small sectors.
    """
    streams = [
        content.ljust(max(4096, -(-len(content) // _SECTOR) * _SECTOR), b"\0")
        for content in (header, section)
    ]
    fat, starts, sectors = [_FAT, 2, _END], [], b""
    for content in streams:
        first, count = len(fat), len(content) // _SECTOR
        starts.append(first)
        fat += [*range(first + 1, first + count), _END]
        sectors += content
    fat += [_FREE] * (_SECTOR // 4 - len(fat))
    entries = [
        _entry("Root Entry", 5, child=2, start=_END),
        _entry("BodyText", 1, child=3),
        _entry("FileHeader", 2, left=1, start=starts[0], size=len(streams[0])),
        _entry("Section0", 2, start=starts[1], size=len(streams[1])),
        *[bytes(128)] * 4,
    ]
    head = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(16)
    head += struct.pack(
        "<HHHHH6xIIIIIIIIII", 0x3E, 3, 0xFFFE, 9, 6, 0, 1, 1, 0, 4096, _END, 0, _END, 0, 0
    )
    head += struct.pack("<108I", *[_NONE] * 108)
    return head + struct.pack("<128I", *fat) + b"".join(entries) + sectors


def _entry(  # noqa: PLR0917
    name: str, kind: int, left: int = _NONE, child: int = _NONE, start: int = 0, size: int = 0
) -> bytes:
    text = (name + "\0").encode("utf-16-le")
    tree = struct.pack("<BBIII", kind, 1, left, _NONE, child)
    return (
        text.ljust(64, b"\0")
        + struct.pack("<H", len(text))
        + tree
        + bytes(36)
        + struct.pack("<IQ", start, size)
    )
