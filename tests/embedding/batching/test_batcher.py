"""What callers get, whatever becomes of the server and of each other."""

import asyncio
import math
import os
import signal
import time
import tracemalloc
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from supervisor.core.machine.events import Event, RequestEnded
from supervisor.core.scheduling.values import Priority
from supervisor.embedding.batching import workers
from supervisor.embedding.batching.pending import VectorLength
from supervisor.embedding.values import ComputedPieces, Piece
from supervisor.errors import RequestRefused
from tests.embedding.batching.conftest import OBEDIENT, Bench, errors_of, until
from tests.embedding.batching.obedient_server import vector_of
from tests.patience import PATIENCE_S


def own_vectors(*texts: str) -> list[bytes]:
    return [vector_of(text) for text in texts]


async def gather(*begun: "asyncio.Task[ComputedPieces]") -> list[Any]:
    return await asyncio.gather(*begun, return_exceptions=True)


# Batches


async def test_what_comes_while_all_workers_are_busy_is_sent_together(bench: Bench) -> None:
    held = await bench.hold()
    callers = [bench.begin("one"), bench.begin("two", "three"), bench.begin("four", "five")]
    await bench.queued(5)
    await bench.let_go()
    computed = await gather(held, *callers)
    assert await bench.batches() == [["held"], ["one", "two", "three", "four"], ["five"]]
    assert [each.vectors for each in computed] == [
        own_vectors("held"),
        own_vectors("one"),
        own_vectors("two", "three"),
        own_vectors("four", "five"),
    ]
    assert computed[1].queue_s > 0 < computed[1].inference_s


@pytest.mark.parametrize("batching", [{"max_batch_size": 32}])
async def test_those_who_come_one_behind_the_other_to_an_idle_server_go_together(
    bench: Bench,
) -> None:
    await bench.compute("live")
    callers = []
    for number in range(8):
        callers.append(bench.begin(f"text {number}"))
        await asyncio.sleep(0)
    assert not errors_of(await gather(*callers))
    assert [len(batch) for batch in await bench.batches()] == [1, 8]


async def test_vectors_are_told_by_their_index(bench: Bench) -> None:
    texts = ("shuffled", "two", "three")
    assert (await bench.compute(*texts)).vectors == own_vectors(*texts)


async def test_callers_of_a_batch_are_told_their_share_of_the_tokens_that_the_server_counted(
    bench: Bench,
) -> None:
    held = await bench.hold()
    callers = [bench.begin("one", tokens=1), bench.begin("two", "three", tokens=3)]
    await bench.queued(3)
    await bench.let_go()
    computed = await gather(held, *callers)
    assert [each.counted_tokens for each in computed] == [7, 3, 18]
    assert (await bench.compute("silent", tokens=5)).counted_tokens == 5


async def test_interactive_callers_pass_batch_work(bench: Bench) -> None:
    held = await bench.hold()
    batch = [bench.begin(f"batch {n}", priority=Priority.BATCH) for n in range(12)]
    await bench.queued(12)
    urgent = bench.begin("urgent")
    await bench.queued(13)
    await bench.let_go()
    assert not errors_of(await gather(held, urgent, *batch))
    sent = await bench.batches()
    assert sent.index(["urgent"]) <= 2


@pytest.mark.parametrize("batching", [{"max_batch_size": 3, "batch_wait_ms": 60_000}])
async def test_a_batch_that_may_wait_is_sent_once_it_is_full(bench: Bench) -> None:
    waiting = bench.begin("one"), bench.begin("two")
    await bench.queued(2)
    last = bench.begin("three")
    assert not errors_of(await gather(*waiting, last))
    assert await bench.batches() == [["one", "two", "three"]]


@pytest.mark.parametrize("batching", [{"max_batch_size": 100, "batch_wait_ms": 50}])
async def test_a_batch_that_may_wait_is_sent_when_its_time_is_over(bench: Bench) -> None:
    first = bench.begin("one")
    await bench.queued(1)
    assert not errors_of(await gather(first, bench.begin("two")))
    assert await bench.batches() == [["one", "two"]]


@pytest.mark.parametrize("batching", [{"max_batch_size": 100, "batch_wait_ms": 60_000}])
async def test_a_batch_whose_time_is_over_between_two_looks_at_the_clock_is_sent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timers may fire a little early: it is not due yet then, and a moment later it is."""
    looks = count()
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 40 * next(looks))
    monkeypatch.setattr(workers, "time", clock)
    assert (await bench.compute("alone")).vectors == own_vectors("alone")


@pytest.mark.parametrize("batching", [{"max_concurrent": 1, "max_batch_size": 2}])
async def test_the_model_has_work_from_the_first_batch_to_the_last(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would else be left between two of them, for another that waits."""
    arbiter, in_flight = bench.parts.arbiter, []
    await bench.compute("one")
    post = arbiter.post

    def watched(event: Event) -> None:
        post(event)
        if isinstance(event, RequestEnded):
            in_flight.append(arbiter.snapshot.ready_backends()[0].in_flight)

    monkeypatch.setattr(arbiter, "post", watched)
    await bench.compute(*(f"text {number}" for number in range(8)))
    await until(lambda: not arbiter.snapshot.ready_backends()[0].in_flight)
    last = in_flight.index(0)
    assert last >= 3  # of four batches
    assert not any(in_flight[last:])


# What a server answers


@pytest.mark.parametrize(
    ("word", "code"),
    [
        ("poison", "embedding_failed"),
        ("endless", "input_too_long"),
        ("short", "embedding_failed"),
        ("doubled", "embedding_failed"),
        ("nan", "embedding_failed"),
        ("lengthened", "embedding_failed"),
        ("broken", "embedding_failed"),
    ],
)
async def test_only_the_guilty_piece_fails(bench: Bench, word: str, code: str) -> None:
    held = await bench.hold()
    callers = [bench.begin("one"), bench.begin("two", f"{word} three"), bench.begin("four")]
    await bench.queued(4)
    await bench.let_go()
    _, first, guilty, last = await gather(held, *callers)
    assert first.vectors == own_vectors("one")
    assert last.vectors == own_vectors("four")
    assert isinstance(guilty, RequestRefused)
    assert (guilty.code, guilty.details["index"]) == (code, 1)
    assert (await bench.compute("five")).vectors == own_vectors("five")


async def test_nobody_waits_for_ever_where_it_cannot_be_found_out_whether_a_server_died(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = await bench.hold()

    async def fails(_: float) -> bool:
        monkeypatch.undo()
        raise OSError("too many open files")

    monkeypatch.setattr(bench.backend, "is_found_dead", fails)
    os.kill(bench.backend.process.pid, signal.SIGKILL)
    [error] = errors_of(await gather(held))
    assert isinstance(error, RequestRefused)
    assert error.code == "internal_error"
    assert (await bench.compute("two")).vectors == own_vectors("two")


async def test_what_was_waiting_when_a_server_was_killed_is_computed_by_its_successor(
    bench: Bench,
) -> None:
    held = await bench.hold()
    callers = [bench.begin(f"text {n}") for n in range(20)]
    await bench.queued(20)
    os.kill(bench.backend.process.pid, signal.SIGKILL)
    first_epoch = bench.backend.epoch
    results = asyncio.gather(*callers)
    await until(lambda: bench.is_live and bench.backend.epoch > first_epoch)
    await bench.sent(1)
    await bench.let_go()
    assert (await held).vectors == own_vectors("held")
    for number, computed in enumerate(await results):
        assert computed.vectors == own_vectors(f"text {number}")


async def test_a_server_that_takes_seconds_to_die_has_a_successor_that_computes_its_pieces(
    bench: Bench,
) -> None:
    assert (await bench.compute("wounding")).vectors == own_vectors("wounding")


async def test_a_piece_that_its_servers_die_of_is_given_up(bench: Bench) -> None:
    deadly, other = bench.begin("deadly"), bench.begin("two")
    refused, computed = await gather(deadly, other)
    assert isinstance(refused, RequestRefused)
    assert refused.code == "backend_unreachable"
    assert computed.vectors == own_vectors("two")


@pytest.mark.parametrize("batching", [{"max_batch_size": 1, "max_concurrent": 4}])
async def test_those_that_were_with_the_same_servers_are_computed(bench: Bench) -> None:
    await bench.compute("live")
    deadly = bench.begin("deadly")
    others = [bench.begin(f"text {number}") for number in range(3)]
    refused, *computed = await gather(deadly, *others)
    assert isinstance(refused, RequestRefused)
    assert [each.vectors for each in computed] == [own_vectors(f"text {n}") for n in range(3)]


# Leases


async def test_a_refused_lease_fails_those_who_waited_for_it(bench: Bench) -> None:
    bench.configure("scheduler", auto_switch=False)
    results = await gather(*(bench.begin(f"text {n}") for n in range(10)))
    assert {error.code for error in results} == {"no_model_loaded"}
    assert len({id(error) for error in results}) == 10


async def test_those_who_have_waited_as_long_as_anybody_may_are_refused_and_no_others(
    bench: Bench,
) -> None:
    chat = bench.parts.targets.target("demo-chat")
    async with bench.parts.arbiter.lease(chat, may_switch=True):
        bench.configure("queue", hold_timeout_s=1.0)
        early = bench.begin("early")
        came_at = time.monotonic()
        await until(lambda: time.monotonic() > came_at + 0.7)
        late = bench.begin("late")
        (refused,) = await gather(early)
        bench.configure("queue", hold_timeout_s=300)
    assert isinstance(refused, RequestRefused)
    assert refused.code == "hold_timeout"
    assert (await late).vectors == own_vectors("late")


async def test_nobody_waits_longer_for_having_joined_a_lease_of_others(bench: Bench) -> None:
    """So does a request that came long ago: its tokens were made first, by the model's server."""
    chat = bench.parts.targets.target("demo-chat")
    async with bench.parts.arbiter.lease(chat, may_switch=True):
        other = bench.begin("other")
        await until(lambda: bench.parts.arbiter.snapshot.requests.waiting == 1)
        (refused,) = await gather(bench.begin("late", waits_since=time.monotonic() - 299.9))
        assert refused.code == "hold_timeout"
    assert (await other).vectors == own_vectors("other")


@pytest.mark.parametrize("batching", [{"max_concurrent": 2, "max_batch_size": 4}])
async def test_the_scheduler_knows_how_many_callers_wait_for_one_lease(bench: Bench) -> None:
    requests = bench.parts.arbiter
    chat = bench.parts.targets.target("demo-chat")

    def counted() -> tuple[int, int]:
        there = requests.snapshot.requests
        return there.waiting_for("obedient"), there.callers_of("obedient")

    async with requests.lease(chat, may_switch=True):
        callers = [bench.begin(f"text {n}") for n in range(3)]
        await until(lambda: counted() == (1, 3))
        callers.append(bench.begin("two", "texts"))  # more than a batch: another lease is asked for
        await until(lambda: counted() == (2, 4))
        callers.pop(0).cancel()
        await until(lambda: counted()[1] == 3)
    assert not errors_of(await gather(*callers))
    assert requests.snapshot.backends[0].work.granted == 3


async def test_an_urgent_caller_asks_for_itself_where_batch_work_waits_for_the_model(
    bench: Bench,
) -> None:
    target = bench.parts.targets.target("demo-chat")
    async with bench.parts.arbiter.lease(target, may_switch=True):
        batch = bench.begin("batch", priority=Priority.BATCH)
        queue = bench.parts.arbiter
        await until(lambda: queue.snapshot.requests.waiting == 1)
        urgent = bench.begin("urgent")
        await until(lambda: queue.snapshot.requests.waiting == 2)
        kinds = {place.line.kind.value for place in queue.snapshot.requests.places.values()}
        assert kinds == {"interactive", "batch"}
        urgent.cancel()
        await until(lambda: queue.snapshot.requests.waiting == 1)
        batch.cancel()
        await until(lambda: queue.snapshot.requests.waiting == 0)
    assert len(errors_of(await gather(batch, urgent))) == 2


# Callers that leave


async def test_a_caller_that_leaves_is_not_computed(bench: Bench) -> None:
    held = await bench.hold()
    leaving, staying = bench.begin("leaving"), bench.begin("staying")
    await bench.queued(2)
    leaving.cancel()
    await bench.queued(1)
    await bench.let_go()
    await gather(held, staying)
    assert await bench.batches() == [["held"], ["staying"]]


async def test_a_lease_that_is_withdrawn_before_it_was_asked_for_holds_up_nobody(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.compute("before")
    workers = bench.workers("obedient")
    monkeypatch.setattr(workers._arbiter, "lease_at_once", lambda *_, **__: None)
    leaving = bench.begin("leaving")
    async with asyncio.timeout(PATIENCE_S):
        while not workers._asking:  # noqa: ASYNC110 - in the turn in which it is asked
            await asyncio.sleep(0)
    (caller,) = workers.queue.callers_until(math.inf)
    workers.leave(caller)
    async with asyncio.timeout(PATIENCE_S):
        assert (await bench.compute("after")).vectors == own_vectors("after")
    leaving.cancel()


async def test_a_batch_goes_on_for_those_who_stay_and_is_cut_when_all_have_left(
    bench: Bench,
) -> None:
    held = await bench.hold()
    pair = bench.begin("held one"), bench.begin("held two")
    await bench.queued(2)
    await bench.let_go()
    await held
    await bench.sent(2)
    pair[0].cancel()
    await asyncio.wait([pair[0]])
    assert (await bench.ask("/told"))["clients_left"] == 0
    pair[1].cancel()
    async with asyncio.timeout(PATIENCE_S):
        while not (await bench.ask("/told"))["clients_left"]:  # noqa: ASYNC110 - it tells when asked
            await asyncio.sleep(0.002)
    assert (await bench.compute("after")).vectors == own_vectors("after")


# Bounds


async def test_what_is_beyond_the_bounds_is_refused_and_what_runs_is_not_counted(
    bench: Bench,
) -> None:
    held = await bench.hold()
    bench.configure("queue", max_embedding_inputs=2)
    waiting = bench.begin("one", "two")
    await bench.queued(2)
    with pytest.raises(RequestRefused, match="2 inputs wait already") as refused:
        await bench.compute("three")
    assert refused.value.code == "embedding_queue_full"
    assert refused.value.details["retry_after_s"] > 0
    bench.configure("queue", max_embedding_inputs=100, max_embedding_tokens=8)
    with pytest.raises(RequestRefused, match="6 tokens wait already"):
        await bench.compute("three")
    await bench.let_go()
    assert not errors_of(await gather(held, waiting))


async def test_one_that_is_larger_than_the_bounds_is_computed_where_nothing_waits(
    bench: Bench,
) -> None:
    await bench.compute("live")
    texts = [f"text {number}" for number in range(6)]
    for bounds in ({"max_embedding_inputs": 5}, {"max_embedding_tokens": 10}):
        bench.configure("queue", **bounds)
        assert (await bench.compute(*texts)).vectors == own_vectors(*texts)


async def test_who_would_wait_longer_than_is_promised_is_refused_but_for_batch_work(
    bench: Bench,
) -> None:
    await bench.compute("lone")
    assert bench.workers("obedient").measures.tokens_per_s is None  # how little came, not how fast
    await bench.compute("one", "two", "three", "four")
    held = await bench.hold()
    bench.configure("queue", p95_target_ms=0.000_001)
    first = bench.begin("first")
    await bench.queued(1)
    with pytest.raises(RequestRefused, match=r"queue\.p95_target_ms"):
        await bench.compute("second")
    batch = bench.begin("batch", priority=Priority.BATCH)
    await bench.queued(2)
    await bench.let_go()
    assert not errors_of(await gather(held, first, batch))


# Configurations


async def test_what_waits_when_another_configuration_is_applied_is_counted_and_computed(
    bench: Bench, batching: dict[str, Any]
) -> None:
    held = await bench.hold()
    before = bench.begin("before", "before too")
    await bench.queued(2)
    bench.write("obedient", OBEDIENT | {"batching": batching, "env": {"ANOTHER": "revision"}})
    after = bench.begin("after")
    await bench.queued(3)
    bench.configure("queue", max_embedding_inputs=3)
    with pytest.raises(RequestRefused, match="3 inputs wait already"):
        await bench.compute("one too many")
    await bench.let_go()
    assert not errors_of(await gather(held, before, after))
    assert bench.workers("obedient").is_idle


@pytest.mark.parametrize("batching", [{"max_batch_size": 4}])
async def test_small_batches_are_sent_four_at_a_time_and_full_ones_two(bench: Bench) -> None:
    small = [await bench.hold(f"held {n}") for n in range(4)]
    waiting = [bench.begin(f"small {n}") for n in range(3)]
    await bench.queued(3)
    await bench.let_go()
    assert not errors_of(await gather(*small, *waiting))
    sent_before = len(await bench.batches())
    full = [bench.begin("held one", "two", "three", "four") for _ in range(2)]
    await bench.sent(sent_before + 2)
    full.append(bench.begin("five", "six", "seven", "eight"))
    await bench.queued(4)
    urgent = bench.begin("urgent")
    await bench.queued(5)
    await bench.let_go()
    assert not errors_of(await gather(*full, urgent))


@pytest.mark.parametrize("batching", [{"max_concurrent": 3, "max_batch_size": 1}])
async def test_as_many_full_batches_are_sent_as_the_profile_says(bench: Bench) -> None:
    held = [await bench.hold(f"held {n}") for n in range(3)]
    waiting = bench.begin("waiting")
    await bench.queued(1)
    await bench.let_go()
    assert not errors_of(await gather(*held, waiting))


async def test_a_server_that_runs_with_the_fallback_gets_the_batches_of_that_profile(
    bench: Bench, batching: dict[str, Any]
) -> None:
    bench.write("small", OBEDIENT | {"batching": batching | {"max_batch_size": 2}})
    bench.write(
        "obedient",
        OBEDIENT
        | {"batching": batching, "memory": {"need_bytes": 1 << 60}, "fallback_profile": "small"},
    )
    held = await bench.hold()
    waiting = bench.begin("one", "two", "three", "four")
    await bench.queued(4)
    await bench.let_go()
    assert not errors_of(await gather(held, waiting))
    assert await bench.batches() == [["held"], ["one", "two"], ["three", "four"]]


# Very many, and bugs


async def test_many_thousand_callers_take_little_memory_and_leave_without_a_trace(
    bench: Bench,
) -> None:
    held = await bench.hold()
    count, target = 2_000, bench.parts.targets.target("obedient")
    inputs = [[Piece(content=f"text {number}", tokens=3)] for number in range(count)]
    tracemalloc.start()
    callers = [
        asyncio.create_task(
            bench.batcher.compute(target, pieces, normalize=False, priority=Priority.BATCH)
        )
        for pieces in inputs
    ]
    await bench.queued(count)
    taken_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken_bytes / count < 2048  # with a task for each
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    await bench.let_go()
    await held
    assert await bench.batches() == [["held"]]
    assert bench.workers("obedient").is_idle


@pytest.mark.parametrize("step", ["send_batch", "is_of"])
async def test_a_bug_of_ours_fails_those_whom_it_meets_and_the_next_are_served(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    await bench.compute("before")
    with monkeypatch.context() as broken:
        owner = workers if step == "send_batch" else VectorLength
        broken.setattr(owner, step, lambda *_: 1 / 0)
        (refused,) = await gather(bench.begin("meanwhile"))
    assert refused.code == "internal_error"
    assert (await bench.compute("after")).vectors == own_vectors("after")
