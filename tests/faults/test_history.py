"""The checker of histories finds what it is there to find, each thing planted into a history that is good."""

from __future__ import annotations

import dataclasses
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from history import Answer, Logged, Operation, Verdict, check, longest_gap_s, outcome_of
from openoutcry.actors import MarketRules
from openoutcry.actors.book.commands import CONFIGURE, SUBMIT, Command
from openoutcry.actors.book.orderbook import OrderBook, events_between

Planted = tuple[list[Operation], list[Logged]]


def good_history(count: int, *, batch: int = 5) -> Planted:
    """Return what clients that overlap in time see of a book that does everything right, and its log."""
    chance = random.Random(count)
    book = OrderBook()
    log = [Logged(1, 1, ((CONFIGURE, "", "", MarketRules().to_tuple()),))]
    book.apply(*log[0])
    operations: list[Operation] = []
    for number in range(0, count, batch):
        commands: tuple[Command, ...] = tuple(
            [
                (SUBMIT, "ann", f"{at}", chance.randrange(2), 0, chance.randrange(95, 106), 3, 0, 0, 0)
                for at in range(number, number + batch)
            ]
        )
        first = book.sequence + 1
        log.append(Logged(first, number + 2, commands))
        events = book.apply(first, number + 2, commands)
        # Ordered at 1000 * number; called up to eight records before that, and answered up to eight records after it.
        for at, command in enumerate(commands, first):
            called, answered = [1000 * number + sign * chance.randrange(8000 * batch) for sign in (-1, 1)]
            outcome = outcome_of(events_between(events, at, at))
            answer = Answer(answered, at, outcome, book.sequence, book.state_hash())
            operations.append(Operation(command, called, answer))
    return operations, log


def _answer(op: Operation) -> Answer:
    assert op.answer is not None
    return op.answer


def lose_one(operations: list[Operation], log: list[Logged]) -> None:
    last = log[-1]
    log[-1] = last._replace(commands=last.commands[:-1])


def answer_from_another_place(operations: list[Operation], log: list[Logged]) -> None:
    op = operations[50]
    op.answer = _answer(op)._replace(sequence=_answer(op).sequence + 1)


def execute_one_again_under_a_forgotten_name(operations: list[Operation], log: list[Logged]) -> None:
    # A replica whose dedupe window is shorter than it said.
    rules = MarketRules(dedupe_window=10)
    log[0] = Logged(1, 1, ((CONFIGURE, "", "", rules.to_tuple()),))
    again = operations[0].command
    log.append(Logged(log[-1].first_sequence + 5, log[-1].timestamp_ns, (again,)))


def log_what_nobody_asked_for(operations: list[Operation], log: list[Logged]) -> None:
    del operations[40]


def log_another_quantity_than_was_asked_for(operations: list[Operation], log: list[Logged]) -> None:
    op = operations[40]
    op.command = (*op.command[:6], 4, *op.command[7:])


def order_after_what_came_later(operations: list[Operation], log: list[Logged]) -> None:
    op = operations[-1]
    before = min([other.called_ns for other in operations])
    op.called_ns, op.answer = before - 2, _answer(op)._replace(at_ns=before - 1)


def execute_what_was_not_answered_before_what_came_earlier(operations: list[Operation], log: list[Logged]) -> None:
    operations[0].answer = None
    operations[0].called_ns = 10**12


def answer_a_fill_that_was_none(operations: list[Operation], log: list[Logged]) -> None:
    op = operations[30]
    op.answer = _answer(op)._replace(outcome=outcome_of(()))


def hash_another_state(operations: list[Operation], log: list[Logged]) -> None:
    for op in operations:
        if _answer(op).state_sequence == _answer(operations[30]).state_sequence:
            op.answer = _answer(op)._replace(state_hash="0" * 32)


def hash_two_states_at_one_place(operations: list[Operation], log: list[Logged]) -> None:
    op = operations[31]
    op.answer = _answer(op)._replace(state_hash="0" * 32)


def skip_a_record(operations: list[Operation], log: list[Logged]) -> None:
    del log[10]


def turn_the_clock_back(operations: list[Operation], log: list[Logged]) -> None:
    log[10] = log[10]._replace(timestamp_ns=log[9].timestamp_ns - 1)


PLANTED: dict[Callable[[list[Operation], list[Logged]], None], str] = {
    lose_one: "lost",
    answer_from_another_place: "lost",
    execute_one_again_under_a_forgotten_name: "doubled",
    log_what_nobody_asked_for: "invented",
    log_another_quantity_than_was_asked_for: "invented",
    order_after_what_came_later: "reordered",
    execute_what_was_not_answered_before_what_came_earlier: "reordered",
    answer_a_fill_that_was_none: "contradicted",
    hash_another_state: "contradicted",
    hash_two_states_at_one_place: "contradicted",
    skip_a_record: "broken",
    turn_the_clock_back: "broken",
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_the_check_finds_a_planted_fault(plant: Callable[[list[Operation], list[Logged]], None]) -> None:
    operations, log = good_history(100)
    assert check(operations, log).faults == []
    plant(operations, log)
    verdict = check(operations, log)
    assert getattr(verdict, PLANTED[plant]), verdict
    assert set(PLANTED.values()) == {field.name for field in dataclasses.fields(Verdict)} - {"operations", "answered"}


def test_what_was_never_answered_may_be_in_the_log_or_not() -> None:
    operations, log = good_history(100)
    operations[3].answer = None
    never = (SUBMIT, "bob", "1", 0, 0, 100, 3, 0, 0, 0)
    operations.append(Operation(never, 0))
    verdict = check(operations, log)
    assert verdict.faults == []
    assert (verdict.operations, verdict.answered) == (101, 99)


def test_a_retry_in_the_log_counts_as_the_same_operation() -> None:
    operations, log = good_history(100)
    log.append(Logged(log[-1].first_sequence + 5, log[-1].timestamp_ns, (operations[7].command,)))
    assert check(operations, log).faults == []


def test_a_history_of_20_000_operations_is_checked_in_one_pass() -> None:
    operations, log = good_history(20_000)
    started = time.perf_counter()
    assert check(operations, iter(log)).faults == []
    assert time.perf_counter() - started < 20


def test_the_longest_gap_is_between_two_answers_or_since_the_last_one() -> None:
    seconds = [3_000_000_000, 1_000_000_000, 1_500_000_000]
    assert longest_gap_s(seconds) == 1.5
    assert longest_gap_s(seconds, 6_000_000_000) == 3
    assert longest_gap_s([]) == 0
