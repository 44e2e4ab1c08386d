"""Batches on a real llama-server: the same vectors, whatever a text is computed with."""

import asyncio
import math
import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest

from supervisor.core.machine.values import Outcome
from supervisor.core.scheduling.values import Priority
from supervisor.embedding.vectors import cosine, from_base64, unpack
from supervisor.engine.servers.framing import Request
from supervisor.errors import RequestRefused
from tests.embedding.batching.conftest import Bench, errors_of, running, until

SWITCHES = 6
"""Of the test in which models take turns; a hundred of them take some minutes."""

STORY = "a river runs past the old mill where bread was baked and sold to all who came"
TEXTS = [f"{STORY[: 9 + 7 * (number % 10)]}, part {number}" for number in range(24)]
LONG = f"{STORY} " * 8
KOREAN = "연남동의 조용한 카페를 추천해 주세요"


@pytest.fixture
async def bench(models_dir: Path) -> AsyncIterator[Bench]:
    """A batcher of small batches, so that there are many."""
    async with running(models_dir, max_concurrent=2, max_batch_size=8) as each:
        yield each


async def one_by_one(bench: Bench, texts: Sequence[str]) -> list[bytes]:
    """Ask the server itself for each text alone."""
    return [await alone(bench, text) for text in texts]


async def alone(bench: Bench, text: str) -> bytes:
    body = msgspec.json.encode({"input": text, "encoding_format": "base64"})
    headers = ((b"Content-Type", b"application/json"),)
    request = Request(method="POST", path="/v1/embeddings", headers=headers, body=body)
    async with bench.backend.exchange(request) as answer:
        content = msgspec.json.decode(await answer.read())
    return from_base64(content["data"][0]["embedding"])


def length_of(vector: bytes) -> float:
    return math.hypot(*unpack(vector))


async def embed(
    bench: Bench, *texts: str, priority: Priority = Priority.INTERACTIVE
) -> list[bytes]:
    computed = await bench.compute(*texts, model="minilm", normalize=True, priority=priority)
    return list(computed.vectors)


def assert_same(vectors: Sequence[bytes], others: Sequence[bytes]) -> None:
    assert min(cosine(a, b) for a, b in zip(vectors, others, strict=True)) >= 0.9999


async def test_vectors_of_batches_are_those_of_single_requests(bench: Bench) -> None:
    texts = [*TEXTS, LONG, KOREAN]
    singly, together = await asyncio.gather(
        asyncio.gather(*(embed(bench, text) for text in texts)),
        embed(bench, *texts),
    )
    wanted = await one_by_one(bench, texts)
    assert_same([vector for (vector,) in singly], wanted)
    assert_same(together, wanted)
    assert all(abs(length_of(vector) - 1) < 1e-4 for vector in together)
    raw = await bench.compute(*TEXTS[:3], model="minilm", normalize=False)
    assert min(length_of(vector) for vector in raw.vectors) > 2
    assert_same(raw.vectors, wanted[:3])
    batches = len(bench.workers("minilm").measures._speeds)
    assert batches <= len(texts) / 2


async def test_a_text_that_is_too_long_for_its_server_fails_alone(bench: Bench) -> None:
    await embed(bench, "the model is live")
    too_long = bench.begin("short", LONG * 6, model="minilm")
    others = [bench.begin(text, model="minilm", normalize=True) for text in TEXTS[:10]]
    refused, *computed = await asyncio.gather(too_long, *others, return_exceptions=True)
    assert isinstance(refused, RequestRefused)
    assert (refused.code, refused.details["index"]) == ("input_too_long", 1)
    assert not errors_of(computed)
    vectors = [each.vectors[0] for each in computed if not isinstance(each, BaseException)]
    assert_same(vectors, await one_by_one(bench, TEXTS[:10]))


async def test_nothing_is_lost_when_the_server_is_killed_under_load(bench: Bench) -> None:
    await embed(bench, "the model is live")
    wanted = await one_by_one(bench, TEXTS)
    callers = [bench.begin(text, model="minilm", normalize=True) for text in TEXTS]
    await until(lambda: bench.workers("minilm").running.amount.inputs > 0)
    os.kill(bench.backend.process.pid, signal.SIGKILL)
    computed = await asyncio.gather(*callers)
    assert_same([each.vectors[0] for each in computed], wanted)


async def test_embedding_and_chat_take_turns_and_nothing_fails(bench: Bench) -> None:
    """Each chat is for a model that is not live, while embeddings are asked for without an end."""
    bench.configure("scheduler", switching_share=0.9)  # short turns
    vectors = await asyncio.gather(*(embed(bench, text) for text in TEXTS))
    wanted = dict(zip(TEXTS, vectors, strict=True))
    is_over = asyncio.Event()

    async def embed_without_end(first: int, priority: Priority) -> int:
        count = 0
        while not is_over.is_set():
            text = TEXTS[(first + count) % len(TEXTS)]
            assert_same(await embed(bench, text, priority=priority), wanted[text])
            count += 1
        return count

    load = [
        asyncio.create_task(embed_without_end(first, priority))
        for first, priority in enumerate([Priority.INTERACTIVE, Priority.BATCH] * 3)
    ]
    first_epoch = bench.parts.arbiter.snapshot.backends[0].epoch
    while newest_epoch(bench) < first_epoch + SWITCHES:
        await chat(bench)
        await embed(bench, "its turn")
    is_over.set()
    counts = await asyncio.gather(*load)
    assert min(counts) > 0
    last = bench.parts.arbiter.snapshot
    assert last.endings.failure is None


def newest_epoch(bench: Bench) -> int:
    return max((b.epoch for b in bench.parts.arbiter.snapshot.backends), default=0)


async def chat(bench: Bench) -> None:
    target = bench.parts.targets.target("demo-chat")
    body = msgspec.json.encode({"prompt": "Hello", "n_predict": 2})
    headers = ((b"Content-Type", b"application/json"),)
    request = Request(method="POST", path="/completion", headers=headers, body=body)
    async with (
        bench.parts.arbiter.lease(target, may_switch=True) as lease,
        lease.backend.exchange(request) as answer,
    ):
        assert answer.status == 200
        await answer.read()


async def test_a_switch_by_hand_leaves_the_queue_as_it_is(bench: Bench) -> None:
    wanted = await embed(bench, *TEXTS)
    callers = [bench.begin(text, model="minilm", normalize=True) for text in TEXTS]
    await until(lambda: bench.workers("minilm").running.amount.inputs > 0)
    bench.configure("scheduler", manual_hold_s=0.0)
    _, switched = bench.parts.arbiter.request_switch(
        bench.parts.targets.target("demo-chat"), "test"
    )
    assert (await switched).outcome is Outcome.SWITCHED
    computed = await asyncio.gather(*callers)
    assert_same([each.vectors[0] for each in computed], wanted)
