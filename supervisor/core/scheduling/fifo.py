"""First come, first served: the oldest request gets the device, whatever switching costs."""

from supervisor.core.scheduling.values import Decision, Queue, View


def fifo(view: View) -> Decision:
    """Switch as soon as the stay has served, to the model of the oldest request."""
    oldest = min(view.queues, key=_age, default=None)
    stay = view.stay
    if oldest is None or not oldest.waiting:
        return Decision(reason="nobody waits")
    if stay is not None and oldest.model == stay.model:
        return Decision(reason=f"{stay.model} stays: its request is the oldest")
    own = next((queue.waiting for queue in view.queues if stay and queue.model == stay.model), 0)
    if stay is not None and own and not stay.granted:
        return Decision(reason=f"{stay.model} stays: it has served nobody yet")
    return Decision(model=oldest.model, reason=f"switching to {oldest.model}: its turn")


def _age(queue: Queue) -> tuple[bool, float]:
    return (queue.oldest_at is None, queue.oldest_at or 0.0)
