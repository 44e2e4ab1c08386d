"""What becomes of a reply whose client leaves in the middle of it."""

import asyncio

import pytest

from supervisor.errors import RequestRefused
from supervisor.gateway.answer import json_answer
from supervisor.gateway.reply import Reply
from supervisor.observability.request_log import RequestRecord


class CutWire:
    """The way to a client that has left."""

    async def send(self, *_: object, **__: object) -> None:
        raise ConnectionResetError

    begin = write = end = send

    def cut(self) -> None:
        pass


@pytest.mark.parametrize("outcome", ["answered", "refused", "failed"])
async def test_whoever_leaves_before_the_answer_is_sent_cancels_it(outcome: str) -> None:
    """Else aiohttp logs an error, with the client's address, for each of them."""
    record = RequestRecord("POST", "/completion", "id", "127.0.0.1")
    reply = Reply(CutWire(), record)

    async def answer() -> None:
        if outcome == "refused":
            raise RequestRefused("model_not_found", "there is none")
        if outcome == "failed":
            raise ValueError
        await reply.send(json_answer({}))

    with pytest.raises(asyncio.CancelledError):
        await reply.given_by(answer())
