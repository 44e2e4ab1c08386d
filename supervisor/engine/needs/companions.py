"""What a server loads beside its model: a multimodal projector, and a draft model.

A projector is a field of the model, a draft model an argument among `extra_args`. Other arguments
there decide where parts of the model are: those of its experts are counted there, and what the
estimate does not know is named.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from supervisor.config.configuration import ResolvedModel
from supervisor.core.sizing.estimate import MemorySettings, estimate_memory
from supervisor.core.sizing.projector import estimate_projector
from supervisor.engine.kinds.arguments import spelled
from supervisor.engine.models.model_file import ModelFile, inspect_model_file
from supervisor.errors import ModelFileError

_DRAFT = frozenset({"-md", "--model-draft", "--spec-draft-model"})
_FETCHED_DRAFT = frozenset({"-hfd", "-hfrd", "--hf-repo-draft", "--spec-draft-hf"})
_PLACES_TENSORS = frozenset(
    {
        *("-ot", "--override-tensor", "-ncffn", "--n-cpu-ffn"),
        *("--swa-full", "-nkvo", "--no-kv-offload"),
        *("-otd", "--override-tensor-draft", "--spec-draft-override-tensor"),
        *("-cmoed", "--cpu-moe-draft", "--spec-draft-cpu-moe"),
        *("-ncmoed", "--n-cpu-moe-draft", "--spec-draft-n-cpu-moe", "--spec-draft-ncmoe"),
    }
)
_PLACING_VARIABLES = re.compile(
    r"LLAMA_ARG_(OVERRIDE_TENSOR|(N_)?CPU_(MOE|FFN)|KV_OFFLOAD|SWA_FULL|MMPROJ_OFFLOAD|SPEC_DRAFT_.*)"
)
"""Of `env`: what is among `extra_args` could be counted, or named."""

_ALL_EXPERTS_ON_HOST = frozenset({"-cmoe", "--cpu-moe"})
_EXPERTS_ON_HOST = frozenset({"-ncmoe", "--n-cpu-moe"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Companions:
    """What is loaded beside a model; `uncounted` names what the estimate does not know, and why.

    Both run where the model's layers are, the projector by default on the first of several GPUs
    (clip.cpp takes the first that there is), unless `keeps_projector_on_host`.
    """

    projector: ModelFile | None = None
    draft: ModelFile | None = None
    keeps_projector_on_host: bool = False
    uncounted: tuple[str, ...] = ()

    def bytes_beside(self, settings: MemorySettings, *, is_host: bool) -> Mapping[str, int]:
        """Return the bytes that each takes of the device that the model's settings are for.

        Raises EngineError for a draft model that cannot have these settings.
        """
        found: dict[str, int] = {}
        takes_projector = settings.part == 0 and (is_host or not self.keeps_projector_on_host)
        if takes_projector and (projector_bytes := self._projector_bytes(settings)):
            found["the projector"] = projector_bytes
        if self.draft is not None:
            # It has a context of its own, with as many slots and tokens, by default in f16.
            own = replace(
                settings,
                cache_type_k="f16",
                cache_type_v="f16",
                gpu_layers=None,
                host_expert_layers=0,
            )
            found["the draft model"] = estimate_memory(self.draft.headers, own).total_bytes
        return MappingProxyType(found)

    def host_bytes(self, settings: MemorySettings) -> int:
        """Return what they take of the host beside a model on a GPU."""
        return self._projector_bytes(settings) if self.keeps_projector_on_host else 0

    def _projector_bytes(self, settings: MemorySettings) -> int:
        if self.projector is None:
            return 0
        return estimate_projector(
            self.projector.headers, has_flash_attention=settings.flash_attention
        )


def look_at_companions(resolved: ResolvedModel) -> Companions:
    """Look at the files that are loaded beside the model. Raises ModelFileError for its projector.

    A draft model that cannot be read is for the server to refuse: it is named as not counted.
    """
    projector = resolved.projector_path
    words = tuple(_flags(resolved.profile.extra_args))
    draft, uncounted = None, []
    for flag, value in words:
        if flag in _DRAFT:
            try:
                draft = inspect_model_file(Path(value))
            except ModelFileError as error:
                uncounted.append(f"the draft model is not counted ({error})")
        elif flag in _FETCHED_DRAFT:
            uncounted.append(f"the draft model of {flag} is not counted")
        elif flag in _PLACES_TENSORS:
            uncounted.append(
                f"what {flag} changes is not known to the estimate: what the server takes of its "
                "device can be stated in memory.need_bytes"
            )
    uncounted += [
        f"what {name} in env changes is not known to the estimate: write it among extra_args"
        for name in sorted(filter(_PLACING_VARIABLES.fullmatch, resolved.profile.env))
    ]
    return Companions(
        projector=None if projector is None else inspect_model_file(projector),
        draft=draft,
        keeps_projector_on_host="--no-mmproj-offload" in dict(words),
        uncounted=tuple(dict.fromkeys(uncounted)),
    )


def host_expert_layers(words: Sequence[str]) -> int:
    """Return of how many layers, from the first one on, `extra_args` leave the experts on the host.

    What is no number is for the server to refuse. Of several arguments each holds, so the most do.
    """
    found = [0]
    for flag, value in _flags(words):
        if flag in _ALL_EXPERTS_ON_HOST:
            found.append(sys.maxsize)
        elif flag in _EXPERTS_ON_HOST and value.isdecimal():
            found.append(int(value))
    return max(found)


def _flags(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield what looks like a flag, with the word behind it."""
    for word, following in zip(words, (*words, "")[1:], strict=True):
        if word.startswith("-"):
            yield spelled(word), following
