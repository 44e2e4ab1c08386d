"""The text of HTML: blocks as lines, cells apart, nothing that is not shown."""

import re
from html.parser import HTMLParser

from supervisor.documents.extraction.text import decoded

_HIDDEN = frozenset({"script", "style", "noscript", "template", "svg", "iframe", "object"})
_INLINE = frozenset(
    {
        *("a", "abbr", "b", "bdi", "bdo", "cite", "code", "del", "dfn", "em", "font", "i", "ins"),
        *("kbd", "label", "mark", "q", "s", "samp", "small", "span", "strong", "sub", "sup"),
        *("time", "tt", "u", "var", "wbr"),
    }
)
_CELLS = frozenset({"td", "th"})
_VOID = frozenset(
    {
        *("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source"),
        *("track", "wbr"),
    }
)
_ENDED_BY = {
    **dict.fromkeys(("dt", "dd"), ("dt", "dd")),
    **dict.fromkeys(("td", "th"), ("td", "th")),
    **dict.fromkeys(("tbody", "tfoot"), ("thead", "tbody", "tr", "td", "th")),
    "li": ("li",),
    "option": ("option",),
    "optgroup": ("optgroup", "option"),
    "tr": ("tr", "td", "th"),
}
"""Which elements end where one begins, if their end tags are left out (HTML, 13.1.2.4); a paragraph
ends where any block begins."""

_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w-]+)", re.IGNORECASE)
_LOOKED_AT_BYTES = 4096


def text_of_html(content: bytes) -> str:
    """Return what a page shows."""
    declared = _CHARSET.search(content[:_LOOKED_AT_BYTES])
    reader = _Reader()
    reader.feed(decoded(content, declared[1].decode("ascii") if declared else None))
    reader.close()
    lines = (" ".join(line.split()) for line in "".join(reader.pieces).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._open: list[str] = []
        """The elements that we are in, the outermost first."""
        self._shown: int | None = None
        """How many of them are shown, where one is hidden, and all within it."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        ended = _ENDED_BY.get(tag, () if tag in _INLINE else ("p",))
        while self._open and self._open[-1] in ended:
            self._leave(len(self._open) - 1)
        is_hidden = tag in _HIDDEN or any(name == "hidden" for name, _ in attrs)
        if tag not in _VOID:
            if is_hidden and self._shown is None:
                self._shown = len(self._open)
            self._open.append(tag)
        self._separate(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            self._leave(len(self._open) - 1 - self._open[::-1].index(tag))
        self._separate(tag)

    def handle_data(self, data: str) -> None:
        if self._shown is None:
            self.pieces.append(data.replace("\n", " "))

    def _leave(self, depth: int) -> None:
        """Leave the innermost elements, but for so many."""
        del self._open[depth:]
        if self._shown is not None and depth <= self._shown:
            self._shown = None

    def _separate(self, tag: str) -> None:
        if tag in _CELLS:
            self.pieces.append(" ")
        elif tag not in _INLINE and self._shown is None:
            self.pieces.append("\n")
