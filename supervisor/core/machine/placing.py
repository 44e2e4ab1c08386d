"""Where a target is put that has a choice of devices: each has its plan, and the cheapest wins.

What cannot carry it is passed over. Of the rest that one is taken where it costs least that others
leave, and where what the target replaces need not stop before. Among equals the one with the most
room left is taken, then the first. A target without a choice has one place.
"""

from collections.abc import Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from supervisor.core.machine.events import TargetAccepted
from supervisor.core.machine.footprint import Footprint
from supervisor.core.machine.memory import MemorySample
from supervisor.core.machine.packing import Cost, capacity_of, cost_of, resident_bytes, total_cost
from supervisor.core.machine.parking import plan_parking, still_needed
from supervisor.core.machine.preflight import (
    refuse_for_the_pinned,
    refuse_unread,
    refuse_what_cannot_fit,
)
from supervisor.core.machine.residency import Plan, oldest_first, plan_residency
from supervisor.core.machine.snapshot import Endings, Snapshot
from supervisor.core.machine.switch import CLOCK, IDLENESS, SCHEDULER, Order
from supervisor.core.machine.twins import does_not_fit
from supervisor.core.machine.values import (
    Backend,
    BackendState,
    Placement,
    Refusal,
    Target,
    TargetNeed,
)


class Place(Struct, frozen=True, kw_only=True):
    """A target on one device, and what it takes to put it there.

    `footprint` None: what it needs there is not known, and all that is there counts as giving way.
    `is_empty`: nothing is there now. `room_bytes`: what is left then of the fullest of its devices,
    less than 0 where the target is larger than that. `held_until`: until when a hand's choice keeps
    the controller from changing what is there.
    """

    target: Target
    footprint: Footprint | None
    plan: Plan
    is_empty: bool
    room_bytes: int
    held_until: float

    @property
    def giving_way(self) -> tuple[Backend, ...]:
        """What gives way, before the target starts or behind it.

        Parked ones serve nobody, and twins, which have no turn, make room for all.
        """
        both = (*self.plan.leaving, *self.plan.retiring)
        serving = (b for b in both if b.state is not BackendState.PARKED)
        return tuple(b for b in serving if not b.target.is_twin)

    @property
    def is_free(self) -> bool:
        """Whether it has room there, and nobody gives way, as far as is known."""
        return not self.giving_way and (not self.is_empty or self.room_bytes >= 0)

    @property
    def kept_back_until(self) -> float:
        """Until when the controller leaves it alone; what fits beside others disturbs no choice."""
        is_known = self.footprint is not None and not self.plan.in_the_way
        is_beside = self.is_free and not self.is_empty and is_known
        return 0.0 if is_beside else self.held_until

    @property
    def cost(self) -> tuple[Cost, bool, int]:
        """What it costs, to be compared: others that leave, an interruption, the room."""
        interrupts = any(b.state is not BackendState.PARKED for b in self.plan.leaving)
        return self.plan.cost, interrupts, -self.room_bytes


def free_of_hands_at(snapshot: Snapshot, target: Target) -> float:
    """Return from when on no hand's choice keeps the target from one of its places."""
    scheduling = snapshot.scheduling
    return min(_held_until(snapshot, scheduling.devices_on(place)) for place in target.places)


def _held_until(snapshot: Snapshot, devices: Sequence[str]) -> float:
    return max(snapshot.scheduling.held_until.get(device, 0.0) for device in devices)


def known_places(snapshot: Snapshot, target: Target, at: float) -> tuple[Place, ...]:
    """Return all places of a target, as far as its needs are known; no device is read for it."""
    return _places(snapshot, target, snapshot.scheduling.need_of, (), at)


def best_of(places: Sequence[Place], at: float) -> Place:
    """Return which of a target's known places the controller would choose now."""

    def preference(place: Place) -> tuple[object, ...]:
        is_impossible = bool(place.plan.in_the_way) or (place.is_empty and not place.is_free)
        return is_impossible, place.kept_back_until > at, place.cost

    return min(places, key=preference) if len(places) > 1 else places[0]


def choose_place(
    snapshot: Snapshot, order: Order, accepted: TargetAccepted, at: float
) -> tuple[Place, Refusal | None]:
    """Return the cheapest place of the order's target that can carry it, or one, and why none can.

    What died comes back to where it ran, and what is parked to where it is, unless it costs less
    that it goes elsewhere.
    """
    target = order.target
    assert target is not None  # noqa: S101 - it was accepted

    def need_of(place: Target) -> Footprint:
        return accepted.need_on(place.device).footprint.among(snapshot.devices)

    places = _places(snapshot, target, need_of, accepted.readings, at)
    is_parked = any(snapshot.parked_of(place.target) for place in places)
    refusals = [_refusal(snapshot, order, accepted, place, at) for place in places]

    def preference(number: int) -> tuple[object, ...]:
        cost, interrupts, room = places[number].cost
        place = places[number].target
        is_away = order.is_recovery and place.device != target.device
        is_away = is_away or (is_parked and snapshot.parked_of(place) is None)
        return _severity(order, refusals[number]), cost, interrupts, is_away, room

    chosen = min(range(len(places)), key=preference)
    refusal = refusals[chosen]
    if refusal is not None and len(places) > 1:
        names = ", ".join(place.target.device for place in places)
        message = f"{refusal.message}; none of {names} can take it"
        refusal = replace(refusal, message=message)
    return places[chosen], refusal


def may_leave_after_all(
    snapshot: Snapshot, order: Order, placement: Placement, device: str
) -> bool:
    """Whether anybody is on a device who might leave it for what is placed, if it is too full."""
    if placement.target.is_twin or order.gives_way:
        return False
    own, pool = snapshot.parked_of(placement.target), snapshot.pool(device)
    parked = any(b.footprint.on(*pool) for b in snapshot.parked() if b is not own)
    tenants = snapshot.sharing(device)
    return parked or any(not snapshot.rules.of(b.target).is_pinned for b in tenants)


def leaving_after_all(
    snapshot: Snapshot, order: Order, placement: Placement, reading: MemorySample, at: float
) -> tuple[Backend, ...]:
    """Return who else leaves a device that a reading still shows too full for what is placed.

    It is planned again, for that device and by the same rules: others may have come meanwhile, what
    was known of it may have been old, or those that stay hold more than they are accounted for.
    Nobody leaves where it would not fit even then, and for the scheduler nobody who works or is
    waited for: it has weighed only those that it knew would leave.
    """
    device, target = reading.device, placement.target
    if not may_leave_after_all(snapshot, order, placement, device):
        return ()
    # What is in use by now is not waited for any more, whoever has ended just now.
    snapshot = replace(snapshot, endings=Endings())
    need = Footprint.of({device: placement.footprint.on(device)})
    place, readings = _place(snapshot, target, need, (reading,), at), (reading,)
    missing = TargetNeed(footprint=still_needed(need, snapshot.parked_of(target)))
    is_refused = (
        place.plan.in_the_way
        or refuse_what_cannot_fit(snapshot, target, missing, place.plan, readings)
        or _refuse_taken(order, place, at)
    )
    is_busy = order.requested_by == SCHEDULER and any(
        b.in_flight or snapshot.requests.lines_of(b.target.model) for b in place.giving_way
    )
    return () if is_refused or is_busy else place.plan.leaving


def _places(
    snapshot: Snapshot,
    target: Target,
    need_of: Callable[[Target], Footprint | None],
    readings: Sequence[MemorySample],
    at: float,
) -> tuple[Place, ...]:
    """Return the target's places that the core knows of, with a plan for each."""
    known = [place for place in target.places if place.device in snapshot.devices]
    return tuple(
        _place(snapshot, place, need_of(place), readings, at)
        for place in known or (target.places[0],)
    )


def _place(
    snapshot: Snapshot,
    target: Target,
    footprint: Footprint | None,
    readings: Sequence[MemorySample],
    at: float,
) -> Place:
    taken, needed = () if footprint is None else footprint.devices, Footprint()
    devices = [d for d in dict.fromkeys((*target.devices, *taken)) if d in snapshot.devices]
    there = snapshot.sharing(*devices)
    if footprint is None:
        cost = total_cost([cost_of(snapshot, backend, at) for backend in there])
        plan = Plan(leaving=oldest_first(there), cost=cost)
    else:
        needed = still_needed(footprint, snapshot.parked_of(target))
        plan = plan_residency(snapshot, target, needed, readings, at)
        plan = plan_parking(snapshot, target, needed, plan, readings, at)
    staying = [b for b in there if b not in plan.leaving]
    room = (
        capacity_of(snapshot, device, target, readings)
        - resident_bytes(snapshot, staying, device)
        - needed.on(device)
        for device in devices
    )
    return Place(
        target=target,
        footprint=footprint,
        plan=plan,
        is_empty=not there,
        room_bytes=min(room, default=0),
        held_until=_held_until(snapshot, devices) if devices else 0.0,
    )


def _refusal(
    snapshot: Snapshot, order: Order, accepted: TargetAccepted, place: Place, at: float
) -> Refusal | None:
    """Return why the target cannot be put there; None: it can."""
    target, plan, readings = place.target, place.plan, accepted.readings
    need = accepted.need_on(target.device)
    whole = place.footprint or need.footprint
    need = replace(need, footprint=still_needed(whole, snapshot.parked_of(target)))
    return (
        _refuse_absent(snapshot, target)
        or (does_not_fit(target, plan) if target.is_twin else None)
        or refuse_unread(target, accepted, need)
        or refuse_what_cannot_fit(snapshot, target, need, plan, readings)
        or refuse_for_the_pinned(snapshot, target, need, plan, readings)
        or _refuse_taken(order, place, at)
    )


def _refuse_absent(snapshot: Snapshot, target: Target) -> Refusal | None:
    """Return that a device of the target is not here: no reading would ever confirm it."""
    absent = [f"'{device}'" for device in target.devices if device not in snapshot.devices]
    if not absent:
        return None
    known = ", ".join(snapshot.devices)
    return Refusal(
        code="target_cannot_start",
        message=f"'{target.model}' is to run on {', '.join(absent)}, and there are: {known}",
    )


def _refuse_taken(order: Order, place: Place, at: float) -> Refusal | None:
    """Return that nobody may be made to leave for the order there, where somebody had to."""
    others = [b for b in place.giving_way if b.state is BackendState.READY]
    is_held = order.requested_by in {SCHEDULER, CLOCK, IDLENESS} and place.held_until > at
    if not others or not (order.gives_way or is_held):
        return None
    model, named = place.target.model, ", ".join(f"'{b.target.model}'" for b in others)
    return Refusal(
        code="place_is_taken",
        message=f"'{model}' is not brought back: {named} took its place"
        if order.is_recovery
        else f"'{model}' has no room beside {named}",
    )


def _severity(order: Order, refusal: Refusal | None) -> int:
    """Put what can be had first, and of what cannot, that which is worth waiting for.

    A recovery ends for good where its place is taken: any other reason comes before.
    """
    if refusal is None:
        return 0
    if refusal.code == "place_is_taken":
        return 4 if order.is_recovery else 1
    return {"telemetry_lost": 3}.get(refusal.code, 2)
