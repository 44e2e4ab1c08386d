"""The text of HTML: blocks as lines, cells apart, nothing that is not shown."""

import re
from collections import Counter
from collections.abc import Collection
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
    **dict.fromkeys(
        (
            *("address", "article", "aside", "blockquote", "details", "div", "dl", "fieldset"),
            *("figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6"),
            *("header", "hgroup", "hr", "main", "menu", "nav", "ol", "p", "pre", "search"),
            *("section", "table", "ul"),
        ),
        ("p",),
    ),
    "li": ("li",),
    "option": ("option",),
    "optgroup": ("optgroup", "option"),
    "tr": ("tr", "td", "th"),
}
"""Which elements end where one begins, if their end tags are left out (HTML, 13.1.2.4)."""

_LEFT_OPEN = _INLINE | {"p"}
"""What may stand open above an element that ends so."""

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
        self._shown: Counter[str] = Counter()
        """How many of each element we are in of which everything is shown."""
        self._hidden: list[str] = []
        """The elements that we are in of which nothing is, the outermost first."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._hidden:
            self._end_siblings(_ENDED_BY.get(tag, ()))
        is_hidden = tag in _HIDDEN or any(name == "hidden" for name, _ in attrs)
        if tag not in _VOID:
            if is_hidden or self._hidden:
                self._hidden.append(tag)
            else:
                self._shown[tag] += 1
        self._separate(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden:
            del self._hidden[len(self._hidden) - 1 - self._hidden[::-1].index(tag) :]
        elif self._shown[tag]:
            self._shown[tag] -= 1
            if tag not in _INLINE:  # a block ends what is in it, too
                self._hidden.clear()
        self._separate(tag)

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.pieces.append(data.replace("\n", " "))

    def _end_siblings(self, ended: Collection[str]) -> None:
        """End what an element ends by its beginning, with what was left open in that."""
        at = kept = len(self._hidden)
        while at and (self._hidden[at - 1] in ended or self._hidden[at - 1] in _LEFT_OPEN):
            at -= 1
            if self._hidden[at] in ended:
                kept = at
        del self._hidden[kept:]

    def _separate(self, tag: str) -> None:
        if tag in _CELLS:
            self.pieces.append(" ")
        elif tag not in _INLINE and not self._hidden:
            self.pieces.append("\n")
