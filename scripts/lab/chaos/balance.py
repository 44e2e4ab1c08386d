"""The balance: what became of every request, and every rule that was broken."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.chaos.facts import interleaved, unexpected_deaths
from lab.chaos.judging import Scene, Verdict, judge
from lab.chaos.layout import SWAPPED
from lab.chaos.ledger import Ledger, Violation, Weapon
from lab.harness.command import in_columns

Counts = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """`counts`: by kind of request and verdict. `hits`: by weapon and phase; `misses`: no phase.

    `reasons`: how often each refusal was given. `figures`: what was measured of the controller.
    """

    sent: int
    counts: Counts
    reasons: Mapping[str, int]
    hits: Counts
    violations: tuple[Violation, ...]
    figures: Mapping[str, float]

    @property
    def is_clean(self) -> bool:
        """Whether nothing happened that must not."""
        return not self.violations

    def total(self, verdict: Verdict) -> int:
        """Return how many requests had this fate."""
        return sum(row.get(verdict, 0) for row in self.counts.values())


def draw_balance(ledger: Ledger, scene: Scene, figures: Mapping[str, float]) -> Balance:
    """Judge every request and every log."""
    counts: dict[str, Counter[str]] = {}
    reasons: Counter[str] = Counter()
    violations = list(ledger.violations)
    for entry in ledger.entries:
        verdict, reason = judge(entry, scene)
        counts.setdefault(entry.kind, Counter())[verdict] += 1
        if verdict is Verdict.REFUSED:
            reasons[reason] += 1
        if not verdict.is_fair:
            what = f"{reason}; {entry.describe()}"
            violations.append(Violation(at=entry.ended_at, rule=verdict.lower(), what=what))
    for request_id, started_at in ledger.pending.items():
        what = f"{request_id} was sent, and nobody knows what became of it"
        violations.append(Violation(at=started_at, rule="lost", what=what))
    violations.extend(_log_violations(scene))
    return Balance(
        sent=len(ledger.entries) + len(ledger.pending),
        counts=counts,
        reasons=reasons,
        hits=_hits(scene),
        violations=tuple(sorted(violations, key=lambda v: v.at)),
        figures=figures,
    )


def policies_of(ledger: Ledger, scene_facts: Sequence[Any]) -> dict[str, str]:
    """Return the drain policy of each switch: that of an order sent before the switch began.

    Whoever orders the same while it runs only joins it, and the policy stays what it was. Where
    several may have begun it, or nobody we know, it is taken for `cancel`.
    """
    began_at: dict[str, float] = {}
    for facts in scene_facts:
        for begun in facts.phases:
            began_at.setdefault(begun.switch_id, begun.at)
    found: dict[str, set[str]] = {}
    for order in ledger.orders:
        if order.sent_at <= began_at.get(order.switch_id, 0.0):
            found.setdefault(order.switch_id, set()).add(order.policy or "cancel")
    return {one: each.pop() if len(each) == 1 else "cancel" for one, each in found.items()}


def _log_violations(scene: Scene) -> list[Violation]:
    found: list[Violation] = []
    for facts in scene.facts:
        rules = {
            "two switches": interleaved(facts),
            "own death": unexpected_deaths(facts, scene.ended_pids(), SWAPPED),
            "log": facts.troubles,
        }
        for rule, troubles in rules.items():
            found.extend(Violation(at=at, rule=rule, what=what) for at, what in troubles)
    return found


def _hits(scene: Scene) -> dict[str, dict[str, int]]:
    """Count the faults by the phase that the log says they met, whatever they were aimed at."""
    hits: dict[str, Counter[str]] = {weapon: Counter() for weapon in Weapon}
    for fault in scene.faults:
        for facts in scene.facts:
            if facts.began_at <= fault.at < facts.ended_at:
                hits[fault.weapon][facts.phase_at(fault.at)] += 1
    return {weapon: dict(row) for weapon, row in hits.items()}


def as_json(balance: Balance, context: Mapping[str, Any]) -> dict[str, Any]:
    """Write the balance for machines."""
    return {
        **context,
        "is_clean": balance.is_clean,
        "sent": balance.sent,
        "totals": {verdict.value: balance.total(verdict) for verdict in Verdict},
        "requests": {kind: dict(row) for kind, row in sorted(balance.counts.items())},
        "refusals": dict(balance.reasons),
        "faults": balance.hits,
        "figures": dict(balance.figures),
        "violations": [
            {"at": each.at, "rule": each.rule, "what": each.what} for each in balance.violations
        ],
    }


def tables(balance: Balance, phases: Sequence[str]) -> str:
    """Write the balance for people."""
    totals: dict[str, int] = {verdict: balance.total(verdict) for verdict in Verdict}
    rows: dict[str, Mapping[str, int]] = {**dict(sorted(balance.counts.items())), "all": totals}
    parts = [
        _table("requests", rows, [*Verdict]),
        _table("faults, by the phase they met", balance.hits, phases),
        "refusals: " + ", ".join(f"{code} {n}" for code, n in sorted(balance.reasons.items())),
        "figures: " + ", ".join(f"{name} {value:g}" for name, value in balance.figures.items()),
        _sentence(balance, totals),
    ]
    return "\n\n".join(parts)


def _sentence(balance: Balance, totals: Mapping[str, int]) -> str:
    broken = sum(totals[v] for v in (Verdict.CONTROLLER, Verdict.SERVER, Verdict.DRAIN))
    rules = Counter(each.rule for each in balance.violations)
    told = ", ".join(f"{rule} {n}" for rule, n in sorted(rules.items())) or "none"
    return (
        f"{balance.sent} sent = {totals[Verdict.ANSWERED]} answered rightly + "
        f"{totals[Verdict.REFUSED]} refused with a reason + {totals[Verdict.CANCELLED]} cancelled "
        f"by the client + {broken} broken by our faults; lost {totals[Verdict.LOST]}, "
        f"wrong {totals[Verdict.WRONG]}; violations: {told}"
    )


def _table(title: str, rows: Counts, columns: Sequence[str]) -> str:
    lines = [[title, *columns, "sum"]]
    for name, row in rows.items():
        numbers = [row.get(column, 0) for column in columns]
        lines.append([name, *map(str, [*numbers, sum(row.values())])])
    return "\n".join(in_columns(lines, frozenset({0})))
