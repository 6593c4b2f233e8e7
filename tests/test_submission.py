"""Submissions: every caller gets its own answer, and none is kept waiting by another that does not come for its own."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from openoutcry.actors.book.rules import MarketRules
from openoutcry.actors.book.submission import Outcome, Request, Submissions
from openoutcry.actors.testing import eventually
from openoutcry.transport.errors import Closed, OpenOutcryError, Overloaded, RequestTimeout

COMMAND = ((3, "ann", ""),)
OUTCOME = Outcome([], {}, 7, "hash", MarketRules())


def submissions(limit: int = 1000) -> tuple[Submissions, list[Any]]:
    made, told = Submissions(limit), []
    made.open(told.append)
    return made, told


def wait_in_threads(requests: list[Request]) -> tuple[list[threading.Thread], dict[Request, Any]]:
    found: dict[Request, Any] = {}

    def wait(request: Request) -> None:
        try:
            found[request] = request.wait()
        except OpenOutcryError as error:
            found[request] = error

    threads = [threading.Thread(target=wait, args=(request,)) for request in requests]
    for thread in threads:
        thread.start()
    return threads, found


def test_callers_that_are_answered_together_all_get_their_answers() -> None:
    made, told = submissions()
    requests = [made.submit(COMMAND, time.monotonic() + 30) for _ in range(64)]
    assert len(told) == 1, "one wake-up for all that waits"
    threads, found = wait_in_threads(requests)
    eventually(lambda: all(request._waiting for request in requests), "all callers wait")
    taken = made.take()
    for request in taken:
        request.answer(OUTCOME)
    made.release(taken)
    for thread in threads:
        thread.join(10)
    assert [found[request] for request in requests] == [OUTCOME] * 64
    assert made.in_flight == 0


def test_a_caller_that_has_given_up_or_has_not_come_yet_holds_up_nobody() -> None:
    made, _ = submissions()
    late = made.submit(COMMAND, time.monotonic() - 2)
    with pytest.raises(RequestTimeout):
        late.wait()
    not_yet = made.submit(COMMAND, time.monotonic() + 30)
    waiting = made.submit(COMMAND, time.monotonic() + 30)
    threads, found = wait_in_threads([waiting])
    eventually(lambda: waiting._waiting, "the last caller waits")
    taken = made.take()
    assert taken == [late, not_yet, waiting]
    for request in taken:
        request.answer(OUTCOME)
    made.release(taken)
    threads[0].join(10)
    assert found[waiting] is OUTCOME
    assert not_yet.wait() is OUTCOME


def test_callers_beyond_the_bound_are_slowed_and_then_refused() -> None:
    made, _ = submissions(limit=2)
    first = made.submit(COMMAND * 2, time.monotonic() + 30)
    with pytest.raises(Overloaded):
        made.submit(COMMAND, time.monotonic() + 0.05)
    threads, found = [], {}
    slowed = threading.Thread(target=lambda: found.update(request=made.submit(COMMAND, time.monotonic() + 30)))
    slowed.start()
    threads.append(slowed)
    eventually(lambda: len(made._standing_by) == 1, "the caller is held")
    first.answer(OUTCOME)
    made.release(made.take())
    slowed.join(10)
    assert found["request"].commands == COMMAND


def stand_by(made: Submissions, count: int, entered: list[Request]) -> Request:
    request = Request(COMMAND * count, int((time.monotonic() + 30) * 1e9))
    assert not made.put_nowait(request)
    made.stand_by(request, lambda: entered.append(request))
    return request


def answer_all(made: Submissions) -> None:
    taken = made.take()
    for request in taken:
        request.answer(OUTCOME)
    made.release(taken)


def test_room_is_for_those_who_wait_longest_and_nobody_gets_in_past_them() -> None:
    made, _ = submissions(limit=4)
    made.submit(COMMAND * 3, time.monotonic() + 30)
    entered: list[Request] = []
    large, small, last = (stand_by(made, count, entered) for count in (3, 1, 2))
    newcomer = Request(COMMAND, int((time.monotonic() + 30) * 1e9))
    assert not made.put_nowait(newcomer), "there is room for one command, but three requests wait"
    answer_all(made)
    assert entered == [large, small]
    assert made.in_flight == 4
    assert made.take() == [large, small]
    for request in (large, small):
        request.answer(OUTCOME)
    made.release([large, small])
    assert entered == [large, small, last]
    assert made.put_nowait(newcomer)


def test_one_that_waits_no_longer_is_never_sent_and_makes_way_for_those_behind_it() -> None:
    made, _ = submissions(limit=4)
    first = made.submit(COMMAND * 3, time.monotonic() + 30)
    entered: list[Request] = []
    large, small = (stand_by(made, count, entered) for count in (3, 1))
    assert made.withdraw(large)
    assert entered == [small]
    assert not made.withdraw(small), "it has been handed over"
    assert not made.withdraw(large)
    assert made.take() == [first, small]
    assert made.in_flight == 4


def test_those_who_wait_for_room_fail_at_the_end_and_more_than_the_bound_are_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("openoutcry.actors.book.submission.STAND_BY_MAX", 2)
    made, _ = submissions(limit=1)
    first = made.submit(COMMAND, time.monotonic() + 30)
    entered: list[Request] = []
    waiting = [stand_by(made, 1, entered) for _ in range(2)]
    with pytest.raises(Overloaded):
        stand_by(made, 1, entered)
    made.close(Closed("the node is closed"))
    assert entered == waiting
    for request in (first, *waiting):
        with pytest.raises(Closed):
            request.wait()
    assert made.in_flight == 0


def test_after_the_end_every_request_fails_at_once_by_the_same_error() -> None:
    made, told = submissions()
    before = made.submit(COMMAND, time.monotonic() + 30)
    made.close(Closed("the node is closed"))
    after = made.submit(COMMAND, time.monotonic() + 30)
    for request in (before, after):
        with pytest.raises(Closed):
            request.wait()
    assert (made.in_flight, len(told)) == (0, 1)


def test_the_book_is_told_again_only_when_many_commands_wait() -> None:
    made, told = submissions()
    for _ in range(3):
        made.submit(COMMAND, time.monotonic() + 30)
    assert len(told) == 1
    made.submit(COMMAND * 200, time.monotonic() + 30)
    assert len(told) == 2
    made.submit(COMMAND * 200, time.monotonic() + 30)
    assert len(told) == 2
    made.take()
    made.submit(COMMAND, time.monotonic() + 30)
    assert len(told) == 3
