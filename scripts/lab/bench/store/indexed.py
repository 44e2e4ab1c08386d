"""The index: how long it takes to build, what it leaves out, and what a search costs then."""

import asyncio
import time
from collections.abc import Sequence
from itertools import cycle
from statistics import mean, median

from lab.bench.report import Figure, compare
from lab.bench.store.collection import LIMIT, NAME, Corpus, Library, filled_store
from lab.harness.command import say
from lab.harness.setting import Setting
from supervisor.vector_store.edge import EdgeStore

QUESTIONS = 100
AT_LEAST = 0.98
"""Of the nearest ten, the share that a search in the index finds."""

AT_MOST_MS = 2.0

PAUSE_S = 0.1
"""Between two searches while the index is built."""


def measure(setting: Setting) -> Figure:
    """Build the index of a collection, and compare searches in it with exact ones."""
    return asyncio.run(_measure(setting))


async def _measure(setting: Setting) -> Figure:
    corpus, folder = Corpus.of(setting.indexed, QUESTIONS), setting.work_dir / "indexed"
    async with filled_store(folder, corpus) as store:
        say(f"  the index over {setting.indexed} points …")
        began_at = time.monotonic()
        waited_ms = await _search_while(asyncio.create_task(store.optimize(NAME)), store, corpus)
        built_s = time.monotonic() - began_at
        info = await store.collection(NAME)
        found, taken_ms = [], []
        for vector in corpus.questions:
            asked_at = time.perf_counter()
            hits = await store.search(NAME, vector.tobytes(), limit=LIMIT)
            taken_ms.append((time.perf_counter() - asked_at) * 1000)
            found.append({hit.id for hit in hits})
    library = Library(folder)
    exact, exact_ms = [], []
    for vector in corpus.questions:
        asked_at = time.perf_counter()
        nearest = library.search(vector, is_exact=True)
        exact_ms.append((time.perf_counter() - asked_at) * 1000)
        exact.append({str(hit.id) for hit in nearest})
    library.close()
    recalls = [len(one & other) / LIMIT for one, other in zip(found, exact, strict=True)]
    quantity = f"among {setting.indexed}"
    rows = (
        compare(
            f"recall@{LIMIT} {quantity}",
            "",
            direct=[1.0],
            controller=[mean(recalls)],
            at_least=AT_LEAST,
        ),
        compare(
            f"search {quantity}, p50",
            "ms",
            direct=[median(exact_ms)],
            controller=[median(taken_ms)],
            at_most=AT_MOST_MS,
        ),
    )
    meanwhile = f"p50 {median(waited_ms):.1f} ms, the longest {max(waited_ms):.0f} ms"
    notes = (
        f"built in {built_s:.0f} s; {info.indexed} of {setting.indexed} points are in it",
        f"{len(waited_ms)} searches while it was built: {meanwhile}",
    )
    return Figure(name="index", rows=rows, notes=notes, samples={"recall": recalls})


async def _search_while(
    building: asyncio.Task[None], store: EdgeStore, corpus: Corpus
) -> Sequence[float]:
    """Search now and then until the index is built; returns what each search took, in ms."""
    taken_ms = []
    for vector in cycle(corpus.questions):
        asked_at = time.perf_counter()
        await store.search(NAME, vector.tobytes(), limit=LIMIT)
        taken_ms.append((time.perf_counter() - asked_at) * 1000)
        done, _ = await asyncio.wait((building,), timeout=PAUSE_S)
        if done:
            break
    await building
    return taken_ms
