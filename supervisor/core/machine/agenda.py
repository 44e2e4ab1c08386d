"""The schedule as the core knows it: the period that holds, those that follow, a hand's choice.

A period is what one entry of the schedule means from one boundary to the next. The core knows no
calendar: whoever reads the schedule says when the boundaries are, in monotonic seconds.
"""

from msgspec import Struct
from msgspec.structs import replace

from supervisor.core.machine.values import Mode, Target


class Period(Struct, frozen=True, kw_only=True):
    """What is served from one boundary of the schedule to the next.

    `starts_at` is monotonic, and `local` the same for people, with the zone; empty for the baseline
    where it holds already. `began`: when its entry began, in Unix seconds (0: the baseline), by
    which it is known again when the schedule is read anew. `mode` and `model` say what alone gets
    the devices; None: all. `target` is made live where nothing of that is. `until_done`: it ends
    once no work of jobs is left. `optimizes`: the indexes of vectors are built in it. `entry` is
    how the schedule has it, `over` what else is in force then, the last begun first.
    """

    starts_at: float
    began: float
    local: str
    mode: Mode | None = None
    model: str | None = None
    target: Target | None = None
    until_done: bool = False
    optimizes: bool = False
    entry: str = ""
    over: tuple[str, ...] = ()

    @property
    def serves(self) -> str:
        """What it serves, in a word: a mode, `mixed`, or a model's name."""
        return self.model or self.mode or "mixed"

    def admits(self, target: Target) -> bool:
        """Whether a target may be brought in; a twin takes nothing from what has the period."""
        if target.is_twin:
            return True
        return self.mode in {None, target.mode} and self.model in {None, target.model}


class ByHand(Struct, frozen=True, kw_only=True):
    """What a hand has chosen against the period that holds: `period` instead of it.

    It holds as long as the period that follows is the one that began then (`before`; None: none is
    known).
    """

    period: Period
    before: float | None


class Agenda(Struct, frozen=True, kw_only=True):
    """The schedule: written by `clock`, and by `ending` where a hand has chosen.

    `periods`: the one that holds and those that follow; empty: there is no schedule. `refuses`:
    what a period does not serve is refused at once. `lead_s`: how long before its boundary a
    period's target is made ready; None: as was learned. `has_work`: there is some for the next
    period, if that lasts until it is done. `read_at`: when the schedule is to be read again.
    `entered`: the local start of the last period that was entered. `ended`: the last one that is
    over as its work is done. `rests`: what the present one serves was unloaded for want of
    requests.
    """

    periods: tuple[Period, ...] = ()
    refuses: bool = False
    lead_s: float | None = None
    has_work: bool = False
    read_at: float | None = None
    entered: str | None = None
    ended: Period | None = None
    by_hand: ByHand | None = None
    rests: bool = False

    @property
    def period(self) -> Period | None:
        """What holds now; None where everything may be served whenever it is asked for."""
        if self.by_hand is not None:
            return self.by_hand.period
        return self.periods[0] if self.periods else None

    @property
    def following(self) -> Period | None:
        """The period behind the next boundary, as far as it is known."""
        return self.periods[1] if len(self.periods) > 1 else None

    @property
    def over(self) -> float | None:
        """When the period began that is over as its work is done."""
        return None if self.ended is None else self.ended.began

    def admits(self, target: Target | None) -> bool:
        """Whether a target may be brought in now."""
        period = self.period
        return period is None or target is None or period.admits(target)

    def next_admitting(self, target: Target) -> Period | None:
        """Return the first of the periods to come in which a target may be brought in."""
        return next((period for period in self.periods[1:] if period.admits(target)), None)

    def with_choice(self, target: Target | None) -> "Agenda":
        """A hand has made a target live (None: nothing): that is not undone before the next period.

        What the period itself admits needs no exception.
        """
        if not self.periods or self.periods[0].target is None:
            return self
        holding = self.periods[0]
        if target is None:
            period = replace(holding, target=None)
        elif holding.admits(target):
            return replace(self, by_hand=None)
        else:
            period = replace(holding, mode=target.mode, model=None, target=None, until_done=False)
        before = None if self.following is None else self.following.began
        return replace(self, by_hand=ByHand(period=period, before=before))
