"""Decisions in words, for log, history and status."""

from supervisor.core.scheduling.heads import Contest
from supervisor.core.scheduling.values import View


def switching(view: View, contest: Contest, why: str) -> str:
    """`switching to minilm: its turn; chat has had 0.85 s; 3 wait, the oldest 0.9 s …`."""
    head = contest.heads[0].queue
    held = f"; {view.stay.model} has had {seconds(view.at - view.stay.since)}" if view.stay else ""
    return f"switching to {head.model}: {why}{held}; {_waiting(view, contest, '')}"


def stays(view: View, contest: Contest, why: str) -> str:
    """`chat stays: its turn ends in 0.4 s; 3 wait for minilm, the oldest 0.9 s …`."""
    if view.stay is None:
        return "nobody waits for any model"
    if not contest.heads:
        return f"{view.stay.model} stays: {why}"
    head = contest.heads[0].queue
    return f"{view.stay.model} stays: {why}; {_waiting(view, contest, f' for {head.model}')}"


def _waiting(view: View, contest: Contest, whom: str) -> str:
    head = contest.heads[0]
    count = head.queue.waiting
    longest_s = contest.cycle.longest_wait_s(view.costs[head.queue.model])
    counted = f"{seconds(view.at - head.since)} of at most {seconds(longest_s)}"
    if head.oldest_at < head.since:
        counted = f"{seconds(view.at - head.oldest_at)}, counted as {counted}"
    return f"{count} {'waits' if count == 1 else 'wait'}{whom}, the oldest {counted}"


def seconds(duration_s: float) -> str:
    """In two digits, in whole seconds from ten on."""
    digits = f"{duration_s:.0f}" if duration_s >= 9.95 else f"{round(duration_s, 3):.2g}"
    return f"{digits} s"
