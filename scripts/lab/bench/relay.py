"""What the relay costs: rates, shares of the bare server's, and processor time of the controller.

Every side runs from beginning to end: the bare server, the controller in front of the same server,
and peers that somebody has started. Each is idle while another is under load: an idle llama-server
uses no processor time, and a model that stays loaded is as warm in every turn as in the last.
Nothing is pinned to a processor: all share what the machine has, as they do in use. Processor time
is the kernel's count of the process that relays, without the servers behind it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from statistics import median
from typing import Any

from lab.bench.report import Figure, Judged, Row, compare
from lab.bench.sides import Side
from lab.harness.command import LabError, say
from lab.harness.cpu import CpuMeter, CpuUse
from lab.harness.lean import LeanLoad, drive, post, process_id
from lab.harness.servers import Controller, Endpoint
from lab.harness.setting import CHAT_MODEL, CLIENTS, EMBEDDING_MODEL, Setting
from lab.harness.texts import short_texts

QUIET_SHARE = 0.05
"""Part of the machine that other processes may take in a turn without spoiling it."""

WARM_UP_S = 1.0
TOKENS_PER_ANSWER = 64
"""Tokens asked for; the model never stops by itself, so that every answer has exactly these."""

OVER_PEERS = 1.5
"""How many times a peer's rate of small requests is aimed at."""

MANY_STREAMS = 64
US = 1_000_000

DIRECT, OURS = "direct", "controller"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One side under load once. `us_per_unit` is the processor time of the process that relays."""

    units: int
    units_per_s: float
    us_per_unit: float
    requests: int
    failures: Mapping[str, int]
    median_latency_ms: float
    client_us_per_unit: float
    cpu: CpuUse

    def us_of(self, role: str) -> float:
        """Return the processor time that a process took for a unit, in microseconds."""
        return self.cpu.by_role_s[role] * US / self.units


Turns = Mapping[str, Sequence[Turn]]
"""By side: number n of one was measured next to number n of the others."""

MakeLoad = Callable[[str], LeanLoad]
"""Makes the load for a side, from the path of the model's own routes."""


class Field:
    """The sides that run, and the process that puts one after the other under load."""

    def __init__(
        self, setting: Setting, sides: Mapping[str, Side], child_pid: int, pool: ProcessPoolExecutor
    ) -> None:
        self._setting = setting
        self._sides = sides
        self._pool = pool
        self._pids = {name: side.pid for name, side in sides.items()}
        self._pids |= {"child": child_pid, "client": pool.submit(process_id).result()}

    def take_turns(self, what: str, load: MakeLoad, clients: int) -> Turns:
        """Put the sides under the load in turn, `rounds` times, after a short warm-up of each."""
        setting = self._setting
        told = f"{what}, {clients} client{'s' if clients > 1 else ''}"
        say(f"  {told}: {setting.rounds} turns of {setting.seconds:g} s for each side …")
        loads = {name: load(side.prefix) for name, side in self._sides.items()}
        turns: dict[str, list[Turn]] = {name: [] for name in self._sides}
        for name in self._sides:
            self._take_turn(name, loads[name], clients, min(WARM_UP_S, setting.seconds))
        for _ in range(setting.rounds):
            for name, taken in turns.items():
                taken.append(self._take_turn(name, loads[name], clients, setting.seconds))
        return turns

    def _take_turn(self, name: str, load: LeanLoad, clients: int, seconds: float) -> Turn:
        meter = CpuMeter(self._pids)
        endpoint = self._sides[name].endpoint
        tally = self._pool.submit(drive, load, endpoint, clients, seconds).result()
        cpu = meter.stop()
        if not tally.latencies_s:
            raise LabError(f"{name}: no request succeeded; failures: {dict(tally.failures)}")
        return Turn(
            units=tally.all_units,
            units_per_s=tally.units / seconds,
            us_per_unit=cpu.by_role_s[name] * US / tally.all_units,
            requests=len(tally.latencies_s) + tally.failures.total(),
            failures=dict(tally.failures),  # a Counter makes other keys of what `asdict` gives it
            median_latency_ms=median(tally.latencies_s) * 1000,
            client_us_per_unit=tally.used_s * US / tally.all_units,
            cpu=cpu,
        )


@contextmanager
def field_of(setting: Setting, model: str) -> Iterator[Field]:
    """Run the model under a controller, and once more without one, beside the peers."""
    with (
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
        Controller(setting) as controller,
        controller.load(model).start(Endpoint.on_free_port(), setting) as bare,
    ):
        sides = {
            DIRECT: Side(endpoint=bare.endpoint, pid=bare.pid, prefix=""),
            OURS: Side(
                endpoint=controller.endpoint, pid=controller.pid, prefix=f"/upstream/{model}"
            ),
        }
        peers = {name: Side.peer(url, model) for name, url in setting.peers.items()}
        yield Field(setting, sides | peers, controller.child_pid(), pool)


def tokenize(setting: Setting) -> Figure:
    """Count the tokens of short texts: hardly any computing, so that the relay is what is seen."""
    with field_of(setting, EMBEDDING_MODEL) as field:
        many, one = (field.take_turns("tokenize", _tokenize_load, n) for n in (CLIENTS, 1))
    over_peers = [
        _row(
            f"{CLIENTS} clients, over {peer}", "", {**many, DIRECT: many[peer]}, at_least=OVER_PEERS
        )
        for peer in setting.peers
    ]
    return figure_of(
        "tokenize",
        {f"{CLIENTS} clients": many, "1 client": one},
        _row(f"{CLIENTS} clients", "requests/s", many, "controller", at_least=12_000),
        *over_peers,
        _row("1 client", "requests/s", one, "controller", at_least=4_500),
        _cost(f"{CLIENTS} clients, processor time", "µs/request", many, at_most=75),
    )


def embeddings(setting: Setting) -> Figure:
    """Embed short texts with eight clients, then with one."""
    with field_of(setting, EMBEDDING_MODEL) as field:
        many, one = (field.take_turns("embeddings", embedding_load, n) for n in (CLIENTS, 1))
    return figure_of(
        "embeddings",
        {f"{CLIENTS} clients": many, "1 client": one},
        _row(f"{CLIENTS} clients", "requests/s", many, at_least=0.90),
        _row("1 client", "requests/s", one, at_least=0.90),
        compare(
            "1 client, median",
            "ms",
            **values_by_side(one, lambda turn: turn.median_latency_ms),
            judged_as="difference",
            at_most=0.5,
        ),
        _cost(f"{CLIENTS} clients, processor time", "µs/request", many, at_most=220),
    )


def streams(setting: Setting) -> Figure:
    """Stream chats to eight clients, and to many more than there are slots; shipped profile."""
    with field_of(setting, CHAT_MODEL) as field:
        some, many = (field.take_turns("streams", _stream_load, n) for n in (CLIENTS, MANY_STREAMS))
    return figure_of(
        "streams",
        {f"{CLIENTS} clients": some, f"{MANY_STREAMS} clients": many},
        _row(f"{CLIENTS} clients", "tokens/s", some, at_least=1.0),
        _row(f"{MANY_STREAMS} clients", "tokens/s", many, at_least=0.97),
        _cost(f"{CLIENTS} clients, processor time", "µs/event", some, at_most=70),
    )


def _tokenize_load(prefix: str) -> LeanLoad:
    path = f"{prefix}/tokenize"
    content = [{"content": text} for text in short_texts(64, min_words=3, max_words=12)]
    return LeanLoad(requests=[post(path, each) for each in content], mark=b'"tokens":[')


def embedding_load(prefix: str) -> LeanLoad:
    """Build the load: one short English text (3 to 40 words) per request."""
    texts = short_texts(512, min_words=3, max_words=40)
    content = [{"model": EMBEDDING_MODEL, "input": text} for text in texts]
    requests = [post(f"{prefix}/v1/embeddings", each) for each in content]
    return LeanLoad(requests=requests, mark=b'"embedding":[')


def _stream_load(_: str) -> LeanLoad:
    """Build the load: prompts of 10 to 60 English words, answers of the same length each."""
    fixed = {"model": CHAT_MODEL, "max_tokens": TOKENS_PER_ANSWER, "stream": True}
    contents = [
        {**fixed, "messages": [{"role": "user", "content": text}]}
        for text in short_texts(256, min_words=10, max_words=60)
    ]
    return LeanLoad(
        requests=[post("/v1/chat/completions", each) for each in contents],
        mark=b'"delta":{"content":"',
        units_per_answer=TOKENS_PER_ANSWER,
        end=b"data: [DONE]\n\n",
    )


def values_by_side(turns: Turns, value: Callable[[Turn], float]) -> dict[str, Any]:
    """Return a value of each turn as the arguments of `compare` that are by side."""
    values = {name: [value(turn) for turn in taken] for name, taken in turns.items()}
    peers = {name: each for name, each in values.items() if name not in {DIRECT, OURS}}
    return {"direct": values[DIRECT], "controller": values[OURS], "peers": peers}


def _row(
    quantity: str, unit: str, turns: Turns, judged_as: Judged = "ratio", *, at_least: float
) -> Row:
    sides = values_by_side(turns, lambda turn: turn.units_per_s)
    return compare(quantity, unit, **sides, judged_as=judged_as, at_least=at_least)


def _cost(quantity: str, unit: str, turns: Turns, *, at_most: float) -> Row:
    return compare(
        quantity, unit, **values_by_side(turns, lambda t: t.us_per_unit), at_most=at_most
    )


def figure_of(
    name: str, loads: Mapping[str, Turns], *rows: Row, notes: Sequence[str] = ()
) -> Figure:
    """Put a figure together; all failures count, and a turn that others disturbed is named."""
    taken = [turn for turns in loads.values() for name in (DIRECT, OURS) for turn in turns[name]]
    failed = {
        side: [sum(sum(turn.failures.values()) for turns in loads.values() for turn in turns[side])]
        for side in next(iter(loads.values()))
    }
    own, peers = (failed.pop(DIRECT), failed.pop(OURS)), failed
    failures = compare("failed", "", direct=own[0], controller=own[1], peers=peers, at_most=0)
    spoilt = sum(turn.cpu.others_share > QUIET_SHARE for turn in taken)
    notes = [
        *notes,
        f"the load itself took {max(turn.client_us_per_unit for turn in taken):.0f} µs per unit",
    ]
    if spoilt:
        notes.append(
            f"DISTURBED: other processes took more than {QUIET_SHARE:.0%} of the machine in "
            f"{spoilt} of {len(taken)} turns; measure again on a quiet machine"
        )
    samples = {
        load: {side: list(map(asdict, each)) for side, each in turns.items()}
        for load, turns in loads.items()
    }
    return Figure(name=name, rows=(*rows, failures), notes=tuple(notes), samples=samples)
