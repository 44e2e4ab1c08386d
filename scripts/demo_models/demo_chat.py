"""A chat model that answers with readable English, made by counting.

Which word follows which in `chat_text.txt` is counted and written down as a language model: the
embedding of a word is a one-hot vector, attention and feed-forward add nothing to it, and the
output matrix holds the logarithm of the counts. Sampling from it walks through the text and takes
another turning where two sentences share a word. A line of the text is an answer, and the end of
a line is the end of an answer.
"""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from numpy.typing import NDArray

from demo_models.gguf_file import new_gguf
from demo_models.llama_shape import NORM_EPSILON, LlamaShape
from demo_models.word_tokenizer import END, WORD_START, WordTokenizer

TEXT_FILE = Path(__file__).with_name("chat_text.txt")
CONTEXT_TOKENS = 4096

LEANING_WORDS = (
    "a an and as at before by can do for from has I in into is it its may must no not of on one or "
    "so that the their this to when with A An Each Every I If In It One That The This When"
)
"""Words that stick to the next one. "the" alone forgets what came before it; "the memory" and
"of the memory" lead on to what the text says about memory, so sentences stay grammatical."""

UNSEEN_LOGIT = -40.0
"""Stands for the logarithm of zero: such a step is never taken at a usual temperature."""

OUTSIDE = 0
"""State after any token that is no word of the text: an answer begins here."""


def write_demo_chat(path: Path) -> None:
    """Write the model: one layer, one embedding value per word, context 4096, F16.

    Decoding ends by itself from every state, also when only the likeliest word is taken.

    Raises:
        OSError: the folder cannot be written or is full; `path` is untouched.

    """
    answers = [words_of(line) for line in TEXT_FILE.read_text(encoding="utf-8").splitlines()]
    tokenizer = WordTokenizer(
        pieces=tuple(dict.fromkeys(word for line in answers for word in line))
    )
    logits = _logits(prefer_walks_that_end(count_steps(answers, tokenizer.pieces)))
    with new_gguf(path, "llama") as writer:
        shape = _shape(states=len(tokenizer.pieces) + 1)
        shape.add_to(writer, "demo-chat")
        tokenizer.add_to(writer)
        writer.add_tensor("token_embd.weight", _one_hot(tokenizer, shape.width))
        _add_idle_layer(writer, shape)
        # Undoes the normalisation of a one-hot vector: the logits come out as they are written.
        scale = (1 / shape.width + NORM_EPSILON) ** 0.5
        writer.add_tensor("output_norm.weight", np.full(shape.width, scale, np.float32))
        writer.add_tensor("output.weight", _output(tokenizer, shape.width, logits))


def words_of(line: str) -> list[str]:
    """Split an answer into tokens as the vocabulary spells them; the first has no space."""
    leaning = "|".join(LEANING_WORDS.split())
    words = re.findall(rf"(?:(?:{leaning}) )*\S+", line)
    first, *others = (word.replace(" ", WORD_START) for word in words)
    return [first, *(WORD_START + word for word in others)]


def count_steps(answers: list[list[str]], pieces: tuple[str, ...]) -> NDArray[np.float32]:
    """Count how often each state follows each other one.

    Returns a square matrix, row "from", column "to". State 0 is `OUTSIDE`, state i + 1 is the
    i-th piece, and the last state is the end of an answer.
    """
    state = {piece: number for number, piece in enumerate(pieces, start=1)}
    end = len(pieces) + 1
    steps = np.zeros((end + 1, end + 1), np.float32)
    for answer in answers:
        for before, after in pairwise([OUTSIDE, *(state[word] for word in answer), end]):
            steps[before, after] += 1
    return steps


def prefer_walks_that_end(steps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give each state one likeliest successor such that following these always reaches the end.

    Always taking the likeliest step can run in circles. On each circle the state nearest to the
    end is told to prefer a step towards it. Steps towards the end cannot form a circle, so the
    repair comes to an end too. Equal counts are told apart, because which of them a server takes
    is not defined.
    """
    end = len(steps) - 1
    distance = _distance_to(end, steps)
    towards_end = np.where(steps > 0, distance, np.inf).argmin(axis=1)
    preferred = steps.argmax(axis=1)
    preferred[end] = end
    while len(circling := _circling(preferred, end)):
        can_turn = circling[preferred[circling] != towards_end[circling]]
        nearest = can_turn[distance[can_turn].argmin()]
        preferred[nearest] = towards_end[nearest]
    weighted = steps.copy()
    weighted[np.arange(end), preferred[:end]] = steps[:end].max(axis=1) + 0.5
    return weighted


def _distance_to(end: int, steps: NDArray[np.float32]) -> NDArray[np.float64]:
    """Count the fewest steps from each state to the end; every state has a way there."""
    distance = np.full(len(steps), np.inf)
    distance[end] = 0
    while np.isinf(distance).any():
        one_more = np.where(steps > 0, distance, np.inf).min(axis=1) + 1
        distance = np.minimum(distance, one_more)
    return distance


def _circling(preferred: NDArray[np.intp], end: int) -> NDArray[np.intp]:
    """Name the states on circles: where a walk still is after more steps than there are states."""
    place = preferred
    for _ in range(len(preferred).bit_length()):
        place = place[place]
    return np.unique(place[place != end])


def _logits(steps: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.log(steps, out=np.full_like(steps, UNSEEN_LOGIT), where=steps > 0)


def _shape(states: int) -> LlamaShape:
    return LlamaShape(
        context_tokens=CONTEXT_TOKENS,
        layers=1,
        width=-(-states // 64) * 64,
        feed_forward=64,
        heads=1,
        head_size=64,
    )


def _one_hot(tokenizer: WordTokenizer, width: int) -> NDArray[np.float16]:
    embeddings = np.zeros((len(tokenizer.tokens), width), np.float16)
    first_piece = len(tokenizer.tokens) - len(tokenizer.pieces)
    embeddings[:first_piece, OUTSIDE] = 1
    embeddings[first_piece:, 1 : 1 + len(tokenizer.pieces)] = np.eye(len(tokenizer.pieces))
    return embeddings


def _output(
    tokenizer: WordTokenizer, width: int, logits: NDArray[np.float32]
) -> NDArray[np.float16]:
    """Lay out the logits as llama.cpp multiplies them: a row per token, a column per state."""
    output = np.full((len(tokenizer.tokens), width), UNSEEN_LOGIT, np.float16)
    first_piece, states = len(tokenizer.tokens) - len(tokenizer.pieces), len(tokenizer.pieces) + 1
    output[first_piece:, :states] = logits[:states, 1:states].T
    output[tokenizer.tokens.index(END), :states] = logits[:states, -1]
    return output


def _add_idle_layer(writer: GGUFWriter, shape: LlamaShape) -> None:
    """Add the one layer that the architecture asks for; all zero, it adds nothing."""
    width, inner, attention = shape.width, shape.feed_forward, shape.heads * shape.head_size
    shapes = {
        **dict.fromkeys(("attn_q", "attn_k", "attn_v"), (attention, width)),
        "attn_output": (width, attention),
        **dict.fromkeys(("ffn_gate", "ffn_up"), (inner, width)),
        "ffn_down": (width, inner),
    }
    for name, rows_and_columns in shapes.items():
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros(rows_and_columns, np.float16))
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(width, np.float32))
