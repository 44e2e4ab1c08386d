"""Who waits: lines by model and kind, in the order of arrival. Nothing here walks a line.

Each operation costs the same however many wait: a line keeps its waiters by number, the number of
its head, and sums. `Requests.places` says where somebody stands who leaves out of the middle.
"""

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from immutables import Map
from msgspec import Struct, field
from msgspec.structs import replace

from supervisor.core.machine.values import Waiter
from supervisor.core.scheduling.values import Priority, Queue


class Kind(StrEnum):
    """What a line waits for: its model's turn, or (a bystander) the end of what is under way."""

    INTERACTIVE = Priority.INTERACTIVE.value
    BATCH = Priority.BATCH.value
    BYSTANDER = "bystander"


_BY_URGENCY = tuple(Kind)


class LineKey(NamedTuple):
    """Names a line. Who named no model stands in one without."""

    model: str | None
    kind: Kind


class Place(NamedTuple):
    """Where a request waits."""

    line: LineKey
    number: int


class Line(Struct, frozen=True, kw_only=True):
    """Those who wait for one thing, by arrival number. `first` is the head's, and only moves up.

    `callers` wait in all, with that sum of their arrivals. `spilling` of the waiters could be
    served by their model's twin, and wait for the model itself.
    """

    waiters: Map[int, Waiter] = field(default_factory=Map)
    first: int = 0
    following: int = 0
    callers: int = 0
    arrived_at_sum: float = 0.0
    spilling: int = 0

    @property
    def head(self) -> Waiter:
        """Who arrived first. A line without anybody is not kept."""
        return self.waiters[self.first]


class Requests(Struct, frozen=True, kw_only=True):
    """Who uses a backend, and who waits for one: written by `requests` and `waiting`.

    `leases` name the epoch by request id; `batch` has those of them that are batch work. `held`
    counts all who ever waited.
    """

    leases: Map[str, int] = field(default_factory=Map)
    batch: Map[str, int] = field(default_factory=Map)
    lines: Map[LineKey, Line] = field(default_factory=Map)
    places: Map[str, Place] = field(default_factory=Map)
    held: int = 0

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self.places)

    def waiting_for(self, model: str | None) -> int:
        """How many wait for a model."""
        return sum(len(line.waiters) for _, line in self.lines_of(model))

    def callers_of(self, model: str | None) -> int:
        """How many callers wait for a model: several may wait for one request."""
        return sum(line.callers for _, line in self.lines_of(model))

    def arrived_at_sum(self, model: str | None) -> float:
        """Return the sum of the arrivals of those who wait for a model."""
        return sum(line.arrived_at_sum for _, line in self.lines_of(model))

    def lines_of(self, model: str | None) -> list[tuple[LineKey, Line]]:
        """Return the lines of a model in which somebody waits, the most urgent first."""
        lines = self.lines
        keys = [LineKey(model, kind) for kind in _BY_URGENCY]
        return [(key, lines[key]) for key in keys if key in lines]

    def waiter(self, request_id: str) -> Waiter | None:
        """Return a request that waits; None where it does not."""
        place = self.places.get(request_id)
        return None if place is None else self.lines[place.line].waiters[place.number]

    def position_of(self, request_id: str) -> int | None:
        """Return which of those who wait for its model's turn a request is; None where it is none.

        Those who have left from the middle of a line are counted until its head is behind them: it
        is that or better.
        """
        place = self.places.get(request_id)
        if place is None or place.line.kind is Kind.BYSTANDER:
            return None
        urgent = self.lines.get(LineKey(place.line.model, Kind.INTERACTIVE))
        is_batch = place.line.kind is Kind.BATCH
        before = len(urgent.waiters) if urgent is not None and is_batch else 0
        return before + place.number - self.lines[place.line].first + 1

    def heads(self) -> Iterator[Waiter]:
        """Yield the first of each line."""
        return (line.head for line in self.lines.values())

    def heads_in_turn(self) -> dict[str, Waiter]:
        """Return who waits longest for the turn of each model, by the model."""
        heads: dict[str, Waiter] = {}
        for (model, kind), line in self.lines.items():
            if model is None or kind is Kind.BYSTANDER:
                continue
            head = line.head
            if model not in heads or head.number < heads[model].number:
                heads[model] = head
        return heads


def join(requests: Requests, key: LineKey, waiter: Waiter) -> Requests:
    """Put somebody at the end of a line."""
    line = requests.lines.get(key) or Line()
    number = line.following
    line = Line(
        waiters=line.waiters.set(number, waiter),
        first=line.first,
        following=number + 1,
        callers=line.callers + waiter.callers,
        arrived_at_sum=line.arrived_at_sum + waiter.arrived_at_sum,
        spilling=line.spilling + waiter.is_spilling,
    )
    return replace(
        requests,
        lines=requests.lines.set(key, line),
        places=requests.places.set(waiter.request_id, Place(key, number)),
        held=requests.held + 1,
    )


def count_callers(requests: Requests, request_id: str, callers: int, at: float) -> Requests:
    """Note how many wait for a request now: those who are new came now; some may have left."""
    key, number = requests.places[request_id]
    line = requests.lines[key]
    waiter = line.waiters[number]
    more = callers - waiter.callers
    came_at = at if more > 0 else waiter.arrived_at_sum / waiter.callers
    counted = replace(
        waiter, callers=callers, arrived_at_sum=waiter.arrived_at_sum + more * came_at
    )
    grown = replace(
        line,
        waiters=line.waiters.set(number, counted),
        callers=line.callers + more,
        arrived_at_sum=line.arrived_at_sum + more * came_at,
    )
    return replace(requests, lines=requests.lines.set(key, grown))


def leave_line(requests: Requests, request_id: str) -> Requests:
    """Take somebody out of a line, wherever in it."""
    key, number = requests.places[request_id]
    line = requests.lines[key]
    left, waiters = line.waiters[number], line.waiters.delete(number)
    first = line.first
    while first < line.following and waiters and first not in waiters:
        first += 1  # each gap is crossed once, however many wait
    shorter = Line(
        waiters=waiters,
        first=first,
        following=line.following,
        callers=line.callers - left.callers,
        arrived_at_sum=line.arrived_at_sum - left.arrived_at_sum,
        spilling=line.spilling - left.is_spilling,
    )
    return replace(
        requests,
        lines=requests.lines.set(key, shorter) if waiters else requests.lines.delete(key),
        places=requests.places.delete(request_id),
    )


def take(
    requests: Requests, key: LineKey, count: int | None = None
) -> tuple[Requests, list[Waiter]]:
    """Take so many from the head of a line; None: dissolve it, and return who stood in it."""
    line = requests.lines[key]
    if count is None or len(line.waiters) <= count:
        taken = [waiter for _, waiter in sorted(line.waiters.items(), key=_number)]
        with requests.places.mutate() as places:
            for waiter in taken:
                del places[waiter.request_id]
            left = replace(requests, lines=requests.lines.delete(key), places=places.finish())
        return left, taken
    taken = []
    for _ in range(count):
        taken.append(requests.lines[key].head)
        requests = leave_line(requests, taken[-1].request_id)
    return requests, taken


def put_in_order(requests: Requests, returned: Sequence[Waiter]) -> Requests:
    """Give those who were taken out of lines, and stand in some again, their places by arrival.

    `returned` are they as they were before. Those who came later stand behind them then.
    """
    before = {waiter.request_id: waiter for waiter in returned}
    lines, places = requests.lines, requests.places
    for key in {places[each].line for each in before if each in places}:
        there = [_as_before(waiter, before) for waiter in lines[key].waiters.values()]
        there.sort(key=lambda waiter: waiter.number)
        line = Line(
            waiters=Map(enumerate(there)),
            following=len(there),
            callers=sum(waiter.callers for waiter in there),
            arrived_at_sum=sum(waiter.arrived_at_sum for waiter in there),
            spilling=sum(waiter.is_spilling for waiter in there),
        )
        lines = lines.set(key, line)
        places = places.update({w.request_id: Place(key, n) for n, w in enumerate(there)})
    return replace(requests, lines=lines, places=places)


def _as_before(waiter: Waiter, before: Mapping[str, Waiter]) -> Waiter:
    was = before.get(waiter.request_id)
    if was is None:
        return waiter
    return replace(
        waiter, number=was.number, callers=was.callers, arrived_at_sum=was.arrived_at_sum
    )


def _number(numbered: tuple[int, Waiter]) -> int:
    return numbered[0]


def queue_of(requests: Requests, model: str, left_at: float | None) -> Queue:
    """Sum up who waits for a model's turn, as a policy sees it; `left_at`: its last stay's end."""
    interactive = requests.lines.get(LineKey(model, Kind.INTERACTIVE))
    batch = requests.lines.get(LineKey(model, Kind.BATCH))
    there = [line for line in (interactive, batch) if line is not None]
    return Queue(
        model=model,
        interactive=0 if interactive is None else interactive.callers,
        batch=0 if batch is None else batch.callers,
        oldest_at=min((line.head.arrived_at for line in there), default=None),
        oldest_interactive_at=None if interactive is None else interactive.head.arrived_at,
        arrived_at_sum=sum(line.arrived_at_sum for line in there),
        left_at=left_at,
    )
