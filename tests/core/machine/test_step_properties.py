"""Invariants of `step()` under random events, in any order, late, twice, and with every failure.

`World` carries out the orders, in random order and with random luck, and keeps books of its own,
against which the snapshot is checked after every event.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from msgspec.structs import replace

from supervisor.core.machine.commands import GrantLease, StartBackend
from supervisor.core.machine.events import (
    BackendMoved,
    BackendNotParked,
    BackendParked,
    BackendReady,
    BackendStalled,
    BackendUnfit,
    CallersCounted,
    Event,
    MemorySampled,
    MemoryUnreadable,
    ReleaseBegun,
    RequestArrived,
    RestartRequested,
    RulesChanged,
    ScheduleRead,
    ShutdownRequested,
    SwitchRequested,
    TargetRejected,
    TimePassed,
    VectorsKnown,
)
from supervisor.core.machine.rules import DrainPolicy, ModelRules, SwitchRules
from supervisor.core.machine.step import step
from supervisor.core.machine.values import Phase, Target
from supervisor.core.scheduling.values import Priority
from tests.core.machine.surroundings import LIMITS, TARGETS, WITH_TWIN, asked_for, period
from tests.core.machine.world import Fate, World

REPEATABLE = MemorySampled | MemoryUnreadable | TimePassed | BackendStalled | BackendMoved
REQUESTS = SwitchRequested | RequestArrived | RestartRequested | ShutdownRequested
READINGS = RulesChanged | ScheduleRead | CallersCounted | ReleaseBegun
"""Facts that say what is so now, or have it read: told again, they are new. An older count of
callers replaces a later one."""

ONCE_A_LIFE = BackendReady | BackendParked | BackendNotParked
"""Facts that are true anew in each life of a server that was parked and woken in between."""

Chosen = dict[str, ModelRules]

targets = st.sampled_from(TARGETS)
chosen = st.dictionaries(
    st.sampled_from(["chat", "embed", "rerank", "code"]),
    st.builds(
        ModelRules,
        is_pinned=st.just(value=True),
        max_concurrency=st.none() | st.integers(1, 3),
    )
    | st.builds(
        ModelRules,
        idle_unload_s=st.none() | st.sampled_from([1.0, 50.0]),
        max_concurrency=st.none() | st.integers(1, 3),
    ),
    max_size=2,
)
models = st.sampled_from(["chat", "live", "target", "down", None, "embed", "unknown"])
pauses_s = st.sampled_from([0.0, 0.0, 0.005, 0.3, 2.0, 31.0, 121.0])
luck = st.sampled_from([True, True, False])
picks = st.lists(st.integers(0, 5), min_size=1, max_size=12)
needs = st.integers(20, 60)


def named_by_callers(target: Target) -> str:
    """Return the name under which a target is asked for: a twin has none of its own."""
    return target.twin_of or target.model


class Happenings(World):
    """What happens around the core."""

    @initialize(
        replaces=st.booleans(),
        warms=st.booleans(),
        parked_max=st.none() | st.integers(0, 80),
        models=chosen,
        idle=st.none() | targets,
    )
    def operator_chooses_rules(
        self,
        *,
        replaces: bool,
        warms: bool,
        models: Chosen,
        idle: Target | None,
        parked_max: int | None = 0,
    ) -> None:
        """The idle model is one for which there is always room, and that stays."""
        if any(rules.is_pinned for rules in models.values()) or (idle and idle.model in models):
            idle = None
        rules = SwitchRules(
            replaces=replaces,
            warms=warms,
            parked_max_bytes=parked_max,
            models=models,
            idle_target=idle,
            idle_after_s=100.0,
        )
        self.tell(RulesChanged(at=self.now, limits=LIMITS, rules=rules))

    @rule(
        pause_s=pauses_s,
        wanted=st.none() | targets,
        policy=st.sampled_from(DrainPolicy),
        unloads=st.none() | st.sampled_from(["chat", "embed", "code"]),
    )
    def somebody_requests_a_switch(
        self,
        pause_s: float,
        wanted: Target | None,
        policy: DrainPolicy,
        unloads: str | None = None,
    ) -> None:
        self.pass_time(pause_s)
        switch_id = self.new_switch_id()
        self.callers[switch_id] = switch_id
        self.policies[switch_id] = policy
        if wanted is None and unloads is not None:
            self.unloads[switch_id] = unloads
        self.tell(
            SwitchRequested(
                at=self.now,
                switch_id=switch_id,
                target=wanted,
                requested_by="test",
                drain_policy=policy,
                unloads=None if wanted else unloads,
            )
        )

    @rule(
        pause_s=pauses_s,
        coming=st.lists(
            st.tuples(st.sampled_from([0.5, 20.0, 90.0]), st.none() | targets, st.booleans()),
            min_size=1,
            max_size=4,
        ),
        refuses=st.booleans(),
        has_work=st.booleans(),
    )
    def schedule_is_read(
        self,
        pause_s: float,
        coming: list[tuple[float, Target | None, bool]],
        *,
        refuses: bool,
        has_work: bool,
    ) -> None:
        """It holds for a minute, then there is none any more."""
        self.pass_time(pause_s)
        periods, starts_at = [], self.now - 1.0
        for lasts_s, target, until_done in coming:
            periods.append(period(starts_at, target, until_done=until_done))
            starts_at += lasts_s
        self.tell(
            ScheduleRead(
                at=self.now,
                periods=tuple(periods),
                refuses=refuses,
                lead_s=5.0,
                has_work=has_work,
                read_again_at=self.now + 60.0,
            )
        )

    @rule(pause_s=pauses_s)
    def operator_wants_a_restart(self, pause_s: float) -> None:
        self.pass_time(pause_s)
        switch_id = self.new_switch_id()
        self.callers[switch_id] = switch_id
        self.tell(RestartRequested(at=self.now, switch_id=switch_id))

    @rule(
        pause_s=pauses_s,
        model=models,
        may_switch=st.booleans(),
        priority=st.sampled_from(Priority),
    )
    def request_arrives(
        self,
        pause_s: float,
        model: str | None,
        *,
        may_switch: bool,
        priority: Priority,
    ) -> None:
        self.pass_time(pause_s)
        request_id = f"r{len(self.requests)}"
        self.requests[request_id] = Fate.WAITING
        live, running = self.snapshot.ready_backends(), self.snapshot.switch
        if model == "live" and live:
            model = named_by_callers(live[-1].target)
        elif model == "target" and running and running.target:
            model = named_by_callers(running.target)
        elif model == "down" and self.snapshot.recoveries:
            model = named_by_callers(self.snapshot.recoveries[0].target)
        arrived = RequestArrived(
            at=self.now,
            request_id=request_id,
            target=asked_for(model),
            may_switch=may_switch,
            priority=priority,
        )
        self.asked_for[request_id] = arrived
        self.tell(arrived)

    @rule(pause_s=pauses_s, may_switch=st.booleans())
    def small_request_arrives(self, pause_s: float, *, may_switch: bool) -> None:
        """The twin of its model may serve it."""
        self.pass_time(pause_s)
        request_id = f"r{len(self.requests)}"
        self.requests[request_id] = Fate.WAITING
        self.asked_for[request_id] = RequestArrived(
            at=self.now,
            request_id=request_id,
            target=WITH_TWIN,
            may_switch=may_switch,
            may_spill=True,
        )
        self.tell(self.asked_for[request_id])

    @rule()
    def vectors_become_known(self) -> None:
        self.tell(VectorsKnown(at=self.now, target=WITH_TWIN))

    @precondition(lambda self: any(t.is_twin for t in self.alive.values()))
    @rule()
    def twin_is_found_to_differ(self) -> None:
        epoch = next(e for e, t in self.alive.items() if t.is_twin)
        self.dismissed.add(self.alive[epoch])
        self.tell(BackendUnfit(at=self.now, epoch=epoch, reason="cosine 0.9"))

    @rule(model=models)
    def request_arrives_that_may_not_wait(self, model: str | None) -> None:
        """It gets the lease that one that may wait would get at once, or leaves no trace."""
        at_once = RequestArrived(
            at=self.now,
            request_id="at-once",
            target=asked_for(model),
            may_wait=False,
        )
        patient, commands = step(self.snapshot, replace(at_once, may_wait=True, may_switch=True))
        if any(isinstance(command, GrantLease) for command in commands):
            assert step(self.snapshot, at_once) == (patient, ())  # it is read in the snapshot
        else:
            self.check_that_nothing_comes_of(at_once)

    @precondition(lambda self: self.requests)
    @rule(pause_s=pauses_s, pick=st.integers(0), callers=st.integers(1, 9))
    def callers_are_counted(self, pause_s: float, pick: int, callers: int) -> None:
        """Whether it waits or not, so many wait for a request."""
        self.pass_time(pause_s)
        request_id = f"r{pick % len(self.requests)}"
        self.tell(CallersCounted(at=self.now, request_id=request_id, callers=callers))

    @precondition(lambda self: self.requests)
    @rule(pause_s=pauses_s, pick=st.integers(0))
    def request_ends(self, pause_s: float, pick: int) -> None:
        """Let the client leave, or the answer be complete; both may be told a second time."""
        self.pass_time(pause_s)
        self.end_request(f"r{pick % len(self.requests)}")

    @precondition(lambda self: self.orders)
    @rule(pause_s=pauses_s, picks=picks, is_well=luck, need=st.integers(1, 110))
    def orders_are_performed(
        self, pause_s: float, picks: list[int], *, is_well: bool, need: int
    ) -> None:
        """Carry some out, the last one perhaps without luck."""
        self.pass_time(pause_s)
        for done, pick in enumerate(picks):
            if self.orders:
                order = self.orders.pop(pick % len(self.orders))
                self.perform(order, is_well=is_well or done + 1 < len(picks), need=need)
            elif self.phase in {Phase.CONFIRMING, Phase.ROLLING_BACK}:
                self.pass_time(0.05)

    @rule(wanted=targets, need=needs)
    def switch_goes_well(self, wanted: Target, need: int) -> None:
        self.somebody_requests_a_switch(0.0, wanted, DrainPolicy.CANCEL)
        self.everything_goes_well_for_a_while(need)

    @rule(wanted=targets, need=st.integers(50, 90), is_well=luck)
    def switch_fails_after_it_stopped_something(
        self, wanted: Target, need: int, *, is_well: bool
    ) -> None:
        self.somebody_requests_a_switch(0.0, wanted, DrainPolicy.CANCEL)
        for _ in range(30):
            self.residue = dict.fromkeys(self.residue, 0)
            order = self.orders.pop(0) if self.orders else None
            if isinstance(order, StartBackend):
                self.perform(order, is_well=False, need=need)
                break
            if order is not None:
                self.perform(order, is_well=True, need=need)
            else:
                self.pass_time(0.25)
        if is_well and self.orders:
            self.everything_goes_well_for_a_while(need)

    @precondition(lambda self: self.orders)
    @rule(need=needs)
    def everything_goes_well_for_a_while(self, need: int) -> None:
        for _ in range(30):
            self.residue = dict.fromkeys(self.residue, 0)
            if self.orders:
                self.perform(self.orders.pop(0), is_well=True, need=need)
            elif self.phase in {Phase.CONFIRMING, Phase.ROLLING_BACK}:
                self.pass_time(0.25)

    @precondition(lambda self: self.alive)
    @rule(pause_s=pauses_s, pick=st.integers(0))
    def backend_crashes(self, pause_s: float, pick: int) -> None:
        self.pass_time(pause_s)
        epochs = sorted(self.alive)
        self.reap(epochs[pick % len(epochs)], signal=11)

    @precondition(lambda self: self.snapshot.live_models())
    @rule(pause_s=st.sampled_from([4.0, 20.0, 31.0]), times=st.integers(2, 6))
    def backend_crashes_again_and_again(self, pause_s: float, times: int) -> None:
        """It is restarted in between, as long as the core tries."""
        model = self.snapshot.live_models()[0]
        for _ in range(times):
            serving = [b for b in self.snapshot.ready_backends() if b.target.model == model]
            if serving:
                self.reap(serving[0].epoch, signal=11)
                self.pass_time(pause_s)
                self.everything_goes_well_for_a_while(30)

    @precondition(lambda self: self.alive)
    @rule(pause_s=pauses_s, pick=st.integers(0), moves=luck)
    def backend_stalls(self, pause_s: float, pick: int, *, moves: bool) -> None:
        """Nothing moves in it for a while; those that are not replaced may move again."""
        self.pass_time(pause_s)
        epochs = sorted(self.alive)
        epoch = epochs[pick % len(epochs)]
        self.tell(BackendStalled(at=self.now, epoch=epoch, stalled_s=30.0))
        if moves:
            self.tell(BackendMoved(at=self.now, epoch=epoch))

    @precondition(lambda self: self.alive)
    @rule(pick=st.integers(0), outdated=luck, waited_for=luck)
    def other_settings_are_applied(self, pick: int, *, outdated: bool, waited_for: bool) -> None:
        """One server, and what is waited for, may be configured otherwise now; less is parked."""
        epochs = sorted(self.on_host or self.alive)
        limit = None if outdated else pick % 60
        heads = self.snapshot.requests.heads() if waited_for else ()
        asked = [head.main or head.target for head in heads]
        others = frozenset({epochs[pick % len(epochs)]} if outdated else ())
        self.dismissed |= {t for e in others if (t := self.alive[e]).is_twin}
        self.tell(
            RulesChanged(
                at=self.now,
                limits=LIMITS,
                rules=replace(self.snapshot.rules, parked_max_bytes=limit),
                outdated=others,
                targets={t.model: replace(t, revision=str(pick % 9)) for t in asked if t},
            )
        )

    @precondition(lambda self: not self.snapshot.is_closing)
    @rule(first=targets, second=targets, comes_back=luck)
    def one_gives_way_to_the_other(
        self, first: Target, second: Target, *, comes_back: bool
    ) -> None:
        """So that one is parked, where the other wants its place, and is wanted again."""
        self.foreign = dict.fromkeys(self.foreign, 0)
        self.perform_all(is_well=True)
        for wanted in (first, second, *([first] if comes_back else [])):
            self.switch_goes_well(wanted, 31)

    @precondition(lambda self: self.releasing())
    @rule(pause_s=pauses_s, pick=st.integers(0))
    def prompts_are_saved(self, pause_s: float, pick: int) -> None:
        """From then on a server that is stopped or parked has its time to be gone."""
        self.pass_time(pause_s)
        if epochs := self.releasing():
            self.tell(ReleaseBegun(at=self.now, epoch=epochs[pick % len(epochs)]))

    @precondition(lambda self: self.on_host)
    @rule(pick=st.integers(0), need=needs)
    def parked_server_is_wanted(self, pick: int, need: int) -> None:
        epochs = sorted(self.on_host)
        self.switch_goes_well(self.alive[epochs[pick % len(epochs)]], need)

    @rule(device=st.sampled_from(["alone", "shared"]), used=st.integers(0, 60))
    def foreign_tenant_comes_or_goes(self, device: str, used: int) -> None:
        self.foreign[device] = used

    @precondition(lambda self: self.told)
    @rule(pause_s=pauses_s, pick=st.integers(0))
    def answer_is_told_again(self, pause_s: float, pick: int) -> None:
        self.pass_time(pause_s)
        event = replace(self.told[-1 - pick % len(self.told)], at=self.now)
        if isinstance(event, REPEATABLE):
            self.tell(event)
        elif not isinstance(event, REQUESTS | READINGS | ONCE_A_LIFE):
            self.check_that_nothing_comes_of(event)

    @precondition(lambda self: self.phase not in {None, Phase.PREFLIGHT})
    @rule()
    def target_is_rejected_after_it_was_accepted(self) -> None:
        switch_id = self.snapshot.switch.switch_id if self.snapshot.switch else ""
        late = TargetRejected(at=self.now, switch_id=switch_id, message="changed its mind")
        self.check_that_nothing_comes_of(late)

    def check_that_nothing_comes_of(self, event: Event) -> None:
        """But that the scheduler's sentence may have another time in it.

        Small requests may have become a twin's since the last event: of that no alarm tells.
        """
        self.tell(TimePassed(at=self.now))
        told, commands = step(self.snapshot, event)
        scheduling = replace(told.scheduling, decision=self.snapshot.scheduling.decision)
        assert replace(told, scheduling=scheduling) == self.snapshot
        assert commands == ()

    @precondition(lambda self: len(self.told) > 80 or self.snapshot.is_closing)
    @rule(drain_timeout_s=st.sampled_from([0.0, 30.0]))
    def shutdown_is_requested(self, drain_timeout_s: float) -> None:
        self.tell(ShutdownRequested(at=self.now, drain_timeout_s=drain_timeout_s))

    def teardown(self) -> None:
        """Answer every order: then the switch ends, and after a shutdown everything does."""
        self.foreign = dict.fromkeys(self.foreign, 0)
        self.perform_all(is_well=True)
        assert self.snapshot.switch is None
        assert all(recovery.is_open for recovery in self.snapshot.recoveries)
        assert not self.snapshot.requests.waiting
        self.tell(ShutdownRequested(at=self.now, drain_timeout_s=30.0))
        self.perform_all(is_well=False)
        assert self.snapshot.backends == ()
        assert self.completions == 1
        assert not self.callers
        assert Fate.WAITING not in self.requests.values()


TestInvariants = Happenings.TestCase
TestInvariants.settings = settings(max_examples=300, stateful_step_count=50)


def test_request_that_may_not_wait_only_renews_the_sentence_for_those_who_wait() -> None:
    """Time has passed since the last event, and the sentence says how much is left."""
    world = Happenings()
    world.operator_chooses_rules(replaces=False, warms=False, models={}, idle=None)
    world.switch_goes_well(TARGETS[2], 20)
    world.request_arrives(121.0, "embed", may_switch=True, priority=Priority.INTERACTIVE)
    world.request_arrives(0.0, "chat", may_switch=True, priority=Priority.INTERACTIVE)
    world.pass_time(0.3)
    world.request_arrives_that_may_not_wait("chat")
    world.teardown()
