"""What is known of the backends' own routes. One that does not stand here is relayed, too."""

from collections.abc import Mapping
from dataclasses import dataclass

from supervisor.engine.tasks import ModelTask


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayedRoute:
    """A path that backends answer.

    `task`: what its model must be able to do; None: any answers. Only what is generated streams.
    `may_repeat`: sending it twice does no more than sending it once, and costs little.
    `computes`: a POST to it is work for the model, so that it may cause a switch; else it asks how
    a server is or changes that, and a scrape or a polling page must not move a device.
    """

    path: str
    task: ModelTask | None = None
    may_repeat: bool = False
    computes: bool = True


def _generation(*paths: str, task: ModelTask = ModelTask.GENERATION) -> tuple[RelayedRoute, ...]:
    return tuple(RelayedRoute(path=path, task=task) for path in paths)


def _computed(*paths: str, task: ModelTask | None = None) -> tuple[RelayedRoute, ...]:
    return tuple(RelayedRoute(path=path, task=task, may_repeat=True) for path in paths)


RELAYED_ROUTES: tuple[RelayedRoute, ...] = (
    *_computed("/embedding", "/embeddings", task=ModelTask.EMBEDDING),
    *_computed("/v1/embeddings", task=ModelTask.EMBEDDING),
    *_computed("/v1/embeddings/query", task=ModelTask.EMBEDDING),
    *_computed("/v1/embeddings/document", task=ModelTask.EMBEDDING),
    *_computed("/embed", "/similarity", "/api/embed", task=ModelTask.EMBEDDING),
    *_computed("/"),  # to embed or to rank: the body says which
    *_computed("/rerank", "/reranking", task=ModelTask.RERANKING),
    *_computed("/v1/rerank", "/v1/reranking", task=ModelTask.RERANKING),
    *_generation("/completion", "/completions", "/v1/completions"),
    *_generation("/chat/completions", "/v1/chat/completions"),
    *_generation("/responses", "/v1/responses", "/v1/messages", "/infill"),
    *_generation("/v1/audio/transcriptions", task=ModelTask.TRANSCRIPTION),
    *_computed("/tokenize", "/detokenize", "/apply-template"),
    *_computed("/v1/messages/count_tokens", "/v1/responses/input_tokens"),
    *_computed("/chat/completions/input_tokens", "/v1/chat/completions/input_tokens"),
)

ROUTE_BY_PATH: Mapping[str, RelayedRoute] = {route.path: route for route in RELAYED_ROUTES}
"""What is known of a path of the backends', decoded and without its query."""

ANY_OTHER = RelayedRoute(path="", computes=False)
