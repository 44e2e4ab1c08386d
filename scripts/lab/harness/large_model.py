"""A model that takes a disk some time: 1 GB of random weights in a real architecture's tensors.

It stands in the user's cache, apart from any checkout, and is made once.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from demo_models.demo_chat import TEXT_FILE, words_of
from demo_models.gguf_file import new_gguf
from demo_models.llama_shape import LlamaShape
from demo_models.word_tokenizer import WordTokenizer
from gguf import GGUFWriter
from numpy.typing import NDArray

from lab.harness.command import LabError, say
from supervisor.engine.kinds.cached_build import cached_build_dir

SHAPE = LlamaShape(
    context_tokens=2048, layers=11, width=2048, feed_forward=5632, heads=32, head_size=64
)
SEED = 13


def large_model() -> Path:
    """Return the file, which is made where it is not there. Raises LabError."""
    return kept_model(f"large-{SHAPE.layers}x{SHAPE.width}.gguf", write_large_model)


def kept_model(name: str, write: Callable[[Path], None]) -> Path:
    """Return a file of the user's cache, written where it is not there. Raises LabError."""
    path = cached_build_dir().parents[1] / "bench" / name
    if not path.exists():
        say(f"  {path} …")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
        except OSError as error:
            raise LabError(f"{path}: it cannot be written: {error.strerror}") from error
    return path


def text_tokenizer() -> WordTokenizer:
    """Return a tokenizer of the words of the demo's text."""
    lines = TEXT_FILE.read_text(encoding="utf-8").splitlines()
    pieces = dict.fromkeys(word for line in lines for word in words_of(line))
    return WordTokenizer(pieces=tuple(pieces))


def write_large_model(path: Path, shape: LlamaShape = SHAPE) -> None:
    """Write the model. All layers have the same weights: only their size matters here.

    Raises OSError: the folder cannot be written or is full; `path` is untouched.
    """
    random = np.random.default_rng(SEED)
    with new_gguf(path, "llama") as writer:
        shape.add_to(writer, "bench-large")
        add_vocabulary(writer, shape, random)
        add_layers(writer, shape, random)


def add_vocabulary(writer: GGUFWriter, shape: LlamaShape, random: np.random.Generator) -> None:
    """Add the tokens, with what becomes of them before the layers and behind them."""
    tokenizer = text_tokenizer()
    tokenizer.add_to(writer)
    vocabulary = (len(tokenizer.tokens), shape.width)
    writer.add_tensor("token_embd.weight", random_matrix(random, *vocabulary))
    writer.add_tensor("output_norm.weight", np.ones(shape.width, np.float32))
    writer.add_tensor("output.weight", random_matrix(random, *vocabulary))


def add_layers(
    writer: GGUFWriter, shape: LlamaShape, random: np.random.Generator, experts: int = 0
) -> None:
    """Add the layers, which share their weights; with `experts` each has as many networks."""
    width, inner, attention = shape.width, shape.feed_forward, shape.heads * shape.head_size
    sizes = {
        **dict.fromkeys(("attn_q", "attn_k", "attn_v"), (attention, width)),
        "attn_output": (width, attention),
    }
    network = {"ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)}
    weights = {name: random_matrix(random, *size) for name, size in sizes.items()}
    for name, size in network.items():
        one = random_matrix(random, *size)
        weights |= {f"{name}_exps": np.stack([one] * experts)} if experts else {name: one}
    if experts:
        weights["ffn_gate_inp"] = random_matrix(random, experts, width)
    norm = np.ones(width, np.float32)
    for layer in range(shape.layers):
        for name, values in weights.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", values)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", norm)


def random_matrix(random: np.random.Generator, rows: int, columns: int) -> NDArray[np.float16]:
    """Return weights under which a layer's values keep their size."""
    deviation: float = columns**-0.5
    normal = random.standard_normal((rows, columns), dtype=np.float32)
    return (normal * deviation).astype(np.float16)
