"""An embedding server that does what the texts say, and tells what it was sent: `SOCKET`.

A text's vector is made of its checksum. The first word of a text may be one of `ACTIONS`, which
then holds for the whole answer; `held` answers once `POST /let_go` is asked. `GET /told` answers
the batches in the order in which they came, and how many clients have left.
"""

import asyncio
import base64
import json
import math
import os
import signal
import sys
import time
import zlib
from array import array
from pathlib import Path
from typing import Any

DIMENSIONS = 8


def vector_of(text: str) -> bytes:
    """Return the vector of a text."""
    digits = zlib.crc32(text.encode())
    return array("f", [1.0 + (digits >> 4 * place & 15) for place in range(DIMENSIONS)]).tobytes()


class Server:
    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.clients_left = 0
        self.let_go = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().lower().split("\r\n")
                length = next((line for line in lines if line.startswith("content-length:")), ":0")
                body = await reader.readexactly(int(length.split(":")[1]))
                await self.answer(head.split()[1].decode(), body, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(
        self, path: str, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if path == "/v1/embeddings":
            return await self.embed(json.loads(body)["input"], reader, writer)
        if path == "/let_go":
            self.let_go.set()
            self.let_go = asyncio.Event()
        send(writer, 200, {"batches": self.batches, "clients_left": self.clients_left})
        return None

    async def embed(
        self, texts: list[str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.batches.append(texts)
        actions = {text.split()[0] for text in texts}
        if "held" in actions and not await self.is_waited_for(reader):
            self.clients_left += 1
            raise ConnectionError
        if "deadly" in actions:
            os._exit(9)
        if "wounding" in actions:
            die_slowly_once(writer)
        vectors = [vector_of(text) for text in texts]
        entries = [
            {"index": index, "embedding": base64.b64encode(vector).decode()}
            for index, vector in enumerate(vectors)
        ]
        for action in actions & ACTIONS.keys():
            if (refused := ACTIONS[action](entries)) is not None:
                return send(writer, 500, refused)
        if "broken" in actions:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
            raise ConnectionError
        usage = {} if "silent" in actions else {"usage": {"prompt_tokens": 7 * len(texts)}}
        send(writer, 200, {"data": entries, **usage})
        return None

    async def is_waited_for(self, reader: asyncio.StreamReader) -> bool:
        """Wait to be let go. Returns whether the client waits as well, to the end."""
        leaving, going = (
            asyncio.ensure_future(reader.read(1)),
            asyncio.ensure_future(self.let_go.wait()),
        )
        done, _ = await asyncio.wait((leaving, going), return_when=asyncio.FIRST_COMPLETED)
        for each in (leaving, going):
            each.cancel()
        await asyncio.wait((leaving, going))
        return leaving not in done


def die_slowly_once(writer: asyncio.StreamWriter) -> None:
    """Die as one that gives the memory of a GPU back; who comes after another that did lives on."""
    dead = Path(sys.argv[1]).with_name("wounded")
    if not dead.exists():
        dead.touch()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        Path(sys.argv[1]).unlink()
        os.dup2(os.open(os.devnull, os.O_RDWR), writer.get_extra_info("socket").fileno())
        time.sleep(1.5)
        os._exit(9)


def send(writer: asyncio.StreamWriter, status: int, content: Any) -> None:
    body = json.dumps(content).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)


Entries = list[dict[str, Any]]


def refuse(_: Entries) -> Any:
    return {"error": {"message": "this one cannot be computed"}}


def find_too_long(_: Entries) -> Any:
    return {"error": {"code": 500, "message": "input (600 tokens) is too large to process."}}


def forget_one(entries: Entries) -> None:
    entries.pop()


def repeat_an_index(entries: Entries) -> None:
    entries[-1]["index"] = 0 if len(entries) > 1 else 1


def be_not_finite(entries: Entries) -> None:
    numbers = array("f", [math.nan] * DIMENSIONS).tobytes()
    entries[0]["embedding"] = base64.b64encode(numbers).decode()


def lengthen(entries: Entries) -> None:
    for entry in entries:
        entry["embedding"] = base64.b64encode(bytes(8 * DIMENSIONS)).decode()


def shuffle(entries: Entries) -> None:
    entries.reverse()


ACTIONS = {
    "poison": refuse,
    "endless": find_too_long,
    "short": forget_one,
    "doubled": repeat_an_index,
    "nan": be_not_finite,
    "lengthened": lengthen,
    "shuffled": shuffle,
}


async def main() -> None:
    server = Server()
    async with await asyncio.start_unix_server(server.serve, sys.argv[1], limit=1 << 26) as serving:
        await serving.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
