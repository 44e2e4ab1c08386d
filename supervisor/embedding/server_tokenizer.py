"""A model's tokens as its own server tells them, kept by text.

Asking takes a lease, as computing does: the model's server must live for it. What was asked lately
is known without.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from supervisor.core.machine.values import Target
from supervisor.core.scheduling.values import Priority
from supervisor.embedding.lengths import Frame, Ids
from supervisor.embedding.servers import Servers
from supervisor.embedding.tokenizer import Tokenized
from supervisor.embedding.values import made_for_another
from supervisor.engine.port import TokenizeRoute
from supervisor.engine.servers.backend import Backend
from supervisor.engine.servers.framing import post_json
from supervisor.errors import RequestRefused

KEPT_TOKENS = 200_000
"""Tokens of texts that are kept, some 10 MB with their texts."""

_TEXTS_AT_ONCE = 256
_SEPARATOR = -1
"""An id that no token has: it stands between texts that are asked about at once."""

_LETTER = "a"


class KeptTokens:
    """The tokens of the texts that were asked about last, and the frames of their models."""

    def __init__(self, room: int = KEPT_TOKENS) -> None:
        self._room = room
        self._kept: OrderedDict[tuple[str, str], Ids] = OrderedDict()
        self.frames: dict[str, Frame] = {}
        """By the revision of what was asked."""

    def take(self, revision: str, text: str) -> Ids | None:
        """Return a text's tokens, where they are known."""
        key = revision, text
        ids = self._kept.get(key)
        if ids is not None:
            self._kept.move_to_end(key)
        return ids

    def keep(self, revision: str, text: str, ids: Ids) -> None:
        """Keep a text's tokens in place of those that were not asked about for longest."""
        if (revision, text) in self._kept:
            return
        self._kept[revision, text] = ids
        self._room -= _weight(text, ids)
        while self._room < 0:
            (_, oldest), forgotten = self._kept.popitem(last=False)
            self._room += _weight(oldest, forgotten)


def _weight(text: str, ids: Ids) -> int:
    """Return what a text and its tokens take, in tokens of some 40 bytes."""
    return len(text) // 16 + len(ids) + 8


class ServerTokenizers:
    """Asks the servers of models for tokens."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._kept = KeptTokens()

    def of(self, target: Target, priority: Priority, model_path: Path) -> "ServerTokenizer":
        """Return the tokenizer of a model's file for a request of that priority."""
        return ServerTokenizer(self, target, priority, model_path)

    async def encode(
        self, target: Target, priority: Priority, model_path: Path, texts: Sequence[str]
    ) -> Tokenized:
        """Return each text's tokens; waits for the model's turn where one is not known.

        Raises RequestRefused where its server runs another file.
        """
        revision = f"{target.revision} {model_path}"

        async def ask(backend: Backend) -> Sequence[Ids]:
            if backend.launch.model_path != model_path:
                raise made_for_another(backend.model, backend.launch.model_path)
            return await self._ask_server(backend, revision, missing)

        known = {text: self._kept.take(revision, text) for text in texts}
        missing = [text for text, ids in known.items() if ids is None]
        if missing:
            # Its twin tells the same: both read them out of one file.
            found = await self._servers.ask(target, priority, ask, may_spill=True)
            for text, own in zip(missing, found, strict=True):
                known[text] = own
                self._kept.keep(revision, text, own)
        ids = [known[text] or () for text in texts]
        return Tokenized(ids, self._kept.frames.get(revision, Frame()))

    async def _ask_server(
        self, backend: Backend, revision: str, texts: Sequence[str]
    ) -> Sequence[Ids]:
        route = backend.launch.abilities.tokenize
        if route is None:
            raise RequestRefused(
                "embedding_failed",
                f"the server of '{backend.model}' does not tell how many tokens a text has; name "
                "its tokenizer.json as `tokenizer` in models.yaml",
            )
        if not route.joins_lists:
            return [tuple(await _tokens(backend, route, text)) for text in texts]
        frame = self._kept.frames.get(revision)
        if frame is None:
            frame = self._kept.frames[revision] = await _frame(backend, route)
        return [frame.put_around(body) for body in await _bodies(backend, route, texts)]


class ServerTokenizer:
    """A `Tokenizer` for one request."""

    def __init__(
        self, servers: ServerTokenizers, target: Target, priority: Priority, model_path: Path
    ) -> None:
        self._servers = servers
        self._target = target
        self._priority = priority
        self._model_path = model_path

    async def encode(self, texts: Sequence[str]) -> Tokenized:
        """See `Tokenizer`."""
        return await self._servers.encode(self._target, self._priority, self._model_path, texts)


async def _frame(backend: Backend, route: TokenizeRoute) -> Frame:
    """Find out what the model puts around a text, by one of which the tokens are known."""
    framed = tuple(await _tokens(backend, route, _LETTER))
    [bare] = await _bodies(backend, route, [_LETTER])
    for begin in range(len(framed) - len(bare) + 1):
        if framed[begin : begin + len(bare)] == bare:
            return Frame(head=framed[:begin], tail=framed[begin + len(bare) :])
    raise RequestRefused(
        "embedding_failed",
        f"the server of '{backend.model}' tells the tokens of '{_LETTER}' as {framed}, and as "
        f"{bare} without special ones; name its tokenizer.json as `tokenizer` in models.yaml",
    )


async def _bodies(backend: Backend, route: TokenizeRoute, texts: Sequence[str]) -> Sequence[Ids]:
    """Return the tokens of texts without special ones, a list of them asked about at once."""
    bodies: list[Ids] = []
    for begin in range(0, len(texts), _TEXTS_AT_ONCE):
        some = texts[begin : begin + _TEXTS_AT_ONCE]
        mixed = [part for text in some for part in (_SEPARATOR, text)]
        bodies += _divided(await _tokens(backend, route, mixed))
    return bodies


def _divided(tokens: Sequence[int]) -> Iterator[Ids]:
    """Yield what stands behind each separator."""
    places = [place for place, token in enumerate(tokens) if token == _SEPARATOR]
    for begin, end in zip(places, [*places[1:], len(tokens)], strict=True):
        yield tuple(tokens[begin + 1 : end])


class _Answer(msgspec.Struct):
    tokens: list[int]


async def _tokens(
    backend: Backend, route: TokenizeRoute, content: str | Sequence[str | int]
) -> Sequence[int]:
    """Ask for the tokens of a text, in its frame, or of a list. Raises RequestRefused."""
    body: dict[str, object] = {route.text_field: content}
    if route.special_field is not None:
        body[route.special_field] = True
    async with backend.exchange(post_json(route.path, body)) as answer:
        told, status = await answer.read(), answer.status
    try:
        return msgspec.json.decode(told, type=_Answer).tokens
    except msgspec.MsgspecError as error:
        raise RequestRefused(
            "embedding_failed",
            f"the server of '{backend.model}' does not tell the tokens of a text: it answers "
            f"{status} {told[:200].decode(errors='replace')}",
        ) from error
