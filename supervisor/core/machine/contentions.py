"""Which models contend for a device, and what a policy is shown of them."""

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from supervisor.core.machine.placing import Place, best_of, known_places
from supervisor.core.machine.queues import queue_of
from supervisor.core.machine.requests import backend_for
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.values import Backend, BackendState, Target
from supervisor.core.scheduling.estimates import costs_of
from supervisor.core.scheduling.values import Costs, Queue, Stay, View


class Contention(Struct, frozen=True, kw_only=True):
    """Models that share devices, and that somebody waits for; and who would give way to them.

    `targets` may be switched to now, the one that is waited for longest first, each to its place
    in `places`. `joined_at`: when
    another may be, None where none is kept back. `residents` are live and would give way together,
    the one whose stay counts first; empty: nobody has to. `is_vacant`: nothing is on any of the
    devices, and no turn is to be ended.
    """

    targets: tuple[Target, ...] = ()
    places: tuple[Place, ...] = ()
    joined_at: float | None = None
    residents: tuple[Backend, ...] = ()
    is_vacant: bool = True


def contentions(snapshot: Snapshot, at: float) -> tuple[Contention, ...]:
    """Return who contends, device by device: models that have none in common do not.

    A twin contends with nobody: it is started where it fits, once nothing else is to be done.
    """
    heads = sorted(snapshot.requests.heads_in_turn().values(), key=lambda head: head.number)
    targets = [head.target for head in heads if head.target and _is_away(snapshot, head.target)]
    twins = [[target] for target in targets if target.is_twin]
    groups = _groups(snapshot, [target for target in targets if not target.is_twin])
    return tuple(_contention(snapshot, group, at) for group in (*groups, *twins))


def at_once(place: Place) -> str | None:
    """Return why a switch to a place needs nobody's turn to end, if so, by what is known of it.

    It may start beside all that is there, on a device where nothing is while there is something on
    another, or pinned ones leave it no room, which is then found. A twin is started in no other
    way.
    """
    if place.target.is_twin:
        return "a small request waits, and it makes nobody leave"
    if place.plan.in_the_way:
        return "whether it fits beside what is pinned"
    is_known = place.footprint is not None or place.is_empty
    return "it fits beside what is live" if place.is_free and is_known else None


def view_of(snapshot: Snapshot, contention: Contention, at: float) -> View:
    """Show a policy the contention: heads, counts and sums, and what everything costs.

    A policy knows one resident. Of several that would give way together it is shown the one that
    works, of those the last that came: none of them then has less than its turn. They drain at the
    same time, so that the longest of their drains is that of the resident.
    """
    models = [target.model for target in contention.targets]
    costs = {
        place.target.model: costs_of(
            snapshot.scheduling.estimates,
            place.target.model,
            is_parked=snapshot.parked_of(place.target) is not None,
        )
        for place in contention.places
    }
    stay = None
    if contention.residents:
        stay = _stay_of(contention.residents[0])
        models.append(stay.model)
        costs[stay.model] = _costs_of_residents(snapshot, contention.residents, at)
    queues = tuple(_queue(snapshot, model) for model in models)
    return View(
        at=at,
        stay=stay,
        queues=tuple(queue for queue in queues if queue.waiting),
        costs=costs,
        rules=snapshot.rules.scheduling,
    )


def _is_away(snapshot: Snapshot, target: Target) -> bool:
    """Whether the scheduler may bring the model: not live, no recovery, and its period is now."""
    model = target.model
    is_down = snapshot.recovery(model) is not None
    return backend_for(snapshot, model) is None and not is_down and snapshot.agenda.admits(target)


def _groups(snapshot: Snapshot, targets: Sequence[Target]) -> list[list[Target]]:
    """Part targets into those that share devices, also by way of what is live on them."""
    groups: list[tuple[set[str], list[Target]]] = []
    for target in targets:
        devices, members = _memories(snapshot, target), [target]
        for group in [g for g in groups if not devices.isdisjoint(g[0])]:
            groups.remove(group)
            devices, members = devices | group[0], [*group[1], *members]
        groups.append((devices, members))
    return [members for _, members in groups]


def _memories(snapshot: Snapshot, target: Target) -> set[str]:
    """Return the devices of a target, and of what is live on them."""
    own = snapshot.scheduling.devices_of(target)
    there = [d for b in snapshot.sharing(*own) for d in b.footprint.devices]
    return {name for device in (*own, *there) for name in snapshot.pool(device)}


def _contention(snapshot: Snapshot, members: Sequence[Target], at: float) -> Contention:
    targets, places, later, is_vacant = [], [], [], True
    for target in members:
        known = known_places(snapshot, target, at)
        is_vacant = is_vacant and all(place.is_empty for place in known) and not target.is_twin
        until = _kept_back_until(snapshot, target, known)
        if until > at:
            later.append(until)
        else:
            targets.append(target)
            places.append(best_of(known, at))
    return Contention(
        targets=tuple(targets),
        places=tuple(places),
        joined_at=min(later, default=None),
        residents=_residents(places[0]) if places else (),
        is_vacant=is_vacant,
    )


def _kept_back_until(snapshot: Snapshot, target: Target, places: Sequence[Place]) -> float:
    """Return until when a target is left alone: it has failed, or a hand chose what is there."""
    setback = snapshot.scheduling.setbacks.get(target.model)
    until = 0.0 if setback is None else setback.until
    if setback is not None and setback.is_drain and not _is_any_at_work(places):
        until = 0.0  # nothing is left that a switch would have to wait for
    return max(until, min(place.kept_back_until for place in places))


def _is_any_at_work(places: Sequence[Place]) -> bool:
    return any(backend.in_flight for place in places for backend in place.giving_way)


def _residents(place: Place) -> tuple[Backend, ...]:
    """Return who would give way: those that work first, and of those the last that came."""
    there = () if place.target.is_twin else place.giving_way
    live = [b for b in there if b.state is BackendState.READY]
    return tuple(sorted(live, key=lambda b: (b.in_flight > 0, b.epoch), reverse=True))


def _stay_of(backend: Backend) -> Stay:
    work = backend.work
    return Stay(
        model=backend.target.model,
        since=work.since,
        queued=work.queued,
        granted=work.granted,
        in_flight=backend.in_flight,
        interactive_in_flight=work.interactive_in_flight,
        empty_since=work.empty_since,
    )


def _queue(snapshot: Snapshot, model: str) -> Queue:
    away = snapshot.scheduling.away.get(model)
    return queue_of(snapshot.requests, model, None if away is None else away.left_at)


def _costs_of_residents(snapshot: Snapshot, residents: Sequence[Backend], at: float) -> Costs:
    """Return the costs of the first; in its first stay, its service is known from that alone.

    One that is parked when it leaves comes back from there.
    """
    estimates, first = snapshot.scheduling.estimates, residents[0]
    costs = [
        costs_of(estimates, each.target.model, is_parked=each.target.parks) for each in residents
    ]
    known, work = costs[0], first.work
    if len(costs) > 1:
        known = replace(known, drain_s=max(each.drain_s for each in costs))
    answered = work.granted - first.in_flight
    if known.service_s or not answered:
        return known
    idle_s = work.idle_s + (0.0 if work.empty_since is None else at - work.empty_since)
    return replace(known, service_s=max(0.0, at - work.since - idle_s) / answered)
