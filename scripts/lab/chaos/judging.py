"""What became of one request: answered, refused, cancelled, broken by a fault of ours, or lost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from lab.chaos.facts import Facts, PhaseBegun
from lab.chaos.ledger import End, Entry, Fault, Seen

_LOG_SLACK_S = 0.25
"""A client sees a break some milliseconds apart from the log line of its cause."""

_CUT_SEEN_WITHIN_S = 3.0
"""A slow reader sees that its stream was cut when it comes to the end of what is buffered."""


class Verdict(StrEnum):
    """The columns of the balance."""

    ANSWERED = "answered"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    CONTROLLER = "controller killed"
    SERVER = "server killed"
    DRAIN = "drain over"
    LOST = "LOST"
    WRONG = "WRONG"

    @property
    def is_fair(self) -> bool:
        """Whether it may happen to a request."""
        return self not in {Verdict.LOST, Verdict.WRONG}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What requests are judged against.

    `outages`: from the end of each controller until its successor listened. `policies`: the drain
    policy by switch; those of nobody we know are the configured `cancel`. `statuses`: the
    documented status of each error code.
    """

    facts: Sequence[Facts]
    faults: Sequence[Fault]
    outages: Sequence[tuple[float, float]]
    policies: Mapping[str, str]
    statuses: Mapping[str, int]
    drain_timeout_s: float

    def ended_pids(self) -> frozenset[int]:
        """Return the servers that a fault of ours ended."""
        return frozenset(f.pid for f in self.faults if f.weapon.ends_server)


def judge(entry: Entry, scene: Scene) -> tuple[Verdict, str]:
    """Return what became of the request, and why that is so."""
    seen = entry.seen
    if entry.wrong is not None:
        return Verdict.WRONG, entry.wrong
    if seen.end is End.LEFT:
        return Verdict.CANCELLED, ""
    if seen.end in {End.TRUNCATED, End.TIMED_OUT}:
        return Verdict.LOST, str(seen.end)
    is_refused_late = seen.end is End.ERROR_EVENT and not seen.has_begun and seen.code is not None
    is_told_why = seen.end is End.WHOLE or is_refused_late
    if not is_told_why or seen.code == "backend_unreachable":
        return _explain_break(entry, scene)
    if seen.status in entry.right_statuses and not is_refused_late:
        return Verdict.ANSWERED, ""
    problem = refusal_problem(seen, entry.may_refuse, scene.statuses)
    return (Verdict.LOST, problem) if problem else (Verdict.REFUSED, seen.code or "")


def refusal_problem(
    seen: Seen, may_refuse: frozenset[str], statuses: Mapping[str, int]
) -> str | None:
    """Say what makes a refusal unfair; None when it is one that clients can live with.

    A stream that waits has its status and its headers before anybody knows that it will be refused.
    """
    if seen.code is None:
        return f"status {seen.status} without a code of ours: {seen.detail}"
    if seen.code not in statuses:
        return f"code {seen.code} is not documented"
    if seen.code not in may_refuse:
        return f"{seen.code} is not a reason to refuse this: {seen.detail}"
    return None if seen.end is End.ERROR_EVENT else _form_problem(seen.code, seen, statuses)


def _form_problem(code: str, seen: Seen, statuses: Mapping[str, int]) -> str | None:
    """Say what is wrong with the status and the headers of a refusal."""
    if seen.status != statuses[code]:
        return f"{code} has status {seen.status}, documented is {statuses[code]}"
    says_when = (seen.retry_after or "").isdigit() and seen.should_retry == "true"
    if seen.status == 503 and not says_when and seen.should_retry != "false":
        return f"{code} is a 503 that says neither when to come again nor that it is no use"
    return None


def _explain_break(entry: Entry, scene: Scene) -> tuple[Verdict, str]:
    """Find the fault of ours that broke the exchange; without one it is lost."""
    for began_at, over_at in scene.outages:
        if began_at <= entry.ended_at + _LOG_SLACK_S and entry.started_at <= over_at:
            return Verdict.CONTROLLER, ""
    facts = next((f for f in scene.facts if entry.request_id in f.request_epochs), None)
    if facts is not None:
        epoch = facts.request_epochs[entry.request_id]
        if _server_was_hit(facts.pid_by_epoch.get(epoch), entry, scene.faults):
            return Verdict.SERVER, ""
        if _drain_was_over(facts, entry, scene) or _had_retired(facts, epoch, entry, scene):
            return Verdict.DRAIN, ""
    seen = entry.seen
    return Verdict.LOST, f"{seen.end} without a fault that explains it: {seen.code or seen.detail}"


def _server_was_hit(pid: int | None, entry: Entry, faults: Sequence[Fault]) -> bool:
    return any(
        f.pid == pid and f.weapon.ends_server and f.at <= entry.ended_at + _LOG_SLACK_S
        for f in faults
    )


def _drain_was_over(facts: Facts, entry: Entry, scene: Scene) -> bool:
    """Whether a switch with `cancel` cut the server's requests, no sooner than it was due."""
    for begun, after in pairwise(facts.phases):
        is_cut = begun.phase == "draining" and after.phase == "stopping"
        if not is_cut or begun.switch_id != after.switch_id:
            continue
        may_cancel = scene.policies.get(begun.switch_id, "cancel") == "cancel"
        if may_cancel and _was_due(begun, after, scene) and _was_cut_at(after.at, entry):
            return True
    return False


def _had_retired(facts: Facts, epoch: int, entry: Entry, scene: Scene) -> bool:
    """Whether the server was replaced by one beside it, and stopped no sooner than it was due."""
    since, switch_id = facts.retiring.get(epoch, (facts.ended_at, ""))
    may_cancel = scene.policies.get(switch_id, "cancel") == "cancel"
    return may_cancel and entry.ended_at + _LOG_SLACK_S >= since + scene.drain_timeout_s


def _was_due(begun: PhaseBegun, after: PhaseBegun, scene: Scene) -> bool:
    return after.at - begun.at >= scene.drain_timeout_s - 0.05


def _was_cut_at(at: float, entry: Entry) -> bool:
    is_during = entry.started_at < at <= entry.ended_at + _LOG_SLACK_S
    return is_during and entry.ended_at - at <= _CUT_SEEN_WITHIN_S
