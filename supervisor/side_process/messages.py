"""What the controller and its side processes say to each other, in MessagePack.

A message is a head of four bytes, its length (little-endian), and its content. A request has a
number, and may be repeated. Answers come in any order.
"""

import struct
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import msgspec

_Request = TypeVar("_Request")


class Asked(msgspec.Struct, Generic[_Request], frozen=True, array_like=True):
    """A request with its number."""

    number: int
    request: _Request


class Answered(msgspec.Struct, frozen=True, array_like=True):
    """What came of the request of that number. `code`: of RequestRefused, with its message."""

    number: int
    content: msgspec.Raw = msgspec.Raw(b"\xc0")  # None
    code: str | None = None
    message: str = ""


_HEAD = struct.Struct("<I")
_encode = msgspec.msgpack.Encoder().encode


def framed(message: Any) -> bytes:
    """Return a message as it is sent."""
    content = _encode(message)
    return _HEAD.pack(len(content)) + content


class Frames:
    """Takes messages out of bytes that come in pieces."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the content of each message that is complete now."""
        self._rest += data
        while len(self._rest) >= _HEAD.size:
            end = _HEAD.size + _HEAD.unpack_from(self._rest)[0]
            if len(self._rest) < end:
                return
            content = bytes(memoryview(self._rest)[_HEAD.size : end])
            del self._rest[:end]
            yield content
