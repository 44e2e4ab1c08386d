"""Makes the embedding service, and those who speak for it."""

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


def make_forms(
    ground: Ground, arbiter: Arbiter, targets: Targets, batcher: Batcher
) -> tuple[object, ...]:
    """Make the embedding service, and those who speak for it in each caller's form."""
    servers = Servers(arbiter=arbiter, configuration=ground.configuration, targets=targets)
    preparer = Preparer(targets=targets, engines=ground.engines, servers=servers)
    service = EmbeddingService(targets, preparer, batcher)
    reranker = Reranker(targets=targets, preparer=preparer, servers=servers)
    teller = TokenTeller(preparer=preparer, servers=servers)
    return (
        OpenAIForm(service),
        TeiForm(service, reranker, teller),
        OllamaForm(service),
        OlderForm(service),
        TeiInfo(ground.configuration, targets, preparer),
    )
