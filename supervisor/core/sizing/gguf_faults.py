"""What a reader can see in a header that keeps llama.cpp from loading the model.

A start that must fail is refused before the live model is stopped for it.

Source: llama_model_base::load_hparams(), llama_vocab::impl::load() of llama.cpp (build 11434); the
tests compare each of these with what llama-server makes of such a file.
"""

from collections.abc import Iterator, Sequence

from supervisor.core.sizing.gguf import GgufHeader
from supervisor.core.sizing.kv_cache import MAX_LAYERS, keeps_recurrent_state

_COUNTS = ("context_length", "embedding_length", "block_count")
_HEADS = "attention.head_count"


def find_fault(headers: Sequence[GgufHeader]) -> str | None:
    """Return why a model whose shards have these headers cannot be loaded; None: nothing is seen.

    The first header comes first. What is said completes `<path>: `.
    """
    if not sum(header.tensors.count for header in headers):
        return "it holds no tensors: a vocabulary, or an unfinished conversion; fetch the model"
    return next(_faults(headers[0]), None)


def _faults(header: GgufHeader) -> Iterator[str]:
    for name in _COUNTS:
        value = header.parameter(name)
        key = f"{header.architecture}.{name}"
        if value is None:
            yield f"its header lacks {key}: damaged, or not a language model; convert it again"
        elif header.count_parameter(name) is None:
            yield f"its header is damaged: {key} must be a whole number, not {value!r}"
        elif not value:
            yield f"its header is damaged: {key} is 0"
    layers = header.count_parameter("block_count") or 0
    if layers > MAX_LAYERS:
        yield f"its header is damaged: it announces {layers} layers, more than {MAX_LAYERS}"
    heads = header.parameter(_HEADS)
    counts = heads if isinstance(heads, tuple) else (heads,)
    if isinstance(heads, str | float) or any(isinstance(count, float) for count in counts):
        yield f"its header is damaged: {_HEADS} must be a whole number, not {heads!r}"
    if heads == 0 and not keeps_recurrent_state(header.architecture):
        yield f"its header is damaged: {header.architecture}.{_HEADS} is 0"
    tokenizer = header.metadata.get("tokenizer.ggml.model")
    if tokenizer is None:
        yield "it holds no tokenizer (tokenizer.ggml.model): convert the model again, or fetch it"
    elif tokenizer not in {"none", "no_vocab"} and not header.array_lengths.get(
        "tokenizer.ggml.tokens"
    ):
        yield "it holds no vocabulary (tokenizer.ggml.tokens): convert the model again, or fetch it"
