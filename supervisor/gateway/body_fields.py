"""Reads the fields that routing looks at out of a body, as the backends will read them.

llama-server takes a body for JSON whatever its Content-Type says, so the header decides nothing
here either: else a request that names one model would be answered by another.
"""

import asyncio
import json
import re
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from supervisor.errors import RequestRefused
from supervisor.gateway.body_reading import BOM, encoding_not_supported

_OPENS_OBJECT = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*\{")
_SLICE_BYTES = 64 * 1024
_SLICE_S = 0.001
"""How long inflating holds the event loop at a time."""

_MAX_LENIENT_BYTES = 1024 * 1024
"""Up to so many bytes are read once more as Python reads JSON, in some milliseconds."""

_MAX_PARTS = 1000
"""Parts of a form that are looked through."""

_MAX_MEMBERS = 1000
"""Parts of a gzip body that are looked through; each costs a copy, however short it is."""

_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32  # the header tells which (zlib's inflateInit2)
_CAN_INFLATE = frozenset({b"gzip", b"x-gzip", b"deflate"})
_PLAIN = frozenset({b"", b"identity"})

_BOUNDARY = re.compile(rb';\s*boundary="?([^";,]+)"?', re.IGNORECASE)
_IS_MODEL_PART = re.compile(
    rb'content-disposition:[^\r\n]*;\s*name="?model"?\s*(;|\r|$)', re.IGNORECASE
)


class BodyFields(msgspec.Struct, frozen=True):
    """What a body names; all other fields are skipped, not built."""

    model: Any = None
    stream: Any = False


class BrokenFields(BodyFields, frozen=True, kw_only=True):
    """Of what begins as a JSON object and cannot be read as one: what it names is not known."""

    why: str


NO_FIELDS = BodyFields()

_decode = msgspec.json.Decoder(BodyFields).decode


def read_fields(content_type: bytes, body: bytes) -> BodyFields:
    """Read a body that is a JSON object or a multipart form; any other has no fields.

    `model` is then a text that is not empty, or None. Raises RequestRefused `bad_request` where it
    is something else, or cannot be read although a backend might.
    """
    if not body:
        return NO_FIELDS
    fields = _json_fields(body)
    if fields is None:
        if not content_type.lower().startswith(b"multipart/"):
            return NO_FIELDS
        fields = BodyFields(model=_model_in_form(content_type, body))
    if not isinstance(fields.model, str | None):
        raise RequestRefused("bad_request", "`model` must be a string: the name of a model")
    return fields if fields.model != "" else BodyFields(stream=fields.stream)


def opens_object(body: bytes) -> bool:
    """Whether a body begins as a JSON object does."""
    return _OPENS_OBJECT.match(body) is not None


def _json_fields(body: bytes) -> BodyFields | None:
    """Read the fields of a JSON object; None for what is not one, or not JSON at all."""
    if not opens_object(body):
        return None
    text = body.removeprefix(BOM)
    try:
        return _decode(text)
    except RecursionError as error:
        raise RequestRefused("bad_request", "the JSON body is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise RequestRefused("bad_request", "the JSON body is not UTF-8") from error
    except msgspec.MsgspecError as error:
        before_nul, nul, _ = text.partition(b"\0")  # where llama-server's parser takes it to end
        return _json_fields(before_nul) if nul else _lenient_fields(text, str(error))


def _lenient_fields(text: bytes, why: str) -> BodyFields:
    """Read fields as servers in Python do: NaN, half of a surrogate pair and tabs in texts pass.

    Of what they cannot read either, a live backend says what is wrong.
    """
    try:
        if len(text) <= _MAX_LENIENT_BYTES:
            fields = json.loads(text, strict=False)
            return BodyFields(model=fields.get("model"), stream=fields.get("stream", False))
    except (ValueError, RecursionError):
        pass
    return BrokenFields(why=why)


def _model_in_form(content_type: bytes, body: bytes) -> str | None:
    """Return the `model` of a multipart form (RFC 7578); None where it has no such part."""
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        return None
    delimiter = b"--" + boundary[1].strip()
    begin = body.find(delimiter)
    named: str | None = None
    parts = 0
    while begin >= 0 and (end := body.find(delimiter, begin + len(delimiter))) >= 0:
        parts += 1
        if parts > _MAX_PARTS:
            raise RequestRefused("bad_request", f"the form has more than {_MAX_PARTS} parts")
        head_end = body.find(b"\r\n\r\n", begin, end)
        if head_end >= 0 and _IS_MODEL_PART.search(body[begin:head_end] + b"\r"):
            named = _text(body[head_end + 4 : end].removesuffix(b"\r\n"), named)
        begin = end
    return named


def _text(content: bytes, before: str | None) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise RequestRefused("bad_request", "the form's `model` is not UTF-8") from error
    if before not in {None, text}:
        raise RequestRefused("bad_request", "the form names two models")
    return text


def unknown_encoding(encodings: bytes) -> RequestRefused | None:
    """Return why a body of these Content-Encodings cannot be read; None where it may be."""
    if {each.strip() for each in encodings.lower().split(b",")} <= _CAN_INFLATE | _PLAIN:
        return None
    return encoding_not_supported(encodings.decode(errors="replace"), ("gzip", "deflate"))


async def inflated(
    encodings: bytes, body: bytes, max_bytes: int, grow_to: Callable[[int], None]
) -> bytes:
    """Return the content of a body of these Content-Encodings, for a look at its fields.

    Holds the event loop for a millisecond at a time; `grow_to` is told what body and content take
    together, and may refuse it. A body that cannot be inflated is returned as it is: the backend
    says what is wrong with it. Raises RequestRefused `body_too_large` for one that has more than
    `max_bytes` of content.
    """
    if not body:
        return body
    content = body
    for encoding in reversed(encodings.lower().split(b",")):
        name = encoding.strip()
        if name in _CAN_INFLATE:
            before = len(body) + (0 if content is body else len(content))
            content = await _inflate(content, max_bytes, before, grow_to)
        elif name not in _PLAIN:
            return body
    return content


async def _inflate(
    body: bytes, max_bytes: int, before: int, grow_to: Callable[[int], None]
) -> bytes:
    pieces, size = [], 0
    slice_began_at = time.monotonic()
    try:
        for piece in _pieces(body):
            pieces.append(piece)
            size += len(piece)
            if size > max_bytes:
                raise RequestRefused(
                    "body_too_large",
                    f"the inflated body is larger than {max_bytes} bytes (server.max_body_bytes)",
                    {"max_body_bytes": max_bytes},
                )
            grow_to(before + size)
            if time.monotonic() - slice_began_at > _SLICE_S:
                await asyncio.sleep(0)
                slice_began_at = time.monotonic()
    except zlib.error:
        return body
    return b"".join(pieces)


def _pieces(body: bytes) -> Iterator[bytes]:
    """Inflate a piece at a time, through every member of a gzip file (RFC 1952, 2.2)."""
    rest = memoryview(body)
    for _ in range(_MAX_MEMBERS):
        inflater = zlib.decompressobj(wbits=_GZIP_OR_ZLIB)
        while not inflater.eof:
            given = inflater.unconsumed_tail
            if not given:
                given, rest = bytes(rest[:_SLICE_BYTES]), rest[_SLICE_BYTES:]
            if not given:
                yield inflater.flush()
                return  # it ends in the middle; what there is has been read
            yield inflater.decompress(given, _SLICE_BYTES)
        left = len(rest) + len(inflater.unused_data)
        rest = memoryview(body)[len(body) - left :]
        if not rest:
            return
    raise RequestRefused("bad_request", f"the body has more than {_MAX_MEMBERS} gzip members")
