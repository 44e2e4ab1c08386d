"""A server with llama-server's command line that writes down each request that reaches it.

It reads strictly: what is not a request is written down as malformed, and ends the connection. Each
request stands as a line of JSON in `seen.jsonl` beside the program, before it is answered.
"""

import asyncio
import base64
import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

FLAGS = (
    *("--model", "--host", "--port", "--ctx-size", "--batch-size", "--ubatch-size", "--parallel"),
    *("--kv-unified", "--no-kv-unified", "--cache-type-k", "--cache-type-v", "--flash-attn"),
    *("--cache-ram", "--cache-reuse", "--n-gpu-layers", "--fit", "--load-mode", "--embeddings"),
    *("--metrics", "--pooling", "--threads", "--threads-http"),
)


class Malformed(Exception):
    """What came is not a request."""


def main(arguments: list[str]) -> None:
    """Answer `--version` and `--help`, or serve."""
    seen = Path(arguments[0])
    if "--version" in arguments:
        sys.stdout.write("version: recording\n")
    elif "--help" in arguments:
        lines = ("sockets end in .sock", *FLAGS, "--slots  (default: enabled)", "--slot-save-path")
        sys.stdout.write("\n".join(lines))
    else:
        asyncio.run(serve(arguments[arguments.index("--host") + 1], seen))


async def serve(address: str, seen: Path) -> None:
    """Serve on a unix socket until killed."""
    with seen.open("a", encoding="utf-8") as record:

        def write_down(**facts: object) -> None:
            record.write(json.dumps(facts) + "\n")
            record.flush()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                try:
                    while await answer_next(reader, writer, write_down):
                        await writer.drain()
                except Malformed as problem:
                    write_down(malformed=str(problem))
            writer.close()

        server = await asyncio.start_unix_server(answer, address)
        await server.serve_forever()


async def answer_next(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, write_down: Callable[..., None]
) -> bool:
    """Answer one request; False at the connection's end. Raises Malformed."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError as ended:
        if ended.partial:
            raise Malformed(repr(ended.partial)) from ended
        return False
    method, target, headers = read_head(head)
    body = await read_body(reader, headers)
    if target != "/health":
        facts = {"method": method, "target": target, "body": base64.b64encode(body).decode()}
        write_down(**facts, headers=headers)
    content = json.dumps({"target": target}).encode()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
    return True


def read_head(head: str) -> tuple[str, str, list[tuple[str, str]]]:
    """Return method, target and fields. Raises Malformed for what could be read in two ways."""
    first, *lines = head[:-4].split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or words[2] != "HTTP/1.1" or any(": " not in line for line in lines):
        raise Malformed(repr(head))
    if any(mark in head.replace("\r\n", "") for mark in ("\r", "\n", "\0")):
        raise Malformed(repr(head))
    fields = (line.partition(": ") for line in lines)
    return words[0], words[1], [(name, value) for name, _, value in fields]


async def read_body(reader: asyncio.StreamReader, headers: list[tuple[str, str]]) -> bytes:
    """Return the body. Raises Malformed where its length is given twice, or not clearly."""
    lengths = [value for name, value in headers if name.lower() == "content-length"]
    codings = [value for name, value in headers if name.lower() == "transfer-encoding"]
    if len(lengths) + len(codings) > 1 or codings not in ([], ["chunked"]):
        raise Malformed(repr(headers))
    if lengths:
        return await reader.readexactly(int(lengths[0]))
    content = b""
    while codings and (size := int(await reader.readuntil(b"\r\n"), 16)):
        content += await reader.readexactly(size)
        await reader.readexactly(2)
    if codings:
        await reader.readexactly(2)
    return content


if __name__ == "__main__":
    main(sys.argv[1:])
