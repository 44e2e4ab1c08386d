"""Single texts of many clients at once: what the service costs beside the bare server.

The bare server merges what arrives together by itself, so that nothing can be gained here: the
service can only cost. The relay to the same server (`/upstream`) is a side of its own.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from statistics import median

from lab.bench.relay import DIRECT, OURS, Field, Turn, embedding_load, figure_of, values_by_side
from lab.bench.report import Figure, compare
from lab.bench.sides import Side
from lab.harness.servers import Controller, Endpoint
from lab.harness.setting import EMBEDDING_MODEL, Setting

NAME = "singles"

CLIENTS = 16
RELAY = "relay"
AT_LEAST = 0.95


def measure(setting: Setting) -> Figure:
    """Embed short texts with sixteen closed-loop clients, on every side."""
    with _field(setting) as field:
        turns = field.take_turns("singles", embedding_load, CLIENTS)
    rates = values_by_side(turns, lambda turn: turn.units_per_s)
    return figure_of(
        NAME,
        {f"{CLIENTS} clients": turns},
        compare(f"{CLIENTS} clients", "requests/s", **rates, judged_as="ratio", at_least=AT_LEAST),
        notes=[_costs(side, taken) for side, taken in turns.items()],
    )


@contextmanager
def _field(setting: Setting) -> Iterator[Field]:
    """Run the model once more without a controller, beside the two ways through it."""
    with (
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
        Controller(setting) as controller,
        controller.load(EMBEDDING_MODEL).start(Endpoint.on_free_port(), setting) as bare,
    ):
        service, upstream = Side.of(controller), f"/upstream/{EMBEDDING_MODEL}"
        relay = Side(endpoint=service.endpoint, pid=service.pid, prefix=upstream)
        sides = {DIRECT: Side.of(bare), OURS: service, RELAY: relay}
        yield Field(setting, sides, controller.child_pid(), pool)


def _costs(side: str, turns: Sequence[Turn]) -> str:
    """Say what processor time a request took on a side, by part."""
    roles = {"child": DIRECT} if side == DIRECT else {"controller": OURS, "child": "child"}
    parts = (
        f"{part} {median(turn.us_of(role) for turn in turns):.0f} µs"
        for part, role in {**roles, "client": "client"}.items()
    )
    return f"processor time of a request, {side}: {', '.join(parts)}"
