"""Apply committed records to a book, and collect what that means for those who wait. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ...transport.errors import StorageError
from .commands import DUPLICATE, REJECTED, SET_TIME, Event
from .orderbook import OrderBook
from .record import Record
from .replica import Replica
from .requests import Requests, Settled
from .submission import Request


class Executed(NamedTuple):
    """What a few records did, in order."""

    events: list[Event]
    earlier: dict[int, tuple[Event, ...]]
    """By the sequence number of a command that was asked for again: the events of its first execution."""
    rejected: list[Event]
    settled: Settled[Request]
    commands: int
    time_set: bool
    """One of the records sets the log's time."""


def apply_records(
    book: OrderBook, records: Sequence[Record], *, replica: Replica, requests: Requests[Request]
) -> Executed:
    """Apply ``records`` to ``book``.

    Raises:
        StorageError: the state is not what the leader has said it is (code ``diverged``).
    """
    expected = replica.expected_hash
    all_events: list[Event] = []
    settled: Settled[Request] = Settled()
    earlier: dict[int, tuple[Event, ...]] = {}
    rejected: list[Event] = []
    commands, time_set = 0, False
    for record in records:
        events = book.apply(record.first_sequence, record.timestamp_ns, record.commands)
        all_events += events
        for event in [e for e in events if e[0] == DUPLICATE or e[0] == REJECTED]:
            if event[0] == DUPLICATE:
                earlier[event[2]] = tuple(book.answer_of(event[2]))
            else:
                rejected.append(event)
        commands += len(record.commands)
        time_set = time_set or record.commands[0][0] == SET_TIME
        if expected is not None and expected[0] == record.last_sequence and book.state_hash() != expected[1]:
            raise StorageError(
                f"market {replica.market}: at sequence {expected[0]} the state hash is {book.state_hash()}, the "
                f"leader's, {replica.leader}'s, is {expected[1]}: the two have diverged. Delete nothing: stop both "
                "nodes and compare their data directories with `openoutcry verify DIR` and "
                f"`openoutcry log DIR {replica.market} --events`: the one whose log, executed again, has another hash "
                "than it told has computed wrongly",
                code="diverged",
            )
        requests.settle(record, settled)
    return Executed(all_events, earlier, rejected, settled, commands, time_set)
