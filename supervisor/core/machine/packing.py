"""What a device can carry, and which residents are the cheapest to give up for one that comes in.

A device carries its servers' needs and, beside others, the margin that the release gate will ask
for: within the operator's budget, and within what telemetry finds free of others.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush

from msgspec import Struct

from supervisor.core.machine.footprint import Footprint
from supervisor.core.machine.memory import MemorySample
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.values import Backend, BackendState, Target
from supervisor.core.scheduling.estimates import arrivals_per_s, load_s

RETURN_WINDOW_S = 600.0
"""A model that is asked for again within so many seconds is taken to have left too early."""

LOAD_BYTES_PER_S = 2_000_000_000
"""How fast a model is taken to load before a switch to it was measured: an NVMe disk."""

SEARCHED = 8
"""Of so many residents each set is looked at: 256. Of more, the cheapest are given up one by one
until that is enough with a set of the next cheapest ones."""


class Cost(Struct, frozen=True, order=True):
    """What it costs that residents leave; less is better, and idle ones cost less than any other.

    `working` of them have requests in flight. `seconds`: the loads that are to be expected, each as
    likely as somebody asks for the model again within `RETURN_WINDOW_S`.
    """

    working: int = 0
    seconds: float = 0.0


def capacity_of(
    snapshot: Snapshot, name: str, target: Target, readings: Sequence[MemorySample]
) -> int:
    """Return how many bytes of a device our servers may take in all; unread, as it was last.

    That may be long ago: it is no less than what is free now beside what they are accounted for.
    """
    measured = measured_capacity(snapshot, name, target, readings)
    budget_bytes = snapshot.devices[name].budget_bytes
    if measured is None:
        measured = snapshot.scheduling.capacities.get(name, budget_bytes)
        memory = next((reading for reading in readings if reading.device == name), None)
        if memory is not None:
            measured = max(measured, _ours_or_free(snapshot, memory))
    return min(budget_bytes, measured)


def measured_capacity(
    snapshot: Snapshot, name: str, target: Target, readings: Sequence[MemorySample]
) -> int | None:
    """Return what our servers could take of a device, as it was read: all but what others hold.

    None where that is unknown: right after an end, what is in use may be given back still.
    """
    memory = next((reading for reading in readings if reading.device == name), None)
    if memory is None:
        return None
    if not died_just_now(snapshot, target, memory):
        return _ours_or_free(snapshot, memory)
    foreign_bytes = memory.foreign_bytes
    return None if foreign_bytes is None else memory.total_bytes - foreign_bytes


def _ours_or_free(snapshot: Snapshot, memory: MemorySample) -> int:
    return memory.free_bytes + resident_bytes(snapshot, snapshot.backends, memory.device)


def died_just_now(snapshot: Snapshot, target: Target, memory: MemorySample) -> bool:
    """Whether a server has ended so shortly before a reading that it may be in it still."""
    ended_at = snapshot.endings.server_at
    return ended_at is not None and memory.taken_at - ended_at < target.memory.release_timeout_s


def resident_bytes(snapshot: Snapshot, backends: Sequence[Backend], device: str) -> int:
    """Sum of what the backends are accounted for in the memory of a device."""
    pool = snapshot.pool(device)
    return sum(backend.footprint.on(*pool) for backend in backends)


def fits_with(
    snapshot: Snapshot,
    target: Target,
    footprint: Footprint,
    readings: Sequence[MemorySample],
) -> Callable[[Sequence[Backend]], bool]:
    """Return what tells whether a target can be where given backends stay.

    `footprint` is what it still takes: a parked server of its own keeps the rest already. On a
    device where none of them is, that is for the check before a switch to say.
    """
    own = snapshot.parked_of(target)
    kept = () if own is None else (own,)
    need = [
        (
            snapshot.devices[name],
            footprint.on(name) + resident_bytes(snapshot, kept, name),
            capacity_of(snapshot, name, target, readings),
        )
        for name in footprint.devices
    ]

    def fits(staying: Sequence[Backend]) -> bool:
        for device, need_bytes, capacity_bytes in need:
            pool = snapshot.pool(device.name)
            there = [b for b in staying if not set(pool).isdisjoint(b.footprint.devices)]
            taken_bytes = sum(b.footprint.on(*pool) for b in there) + need_bytes
            is_crowded = taken_bytes + target.memory.margin_bytes > capacity_bytes
            if there and (device.is_exclusive or is_crowded):
                return False
        return True

    return fits


def cheapest_to_leave(
    snapshot: Snapshot,
    residents: Sequence[Backend],
    fits: Callable[[Sequence[Backend]], bool],
    at: float,
) -> tuple[tuple[Backend, ...], Cost] | None:
    """Return the cheapest set of residents without which it fits, and what that costs.

    None where it does not fit without all of them either.
    """
    if fits(residents):
        return (), Cost()
    if not fits(()):
        return None
    costs = {b.epoch: cost_of(snapshot, b, at) for b in residents}
    cheapest_first = sorted(residents, key=lambda b: (costs[b.epoch], b.epoch))
    given_up: tuple[Backend, ...] = ()
    while True:
        left = cheapest_first[len(given_up) :]
        for some in _by_cost(left[:SEARCHED], costs):
            leaving = (*given_up, *some)
            if fits([b for b in residents if b not in leaving]):
                return leaving, total_cost([costs[b.epoch] for b in leaving])
        given_up = (*given_up, left[0])


def _by_cost(residents: Sequence[Backend], costs: dict[int, Cost]) -> Iterator[tuple[Backend, ...]]:
    """Yield each set of residents, the cheapest first; of two at one price the smaller, older.

    `residents`: the cheapest first. A set is made when those before it did not do: it is one of
    them with the next resident in place of its last, or besides it.
    """

    def priced(places: tuple[int, ...]) -> tuple[Cost, int, list[int], tuple[int, ...]]:
        epochs = sorted(residents[place].epoch for place in places)
        return total_cost([costs[epoch] for epoch in epochs]), len(epochs), epochs, places

    yield ()
    coming = [priced((0,))] if residents else []
    while coming:
        *_, places = heappop(coming)
        yield tuple(residents[place] for place in places)
        following = places[-1] + 1
        if following < len(residents):
            heappush(coming, priced((*places[:-1], following)))
            heappush(coming, priced((*places, following)))


def total_cost(costs: Sequence[Cost]) -> Cost:
    """Add up what several residents cost."""
    return Cost(sum(c.working for c in costs), sum(c.seconds for c in costs))


def cost_of(snapshot: Snapshot, backend: Backend, at: float) -> Cost:
    """Return what it costs that a resident leaves.

    Nothing where it is on its way out by itself, or a twin, whose model can be asked instead.
    """
    if backend.state is not BackendState.READY or backend.target.is_twin:
        return Cost()
    model, is_parked = backend.target.model, backend.target.parks
    known_s = load_s(snapshot.scheduling.estimates, model, is_parked=is_parked)
    seconds = backend.footprint.total_bytes / LOAD_BYTES_PER_S if known_s is None else known_s
    return Cost(min(1, backend.in_flight), seconds * likelihood_of_return(snapshot, backend, at))


def likelihood_of_return(snapshot: Snapshot, backend: Backend, at: float) -> float:
    """Return how likely somebody asks for a resident's model within `RETURN_WINDOW_S`.

    Requests are taken to come at random at the learned rate; but whoever has not come for a time t
    comes no more often than once in t, which is also what is known before a rate was learned.
    """
    empty_since = backend.work.empty_since
    if backend.in_flight or empty_since is None or at <= empty_since:
        return 1.0
    learned = arrivals_per_s(snapshot.scheduling.estimates, backend.target.model)
    rate = min(learned or math.inf, 1.0 / (at - empty_since))
    return 1.0 - math.exp(-rate * RETURN_WINDOW_S)
