"""Every format that is read, and Korean in each."""

import zipfile
from pathlib import Path

import pytest
from lab.documents.pdf import write_pdf

from tests.documents.conftest import Reading
from tests.documents.files import (
    write_docx,
    write_hwp,
    write_hwpx,
    write_package,
    write_pptx,
    write_xlsx,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_pdf_gives_the_text_of_its_pages(read: Reading, tmp_path: Path) -> None:
    write_pdf(tmp_path / "보고서.pdf", ["첫째 쪽, with English.", "둘째 쪽: 결론"])

    document = await read(tmp_path / "보고서.pdf")

    assert document.text == "첫째 쪽, with English.\n\n둘째 쪽: 결론"
    assert list(document.page_starts) == [0, document.text.index("둘째")]


async def test_docx_gives_paragraphs_and_tables_in_their_order(
    read: Reading, tmp_path: Path
) -> None:
    document = await read(write_docx(tmp_path / "문서.docx"))

    assert document.text.split("\n\n") == [
        "머리글",
        "첫 문단입니다.",
        "이름 | 가격\n사과 | 3,000원",
        "마지막 문단입니다.",
        "바닥글",
    ]


async def test_slides_are_pages(read: Reading, tmp_path: Path) -> None:
    document = await read(write_pptx(tmp_path / "발표.pptx", ["첫 장", "둘째 장"]))

    assert (document.text, len(document.page_starts)) == ("첫 장\n\n둘째 장", 2)


async def test_sheets_are_read(read: Reading, tmp_path: Path) -> None:
    document = await read(write_xlsx(tmp_path / "표.xlsx", [["이름", "수"], ["사과", "셋"]]))

    assert document.text.split() == ["판매", "이름", "수", "사과", "셋"]


async def test_hwp_gives_its_paragraphs(read: Reading, tmp_path: Path) -> None:
    document = await read(write_hwp(tmp_path / "공문.hwp", ["첫 문단입니다.", "둘째 문단입니다."]))

    assert document.text == "첫 문단입니다.\n둘째 문단입니다."


async def test_hwpx_gives_paragraphs_and_tables(read: Reading, tmp_path: Path) -> None:
    file = write_hwpx(tmp_path / "공문.hwpx", ["첫 문단"], [["이름", "값"], ["사과", "셋"]])

    document = await read(file)

    assert document.text == "첫 문단\n\n이름 | 값\n사과 | 셋"


async def test_mail_gives_subject_and_text(read: Reading, tmp_path: Path) -> None:
    (tmp_path / "메일.eml").write_bytes(
        b"From: a@example.org\r\nSubject: =?utf-8?b?7KCc66qp?=\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n\r\n" + "본문입니다.".encode()
    )

    text = (await read(tmp_path / "메일.eml")).text

    assert "제목" in text
    assert "본문입니다." in text


@pytest.mark.parametrize(
    ("content", "encoding"),
    [("한국어 문서입니다.", "utf-8"), ("한국어 문서입니다.", "cp949"), ("한국어", "utf-16")],
)
async def test_korean_text_is_read_in_whatever_encoding(
    read: Reading, tmp_path: Path, content: str, encoding: str
) -> None:
    (tmp_path / "a.txt").write_bytes(content.encode(encoding))

    assert (await read(tmp_path / "a.txt")).text == content


async def test_western_text_is_not_taken_for_korean(read: Reading, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Müller fährt über die Straße".encode("cp1252"))

    assert (await read(tmp_path / "a.txt")).text == "Müller fährt über die Straße"


async def test_one_broken_byte_does_not_make_a_text_of_utf8_another(
    read: Reading, tmp_path: Path
) -> None:
    line = "한국어 문서의 한 줄입니다.\n"
    (tmp_path / "a.txt").write_bytes(line.encode() + b"\xff\n" + line.encode())

    assert (await read(tmp_path / "a.txt")).text.split("\n") == [
        line.strip(),
        "\ufffd",
        line.strip(),
    ]


async def test_hangul_in_parts_is_composed(read: Reading, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\u1112\u1161\u11ab")  # as macOS writes it

    assert (await read(tmp_path / "a.txt")).text == "한"


async def test_html_gives_what_a_page_shows(read: Reading, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        "<title>제목</title><style>p{}</style><p>문단 <b>하</b>나<p hidden>숨김</p>"
        "<table><tr><td>가<td>나</table><script>no()</script>"
    )

    assert (await read(tmp_path / "a.html")).text.split() == ["제목", "문단", "하나", "가", "나"]


@pytest.mark.parametrize(
    "page",
    [
        "<ul><li>one<li hidden>no<li>two</ul><p>three",
        "<ul><li>one<li hidden>no</ul><p>two</p>three",
        "<p>one<p hidden>no <b>no</b><div>two</div>three",
        "<table><tr><td>one<td hidden>no<td>two<tr hidden><td>no<tr><td>three</table>",
        "one<p hidden>no<br>no <img src=x>no <button>no</button> no<p>two<p>three",
        "one<table><tr><td hidden><p>no <b>no<td>two</table><div><p hidden>no</div>three",
        "one<div hidden><ul><li>no</ul><br>no</div>two<span hidden>no</span> three",
    ],
)
async def test_what_is_hidden_ends_where_its_element_does_also_without_an_end_tag(
    read: Reading, tmp_path: Path, page: str
) -> None:
    (tmp_path / "a.html").write_text(page)

    assert (await read(tmp_path / "a.html")).text.split() == ["one", "two", "three"]


async def test_markdown_is_divided_at_its_headings(read: Reading, tmp_path: Path) -> None:
    sections = [f"# 제목 {n}\n\n" + "문장입니다. " * 3 for n in range(3)]
    (tmp_path / "a.md").write_text("\n\n".join(sections))

    chunks = (await read(tmp_path / "a.md")).chunks

    assert [chunk.text.split("\n")[0] for chunk in chunks] == ["# 제목 0", "# 제목 1", "# 제목 2"]


async def test_content_tells_the_format_whatever_the_name(read: Reading, tmp_path: Path) -> None:
    write_pdf(tmp_path / "a", ["PDF without a suffix"])

    assert (await read(tmp_path / "a", file_name="notes.txt")).format == "pdf"


async def test_media_type_tells_what_a_name_does_not(read: Reading, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("<p>one</p>")

    assert (await read(tmp_path / "a", media_type="text/html; charset=utf-8")).text == "one"


async def test_package_without_a_document_is_refused(read: Reading, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="ZIP package without a document"):
        await read(write_package(tmp_path / "a.zip", {"notes.txt": "text"}))


async def test_docx_is_read_with_its_insertions_and_content_controls(
    read: Reading, tmp_path: Path
) -> None:
    with zipfile.ZipFile(write_docx(tmp_path / "plain.docx")) as package:
        parts = {name: package.read(name) for name in package.namelist()}
    run = "<w:r><w:t>{}</w:t></w:r>".format
    wrapped = (
        f"<w:p>{run('one ')}<w:ins w:id='1'>{run('inserted ')}</w:ins>"
        f"<w:del w:id='2'><w:r><w:delText>deleted</w:delText></w:r></w:del>"
        f"<w:sdt><w:sdtPr/><w:sdtContent>{run('controlled')}</w:sdtContent></w:sdt></w:p>"
        f"<w:sdt><w:sdtContent><w:p>{run('block')}</w:p></w:sdtContent></w:sdt>"
    )
    body = parts["word/document.xml"].replace(b"<w:body>", f"<w:body>{wrapped}".encode())
    file = write_package(tmp_path / "a.docx", {**parts, "word/document.xml": body})

    text = (await read(file)).text

    assert "one inserted controlled\n\nblock\n\n" in text
    assert "deleted" not in text
