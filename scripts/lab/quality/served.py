"""A model as the embedding service serves it, by any engine and in any type of weights."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import psutil
from demo_models.minilm import write_minilm
from gguf import GGMLQuantizationType

from lab.harness.large_model import kept_model
from lab.harness.servers import Controller
from lab.harness.setting import EMBEDDING_MODEL, Setting, with_changes
from lab.quality.measures import Vectors, unit
from supervisor.engine.kinds.cached_build import cached_build_dir

ARRAY = 100
NO_REPACKING = ["--no-repack"]
"""On processors with AMX the server dies of the first text where weights are Q8_0, else."""

ATTENTION_WHOLE = "Q8_0-attn-F16"
WHOLE = {ATTENTION_WHOLE: ("attn_q", "attn_k", "attn_v")}
"""Matrices that stay F16, where others are quantised, by the name of the weights."""

WHEELS = cached_build_dir().parents[1] / "bench" / "wheel"

_numbers = count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A running service that embeds by one engine and one file."""

    controller: Controller

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """Embed texts, those of an array together. Raises LabError."""
        parts = [self._embed(texts[at : at + ARRAY]) for at in range(0, len(texts), ARRAY)]
        return unit(np.concatenate(parts))

    def memory_bytes(self) -> int:
        """Return the physical memory of the model's server (RSS)."""
        return int(psutil.Process(self.controller.child_pid()).memory_info().rss)

    def _embed(self, texts: Sequence[str]) -> Vectors:
        asked = {"model": EMBEDDING_MODEL, "input": texts}
        answer = self.controller.call("POST", "/v1/embeddings", asked)
        return np.array([entry["embedding"] for entry in answer["data"]], np.float32)


@contextmanager
def served(setting: Setting, weights: str) -> Iterator[Served]:
    """Run the model with weights of that type (`F16`, `Q8_0`, …) by the setting's engine."""
    write = partial(
        write_minilm,
        wheel_dir=WHEELS,
        matrices=GGMLQuantizationType[weights.partition("-")[0]],
        whole=WHOLE.get(weights, ()),
    )
    path = str(kept_model(f"minilm-{weights}.gguf", write))
    model: dict[str, Any] = {"path": path, "profile": "quality"}
    profile: dict[str, Any] = {
        "mode": "embedding",
        "engine": setting.engine,
        "ctx_size": 512,
        "batch_size": 512,
    }
    if setting.engine == "llama-cpp-python":
        model["tokenizer"] = None  # it takes no token ids, and is refused with one
    if setting.engine == "llama-server":
        profile["extra_args"] = NO_REPACKING
    changes: dict[str, Mapping[str, Any]] = {
        "models.yaml": {"default_model": None, "models": {EMBEDDING_MODEL: model}},
        "quality.yaml": profile,
    }
    own = with_changes(setting, f"quality-{next(_numbers)}", changes)
    with Controller(own) as controller:
        controller.load(EMBEDDING_MODEL)
        yield Served(controller=controller)
