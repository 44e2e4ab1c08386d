"""Has pieces embedded by their model's server."""

import time
from collections.abc import Sequence

import msgspec

from supervisor.arbiter.arbiter import Arbiter
from supervisor.config.holder import ConfigurationHolder
from supervisor.core.machine.values import Target
from supervisor.core.scheduling.values import Priority
from supervisor.embedding.values import ComputedPieces, Piece
from supervisor.embedding.vectors import from_base64
from supervisor.engine.servers.framing import Request
from supervisor.engine.targets import Targets
from supervisor.errors import RequestRefused


class Batcher:
    """Sends pieces to servers."""

    def __init__(
        self, *, arbiter: Arbiter, configuration: ConfigurationHolder, targets: Targets
    ) -> None:
        self._arbiter = arbiter
        self._configuration = configuration
        self._targets = targets

    async def compute(
        self, target: Target, pieces: Sequence[Piece], *, normalize: bool, priority: Priority
    ) -> ComputedPieces:
        """Return the pieces' vectors, in their order. Raises RequestRefused."""
        came_at = time.monotonic()
        self._targets.require_device(target)
        may_switch = self._configuration.current.settings.scheduler.auto_switch
        body = msgspec.json.encode(
            {
                "input": [piece.content for piece in pieces],
                "encoding_format": "base64",
                "embd_normalize": 2 if normalize else -1,
            }
        )
        headers = ((b"Content-Type", b"application/json"),)
        request = Request(method="POST", path="/v1/embeddings", headers=headers, body=body)
        async with self._arbiter.lease(target, may_switch=may_switch, priority=priority) as lease:
            began_at = time.monotonic()
            async with lease.backend.exchange(request) as answer:
                content, status = await answer.read(), answer.status
        if status != 200:
            raise RequestRefused("embedding_failed", content.decode(errors="replace"))
        data = msgspec.json.decode(content)["data"]
        return ComputedPieces(
            vectors=[from_base64(each["embedding"]) for each in data],
            queue_s=began_at - came_at,
            inference_s=time.monotonic() - began_at,
        )
