"""What is the same for bodies that are kept in memory and those that go to disk."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from aiohttp import HttpVersion11, StreamReader, web

from supervisor.errors import RequestRefused

MIN_BODY_BYTES_PER_S = 4096
"""The slowest that a body may come on the whole, beside pauses of `body_timeout_s` in all: nobody
holds its memory for ever with a byte now and then, and the slowest mobile networks are faster."""

BOM = b"\xef\xbb\xbf"
"""A byte order mark: editors on Windows put it before JSON, and most servers skip it."""

_Read = TypeVar("_Read")


class BodyPace:
    """Bounds the time in which a body comes. Only waiting for its client counts."""

    def __init__(self, content: StreamReader, body_timeout_s: float) -> None:
        self._content = content
        self._body_timeout_s = body_timeout_s
        self._waited_s = 0.0

    async def keep(self, reading: Awaitable[_Read]) -> _Read:
        """Return what is read of the body next.

        Raises RequestRefused `body_timeout`, or `bad_request` for a body that is broken.
        """
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        behind_s = self._waited_s - self._content.total_bytes / MIN_BODY_BYTES_PER_S
        try:
            async with asyncio.timeout(self._body_timeout_s - max(0.0, behind_s)):
                return await reading
        except web.RequestPayloadError as error:
            raise RequestRefused("bad_request", f"the body cannot be read: {error}") from error
        except TimeoutError as error:
            raise RequestRefused(
                "body_timeout",
                f"the body did not come on for {self._body_timeout_s:g} s "
                f"(server.body_timeout_s), or came with less than {MIN_BODY_BYTES_PER_S} bytes a "
                "second",
            ) from error
        finally:
            self._waited_s += loop.time() - began_at


def too_large(max_bytes: int, setting: str) -> RequestRefused:
    """Say that a body is beyond what a setting allows."""
    return RequestRefused(
        "body_too_large",
        f"the body is larger than {max_bytes} bytes ({setting})",
        {"max_body_bytes": max_bytes},
    )


def encoding_not_supported(encoding: str, accepted: Sequence[str]) -> RequestRefused:
    """Say that a body is written in a way that is not read here, and which are."""
    return RequestRefused(
        "encoding_not_supported",
        f"Content-Encoding: {encoding} is not supported here, only {' and '.join(accepted)}",
        {"accepted_encodings": tuple(accepted)},
    )


async def meet_expectation(request: web.BaseRequest) -> None:
    """Have a client send the body that it holds back (RFC 9110, 10.1.1).

    Raises RequestRefused `expectation_failed`.
    """
    expected = request.headers.get("Expect")
    if expected is None or request.version < HttpVersion11:
        return
    if expected.lower() != "100-continue":
        raise RequestRefused("expectation_failed", f"Expect: {expected} cannot be met")
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # what follows is the answer's first byte
