"""The controller's side of extraction: has files read, and says what is wrong with them."""

import asyncio
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import msgspec
import structlog

from supervisor.documents.extraction.messages import Limits, Outcome, Read, Task
from supervisor.documents.values import Division, ReadDocument, Source
from supervisor.errors import RequestRefused
from supervisor.own_process import command_of, python_path

log = structlog.get_logger()

_PIECE_BYTES = 256 * 1024
_GRACE_S = 2.0
"""Seconds beyond a document's time until its reader is given up."""

_decode = msgspec.msgpack.Decoder(Outcome).decode
_decode_reason = msgspec.msgpack.Decoder(str | None).decode

EXTRA_MISSING = (
    "documents are read by an extra that is not installed: "
    "pip install 'llama-supervisor[documents]'"
)


class Extractor:
    """Reads documents, several at once, each in a process that ends with it.

    The process that forks them starts with the first document, and again when it has ended.
    """

    def __init__(self, environ: Mapping[str, str], *, at_once: int) -> None:
        self._environ = environ
        self._free = asyncio.Semaphore(at_once)
        self._starting = asyncio.Lock()
        self._server: _ForkServer | None = None

    async def read(self, source: Source, division: Division, limits: Limits) -> ReadDocument:
        """Return what a file says, and its chunks.

        Raises RequestRefused: `document_unreadable` with the reason, or `extra_missing`.
        """
        require_extra()
        task = Task(
            file_name=source.file_name,
            media_type=source.media_type,
            division=division,
            limits=limits,
        )
        async with self._free:
            began_at = time.monotonic()
            content = await self._answered(source.path, task)
            if not content and time.monotonic() - began_at < limits.timeout_s:
                # Killed, and perhaps for the sake of others: only a second time tells.
                content = await self._answered(source.path, task)
        if not content:
            raise RequestRefused("document_unreadable", _lost(limits))
        outcome = _decode(content)
        if isinstance(outcome, Read):
            return outcome.document
        if outcome.is_missing_extra:
            raise RequestRefused("extra_missing", f"{outcome.reason}; {EXTRA_MISSING}")
        raise RequestRefused("document_unreadable", outcome.reason)

    async def close(self) -> None:
        """End all that is being read."""
        if self._server is not None:
            await self._server.stop()

    async def _answered(self, path: Path, task: Task) -> bytes:
        """Return what a child answers; nothing where it ended without an answer."""
        server = await self._running()
        ours, theirs = socket.socketpair()
        with ours:
            with theirs, path.open("rb") as file:
                server.send(task, (file.fileno(), theirs.fileno()))
            ours.setblocking(False)
            with suppress(TimeoutError, ConnectionResetError):
                async with asyncio.timeout(task.limits.timeout_s + _GRACE_S):
                    return await _read_all(ours)
        return b""

    async def _running(self) -> "_ForkServer":
        async with self._starting:
            if self._server is not None and self._server.is_lost:
                await self._server.stop()
                self._server = None
            if self._server is None:
                self._server = await _ForkServer.start(self._environ)
            return self._server


class _ForkServer:
    """The process of fork_server.py."""

    def __init__(self, process: asyncio.subprocess.Process, tasks: socket.socket) -> None:
        self._process = process
        self._tasks = tasks

    @classmethod
    async def start(cls, environ: Mapping[str, str]) -> "_ForkServer":
        """Start it; the kernel ends it with the controller."""
        # A task is one message, with its descriptors: a stream might divide it.
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *command_of("supervisor.documents.extraction.fork_server"),
                env=_environment(environ),
                cwd="/",
                stdin=theirs.fileno(),
                stdout=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        ours.setblocking(False)
        content = await asyncio.get_running_loop().sock_recv(ours, 4096)
        if not content:
            ours.close()
            raise RequestRefused(
                "documents_failed",
                f"what reads documents did not start (status {await process.wait()}); the log has "
                "what it printed",
            )
        reason = _decode_reason(content)
        if reason is not None:
            log.warning("documents.network_reachable", reason=reason)
        return cls(process, ours)

    @property
    def is_lost(self) -> bool:
        """Whether it has ended."""
        try:
            return not self._tasks.recv(1, socket.MSG_PEEK)  # it says nothing after its start
        except BlockingIOError:
            return False
        except OSError:
            return True

    def send(self, task: Task, descriptors: tuple[int, ...]) -> None:
        """Have a document read; nobody does where the process has just ended."""
        with suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self._tasks, [msgspec.msgpack.encode(task)], descriptors)

    async def stop(self) -> None:
        """End it, and with it its children."""
        self._tasks.close()
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


async def _read_all(connection: socket.socket) -> bytes:
    loop, pieces = asyncio.get_running_loop(), []
    while piece := await loop.sock_recv(connection, _PIECE_BYTES):
        pieces.append(piece)
    return b"".join(pieces)


def require_extra() -> None:
    """Raise RequestRefused `extra_missing` where documents cannot be read here."""
    if find_spec("semantic_text_splitter") is None:
        raise RequestRefused("extra_missing", EXTRA_MISSING)


def _lost(limits: Limits) -> str:
    return (
        "what read the document ended without an answer: it took longer than "
        f"{limits.timeout_s:g} s (documents.timeout_s) or more than {limits.memory_bytes} bytes of "
        "memory (documents.memory_bytes), or the file is one that its reader fails at"
    )


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Give it what it needs to find its libraries, and nothing that is ours."""
    kept = {name: environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in environ}
    # Threads would not live on in what is forked.
    own = {"PYTHONPATH": python_path(), "RAYON_NUM_THREADS": "1"}
    return {**kept, **own, "TOKENIZERS_PARALLELISM": "false"}
