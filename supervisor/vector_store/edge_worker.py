"""The store's process: the only place where Qdrant Edge is loaded.

It answers requests (messages.py) on the socket that is its standard input, several at a time, and
ends with the controller: the socket is closed then, and the kernel's parent-death signal also ends
an operation that takes long.
"""

import ctypes
import os
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from supervisor.errors import RequestRefused
from supervisor.vector_store.messages import Answered, Asked, Frames, Request, framed
from supervisor.vector_store.shards import Shards

_SOCKET = 0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_THREADS = 4
_FLUSH_EVERY_S = 5.0
"""As often as a Qdrant server does (`flush_interval_sec`): what a power failure may cost. What has
returned survives the end of the process in any case, for it is in the write-ahead log."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Asked).decode


def main(folder: Path, parent_pid: int) -> None:
    """Serve the collections in a folder until the controller closes the socket."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        return  # the controller died before the signal was armed
    with socket.socket(fileno=_SOCKET) as connection:
        _Worker(connection, Shards(folder)).serve()


class _Worker:
    def __init__(self, connection: socket.socket, shards: Shards) -> None:
        self._connection = connection
        self._shards = shards
        self._sending = threading.Lock()

    def serve(self) -> None:
        frames = Frames()
        ended = threading.Event()
        flusher = threading.Thread(target=self._keep_flushing, args=(ended,), daemon=True)
        flusher.start()
        with ThreadPoolExecutor(_THREADS) as pool, suppress(ConnectionResetError):
            while data := self._connection.recv(1 << 18):
                for content in frames.feed(data):
                    pool.submit(self._answer, _decode(content))
        ended.set()
        flusher.join()
        self._shards.close()

    def _keep_flushing(self, ended: threading.Event) -> None:
        while not ended.wait(_FLUSH_EVERY_S):
            self._shards.flush()

    def _answer(self, asked: Asked) -> None:
        try:
            content = _encode(_carry_out(self._shards, asked.request))
            answered = Answered(asked.number, msgspec.Raw(content))
        except RequestRefused as error:
            answered = Answered(asked.number, code=error.code, message=error.message)
        except Exception as error:  # noqa: BLE001 - the engine raises nothing narrower
            reason = f"{type(error).__name__}: {error}"
            answered = Answered(asked.number, code="store_failed", message=reason)
        with self._sending, suppress(BrokenPipeError, ConnectionResetError):
            self._connection.sendall(framed(answered))


def _carry_out(shards: Shards, request: Request) -> Any:
    method = getattr(shards, str(request.__struct_config__.tag))
    return method(*msgspec.structs.astuple(request))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
