"""Measure the product against the bare server that it supervises; `scripts/bench` runs this.

    python -m lab.bench SUITE [--only NAME ...] [--rounds N] [--json FILE]

Prints a table and writes the same as JSON, with every sample. A target that is missed is marked
and is not an error: the exit status says whether everything could be measured.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lab.bench import (
    background,
    documents,
    held,
    listening,
    make_before_break,
    mixed,
    prompt_cache,
    relay,
    switching,
    twin,
    warm_start,
)
from lab.bench.embedding import arrays, batches, queued, shared, singles, sweeps
from lab.bench.report import Figure, as_json, table
from lab.bench.store import indexed as store_indexed
from lab.bench.store import searching as store_searching
from lab.harness import command
from lab.harness.command import MODELS, PROFILES, ROOT, at_least, say, write_json
from lab.harness.machine import describe_machine
from lab.harness.servers import Controller
from lab.harness.setting import Setting

FIGURES: Mapping[str, Mapping[str, Callable[[Setting], Figure]]] = {
    "serve": {
        **{each.NAME: each.measure for each in (listening, switching)},
        "embeddings": relay.embeddings,
        "streams": relay.streams,
    },
    "relay": {
        **{each.__name__: each for each in (relay.tokenize, relay.embeddings, relay.streams)},
        held.NAME: held.measure,
        "overhead": partial(switching.measure, name="overhead", at_most_ms=40),
    },
    "switch": {
        "overhead": partial(switching.measure, name="overhead"),
        **{each.NAME: each.measure for each in (make_before_break, prompt_cache, warm_start, held)},
    },
    "embedding": {
        each.NAME: each.measure for each in (singles, arrays, batches, shared, sweeps, queued)
    },
    "store": {
        "query": store_searching.query,
        "search": store_searching.search,
        "index": store_indexed.measure,
    },
    "documents": {documents.NAME: documents.measure},
    "mixed": {
        **{f"closed_{clients}": partial(mixed.closed, clients=clients) for clients in (1, 4)},
        **{f"open_{load}": partial(mixed.open_traffic, percent=load) for load in (30, 60)},
        background.NAME: background.measure,
        twin.NAME: twin.measure,
    },
}
"""The figures of each subcommand, in the order of the table."""

AMOUNTS: Mapping[str, tuple[Mapping[str, float], Callable[[str], float], str]] = {
    "seconds": (
        {"serve": 5.0, "relay": 5.0, "embedding": 5.0, "mixed": 60.0},
        command.positive,
        "of load in a round of a side",
    ),
    "rounds": (
        {
            "serve": 5,
            "relay": 5,
            "switch": 3,
            "embedding": 3,
            "mixed": 1,
            "store": 5,
            "documents": 3,
        },
        at_least(1),
        "of each side",
    ),
    "starts": ({"serve": 7}, at_least(1), "measured"),
    "switches": (
        {"serve": 20, "relay": 20, "switch": 20},
        at_least(2),
        "measured for the overhead of one",
    ),
    "texts": ({"embedding": 10_000}, at_least(400), "in arrays"),
    "pages": ({"documents": 300}, at_least(1), "of the PDF"),
    "points": ({"store": 100_000}, at_least(100), "in a collection without an index"),
    "indexed": ({"store": 20_000}, at_least(100), "points in one with an index"),
}
"""How much is measured: the default by subcommand that takes the option, its type, its meaning."""

PEER_HELP = (
    "another supervisor, running here with the same models; its URL leads to llama-server's own "
    "routes, {model} in it stands for the model: llama-swap=http://127.0.0.1:9292/upstream/{model}"
)

PYTHON_HELP = "a Python that has sentence-transformers, which is measured beside the service"


def main(arguments: list[str] | None = None) -> int:
    """Measure what is asked for. Returns the exit status: 0, or 1 with the reason said."""
    asked = _parse(arguments)
    return command.run("bench", lambda: _bench(asked))


def _bench(asked: argparse.Namespace) -> int:
    target: Path = asked.json or ROOT / "bench-results" / f"{asked.suite}.json"
    started_at = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        named = {name: getattr(asked, name) for name in ("profiles", "models", "engine", *AMOUNTS)}
        setting = Setting(
            work_dir=Path(folder),
            peers=dict(asked.peer),
            sentence_transformers=asked.sentence_transformers,
            **named,
        )
        context = _context(asked, setting)
        figures = []
        for name in asked.only or FIGURES[asked.suite]:
            say(f"{name} …")
            figures.append(FIGURES[asked.suite][name](setting))
    took_s = time.monotonic() - started_at
    write_json(target, as_json(figures, {**context, "took_s": took_s}))
    for name, content in (each for figure in figures for each in figure.attachments.items()):
        target.with_name(name).write_text(content, encoding="utf-8")
    print(table(figures))
    say(f"\nwritten to {target}")
    return 0


def _context(asked: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    """Describe what is measured; starts the controller once to ask it.

    That start also fills the caches of the file system and of Python, so that the measured ones
    are alike.
    """
    machine = describe_machine()
    with Controller(setting) as controller:
        controller.wait_until_settled()
        status = controller.status()
    taken = [name for name, (defaults, _, _) in AMOUNTS.items() if asked.suite in defaults]
    return {
        "suite": asked.suite,
        "options": {name: getattr(setting, name) for name in ("engine", *taken)},
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "version": status["version"],
        "engine": status["engine"],
        "machine": machine,
    }


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.partition("\n")[0])
    suites = parser.add_subparsers(dest="suite", required=True, metavar="SUITE")
    for suite, figures in FIGURES.items():
        options = suites.add_parser(suite, help=f"figures: {', '.join(figures)}")
        _add_options(options, suite, tuple(figures))
    return parser.parse_args(arguments)


def _add_options(parser: argparse.ArgumentParser, suite: str, figures: tuple[str, ...]) -> None:
    add = parser.add_argument
    add("--only", nargs="+", choices=figures, metavar="NAME", help="%(choices)s")
    for name, (defaults, kind, meaning) in AMOUNTS.items():
        parser.set_defaults(**{name: 0})
        if suite in defaults:
            default, text = defaults[suite], f"{meaning} (%(default)g)"
            add(f"--{name}", type=kind, default=default, metavar="N", help=text)
    parser.set_defaults(peer=[], sentence_transformers=None)
    if suite in {"relay", "mixed"}:
        add("--peer", action="append", type=_peer, metavar="NAME=URL", help=PEER_HELP)
    if suite == "embedding":
        add("--sentence-transformers", type=Path, metavar="PYTHON", help=PYTHON_HELP)
    engines = ("llama-server",) if suite == "mixed" else ("llama-server", "embedded")
    add("--engine", default="llama-server", choices=engines)
    add("--profiles", type=Path, default=PROFILES, metavar="DIR")
    add("--models", type=Path, default=MODELS, metavar="DIR")
    add("--json", type=Path, metavar="FILE", help="default: bench-results/SUITE.json")


def _peer(text: str) -> tuple[str, str]:
    name, _, url = text.partition("=")
    if not name or not url.startswith("http://"):
        raise argparse.ArgumentTypeError("is written NAME=http://HOST:PORT/PATH")
    return name, url


if __name__ == "__main__":
    sys.exit(main())
