"""What the embedding service takes and gives, whatever form its caller speaks."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

import msgspec

from supervisor.config.catalogue import LongInput
from supervisor.core.machine.values import Target
from supervisor.core.scheduling.values import Priority
from supervisor.errors import RequestRefused

Content = str | tuple[int, ...]
"""A text, or the token ids of one, which are taken as they are: nothing is added to them."""


class Side(StrEnum):
    """Which end of an input is cut off."""

    LEFT = "left"
    RIGHT = "right"


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Inputs of one caller, and what is to be made of them."""

    target: Target
    inputs: tuple[Content, ...]

    prompt_name: str | None = None
    """Which of the model's prompts precedes each text: `query`, `document`, …; None: none."""

    normalize: bool = True
    """Whether vectors have length 1."""

    dimensions: int | None = None
    """What vectors are cut to; None: as long as the model makes them."""

    long_input: LongInput | None = None
    """None: as the model's settings say."""

    truncation_side: Side = Side.RIGHT

    max_tokens: int | None = None
    """Of all inputs together; more are refused. None: as many as there are."""

    priority: Priority = Priority.INTERACTIVE


TOO_LONG = "too_long"
"""The detail of a refusal that lists the indexes of all inputs longer than their model takes."""


def too_long(index: int, why: str) -> RequestRefused:
    """Return the refusal of an input that is longer than its model takes."""
    return RequestRefused("input_too_long", f"input {index} is too long: {why}", {"index": index})


RUNNING = "running"
"""The detail of a refusal that has the model's file that is live in place of the configured one."""


def made_for_another(model: str, running: Path | None) -> RequestRefused:
    """Return the refusal of tokens that are not those of the file which a model's server runs.

    Its vectors would be of other texts: another file has another tokenizer.
    """
    return RequestRefused(
        "model_not_live",
        f"'{model}' is configured with another file by now than its server runs; switch to it once "
        "more, and it is started with that",
        {RUNNING: str(running)},
    )


class Piece(msgspec.Struct, frozen=True):
    """What a server embeds at one go: an input, or a window of a long one."""

    content: Content
    tokens: int
    """How many the model sees, special ones included."""


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """One token of a text. `start` and `stop`: its characters; None where that is not known."""

    id: int
    text: str
    special: bool = False
    start: int | None = None
    stop: int | None = None


class PreparedInput(msgspec.Struct, frozen=True):
    """An input as its model takes it: more than one piece where it was divided into windows."""

    pieces: tuple[Piece, ...]
    was_truncated: bool = False

    is_guess: bool = False
    """Whether nobody knew its tokens before its server told them."""

    @property
    def tokens(self) -> int:
        """How many the model sees."""
        return sum([piece.tokens for piece in self.pieces])


class Prepared(msgspec.Struct, frozen=True):
    """The inputs of a request. `model_path`: whose tokens they are; None: they go as texts."""

    inputs: Sequence[PreparedInput]
    model_path: Path | None


class ComputedPieces(msgspec.Struct, frozen=True, kw_only=True):
    """The vectors of pieces, in their order, each as little-endian float32.

    `counted_tokens`: as their server told. `queue_s`: until the first of them was sent;
    `inference_s`: from then until the last was there. `served_by`: the profiles of the servers that
    made them.
    """

    vectors: Sequence[bytes]
    counted_tokens: int
    queue_s: float
    inference_s: float
    served_by: tuple[str, ...] = ()


class Computed(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a request's inputs beside what was made of them.

    `tokens`: as the model saw them. `truncated` and `windowed`: how many inputs were. `served_by`:
    the profiles of the servers that made it.
    """

    tokens: Sequence[int]
    truncated: int
    windowed: int = 0
    tokenization_s: float
    queue_s: float
    inference_s: float
    served_by: tuple[str, ...] = ()


class Embeddings(Computed, frozen=True, kw_only=True):
    """The vectors of inputs, in their order, each as little-endian float32. `tokens`: of each."""

    vectors: Sequence[bytes]


class Ranking(Computed, frozen=True, kw_only=True):
    """The scores of texts, in their order. `tokens`: of each batch, by their server's count."""

    scores: Sequence[float]
