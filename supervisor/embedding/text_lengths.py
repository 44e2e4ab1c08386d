"""Texts that are longer than their model takes, for servers that take no token ids.

Where a text is cut is found by counting the tokens of what is left: servers tokenise it anew.
"""

from collections.abc import Awaitable, Callable

from supervisor.embedding.values import Piece, Side

Count = Callable[[str], Awaitable[int]]
"""Tells how many tokens a text has, special ones included."""


async def cut_text(text: str, limit: int, side: Side, count: Count) -> Piece:
    """Return as much of a text as fits into `limit` tokens, or a little less.

    What is left shrinks in proportion until it fits. Raises ValueError where nothing does.
    """
    tokens = await count(text)
    while tokens > limit:
        if not text:
            raise ValueError(f"{limit} tokens leave no room beside {tokens} special ones")
        kept = min(len(text) - 1, len(text) * limit // tokens)
        text = text[:kept] if side is Side.RIGHT else text[len(text) - kept :]
        tokens = await count(text)
    return Piece(content=text, tokens=tokens)


async def divide_text(text: str, limit: int, count: Count) -> tuple[Piece, ...]:
    """Divide a text into parts of up to `limit` tokens, between words where there are any.

    Raises ValueError where a single character does not fit.
    """
    tokens = await count(text)
    if tokens <= limit:
        return (Piece(content=text, tokens=tokens),)
    if len(text) < 2:
        raise ValueError(f"{limit} tokens leave no room for a character")
    middle = len(text) // 2
    space = text.rfind(" ", middle // 2, middle)
    middle = space + 1 if space > 0 else middle
    first = await divide_text(text[:middle], limit, count)
    return first + await divide_text(text[middle:], limit, count)
