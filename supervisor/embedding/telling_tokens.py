"""The tokens of texts, told to whoever wants to see them."""

from collections.abc import Sequence
from functools import partial

import msgspec

from supervisor.core.machine.values import Target
from supervisor.core.scheduling.values import Priority
from supervisor.embedding.preparing import Preparer, prompt_of
from supervisor.embedding.servers import Servers
from supervisor.embedding.values import Token
from supervisor.engine.port import TokenizeRoute
from supervisor.engine.servers.backend import Backend
from supervisor.engine.servers.framing import Request, post_json
from supervisor.engine.targets import Targets
from supervisor.engine.tasks import ModelTask
from supervisor.errors import RequestRefused


class TokenTeller:
    """Tells tokens: by the model's own tokenizer, else as its server does."""

    def __init__(self, *, targets: Targets, preparer: Preparer, servers: Servers) -> None:
        self._targets = targets
        self._preparer = preparer
        self._servers = servers

    def target(self, wanted: Target | None, path: str) -> Target:
        """Return the model that a path means: one that embeds or ranks, else the default one.

        Raises RequestRefused where none is clear, or where it does neither.
        """
        ranks = wanted is not None and self._targets.is_able(wanted.model, ModelTask.RERANKING)
        task = ModelTask.RERANKING if ranks else ModelTask.EMBEDDING
        return self._targets.able(wanted, task, path)

    async def tokens(
        self,
        target: Target,
        texts: Sequence[str],
        *,
        prompt_name: str | None,
        adds_special: bool,
        priority: Priority,
    ) -> list[list[Token]]:
        """Return each text's tokens, with the model's prompt and in its special ones if wanted.

        Waits for the model's turn where its server is asked. Raises RequestRefused.
        """
        intake = await self._preparer.intake(target)
        prompt = prompt_of(intake.resolved, prompt_name)
        whole = [prompt + text for text in texts]
        if intake.tokenizer is not None:
            own = intake.tokenizer
            return [await own.told(text, adds_special=adds_special) for text in whole]
        return [
            await self._servers.ask(
                target,
                priority,
                partial(_ask_for_pieces, text=text, adds_special=adds_special),
                may_spill=True,
            )
            for text in whole
        ]


class _Piece(msgspec.Struct):
    id: int
    piece: str | list[int]
    """Bytes where they are no UTF-8."""


class _Answer(msgspec.Struct):
    tokens: list[_Piece]


_decode = msgspec.json.Decoder(_Answer).decode


async def _ask_for_pieces(backend: Backend, *, text: str, adds_special: bool) -> list[Token]:
    """Have a server tell a text's tokens; where they stand, and which are special, it does not."""
    route = backend.launch.abilities.tokenize
    if route is None or route.pieces_field is None:
        raise RequestRefused(
            "not_implemented",
            f"the server of '{backend.model}' does not tell the text of tokens; name its "
            "tokenizer.json as `tokenizer` in models.yaml",
        )
    async with backend.exchange(_question(route, text, adds_special=adds_special)) as answer:
        status, content = answer.status, await answer.read()
    try:
        told = _decode(content).tokens
    except msgspec.MsgspecError as error:
        raise RequestRefused(
            "embedding_failed",
            f"the server of '{backend.model}' does not tell the tokens of a text: it answers "
            f"{status} {content[:200].decode(errors='replace')}",
        ) from error
    return [Token(id=each.id, text=_text(each.piece)) for each in told]


def _question(route: TokenizeRoute, text: str, *, adds_special: bool) -> Request:
    fields: dict[str, object] = {route.text_field: text, route.pieces_field or "": True}
    if route.special_field is not None:
        fields[route.special_field] = adds_special
    return post_json(route.path, fields)


def _text(piece: str | list[int]) -> str:
    return piece if isinstance(piece, str) else bytes(piece).decode(errors="replace")
