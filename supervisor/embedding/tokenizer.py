"""The port of tokenizers, and what reads a model's own `tokenizer.json`.

The library is imported when the first such model is asked for, and not before: most of what this
product does needs no tokens.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from supervisor.embedding.lengths import Frame, Ids
from supervisor.embedding.values import Token
from supervisor.engine.models.tokenizer_file import REMEDY, read_tokenizer_file
from supervisor.errors import ModelFileError, RequestRefused

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

_INLINE_CHARACTERS = 1000
"""Up to so many characters are tokenised at once: it takes less than a millisecond, and a change of
thread takes a tenth of that."""


class Tokenized(NamedTuple):
    """The token ids of texts, each in the model's frame of special tokens."""

    ids: Sequence[Ids]
    frame: Frame = Frame()


class Tokenizer(Protocol):
    """Knows the tokens of texts."""

    async def encode(self, texts: Sequence[str]) -> Tokenized:
        """Return each text's tokens. Raises RequestRefused."""
        ...


class ModelTokenizer(Tokenizer, Protocol):
    """The tokenizer out of a model's own file."""

    @property
    def vocabulary_size(self) -> int:
        """How many tokens it knows: ids are below."""
        ...

    async def told(self, text: str, *, adds_special: bool) -> list[Token]:
        """Return a text's tokens, each with where it stands. Raises RequestRefused."""
        ...


class FileTokenizer:
    """A model's `tokenizer.json`, without the truncation and padding that may stand in it."""

    def __init__(self, path: Path) -> None:
        """Read it. Raises RequestRefused `extra_missing`, and ModelFileError.

        Blocks, and the library keeps the interpreter's lock: no thread runs for 25 ms with 30,000
        tokens, for 1.3 s with 250,000.
        """
        self._library = _read(path)
        self._frame = _frame_of(self._library)

    @property
    def vocabulary_size(self) -> int:
        """How many tokens it knows: ids are below."""
        size: int = self._library.get_vocab_size(with_added_tokens=True)
        return size

    async def encode(self, texts: Sequence[str]) -> Tokenized:
        """Return each text's tokens; many or long ones are left to a thread."""
        if sum(map(len, texts)) <= _INLINE_CHARACTERS:
            return self._encode(texts)
        return await asyncio.to_thread(self._encode, texts)

    async def told(self, text: str, *, adds_special: bool) -> list[Token]:
        """Return a text's tokens, each with where it stands; a long one's are left to a thread."""
        if len(text) <= _INLINE_CHARACTERS:
            return self._told(text, adds_special=adds_special)
        return await asyncio.to_thread(self._told, text, adds_special=adds_special)

    def _told(self, text: str, *, adds_special: bool) -> list[Token]:
        # Alone (`encode`), a text is tokenised with the interpreter's lock kept.
        [encoding] = self._library.encode_batch([text], add_special_tokens=adds_special)
        return [
            Token(id=number, text=name, special=True)
            if is_special
            else Token(id=number, text=text[start:stop], start=start, stop=stop)
            for number, name, is_special, (start, stop) in zip(
                encoding.ids,
                encoding.tokens,
                encoding.special_tokens_mask,
                encoding.offsets,
                strict=True,
            )
        ]

    def _encode(self, texts: Sequence[str]) -> Tokenized:
        encodings = self._library.encode_batch_fast(list(texts))
        return Tokenized([tuple(each.ids) for each in encodings], self._frame)


def _read(path: Path) -> "Library":
    try:
        from tokenizers import Tokenizer as Library  # noqa: PLC0415 - an extra, and 6 MB
    except ImportError as error:
        raise RequestRefused(
            "extra_missing",
            f"{path.name} is the tokenizer of this model, and what reads it is not installed: "
            f"{REMEDY}",
        ) from error
    content = read_tokenizer_file(path)
    try:
        library: Library = Library.from_buffer(content)
    except Exception as error:  # the library raises nothing narrower
        raise ModelFileError(f"{path}: it cannot be used: {error}") from error
    library.no_truncation()
    library.no_padding()
    return library


def _frame_of(library: "Library") -> Frame:
    """Return what its post-processor puts around a text, as it does around any letter."""
    encoding = library.encode("a")
    mask, ids = encoding.special_tokens_mask, tuple(encoding.ids)
    if 0 not in mask:
        return Frame(head=ids)
    head = mask.index(0)
    tail = mask[::-1].index(0)
    return Frame(head=ids[:head], tail=ids[len(ids) - tail :])
