"""Searches without an index: the library in a process, the store's process, and the whole route.

All have the same vectors in a collection of their own, and are asked the same, in turns.
"""

import asyncio
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from statistics import median

import msgspec

from lab.bench.relay import DIRECT, OURS
from lab.bench.report import Figure, compare
from lab.bench.store.collection import (
    DIMENSION,
    LIMIT,
    MODEL,
    NAME,
    Corpus,
    Library,
    Vectors,
    filled_store,
)
from lab.harness.command import LabError, say
from lab.harness.servers import Controller
from lab.harness.setting import EMBEDDING_MODEL, Setting
from lab.harness.texts import short_texts
from supervisor.vector_store.edge import EdgeStore

QUESTIONS = 50
AT_MOST = 1.2
"""Of the library's time, through the store's process."""

AT_MOST_MS = 15.0
"""Beyond the store's time, for a search by the route: HTTP, and the question's vector."""


def query(setting: Setting) -> Figure:
    """Compare searches through the store's process with those of the library."""
    return asyncio.run(_query(setting))


def search(setting: Setting) -> Figure:
    """Compare `POST /search` with a search of the store alone."""
    return asyncio.run(_search(setting))


async def _query(setting: Setting) -> Figure:
    corpus, folder = Corpus.of(setting.points, QUESTIONS), setting.work_dir / "query"
    async with filled_store(folder / "store", corpus) as store:
        await store.close()
    shutil.copytree(folder / "store", folder / "library")
    store, library = EdgeStore(folder / "store"), Library(folder / "library")
    try:
        samples: dict[str, list[float]] = {DIRECT: [], OURS: []}
        for _ in range(setting.rounds):
            samples[DIRECT].append(_p50_ms(library.search, corpus))
            samples[OURS].append(await _store_p50_ms(store, corpus))
    finally:
        await store.close()
        library.close()
    row = compare(
        f"query among {setting.points}, p50",
        "ms",
        direct=samples[DIRECT],
        controller=samples[OURS],
        judged_as="ratio",
        at_most=AT_MOST,
    )
    return Figure(name="query", rows=(row,), samples=samples)


async def _search(setting: Setting) -> Figure:
    corpus, folder = Corpus.of(setting.points, QUESTIONS), setting.work_dir / "search"
    questions = short_texts(QUESTIONS, min_words=3, max_words=20)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(filled_store(folder, corpus))
        controller = stack.enter_context(Controller(setting))
        controller.load(EMBEDDING_MODEL)
        say(f"  {setting.points} points by HTTP …")
        began_at = time.monotonic()
        for points in corpus.points():
            given = {"model": MODEL, "dimension": DIMENSION, "points": msgspec.to_builtins(points)}
            controller.call("POST", f"/collections/{NAME}/points", given)
        stored_s = time.monotonic() - began_at
        samples: dict[str, list[float]] = {DIRECT: [], OURS: []}
        for _ in range(setting.rounds):
            samples[DIRECT].append(await _store_p50_ms(store, corpus))
            samples[OURS].append(_route_p50_ms(controller, questions))
    row = compare(
        f"search among {setting.points}, p50",
        "ms",
        direct=samples[DIRECT],
        controller=samples[OURS],
        judged_as="difference",
        at_most=AT_MOST_MS,
    )
    notes = (f"{setting.points / stored_s:.0f} points a second stored by HTTP",)
    return Figure(name="search", rows=(row,), samples=samples, notes=notes)


def _p50_ms(ask: Callable[[Vectors], object], corpus: Corpus) -> float:
    return median(_timed_ms(partial(ask, vector)) for vector in corpus.questions)


async def _store_p50_ms(store: EdgeStore, corpus: Corpus) -> float:
    taken = []
    for vector in corpus.questions:
        began_at = time.perf_counter()
        hits = await store.search(NAME, vector.tobytes(), limit=LIMIT)
        taken.append((time.perf_counter() - began_at) * 1000)
        if len(hits) != LIMIT:
            raise LabError(f"the store found {len(hits)} of {LIMIT}")
    return median(taken)


def _route_p50_ms(controller: Controller, questions: Sequence[str]) -> float:
    def ask(question: str) -> None:
        body = {"query": question, "collection": NAME, "limit": LIMIT}
        found = controller.call("POST", "/search", body)
        if len(found["hits"]) != LIMIT:
            raise LabError(f"the controller found {len(found['hits'])} of {LIMIT}")

    return median(_timed_ms(partial(ask, question)) for question in questions)


def _timed_ms(work: Callable[[], object]) -> float:
    began_at = time.perf_counter()
    work()
    return (time.perf_counter() - began_at) * 1000
