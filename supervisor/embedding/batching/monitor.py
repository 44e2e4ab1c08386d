"""How the queues of embeddings stand: for `/status`, and in the log while they are under load."""

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog

from supervisor.core.scheduling.values import Priority
from supervisor.embedding.batching.workers import Workers

log = structlog.get_logger()

PERIOD_S = 5.0


class QueueMonitor:
    """Logs each queue in which somebody waits, or from which somebody was sent away.

    `workers` is by model, and may change. It sleeps from the end of a load to the next caller.
    """

    def __init__(self, workers: Mapping[str, Workers]) -> None:
        self._workers = workers
        self._alarm: asyncio.TimerHandle | None = None
        self._told: dict[str, tuple[int, int]] = {}
        """Callers that were accepted and refused when a queue was last looked at, by model."""

    def wake(self) -> None:
        """See to it that the queues are looked at: a caller came."""
        if self._alarm is None:
            self._alarm = asyncio.get_running_loop().call_later(PERIOD_S, self._look)

    def _look(self) -> None:
        self._alarm = None
        for model, workers in self._workers.items():
            self._tell(model, workers)
        if not all(workers.is_idle for workers in self._workers.values()):
            self.wake()

    def _tell(self, model: str, workers: Workers) -> None:
        measures, queued, running = workers.measures, workers.queue.amount(), workers.running.amount
        accepted_before, refused_before = self._told.get(model, (0, 0))
        self._told[model] = measures.accepted, measures.refused
        refused = measures.refused - refused_before
        if not queued.inputs and not refused:
            return
        came = measures.accepted - accepted_before + refused
        log.info(
            "embedding.queue",
            model=model,
            inputs_queued=queued.inputs,
            tokens_queued=queued.tokens,
            inputs_running=running.inputs,
            tokens_running=running.tokens,
            tokens_per_s=_rounded(measures.tokens_per_s, 1),
            waits_s=_waits(workers),
            refused_share=round(refused / came, 4) if came else 0.0,
        )


def describe_queues(workers: Mapping[str, Workers]) -> dict[str, Any]:
    """Write the queues as JSON: what waits, what is with the servers, and how fast that goes.

    `wait_s` is until the first of a caller's inputs is sent, of the last 1,000 callers. `accepted`
    and `refused` count callers since the start.
    """
    return {model: _describe(each) for model, each in workers.items()}


def _describe(workers: Workers) -> dict[str, Any]:
    running, measures = workers.running, workers.measures
    return {
        "queued": {priority: workers.queue.amount(priority)._asdict() for priority in Priority},
        "running": {"batches": len(running), **running.amount._asdict()},
        "tokens_per_s": _rounded(measures.tokens_per_s, 1),
        "wait_s": _waits(workers),
        "accepted": measures.accepted,
        "refused": measures.refused,
    }


def _waits(workers: Workers) -> dict[str, float] | None:
    waits = workers.measures.waits()
    return waits and {"p50": round(waits.p50_s, 4), "p95": round(waits.p95_s, 4)}


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
