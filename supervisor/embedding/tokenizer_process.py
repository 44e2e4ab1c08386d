"""The process of a large tokenizer: it reads the file, and tells the tokens of texts.

`python -m supervisor.embedding.tokenizer_process PATH STAMP PID`
"""

import asyncio
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec

from supervisor.embedding.tokenizer import FileTokenizer
from supervisor.errors import ModelFileError, RequestRefused
from supervisor.own_process import end_with_parent
from supervisor.side_process.answering import SOCKET, answer


class Describe(msgspec.Struct, frozen=True, array_like=True, tag="describe"):
    """Answered with the size of the vocabulary."""


class Encode(msgspec.Struct, frozen=True, array_like=True, tag="encode"):
    """Answered with `Tokenized`."""

    texts: list[str]


class Tell(msgspec.Struct, frozen=True, array_like=True, tag="tell"):
    """Answered with the text's tokens."""

    text: str
    adds_special: bool


Request = Describe | Encode | Tell


def stamp_of(path: Path) -> str:
    """Return what changes with the content of a file. Raises OSError."""
    found = path.stat()
    return f"{found.st_size}-{found.st_mtime_ns}"


async def serve(path: Path, stamp: str, connection: socket.socket) -> None:
    """Tell tokens by a file, as long as it is as it was, until the connection is closed."""
    tokenizer = _opened(path, stamp)

    async def carry_out(request: Request) -> Any:
        if isinstance(tokenizer, RequestRefused):
            raise tokenizer
        match request:
            case Describe():
                return tokenizer.vocabulary_size
            case Encode(texts):
                return await tokenizer.encode(texts)
            case Tell(text, adds_special):
                return await tokenizer.told(text, adds_special=adds_special)

    await answer(connection, Request, carry_out, "embedding_failed")


def _opened(path: Path, stamp: str) -> FileTokenizer | RequestRefused:
    try:
        if stamp_of(path) == stamp:
            return FileTokenizer(path)
    except RequestRefused as error:
        return error
    except (OSError, ModelFileError) as error:
        return RequestRefused("target_cannot_start", str(error))
    # Its ids may be others now, and the model is still the one of before.
    told = f"{path} has changed since it was read; restart the controller"
    return RequestRefused("target_cannot_start", told)


if __name__ == "__main__":
    end_with_parent(int(sys.argv[3]))
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2], socket.socket(fileno=SOCKET)))
