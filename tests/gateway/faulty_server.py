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
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

FLAGS = (
    *("--model", "--host", "--port", "--ctx-size", "--batch-size", "--ubatch-size", "--parallel"),
    *("--kv-unified", "--no-kv-unified", "--cache-type-k", "--cache-type-v", "--flash-attn"),
    *("--cache-ram", "--cache-reuse", "--n-gpu-layers", "--fit", "--load-mode", "--embeddings"),
    *("--metrics", "--pooling", "--threads", "--threads-http"),
)
FLOOD_BYTES = 64 * 1024 * 1024
GZIPPED = gzip.compress(b"compressed by the server", mtime=0)
_CHUNK = b"x" * 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request as it stood on the wire. `number` counts from 1 on its connection."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    number: int


class Silence(Exception):  # noqa: N818 - it is what the server falls into, and no error of it
    """The connection is to be closed without a further byte."""


class FaultyServer:
    """Answers on a unix socket, and counts what it is asked and what it has sent."""

    def __init__(self) -> None:
        self.times_asked: Counter[str] = Counter()
        self.flood_sent_bytes = 0
        self.clients_left = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            for number in itertools.count(1):
                asked = await read_request(reader, number)
                self.times_asked[asked.target] += 1
                if asked.target == "/endless":
                    await reader.read()
                    self.clients_left += 1
                    break
                action = ACTIONS.get(asked.target, FaultyServer.echo)
                await action(self, asked, writer)
                await writer.drain()
        except (Silence, asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def echo(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        body = base64.b64encode(asked.body).decode()
        send_json(
            writer,
            {
                "method": asked.method,
                "target": asked.target,
                "headers": asked.headers,
                "body": body,
                "number": asked.number,
            },
        )

    async def counts(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        send_json(
            writer,
            {
                "times_asked": self.times_asked,
                "flood_sent_bytes": self.flood_sent_bytes,
                "clients_left": self.clients_left,
            },
        )

    async def healthy(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        """Be ready, and leave no connection behind, so that the first request gets a fresh one."""
        send_head(writer, "200 OK", "Content-Length: 2", "Connection: close")
        writer.write(b"{}")
        await writer.drain()
        raise Silence

    async def peculiar(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        send_head(
            writer,
            "207 Quite Peculiar",
            "Set-Cookie: a=1",
            "Set-Cookie: b=2",
            "X-Kept: yes",
            "X-Named: no",
            "Connection: X-Named, keep-alive",
            "Keep-Alive: timeout=5",
            "Content-Length: 3",
        )
        writer.write(b"\x00\xff\n")

    async def gzipped(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        size = len(GZIPPED)
        send_head(writer, "200 OK", "Content-Encoding: gzip", f"Content-Length: {size}")
        writer.write(GZIPPED)

    async def gzipped_stream(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        send_head(writer, "200 OK", "Content-Encoding: gzip", "Transfer-Encoding: chunked")
        send_chunk(writer, GZIPPED)
        send_chunk(writer, b"")

    async def silent(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        raise Silence

    async def silent_when_reused(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        """Do as a server does that closed the connection just when the next request came."""
        if asked.number > 1:
            raise Silence
        await self.echo(asked, writer)

    async def cut_head_when_reused(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        if asked.number == 1:
            await self.echo(asked, writer)
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Le")
        await writer.drain()
        raise Silence

    async def flood(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        send_head(writer, "200 OK", f"Content-Length: {FLOOD_BYTES}")
        for _ in range(FLOOD_BYTES // len(_CHUNK)):
            writer.write(_CHUNK)
            await writer.drain()
            self.flood_sent_bytes += len(_CHUNK)

    async def die_after_event(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        send_head(writer, "200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked")
        send_chunk(writer, b'data: {"whole": true}\n\n')
        await die(writer)

    async def die_in_event(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        send_head(writer, "200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked")
        send_chunk(writer, b'data: {"whole": true}\n\ndata: {"whole": fal')
        await die(writer)

    async def die_in_long_body(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        send_head(writer, "200 OK", f"Content-Length: {64 * len(_CHUNK)}")
        writer.write(_CHUNK)
        await die(writer)

    async def die_in_short_body(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        send_head(writer, "200 OK", "Content-Length: 100")
        writer.write(b"half of it")
        await die(writer)


Action = Callable[[FaultyServer, Asked, asyncio.StreamWriter], Awaitable[None]]
ACTIONS: dict[str, Action] = {
    "/health": FaultyServer.healthy,
    "/counts": FaultyServer.counts,
    "/peculiar": FaultyServer.peculiar,
    "/gzipped": FaultyServer.gzipped,
    "/gzipped-stream": FaultyServer.gzipped_stream,
    "/silent": FaultyServer.silent,
    "/silent-when-reused": FaultyServer.silent_when_reused,
    "/cut-head-when-reused": FaultyServer.cut_head_when_reused,
    "/flood": FaultyServer.flood,
    "/die-after-event": FaultyServer.die_after_event,
    "/die-in-event": FaultyServer.die_in_event,
    "/die-in-long-body": FaultyServer.die_in_long_body,
    "/die-in-short-body": FaultyServer.die_in_short_body,
}


async def read_request(reader: asyncio.StreamReader, number: int) -> Asked:
    """Read one request; raises IncompleteReadError at the connection's end."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    headers = [(name, value) for name, value in (line.split(": ", 1) for line in lines)]
    lengths = [int(value) for name, value in headers if name.lower() == "content-length"]
    body = await reader.readexactly(lengths[0]) if lengths else b""
    return Asked(method=method, target=target, headers=headers, body=body, number=number)


def send_head(writer: asyncio.StreamWriter, status: str, *headers: str) -> None:
    writer.write("\r\n".join((f"HTTP/1.1 {status}", *headers, "", "")).encode())


def send_chunk(writer: asyncio.StreamWriter, content: bytes) -> None:
    writer.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")


def send_json(writer: asyncio.StreamWriter, content: object) -> None:
    body = json.dumps(content).encode()
    send_head(writer, "200 OK", "Content-Type: application/json", f"Content-Length: {len(body)}")
    writer.write(body)


async def die(writer: asyncio.StreamWriter) -> None:
    """Be killed, after all that was written has left."""
    writer.transport.set_write_buffer_limits(high=0)
    await writer.drain()
    os.kill(os.getpid(), signal.SIGKILL)


async def main(arguments: list[str]) -> None:
    if "--version" in arguments:
        print("version: faulty")  # noqa: T201 - what is printed is the answer
    elif "--help" in arguments:
        print("sockets end in .sock", *FLAGS, sep="\n")  # noqa: T201 - the same
    else:
        address = arguments[arguments.index("--host") + 1]
        server = await asyncio.start_unix_server(FaultyServer().serve, address)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
