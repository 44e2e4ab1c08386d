"""The file of a tokenizer, as Hugging Face's `tokenizers` writes it: `tokenizer.json`."""

from pathlib import Path

import msgspec

from supervisor.errors import ModelFileError

READER = "tokenizers"
"""The package that reads such files."""

REMEDY = "pip install 'llama-supervisor[embedding]'"


class _TokenizerFile(msgspec.Struct):
    """The one part that every such file has."""

    model: dict[str, msgspec.Raw]


def read_tokenizer_file(path: Path) -> bytes:
    """Return the content of a tokenizer's file. Raises ModelFileError, which names the path."""
    try:
        content = path.read_bytes()
        msgspec.json.decode(content, type=_TokenizerFile)
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: there is no such file") from error
    except OSError as error:
        raise ModelFileError(f"{path}: it cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise ModelFileError(
            f"{path}: it is no tokenizer.json ({error}); take the one of the model's repository"
        ) from error
    return content
