"""What a server that could not start said was wrong: one sentence out of its last lines."""

import re
from collections.abc import Sequence

_LOADER = re.compile(r"error loading model: (?P<reason>.+)")
_OURS = re.compile(r"\(ended by the controller: (?P<reason>.+)\)")
_LLAMA_CPP = re.compile(r"[\d.]+ E (?:\w{3} +)?[\w:~()]+: (?P<reason>.+)")
"""An error in llama.cpp's log: `0.00.008.996 E srv    load_model: failed to load model`."""

_OTHERS = re.compile(r"(?P<reason>(?:\w+\.)*(?:\w*Error|\w*Exception|error|ERROR|fatal)\b:? .+)")
"""What most programs write last: `error: invalid argument`, `ValueError: …` of a traceback."""

MAX_REASON_LENGTH = 300


def reason_in(lines: Sequence[str]) -> str | None:
    """Return the reason that a server gave for its end; None where no line sounds like one.

    Where the controller ended it, that says why. Of llama.cpp's errors the first counts, for those
    after it follow from it; of other programs' the last, where a traceback ends.
    """
    for pattern, ordered in (
        (_OURS, lines[::-1]),
        (_LOADER, lines),
        (_LLAMA_CPP, lines),
        (_OTHERS, lines[::-1]),
    ):
        for line in ordered:
            found = pattern.search(line)
            if found is not None:
                return found["reason"].strip()[:MAX_REASON_LENGTH]
    return None
