"""Which pieces are sent together, and in what order."""

import itertools
import sys
import tracemalloc
from collections import Counter, defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from supervisor.core.scheduling.values import Priority
from supervisor.embedding.batching.batches import Batch, Caller
from supervisor.embedding.batching.queue import Amount, BatchLimits, BatchQueue
from supervisor.embedding.values import Piece

LIMITS = BatchLimits(max_size=4, max_tokens=40, max_concurrent=4, max_full=2, slots=4)
"""So a piece of up to ten tokens is short."""


def caller(
    *tokens: int,
    at: float = 0.0,
    priority: Priority = Priority.INTERACTIVE,
    normalize: bool = True,
) -> Caller:
    pieces = [Piece(content=f"piece {number}", tokens=each) for number, each in enumerate(tokens)]
    return Caller(pieces, normalize=normalize, priority=priority, came_at=at, on_end=lambda: None)


def take(queue: BatchQueue, now: float = 0.0) -> list[tuple[Caller, int]]:
    batch = queue.take(LIMITS, now)
    assert batch is not None
    return list(batch.items)


# What goes together


@pytest.mark.parametrize(
    ("running", "at_once"),
    [((0, 0), 4), ((3, 39), 4), ((4, 4), 2), ((1, 40), 2), ((9, 90), 2)],
)
def test_a_server_that_has_as_much_as_a_full_batch_gets_one_more_and_else_several(
    running: tuple[int, int], at_once: int
) -> None:
    assert LIMITS.at_once(Amount(*running)) == at_once


def test_pieces_of_several_callers_are_sent_together_in_the_order_of_their_arrival() -> None:
    queue, first, second = BatchQueue(), caller(3, 3), caller(3, 3, 3)
    queue.add(first, LIMITS)
    queue.add(second, LIMITS)
    assert take(queue) == [(first, 0), (first, 1), (second, 0), (second, 1)]
    assert take(queue) == [(second, 2)]
    assert queue.take(LIMITS, 0.0) is None


def test_callers_with_few_pieces_get_batches_of_as_many_as_the_server_computes_together() -> None:
    queue, limits = BatchQueue(), replace(LIMITS, slots=2)
    few = [caller(3) for _ in range(5)]
    for each in few:
        queue.add(each, limits)
    assert queue.due(limits, 0.0) == 3
    sizes = []
    while (batch := queue.take(limits, 0.0)) is not None:
        sizes.append(len(batch))
    assert sizes == [2, 2, 1]
    queue.add(caller(3, 3, 3, 3), limits)
    batch = queue.take(limits, 0.0)
    assert batch is not None
    assert len(batch) == 4


def test_a_batch_has_no_more_tokens_than_it_may_unless_it_is_one_piece() -> None:
    queue, long = BatchQueue(), caller(15, 20, 15, 100, 15)
    queue.add(long, LIMITS)
    assert [len(take(queue)) for _ in range(4)] == [2, 1, 1, 1]


def test_a_long_text_does_not_delay_a_batch_of_short_ones() -> None:
    queue, mixed, short = BatchQueue(), caller(3, 40, 3), caller(3)
    queue.add(mixed, LIMITS)
    queue.add(short, LIMITS)
    assert sorted([take(queue), take(queue)], key=len) == [
        [(mixed, 1)],
        [(mixed, 0), (mixed, 2), (short, 0)],
    ]


def test_as_many_short_pieces_as_a_batch_may_have_fit_into_it() -> None:
    limits = replace(LIMITS, max_size=32, max_tokens=2048)
    assert limits.short_tokens == 64
    assert replace(LIMITS, max_size=32, max_tokens=8).short_tokens == 1


def test_vectors_with_and_without_normalisation_are_asked_for_apart() -> None:
    queue, raw, unit = BatchQueue(), caller(3, normalize=False), caller(3)
    queue.add(raw, LIMITS)
    queue.add(unit, LIMITS)
    assert sorted(len(take(queue)) for _ in range(2)) == [1, 1]


# Who is first


def test_one_text_waits_for_a_batch_or_two_of_anothers_thousand_and_both_get_on() -> None:
    queue, many = BatchQueue(), caller(*[3] * 1000)
    queue.add(many, LIMITS)
    take(queue, 1.0)
    for second in range(2, 40, 4):
        single = caller(3, at=second - 0.5)
        queue.add(single, LIMITS)
        sent = [take(queue, float(second + number))[0][0] for number in range(4)]
        assert single in sent[:2]
        assert sent.count(many) == 3


def test_interactive_callers_pass_a_backlog_of_batch_work_however_old_it_is() -> None:
    queue = BatchQueue()
    for _ in range(10):
        queue.add(caller(*[3] * 4, at=0.0, priority=Priority.BATCH), LIMITS)
    take(queue, 99.0)
    urgent = caller(3, at=100.0)
    queue.add(urgent, LIMITS)
    assert take(queue, 101.0) == [(urgent, 0)]


def test_batch_work_gets_every_eleventh_batch_where_interactive_work_never_ends() -> None:
    queue = BatchQueue()
    for _ in range(200):
        queue.add(caller(*[3] * 4), LIMITS)
        queue.add(caller(*[3] * 4, priority=Priority.BATCH), LIMITS)
    order = [take(queue, float(now))[0][0].priority for now in range(1, 111)]
    assert Counter(order)[Priority.BATCH] == 10


def test_short_and_long_pieces_take_turns() -> None:
    queue = BatchQueue()
    for _ in range(10):
        queue.add(caller(*[3] * 4), LIMITS)
        queue.add(caller(20, 20), LIMITS)
    sizes = [len(take(queue, float(now))) for now in range(1, 11)]
    assert Counter(sizes) == {4: 5, 2: 5}


def test_what_is_put_back_is_sent_first_and_as_it_was() -> None:
    queue, first, second = BatchQueue(), caller(3, 3), caller(3)
    queue.add(first, LIMITS)
    batch = queue.take(LIMITS, 0.0)
    assert batch is not None
    queue.add(second, LIMITS)
    queue.put_back(batch.parts(died=1))
    assert queue.amount() == Amount(3, 9)
    assert [take(queue) for _ in range(3)] == [[(first, 0)], [(first, 1)], [(second, 0)]]


# When a batch is due


def test_a_batch_waits_for_more_only_as_long_as_it_may_and_not_when_it_is_full() -> None:
    limits = replace(LIMITS, wait_s=0.05)
    queue = BatchQueue()
    queue.add(caller(3, 3, at=1.0), limits)
    assert queue.take(limits, 1.02) is None
    assert queue.due(limits, 1.02) == 0
    assert queue.due_after(limits, 1.02) == pytest.approx(1.05)
    queue.add(caller(3, at=1.04), limits)
    batch = queue.take(limits, 1.05)
    assert batch is not None
    assert len(batch) == 3
    queue.add(caller(*[3] * 5, at=2.0), limits)
    assert queue.due(limits, 2.0) == 2
    assert queue.take(limits, 2.0) is not None
    assert queue.take(limits, 2.0) is None


# Those who leave


def test_a_batch_is_wanted_until_the_last_of_its_callers_has_left() -> None:
    queue, first, second = BatchQueue(), caller(3), caller(3)
    queue.add(first, LIMITS)
    queue.add(second, LIMITS)
    batch = queue.take(LIMITS, 0.0)
    assert queue.end(first) == []
    assert queue.end(second) == [batch]


def test_what_was_put_back_is_forgotten_with_its_callers() -> None:
    queue, only = BatchQueue(), caller(3, 3)
    queue.add(only, LIMITS)
    batch = queue.take(LIMITS, 0.0)
    assert batch is not None
    queue.put_back(batch.parts(died=1))
    queue.end(only)
    assert queue.amount() == Amount(0, 0)
    assert queue.most_urgent is None
    assert queue.due(LIMITS, 0.0) == 0
    assert queue.take(LIMITS, 0.0) is None


def test_those_who_came_until_a_moment_are_known() -> None:
    queue = BatchQueue()
    early, late, batch = caller(3, 30, at=1.0), caller(3, at=2.0), caller(3, at=1.0)
    for each in (early, late, batch):
        queue.add(each, LIMITS)
    taken = queue.take(LIMITS, 2.0)
    assert taken is not None
    queue.put_back(taken.parts(died=0))
    queue.add(caller(3, at=2.5), LIMITS)
    assert set(queue.callers_until(1.5)) == {early, batch}


# Properties

ADDED = st.tuples(
    st.lists(st.integers(1, 60), min_size=1, max_size=9),
    st.sampled_from(Priority),
    st.booleans(),
)
STEPS = st.lists(
    st.one_of(
        ADDED.map(lambda added: ("add", added)),
        st.tuples(st.sampled_from(["take", "put_back", "close"]), st.integers(0, 5)),
        st.tuples(st.just("end"), st.integers(0, 30)),
    ),
    max_size=60,
)


class Model:
    """What the queue holds, by counting."""

    def __init__(self) -> None:
        self.queue = BatchQueue()
        self.callers: list[Caller] = []
        self.waiting: dict[Caller, set[int]] = {}
        self.taken: list[Batch] = []
        self.now = 0.0

    def do(self, action: str, value: Any) -> None:
        self.now += 1
        if action == "add":
            tokens, priority, normalize = value
            added = caller(*tokens, at=self.now, priority=priority, normalize=normalize)
            self.callers.append(added)
            self.waiting[added] = set(range(len(tokens)))
            self.queue.add(added, LIMITS)
        elif action == "take":
            self.take()
        elif action == "put_back" and self.taken:
            batch = self.taken.pop()
            for each, index in batch.items:
                if not each.is_over:
                    self.waiting[each].add(index)
            self.queue.put_back(batch.parts(died=0))
        elif action == "close" and self.taken:
            self.taken.pop().close()
        elif action == "end":
            for leaving in self.callers[value : value + 1]:
                if not leaving.is_over:
                    self.queue.end(leaving)
                    self.waiting[leaving].clear()

    def take(self) -> Batch | None:
        batch = self.queue.take(LIMITS, self.now)
        if batch is None:
            return None
        self.taken.append(batch)
        for each, index in batch.items:
            if not each.is_over:
                self.waiting[each].remove(index)  # raises where it was there already, or never
        return batch

    @property
    def inputs(self) -> int:
        return sum(map(len, self.waiting.values()))


@given(STEPS)
def test_every_piece_is_sent_once_and_none_of_those_who_left(
    steps: list[tuple[str, Any]],
) -> None:
    model = Model()
    for action, value in steps:
        model.do(action, value)
        if action == "add":
            assert model.queue.due(LIMITS, model.now) > 0
        for batch in model.taken[-1:] if action == "take" else ():
            assert 0 < len(batch) <= LIMITS.max_size
            assert len(batch) == 1 or batch.tokens <= LIMITS.max_tokens
            kinds = {
                (each.priority, each.normalize, each.pieces[index].tokens > LIMITS.short_tokens)
                for each, index in batch.items
            }
            assert len(kinds) == 1
    while model.take() is not None:
        model.now += 1
    assert model.inputs == 0
    assert model.queue.amount() == Amount(0, 0)


@given(STEPS)
def test_what_waits_is_counted(steps: list[tuple[str, Any]]) -> None:
    model = Model()
    for action, value in steps:
        if action == "put_back":
            continue
        model.do(action, value)
        by_priority: defaultdict[Priority, list[int]] = defaultdict(list)
        for each, indexes in model.waiting.items():
            by_priority[each.priority] += [each.pieces[index].tokens for index in indexes]
        for priority, tokens in by_priority.items():
            assert model.queue.amount(priority) == Amount(len(tokens), sum(tokens))
        assert model.queue.amount().inputs == model.inputs
        there = [priority for priority in Priority if by_priority[priority]]
        assert model.queue.most_urgent == (there[0] if there else None)


@given(st.lists(st.tuples(st.sampled_from(Priority), st.integers(1, 30)), min_size=2, max_size=40))
def test_nobody_is_passed_for_ever(added: list[tuple[Priority, int]]) -> None:
    """A head waits for at most ten batches of each of the others' kinds, and one of its own."""
    queue, patient = BatchQueue(), caller(3, at=0.5, priority=Priority.BATCH)
    queue.add(patient, LIMITS)
    endless = itertools.cycle(added)
    for now in range(1, 100):
        for priority, tokens in itertools.islice(endless, 4):
            queue.add(caller(tokens, at=float(now), priority=priority), LIMITS)
        if any(each is patient for each, _ in take(queue, float(now))):
            return
    pytest.fail("it was passed by 100 batches")


# Very many


def test_a_caller_waits_since_it_came_or_has_had_some_of_its_vectors() -> None:
    queue, first, second = BatchQueue(), caller(30, 30, 30, at=1.0), caller(3, at=2.0)
    assert queue.longest_waits_since() is None
    for each in (first, second):
        queue.add(each, LIMITS)
    sent = Batch(take(queue, 3.0))
    assert (queue.longest_waits_since(), queue.waiting_since(1.0)) == (1.0, [first])
    sent.deliver([b"1" for _ in sent.items], "profile", 4.0)
    assert (queue.longest_waits_since(), queue.waiting_since(3.0)) == (2.0, [second])
    queue.put_back([Batch(take(queue, 5.0))])
    assert set(queue.waiting_since(4.0)) == {first, second}
    queue.end(first)
    assert queue.waiting_since(4.0) == [second]


def test_a_hundred_thousand_texts_take_little_memory_and_are_dropped_without_a_walk() -> None:
    queue = BatchQueue()
    texts = [Piece(content=f"text {number}", tokens=5) for number in range(100_000)]
    tracemalloc.start()
    callers = []
    for text in texts:
        each = Caller(
            [text],
            normalize=True,
            priority=Priority.BATCH,
            came_at=0.0,
            on_end=int,
        )
        queue.add(each, LIMITS)
        callers.append(each)
    taken_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken_bytes / len(texts) < 1024
    assert calls_to_leave(queue, callers[:10]) == calls_to_leave(queue, callers[50_000:50_010])
    for each in callers:
        queue.end(each)
    assert queue.amount() == Amount(0, 0)


def calls_to_leave(queue: BatchQueue, leaving: list[Caller]) -> int:
    """Count the calls of functions that it takes for callers to leave."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        for each in leaving:
            queue.end(each)
    finally:
        sys.setprofile(None)
    return calls
