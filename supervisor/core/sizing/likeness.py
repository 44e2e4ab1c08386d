"""Says what a file that is not GGUF seems to be, by its first bytes."""

import re

_LIKENESSES = (
    (rb"version https://git-lfs", "a git-lfs pointer, not the file itself: run `git lfs pull`"),
    (rb"PK\x03\x04", "a zip archive, as PyTorch writes: convert the model to GGUF"),
    (rb"\x80\x02", "a Python pickle, as PyTorch wrote: convert the model to GGUF"),
    (rb".{5}\0{3}\{", "a safetensors file: convert the model to GGUF"),
    (rb"(\xef\xbb\xbf)?\s*<(!doctype|html)", "an HTML page, perhaps of a login or an error"),
    (rb"lmgg|tjgg|fmgg|algg", "a model in the format before GGUF: convert it again"),
    (rb"\0+\Z", "a file of zeros, perhaps an unfinished download"),
)


def likeness(start: bytes) -> str:
    """Say what a file that is not GGUF seems to be, with the remedy where there is one."""
    for pattern, likeness in _LIKENESSES:
        if re.match(pattern, start, re.DOTALL | re.IGNORECASE):
            return likeness
    return f"none of the usual formats (it begins with {start[:8]!r})"
