"""What is known of the backends' own routes. One that does not stand here is relayed, too."""

from collections.abc import Mapping
from dataclasses import dataclass

from supervisor.core.machine.values import Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayedRoute:
    """A path that backends answer.

    `mode`: what a backend must be made for, to answer it; None: any answers. Only generation
    streams. `may_repeat`: sending it twice does no more than sending it once, and costs little.
    `computes`: a POST to it is work for the model, so that it may cause a switch; else it asks how
    a server is or changes that, and a scrape or a polling page must not move a device.
    """

    path: str
    mode: Mode | None = None
    may_repeat: bool = False
    computes: bool = True


def _generation(*paths: str) -> tuple[RelayedRoute, ...]:
    return tuple(RelayedRoute(path=path, mode=Mode.GENERATION) for path in paths)


def _embedding(*paths: str) -> tuple[RelayedRoute, ...]:
    return tuple(RelayedRoute(path=path, mode=Mode.EMBEDDING, may_repeat=True) for path in paths)


def _computed(*paths: str) -> tuple[RelayedRoute, ...]:
    return tuple(RelayedRoute(path=path, may_repeat=True) for path in paths)


RELAYED_ROUTES: tuple[RelayedRoute, ...] = (
    *_embedding("/embedding", "/embeddings", "/v1/embeddings"),
    *_generation("/completion", "/completions", "/v1/completions"),
    *_generation("/chat/completions", "/v1/chat/completions"),
    *_generation("/responses", "/v1/responses", "/v1/messages", "/infill"),
    *_generation("/v1/audio/transcriptions"),
    *_computed("/rerank", "/reranking", "/v1/rerank", "/v1/reranking"),
    *_computed("/tokenize", "/detokenize", "/apply-template"),
    *_computed("/v1/messages/count_tokens", "/v1/responses/input_tokens"),
    *_computed("/chat/completions/input_tokens", "/v1/chat/completions/input_tokens"),
)

ROUTE_BY_PATH: Mapping[str, RelayedRoute] = {route.path: route for route in RELAYED_ROUTES}
"""What is known of a path of the backends', decoded and without its query."""

ANY_OTHER = RelayedRoute(path="", computes=False)
