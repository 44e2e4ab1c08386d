"""What text-embeddings-inference tells of itself at `GET /info`, told of a model of ours."""

import asyncio
from typing import Any

from supervisor import __version__
from supervisor.config.configuration import ResolvedModel
from supervisor.config.holder import ConfigurationHolder
from supervisor.core.machine.values import Mode
from supervisor.core.sizing.gguf import GgufHeader
from supervisor.embedding.preparing import Preparer
from supervisor.engine.models.model_file import inspect_model_file
from supervisor.engine.targets import Targets
from supervisor.engine.tasks import ModelTask, tasks_of
from supervisor.errors import ModelFileError, RequestRefused
from supervisor.gateway.answer import Answer, json_answer
from supervisor.gateway.forms.inputs import MAX_INPUTS
from supervisor.gateway.parameters import Parameters

_POOLINGS = ("none", "mean", "cls", "last", "rank")
"""By the number that a GGUF header has (`llama_pooling_type` in llama.h)."""


class InfoParameters(Parameters):
    """Of which model; the default one for embeddings where none is named."""

    model: str | None = None


class TeiInfo:
    """The handler of its route."""

    def __init__(
        self, configuration: ConfigurationHolder, targets: Targets, preparer: Preparer
    ) -> None:
        self._configuration = configuration
        self._targets = targets
        self._preparer = preparer

    async def info(self, asked: InfoParameters) -> Answer:
        """Tell what a model is, and what is taken of one client."""
        name = asked.model or self._targets.default_for(ModelTask.EMBEDDING)
        target = self._targets.target(name)
        if target.mode is not Mode.EMBEDDING:
            self._targets.require_able(target, ModelTask.EMBEDDING, "/info")
        resolved = self._targets.resolved(target)
        header = await asyncio.to_thread(_header_of, resolved)
        profile = resolved.profile
        batching, queue = profile.batching, self._configuration.current.settings.queue
        return json_answer(
            {
                "model_id": resolved.reference,
                "model_sha": None,
                "model_dtype": _type_of_weights(header),
                "served_model_name": resolved.name,
                "model_type": _kind(resolved, header),
                "max_concurrent_requests": queue.max_embedding_inputs,
                "max_input_length": (await self._preparer.intake(target)).limit,
                "max_batch_tokens": profile.batch_tokens,
                "max_batch_requests": batching.max_batch_size,
                "max_client_batch_size": MAX_INPUTS,
                "auto_truncate": True,
                "tokenization_workers": 1,
                "version": __version__,
                "sha": None,
                "docker_label": None,
            }
        )


def _header_of(resolved: ResolvedModel) -> GgufHeader:
    try:
        return inspect_model_file(resolved.path).header
    except ModelFileError as error:
        raise RequestRefused("target_cannot_start", str(error)) from error


def _type_of_weights(header: GgufHeader) -> str:
    """Return the format of most tensors; vectors and norms are in float32 in any model."""
    types = dict(header.tensors.types)
    whole = types.pop("f32", 0)
    return max(types, key=types.__getitem__) if types else "f32" if whole else "unknown"


def _kind(resolved: ResolvedModel, header: GgufHeader) -> dict[str, Any]:
    if ModelTask.RERANKING in tasks_of(resolved):
        return {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}
    number = header.count_parameter("pooling_type") or 0
    pooling = resolved.profile.pooling or _POOLINGS[min(number, len(_POOLINGS) - 1)]
    return {"embedding": {"pooling": pooling}}
