"""Has pieces embedded by their model's server, those of many callers together."""

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from supervisor.arbiter.arbiter import Arbiter
from supervisor.config.configuration import Configuration
from supervisor.config.holder import ConfigurationHolder
from supervisor.core.machine.values import Target
from supervisor.core.scheduling.values import Priority
from supervisor.embedding.batching.batches import Caller
from supervisor.embedding.batching.monitor import QueueMonitor, describe_queues
from supervisor.embedding.batching.queue import BatchLimits
from supervisor.embedding.batching.rules import WorkRules
from supervisor.embedding.batching.workers import Workers
from supervisor.embedding.values import ComputedPieces, Piece
from supervisor.engine.spilling import is_small
from supervisor.engine.targets import Targets
from supervisor.errors import RequestRefused

MAX_CONCURRENT, MAX_FULL = 4, 2
"""Batches at once, and how many where they are full, unless the profile says how many there are.

Of sixteen clients with single texts on the host, four at once got 0.947 of what they get directly,
and two 0.920."""


class Batcher:
    """Computes pieces in batches, within the bounds of the queue. Use it on one event loop only."""

    def __init__(
        self, *, arbiter: Arbiter, configuration: ConfigurationHolder, targets: Targets
    ) -> None:
        self._arbiter = arbiter
        self._configuration = configuration
        self._targets = targets
        self._workers: dict[str, Workers] = {}
        self._monitor = QueueMonitor(self._workers)
        configuration.on_apply(self._apply)

    @property
    def workers(self) -> Mapping[str, Workers]:
        """Those that work, or have worked, by their model."""
        return self._workers

    def describe(self) -> dict[str, Any]:
        """Write how the queue of each model stands as JSON."""
        return describe_queues(self._workers)

    async def compute(  # noqa: PLR0913 - what is computed, and how
        self,
        target: Target,
        pieces: Sequence[Piece],
        *,
        normalize: bool,
        priority: Priority,
        model_path: Path | None = None,
        waits_since: float | None = None,
    ) -> ComputedPieces:
        """Return the pieces' vectors, in their order.

        `model_path`: the model's file whose tokens they are; None: they are texts. `waits_since`:
        when they were asked for, by the monotonic clock; None: now. Waits for the model's turn, for
        `queue.hold_timeout_s` from then at most, and for others. Cancel it to leave: what nobody
        else waits for is cut. Raises RequestRefused: `embedding_queue_full`; `input_too_long` or
        `embedding_failed`, with the `index` of the guilty piece; `model_not_live` where the server
        runs another file (`made_for_another`); what a lease is refused with.
        """
        workers = self._workers_of(target, may_spill=_may_spill(target, pieces, priority))
        self._monitor.wake()
        self._admit(workers, pieces, priority)
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        caller = Caller(
            pieces,
            normalize=normalize,
            priority=priority,
            came_at=time.monotonic(),
            on_end=partial(_wake, ended),
        )
        caller.model_path = model_path
        if waits_since is not None:
            caller.waits_since = waits_since
        workers.add(caller)
        try:
            await ended
        except asyncio.CancelledError:
            workers.leave(caller)
            raise
        if caller.error is not None:
            raise caller.error
        sent_at = caller.sent_at or caller.came_at
        return ComputedPieces(
            vectors=caller.vectors,
            counted_tokens=round(caller.counted),
            queue_s=sent_at - caller.came_at,
            inference_s=time.monotonic() - sent_at,
            served_by=tuple(sorted(caller.served_by)),
        )

    def _workers_of(self, target: Target, *, may_spill: bool) -> Workers:
        """Return the workers of a model; they ask for it as it is configured now.

        What its twin may serve has workers of its own, named after that: else the small would wait
        for the model with the large.
        """
        name = target.spill.model if may_spill and target.spill is not None else target.model
        workers = self._workers.get(name)
        if workers is None:
            workers = Workers(
                target, self._arbiter, self._targets, self._rules_of, may_spill=may_spill
            )
            self._workers[name] = workers
        workers.target = target
        return workers

    def _apply(self, _: Configuration) -> None:
        for workers in self._workers.values():
            workers.apply_rules()

    def _rules_of(self, target: Target, profile_name: str) -> WorkRules:
        configuration = self._configuration.current
        profile = configuration.resolve(target.catalogue_name, profile_name).profile
        batching = profile.batching
        return WorkRules(
            limits=BatchLimits(
                max_size=batching.max_batch_size,
                max_tokens=profile.batch_tokens,
                wait_s=batching.batch_wait_ms / 1000,
                max_concurrent=batching.max_concurrent or MAX_CONCURRENT,
                max_full=batching.max_concurrent or MAX_FULL,
                slots=profile.parallel if profile.parallel > 1 else batching.max_batch_size,
            ),
            may_switch=configuration.settings.scheduler.auto_switch,
            hold_timeout_s=configuration.settings.queue.hold_timeout_s,
        )

    def _admit(self, workers: Workers, pieces: Sequence[Piece], priority: Priority) -> None:
        """Count a caller in. Raises RequestRefused `embedding_queue_full` for one too many.

        Where nothing waits, one may come however large it is: otherwise it never could.
        """
        bounds = self._configuration.current.settings.queue
        waiting = [each.queue.amount() for each in self._workers.values()]
        inputs = sum(each.inputs for each in waiting)
        tokens = sum(each.tokens for each in waiting)
        more_tokens = sum(piece.tokens for piece in pieces)
        if inputs and inputs + len(pieces) > bounds.max_embedding_inputs:
            _refuse(workers, f"{inputs} inputs wait already (queue.max_embedding_inputs)")
        if tokens and tokens + more_tokens > bounds.max_embedding_tokens:
            _refuse(workers, f"{tokens} tokens wait already (queue.max_embedding_tokens)")
        if bounds.p95_target_ms is not None and priority is Priority.INTERACTIVE:
            _require_soon(workers, bounds.p95_target_ms / 1000)
        workers.measures.accepted += 1


def _may_spill(target: Target, pieces: Sequence[Piece], priority: Priority) -> bool:
    """Whether the twin of a target may make what a caller wants."""
    if target.spill is None or priority is not Priority.INTERACTIVE:
        return False
    return is_small(len(pieces), sum([piece.tokens for piece in pieces]))


def _wake(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


def _require_soon(workers: Workers, target_s: float) -> None:
    """Refuse an interactive caller whose wait would be longer than what is promised."""
    ahead = workers.queue.amount(Priority.INTERACTIVE).tokens
    expected_s = workers.measures.expected_wait_s(ahead)
    if expected_s is not None and expected_s > target_s:
        _refuse(
            workers,
            f"{ahead} tokens wait already, which take {expected_s * 1000:.0f} ms, and more than "
            f"{target_s * 1000:g} ms is not promised (queue.p95_target_ms)",
            math.ceil(expected_s - target_s),
        )


def _refuse(workers: Workers, why: str, retry_after_s: int | None = None) -> None:
    measures = workers.measures
    measures.refused += 1
    if retry_after_s is None:
        retry_after_s = measures.retry_after_s(workers.queue.amount().tokens)
    raise RequestRefused(
        "embedding_queue_full", f"{why}; try again later", {"retry_after_s": retry_after_s}
    )
