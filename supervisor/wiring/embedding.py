"""Makes the embedding service, and those who speak for it."""

from dataclasses import dataclass

from supervisor.arbiter.arbiter import Arbiter
from supervisor.embedding.batching.batcher import Batcher
from supervisor.embedding.preparing import Preparer
from supervisor.embedding.reranking import Reranker
from supervisor.embedding.servers import Servers
from supervisor.embedding.service import EmbeddingService
from supervisor.embedding.telling_tokens import TokenTeller
from supervisor.engine.targets import Targets
from supervisor.gateway.forms.older import OlderForm
from supervisor.gateway.forms.ollama import OllamaForm
from supervisor.gateway.forms.openai import OpenAIForm
from supervisor.gateway.forms.tei import TeiForm
from supervisor.gateway.forms.tei_info import TeiInfo
from supervisor.wiring.ground import Ground


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """The embedding service, and what else works on texts."""

    service: EmbeddingService
    servers: Servers
    preparer: Preparer
    reranker: Reranker
    teller: TokenTeller


def make_embedding(
    ground: Ground, arbiter: Arbiter, targets: Targets, batcher: Batcher
) -> Embedding:
    """Make the embedding service."""
    servers = Servers(arbiter=arbiter, configuration=ground.configuration, targets=targets)
    preparer = Preparer(targets=targets, engines=ground.engines, servers=servers)
    return Embedding(
        service=EmbeddingService(targets, preparer, batcher),
        servers=servers,
        preparer=preparer,
        reranker=Reranker(targets=targets, preparer=preparer, servers=servers),
        teller=TokenTeller(targets=targets, preparer=preparer, servers=servers),
    )


def make_forms(embedding: Embedding, ground: Ground, targets: Targets) -> tuple[object, ...]:
    """Make those who speak for the embedding service in each caller's form."""
    service = embedding.service
    return (
        OpenAIForm(service),
        TeiForm(service, embedding.reranker, embedding.teller),
        OllamaForm(service),
        OlderForm(service, ground.vectors),
        TeiInfo(ground.configuration, targets, embedding.preparer),
    )
