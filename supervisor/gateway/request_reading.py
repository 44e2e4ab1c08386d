"""Reads what routing needs out of a request, and leaves the rest as it came."""

import zlib
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec
from aiohttp import HttpVersion11, web
from yarl import URL

from supervisor.core.machine.values import Mode
from supervisor.errors import RequestRefused

_Fields = TypeVar("_Fields")


class _ModelField(msgspec.Struct):
    """The one field of a JSON body that routing looks at; all others are skipped, not built."""

    model: str | None = None


class _StreamField(msgspec.Struct):
    """The same, for the field that asks for a stream of events."""

    stream: bool = False


_decode_model = msgspec.json.Decoder(_ModelField).decode
_decode_stream = msgspec.json.Decoder(_StreamField).decode

_MODE_BY_PATH: Mapping[str, Mode] = {
    "/embedding": Mode.EMBEDDING,
    "/embeddings": Mode.EMBEDDING,
    "/v1/embeddings": Mode.EMBEDDING,
    "/completion": Mode.GENERATION,
    "/completions": Mode.GENERATION,
    "/v1/completions": Mode.GENERATION,
    "/chat/completions": Mode.GENERATION,
    "/v1/chat/completions": Mode.GENERATION,
    "/v1/responses": Mode.GENERATION,
    "/v1/messages": Mode.GENERATION,
    "/infill": Mode.GENERATION,
}


_REPEATABLE_PATHS = frozenset(
    {"/tokenize", "/detokenize", "/apply-template", "/rerank", "/reranking", "/v1/rerank"}
)


async def read_body(request: web.Request, max_body_bytes: int) -> bytes:
    """Return the whole body. Raises RequestRefused `body_too_large`."""
    too_large = RequestRefused(
        "body_too_large",
        f"the body is larger than {max_body_bytes} bytes (server.max_body_bytes)",
        {"max_body_bytes": max_body_bytes},
    )
    if request.content_length is not None and request.content_length > max_body_bytes:
        raise too_large
    if not request.can_read_body:
        return b""
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise too_large from error


def model_in_body(body: bytes, headers: Mapping[str, str], max_body_bytes: int) -> str | None:
    """Return the `model` that a JSON body names; None when it names none or is not JSON."""
    field = _decoded(_decode_model, body, headers, max_body_bytes)
    return field.model if field is not None else None


def wants_stream(request: web.BaseRequest, path: str, body: bytes, max_body_bytes: int) -> bool:
    """Whether the request asks for a stream of events, in a way in which it can get one."""
    return (
        request.method == "POST"
        and request.version >= HttpVersion11  # before it, there are no chunks
        and mode_hint(path.partition("?")[0]) is Mode.GENERATION
        and (field := _decoded(_decode_stream, body, request.headers, max_body_bytes)) is not None
        and field.stream
    )


def _decoded(
    decode: Callable[[bytes], _Fields], body: bytes, headers: Mapping[str, str], max_body_bytes: int
) -> _Fields | None:
    """Read fields out of a JSON body; None when it is not JSON, or they are not what they may."""
    if not body or not headers.get("Content-Type", "").startswith("application/json"):
        return None
    if headers.get("Content-Encoding", "identity") in {"gzip", "deflate"}:
        inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32: zlib or gzip, by header
        try:
            body = inflater.decompress(body, max_body_bytes)
        except zlib.error:
            return None  # the backend says what is wrong with it
    try:
        return decode(body)
    except msgspec.MsgspecError:
        return None  # the same


def mode_hint(path: str) -> Mode | None:
    """Return the mode that a route belongs to, for requests that name no model."""
    return _MODE_BY_PATH.get(path)


def acts_on_slot_files(path: str) -> bool:
    """Whether a path asks llama-server to write or read a file of a slot's prompt."""
    url = URL(path, encoded=True)
    return url.path.startswith("/slots/") and url.query.get("action") in {"save", "restore"}


def is_safe_to_repeat(method: str, path: str) -> bool:
    """Whether sending a request twice does no more than sending it once, and costs little."""
    route = path.partition("?")[0]
    is_computed = route in _REPEATABLE_PATHS or mode_hint(route) is Mode.EMBEDDING
    return method in {"GET", "HEAD"} or is_computed
