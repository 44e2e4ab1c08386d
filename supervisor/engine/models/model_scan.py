"""Looks through a folder for models: each GGUF becomes one, its type read from its header."""

import re
from collections.abc import Iterator
from pathlib import Path

import structlog

from supervisor.config.load import FoundModel
from supervisor.core.machine.values import Mode
from supervisor.core.sizing.estimate import is_embedding_model
from supervisor.core.sizing.gguf import GgufHeader
from supervisor.engine.models.model_file import inspect_model_file
from supervisor.errors import ModelFileError

log = structlog.get_logger()

_SHARD = re.compile(r"-(\d{5})-of-\d{5}$")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def scan_models(folder: Path) -> Iterator[FoundModel]:
    """Yield the models under a folder, in order of their paths.

    A model in shards is found by its first shard. A multimodal projector is no model of its own:
    it belongs to the models in its folder. A file that cannot be a model is logged and left out.
    """
    files = {path: _header_of(path) for path in sorted(folder.rglob("*.gguf")) if _is_first(path)}
    projectors = {
        path.parent: path
        for path, header in files.items()
        if header is not None and is_projector(path, header)
    }
    for path, header in files.items():
        if header is None or is_projector(path, header):
            continue
        yield FoundModel(
            name=safe_name(path),
            path=path,
            mode=Mode.EMBEDDING if is_embedding_model(header) else Mode.GENERATION,
            projector_path=projectors.get(path.parent),
        )


def safe_name(path: Path) -> str:
    """Name a model after its file, with what URLs and shells take as it is; `my-model.Q4_K_M`."""
    stem = _SHARD.sub("", path.stem)
    return _UNSAFE.sub("-", stem).strip("-.") or "model"


def is_projector(path: Path, header: GgufHeader) -> bool:
    """Whether a file holds a multimodal projector (llama.cpp's `mmproj`), not a language model."""
    kind = header.metadata.get("general.type")
    return header.architecture == "clip" or kind == "mmproj" or path.name.startswith("mmproj")


def _is_first(path: Path) -> bool:
    shard = _SHARD.search(path.stem)
    return shard is None or int(shard[1]) == 1


def _header_of(path: Path) -> GgufHeader | None:
    try:
        return inspect_model_file(path).header
    except ModelFileError as error:
        log.warning("scan.left_out", path=str(path), reason=str(error))
        return None
