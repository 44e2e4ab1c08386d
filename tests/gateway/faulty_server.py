"""A server with llama-server's command line that tells what it was sent, and breaks on request.

The path decides what it does; any other path is answered with the request as it came, as JSON.
Real servers are what the tests run against; this one is for what those do only by accident.
"""

import asyncio
import base64
import gzip
import itertools
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from functools import partial

FLAGS = (
    *("--model", "--host", "--port", "--ctx-size", "--batch-size", "--ubatch-size", "--parallel"),
    *("--kv-unified", "--no-kv-unified", "--cache-type-k", "--cache-type-v", "--flash-attn"),
    *("--cache-ram", "--cache-reuse", "--n-gpu-layers", "--fit", "--load-mode", "--embeddings"),
    *("--metrics", "--pooling", "--threads", "--threads-http", "--tensor-split", "--main-gpu"),
)
FLOOD_BYTES = 64 * 1024 * 1024
GZIPPED = gzip.compress(b"compressed by the server", mtime=0)
_CHUNK = b"x" * 65536
LET_GO = asyncio.Event()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request as it stood on the wire. `number` counts from 1 on its connection."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    number: int


class Silence(Exception):
    """The connection is to be closed without a further byte."""


@dataclass(slots=True, kw_only=True)
class Counts:
    """What the server has been asked, and what came of it."""

    times_asked: dict[str, int] = field(default_factory=dict)
    flood_sent_bytes: int = 0
    clients_left: int = 0
    connections: int = 0
    most_connections: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A request and the way back to its client; the methods that `ACTIONS` names are answers."""

    asked: Asked
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    counts: Counts

    async def echo(self) -> None:
        body = base64.b64encode(self.asked.body).decode()
        self.send_json({**asdict(self.asked), "body": body})

    async def tell_counts(self) -> None:
        self.send_json(asdict(self.counts))

    async def be_healthy(self) -> None:
        """Be ready, and leave no connection behind, so that the first request gets a fresh one."""
        self.send_head("200 OK", "Content-Length: 2", "Connection: close")
        self.writer.write(b"{}")
        await self.writer.drain()
        raise Silence

    async def be_peculiar(self) -> None:
        self.send_head(
            "207 Quite Peculiar",
            "Set-Cookie: a=1",
            "Set-Cookie: b=2",
            "X-Kept: yes",
            "X-Named: no",
            "Date: Thu, 01 Jan 1970 00:00:00 GMT",
            "Connection: X-Named, keep-alive",
            "Keep-Alive: timeout=5",
            "Content-Length: 3",
        )
        self.writer.write(b"\x00\xff\n")

    async def gzip(self) -> None:
        size = len(GZIPPED)
        self.send_head("200 OK", "Content-Encoding: gzip", f"Content-Length: {size}")
        self.writer.write(GZIPPED)

    async def gzip_in_chunks(self) -> None:
        self.send_head("200 OK", "Content-Encoding: gzip", "Transfer-Encoding: chunked")
        self.send_chunk(GZIPPED)
        self.send_chunk(b"")

    async def be_silent(self) -> None:
        raise Silence

    async def be_silent_when_reused(self) -> None:
        """Do as a server does that closed the connection just when the next request came."""
        if self.asked.number > 1:
            raise Silence
        await self.echo()

    async def cut_head_when_reused(self) -> None:
        if self.asked.number > 1:
            self.writer.write(b"HTTP/1.1 200 OK\r\nContent-Le")
            await self.writer.drain()
            raise Silence
        await self.echo()

    async def wait_for_ever(self) -> None:
        await self.reader.read()
        self.counts.clients_left += 1
        raise Silence

    async def have_nothing_in_chunks(self) -> None:
        self.send_head("204 No Content", "Transfer-Encoding: chunked")
        await self.writer.drain()
        await asyncio.sleep(0.05)  # so that its end comes when the next request may be there
        self.send_chunk(b"")

    async def wait_to_be_let_go(self) -> None:
        await LET_GO.wait()
        self.send_json("let go")

    async def let_go(self) -> None:
        LET_GO.set()
        self.send_json("all")

    async def flood(self) -> None:
        self.send_head("200 OK", f"Content-Length: {FLOOD_BYTES}")
        for _ in range(FLOOD_BYTES // len(_CHUNK)):
            self.writer.write(_CHUNK)
            await self.writer.drain()
            self.counts.flood_sent_bytes += len(_CHUNK)

    async def die_after_event(self) -> None:
        self.send_head("200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked")
        self.send_chunk(b'data: {"whole": true}\n\n')
        await self.die()

    async def die_in_event(self) -> None:
        self.send_head("200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked")
        self.send_chunk(b'data: {"whole": true}\n\ndata: {"whole": fal')
        await self.die()

    async def die_in_long_body(self) -> None:
        self.send_head("200 OK", f"Content-Length: {64 * len(_CHUNK)}")
        self.writer.write(_CHUNK)
        await self.die()

    async def die_in_short_body(self) -> None:
        self.send_head("200 OK", "Content-Length: 100")
        self.writer.write(b"half of it")
        await self.die()

    def send_head(self, status: str, *headers: str) -> None:
        self.writer.write("\r\n".join((f"HTTP/1.1 {status}", *headers, "", "")).encode())

    def send_chunk(self, content: bytes) -> None:
        self.writer.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")

    def send_json(self, content: object) -> None:
        body = json.dumps(content).encode()
        length = f"Content-Length: {len(body)}"
        self.send_head("200 OK", "Content-Type: application/json", length)
        self.writer.write(body)

    async def die(self) -> None:
        """Be killed, after all that was written has left."""
        self.writer.transport.set_write_buffer_limits(high=0)
        await self.writer.drain()
        os.kill(os.getpid(), signal.SIGKILL)


ACTIONS: dict[str, Callable[[Exchange], Awaitable[None]]] = {
    "/health": Exchange.be_healthy,
    "/counts": Exchange.tell_counts,
    "/peculiar": Exchange.be_peculiar,
    "/gzipped": Exchange.gzip,
    "/gzipped-in-chunks": Exchange.gzip_in_chunks,
    "/silent": Exchange.be_silent,
    "/silent-when-reused": Exchange.be_silent_when_reused,
    "/cut-head-when-reused": Exchange.cut_head_when_reused,
    "/endless": Exchange.wait_for_ever,
    "/nothing-in-chunks": Exchange.have_nothing_in_chunks,
    "/held": Exchange.wait_to_be_let_go,
    "/let-go": Exchange.let_go,
    "/flood": Exchange.flood,
    "/die-after-event": Exchange.die_after_event,
    "/die-in-event": Exchange.die_in_event,
    "/die-in-long-body": Exchange.die_in_long_body,
    "/die-in-short-body": Exchange.die_in_short_body,
}


async def serve(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counts: Counts
) -> None:
    """Answer the requests of one connection."""
    counts.connections += 1
    counts.most_connections = max(counts.most_connections, counts.connections)
    try:
        for number in itertools.count(1):
            asked = await read_request(reader, number)
            counts.times_asked[asked.target] = counts.times_asked.get(asked.target, 0) + 1
            print(asked.method, asked.target, flush=True)  # noqa: T201 - for the last lines
            exchange = Exchange(asked=asked, reader=reader, writer=writer, counts=counts)
            await ACTIONS.get(asked.target, Exchange.echo)(exchange)
            await writer.drain()
    except (Silence, asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        counts.connections -= 1
        writer.close()


async def read_request(reader: asyncio.StreamReader, number: int) -> Asked:
    """Read one request; raises IncompleteReadError at the connection's end."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    headers = [(name, value) for name, value in (line.split(": ", 1) for line in lines)]
    lengths = [int(value) for name, value in headers if name.lower() == "content-length"]
    body = await reader.readexactly(lengths[0]) if lengths else b""
    return Asked(method=method, target=target, headers=headers, body=body, number=number)


async def main(arguments: list[str]) -> None:
    if "--version" in arguments:
        print("version: faulty")  # noqa: T201 - what is printed is the answer
    elif "--help" in arguments:
        slots = ("--slots  (default: enabled)", "--slot-save-path")
        print("sockets end in .sock", *FLAGS, *slots, sep="\n")  # noqa: T201 - the same
    else:
        address = arguments[arguments.index("--host") + 1]
        server = await asyncio.start_unix_server(partial(serve, counts=Counts()), address)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
