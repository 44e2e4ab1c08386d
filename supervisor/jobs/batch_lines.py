"""The lines of OpenAI's Batch API: what they ask, what is wrong with them, what is answered. Pure.

Input: `{"custom_id", "method": "POST", "url", "body"}`, output: `{"id", "custom_id", "response":
{"status_code", "request_id", "body"}, "error"}`, one JSON object a line (OpenAI's API reference,
Batch). `error` says why there is no response.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from supervisor.core.byte_size import MIB
from supervisor.jobs.values import Line, LineResult, NewLine

EMBEDDINGS = "/v1/embeddings"
ENDPOINTS = (EMBEDDINGS, "/v1/chat/completions", "/v1/completions")
"""What batches may ask."""

MAX_LINES = 50_000
"""Lines of a file, and inputs of all its lines for embeddings (OpenAI's guide to batches)."""

MAX_LINE_BYTES = 16 * MIB

MAX_PROBLEMS = 100
"""How many a batch shows; what is checked behind them is not looked at."""

_NEW_LINE = b"\n"
_MARK = b"\xef\xbb\xbf"  # what some editors begin files in UTF-8 with


class Problem(msgspec.Struct, frozen=True):
    """What is wrong with an input file, as batches show it in `errors`."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchLine(msgspec.Struct, frozen=True):
    """A line of an input file."""

    custom_id: str
    url: str
    body: msgspec.Raw
    method: str = "POST"


class _Body(msgspec.Struct, frozen=True):
    model: str | None = None
    input: str | list[Any] = ""
    stream: bool | None = None


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """What a line was answered."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class _Error(msgspec.Struct, frozen=True):
    code: str
    message: str


class _OutputLine(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    custom_id: str
    response: Response | None = None
    error: _Error | None = None


_encode = msgspec.json.Encoder().encode
decode_line = msgspec.json.Decoder(BatchLine).decode
"""Raises msgspec.MsgspecError."""
_decode_body = msgspec.json.Decoder(_Body).decode

_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class LineReader:
    """Makes lines of the pieces of a file, numbered as they stand; blank ones are left out."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        self._number = 0

    def take(self, piece: bytes) -> Sequence[NewLine]:
        """Return the lines that end in a piece."""
        *ended, rest = piece.split(_NEW_LINE)
        if not ended:
            self._rest.append(rest)
            return ()
        ended[0] = b"".join((*self._rest, ended[0]))
        self._rest = [rest]
        return [*self._numbered(ended)]

    def end(self) -> Sequence[NewLine]:
        """Return the last line, where nothing ends it."""
        return [*self._numbered([b"".join(self._rest)])]

    def _numbered(self, contents: Sequence[bytes]) -> Iterator[NewLine]:
        for content in contents:
            self._number += 1
            bare = (content.removeprefix(_MARK) if self._number == 1 else content).strip()
            if bare:
                yield NewLine(self._number, bare)


class InputCheck:
    """Checks the lines of one input file, one after the other."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._ids: set[str] = set()
        self._inputs = 0
        self.lines = 0
        self.models: set[str] = set()
        """What its lines name."""
        self.problems: list[Problem] = []

    @property
    def is_over(self) -> bool:
        """Whether enough is wrong."""
        return len(self.problems) >= MAX_PROBLEMS

    def take(self, lines: Sequence[NewLine]) -> None:
        """Check some lines."""
        for line in lines:
            if self.is_over:
                return
            self._take(line)

    def end(self) -> None:
        """Check the file as a whole."""
        if not self.lines and not self.problems:
            self.problems.append(Problem("empty_file", "the input file has no lines"))

    def _take(self, line: NewLine) -> None:
        self.lines += 1
        if self.lines == MAX_LINES + 1:
            self._note("too_many_lines", f"there may be {MAX_LINES} lines in a batch", line)
        if len(line.content) > MAX_LINE_BYTES:
            return self._note("line_too_long", f"a line may have {MAX_LINE_BYTES} bytes", line)
        try:
            asked = decode_line(line.content)
        except _UNREADABLE as error:
            return self._note("invalid_json_line", f"the line cannot be read: {error}", line)
        if asked.custom_id in self._ids:
            which = f"custom_id '{asked.custom_id}' was there before; each may be there once"
            self._note("duplicate_custom_id", which, line, "custom_id")
        self._ids.add(asked.custom_id)
        if asked.method != "POST":
            self._note("invalid_method", "only POST is possible", line, "method")
        if asked.url != self._endpoint:
            text = f"the batch is for {self._endpoint}, and the line for {asked.url}"
            self._note("mismatched_url", text, line, "url")
        return self._take_body(line, asked)

    def _take_body(self, line: NewLine, asked: BatchLine) -> None:
        try:
            body = _decode_body(asked.body)
        except _UNREADABLE as error:
            return self._note("invalid_body", f"the body cannot be read: {error}", line, "body")
        if body.stream:
            self._note("invalid_body", "`stream` cannot be had in a batch", line, "body.stream")
        if body.model is not None:
            self.models.add(body.model)
        if self._endpoint == EMBEDDINGS:
            before, self._inputs = self._inputs, self._inputs + _inputs(body.input)
            if before <= MAX_LINES < self._inputs:
                text = f"all lines together may have {MAX_LINES} inputs"
                self._note("too_many_inputs", text, line, "body.input")
        return None

    def _note(self, code: str, message: str, line: NewLine, param: str | None = None) -> None:
        self.problems.append(Problem(code, message, line.number, param))


def _inputs(given: str | list[Any]) -> int:
    """Return how many inputs `input` has: token ids of one are a list of numbers."""
    is_many = isinstance(given, list) and not all(isinstance(each, int) for each in given)
    return len(given) if is_many else 1


def answered(line: Line, response: Response) -> bytes:
    """Return the line of output or error file for a line that was answered."""
    custom_id = decode_line(line.content).custom_id
    return _encode(_OutputLine(id=_id_of(line), custom_id=custom_id, response=response))


def unanswered(line: Line, code: str, message: str) -> bytes:
    """Return the line of the error file for a line that was not answered."""
    custom_id = decode_line(line.content).custom_id
    return _encode(_OutputLine(id=_id_of(line), custom_id=custom_id, error=_Error(code, message)))


def result(
    line: Line, response: Response, *, input_tokens: int = 0, output_tokens: int = 0
) -> LineResult:
    """Return the result of a line that was answered, for better or worse."""
    is_success = response.status_code < 400
    reason = "" if is_success else f"a line was answered with {response.status_code}"
    return LineResult(
        job_id=line.job_id,
        number=line.number,
        is_success=is_success,
        content=answered(line, response),
        reason=reason,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
    )


def _id_of(line: Line) -> str:
    return f"batch_req_{line.job_id.removeprefix('batch_')}-{line.number}"
