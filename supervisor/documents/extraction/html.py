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
        self._hidden: list[str] = []
        """The elements that we are in of which nothing is shown, the outermost first."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        is_hidden = tag in _HIDDEN or any(name == "hidden" for name, _ in attrs)
        if (is_hidden or self._hidden) and tag not in _VOID:
            self._hidden.append(tag)
        self._separate(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden:
            del self._hidden[self._hidden.index(tag, self._innermost(tag)) :]
        self._separate(tag)

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.pieces.append(data.replace("\n", " "))

    def _innermost(self, tag: str) -> int:
        return len(self._hidden) - 1 - self._hidden[::-1].index(tag)

    def _separate(self, tag: str) -> None:
        if tag in _CELLS:
            self.pieces.append(" ")
        elif tag not in _INLINE and not self._hidden:
            self.pieces.append("\n")
