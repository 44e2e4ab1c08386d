"""Tasks: what a model can be asked, by its type and by what its server is started with."""

from enum import StrEnum
from functools import lru_cache
from pathlib import Path

from supervisor.config.configuration import ResolvedModel
from supervisor.core.machine.values import Mode
from supervisor.engine.models.model_file import FileIdentity, identify, inspect_model_file
from supervisor.errors import ModelFileError


class ModelTask(StrEnum):
    """What a route asks of a model."""

    GENERATION = "generation"
    EMBEDDING = "embedding"
    RERANKING = "reranking"
    TRANSCRIPTION = "transcription"

    @property
    def mode(self) -> Mode:
        """The type of the models that can be able to do it."""
        is_pooled = self in {ModelTask.EMBEDDING, ModelTask.RERANKING}
        return Mode.EMBEDDING if is_pooled else Mode.GENERATION


def tasks_of(resolved: ResolvedModel) -> frozenset[ModelTask]:
    """Return what a model can be asked. May read the header of its projector, once.

    A program of the operator's own may be able to do all that its type can. A llama-server that
    pools by `rank` gives scores where others give vectors.
    """
    if resolved.profile.engine == "command":
        return frozenset(task for task in ModelTask if task.mode is resolved.mode)
    if resolved.mode is Mode.EMBEDDING:
        ranks = resolved.profile.pooling == "rank"
        return frozenset({ModelTask.RERANKING if ranks else ModelTask.EMBEDDING})
    hears = resolved.projector_path is not None and _may_hear(resolved.projector_path)
    return frozenset({ModelTask.GENERATION} | ({ModelTask.TRANSCRIPTION} if hears else set()))


def what_is_lacking(resolved: ResolvedModel, task: ModelTask) -> str:
    """Say why a model that cannot do a task cannot: `'minilm' is a model for embedding`."""
    if resolved.mode is not task.mode:
        return f"'{resolved.name}' is a model for {resolved.mode}"
    if task is ModelTask.TRANSCRIPTION:
        return f"'{resolved.name}' has no `mmproj` with an audio encoder"
    if task is ModelTask.RERANKING:
        return f"'{resolved.name}' does not run with `pooling: rank`"
    return f"'{resolved.name}' is a reranker (`pooling: rank`)"


def _may_hear(projector: Path) -> bool:
    """Whether a projector has an audio encoder; one that cannot be read is its start's matter."""
    try:
        return _has_audio_encoder(projector, identify(projector.stat()))
    except (OSError, ModelFileError):
        return True


@lru_cache
def _has_audio_encoder(projector: Path, _identity: FileIdentity) -> bool:
    return inspect_model_file(projector).header.parameter("has_audio_encoder") is True
