"""What operators read of the queues."""

import pytest
from structlog.testing import capture_logs

from supervisor.core.scheduling.values import Priority
from supervisor.embedding.batching import monitor
from supervisor.errors import RequestRefused
from tests.embedding.batching.conftest import Bench, until


async def test_a_queue_is_told_while_somebody_waits_or_is_refused_and_not_before_or_after(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "PERIOD_S", 0.01)

    def told() -> list[dict[str, object]]:
        return [dict(line) for line in lines if line["event"] == "embedding.queue"]

    await bench.compute("the model is live")
    with capture_logs() as lines:
        held = await bench.hold()
        await until(lambda: bench.batcher._monitor._told.get("obedient") == (2, 0))
        assert told() == []
        bench.configure("queue", max_embedding_inputs=2)
        waiting = bench.begin("one", "two")
        await until(lambda: bool(told()))
        assert (
            told()[0] | {"inputs_queued": 2, "tokens_queued": 6, "inputs_running": 1} == told()[0]
        )
        assert told()[0]["refused_share"] == 0
        with pytest.raises(RequestRefused):
            await bench.compute("three")
        await until(lambda: any(line["refused_share"] == 1.0 for line in told()))
        await bench.let_go()
        await held
        await waiting
        count = len(told())
        await until(lambda: bench.batcher._monitor._alarm is None)
    assert len(told()) <= count + 1


async def test_the_status_has_what_waits_and_what_runs(bench: Bench) -> None:
    assert bench.batcher.describe() == {}
    held = await bench.hold()
    batch = bench.begin("one", "two", "three", "four", priority=Priority.BATCH)
    await bench.queued(4)
    shown = bench.batcher.describe()["obedient"]
    assert shown["queued"] == {
        "interactive": {"inputs": 0, "tokens": 0},
        "batch": {"inputs": 4, "tokens": 12},
    }
    assert shown["running"] == {"batches": 1, "inputs": 1, "tokens": 3}
    assert (shown["accepted"], shown["refused"], shown["tokens_per_s"]) == (2, 0, None)
    await bench.let_go()
    await held
    await batch
    shown = bench.batcher.describe()["obedient"]
    assert shown["tokens_per_s"] > 0
    assert shown["wait_s"]["p95"] >= shown["wait_s"]["p50"] >= 0
