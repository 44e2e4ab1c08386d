"""Text out of bytes: the encodings that plain text, Markdown and HTML come in."""

import codecs
import re
import unicodedata

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte order marks; UTF-32's begins as UTF-16's does, so it is looked for first."""

_BROKEN = "\ufffd"
_WHOLE_PER_BROKEN = 20
"""So many letters beyond ASCII for each broken one make a text UTF-8: of one in CP949 or CP1252
hardly any is valid in it."""

_UNWANTED = re.compile(r"[\0-\x08\x0b\x0e-\x1f\x7f\ufeff\ufffe\uffff]")
"""Control characters that no text means, and what PDFium gives for a hyphen at a line's end."""


def decoded(content: bytes, declared: str | None = None) -> str:
    """Return bytes as text: by their mark, as UTF-8, as is declared, or as CP949 or CP1252.

    A text that is UTF-8 but for a few bytes is taken for it. Old Korean files do not say that they
    are CP949 (which contains EUC-KR). Bytes that are valid in it are taken for it where most of
    what is not ASCII are Hangul syllables.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding, "replace")
    for encoding in ("utf-8", *([declared] if declared else ())):
        try:
            return content.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
    text = content.decode("utf-8", "replace")
    if text.count(_BROKEN) * _WHOLE_PER_BROKEN <= sum(letter > "\x7f" for letter in text):
        return text
    try:
        text = content.decode("cp949")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")
    foreign = [letter for letter in text if letter > "\x7f"]
    hangul = sum("가" <= letter <= "힣" for letter in foreign)
    return text if hangul * 2 >= len(foreign) else content.decode("cp1252", "replace")


def cleaned(text: str) -> str:
    """Return text as it is embedded: composed (NFC), lines ended by one mark, no control marks.

    macOS writes Hangul in parts (NFD), which most tokenizers do not know.
    """
    text = unicodedata.normalize("NFC", text)
    return _UNWANTED.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
