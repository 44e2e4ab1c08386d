"""An embedding server whose vectors tell their texts, so that none can be mistaken: `SOCKET`.

It computes nothing, and so answers as fast as it can be asked.
"""

import asyncio
import json
import re
import sys
import zlib
from array import array
from base64 import b64encode

NUMBERS = 8
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)\r\n")


def vector_of(text: str) -> str:
    """Return the vector of a text, in base64: its checksum, four bits a number."""
    checksum = zlib.crc32(text.encode())
    numbers = array("f", [1.0 + (checksum >> 4 * place & 15) for place in range(NUMBERS)])
    return b64encode(numbers.tobytes()).decode()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            body = await reader.readexactly(int(length[1])) if length else b""
            texts = json.loads(body)["input"] if body else []
            data = [{"index": i, "embedding": vector_of(text)} for i, text in enumerate(texts)]
            answer = json.dumps({"data": data}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def _main() -> None:
    async with await asyncio.start_unix_server(_serve, sys.argv[1], limit=1 << 26) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main())
