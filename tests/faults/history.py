"""Whether a recorded history of calls and answers can be true of one order book. Pure: no I/O, no clock, no threads.

Every answer carries the sequence number of its command, so there is no order to search for: the history is linearizable
if and only if the log, replayed in its order, gives every answer that was given, and that order keeps real time: an
operation that was answered before another was called has the lower sequence number. Both are seen in one pass.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from zlib import crc32

from openoutcry.actors.book.commands import DUPLICATE, Command, Event
from openoutcry.actors.book.orderbook import OrderBook, events_between


class Answer(NamedTuple):
    """What a client was told of one command, and when."""

    at_ns: int
    """CLOCK_MONOTONIC: one clock for all processes of a machine."""
    sequence: int
    outcome: int
    """:func:`outcome_of` the events of the answer."""
    state_sequence: int
    state_hash: str


@dataclasses.dataclass(slots=True)
class Operation:
    """One command that a client asked for, however often it had to ask."""

    command: Command
    called_ns: int
    """When it was first asked for."""
    answer: Answer | None = None
    """The first answer; None while nobody has given one."""


class Logged(NamedTuple):
    """One record of the log."""

    first_sequence: int
    timestamp_ns: int
    commands: tuple[Command, ...]


@dataclasses.dataclass(slots=True)
class Verdict:
    """What is wrong with a history: one line for each case, under what it is a case of."""

    operations: int = 0
    answered: int = 0
    lost: list[str] = dataclasses.field(default_factory=list)
    """Answered, and not in the log at the answer's sequence number."""
    doubled: list[str] = dataclasses.field(default_factory=list)
    """Executed more than once."""
    invented: list[str] = dataclasses.field(default_factory=list)
    """In the log, and nobody had asked for it."""
    reordered: list[str] = dataclasses.field(default_factory=list)
    """Ordered before something that had been answered when it was called."""
    contradicted: list[str] = dataclasses.field(default_factory=list)
    """Answered otherwise than the log's replay answers, or with another state hash."""
    broken: list[str] = dataclasses.field(default_factory=list)
    """The log has a gap, or its time runs backwards."""

    @property
    def faults(self) -> list[str]:
        """Every case of every kind."""
        kinds = ("lost", "doubled", "invented", "reordered", "contradicted", "broken")
        return [f"{kind}: {case}" for kind in kinds for case in getattr(self, kind)]


def outcome_of(events: Iterable[Event]) -> int:
    """Return a checksum of what a command caused."""
    return crc32(repr(list(events)).encode())


def check(operations: Sequence[Operation], log: Iterable[Logged]) -> Verdict:
    """Replay ``log`` and hold ``operations`` against it, in one pass."""
    verdict = Verdict(len(operations), len([op for op in operations if op.answer is not None]))
    asked = {op.command[1:3]: op for op in operations}
    assert len(asked) == len(operations), "an operation is named by its account and client order id"
    hashes = _hashes(operations, verdict)
    book = OrderBook()
    executed: dict[tuple[str, str], int] = {}
    latest_call_ns = 0
    for record in log:
        if record.first_sequence != book.sequence + 1:
            verdict.broken.append(f"{record.first_sequence} follows {book.sequence}")
            break
        if record.timestamp_ns < book.timestamp_ns:
            verdict.broken.append(f"time runs backwards at {record.first_sequence}")
        stamp = max(record.timestamp_ns, book.timestamp_ns)
        events = book.apply(record.first_sequence, stamp, record.commands)
        if (told := hashes.get(book.sequence)) is not None and told != book.state_hash():
            verdict.contradicted.append(f"the state hash at {book.sequence} was said to be {told}")
        for sequence, command in enumerate(record.commands, record.first_sequence):
            name = command[1:3]
            if not name[1]:
                continue  # the market's own: rules, ticks of its clock
            op = asked.get(name)
            if op is None or op.command != command:
                verdict.invented.append(f"{sequence}: {command}")
                continue
            caused = events_between(events, sequence, sequence)
            if caused and caused[0][0] == DUPLICATE:
                continue
            if executed.setdefault(name, sequence) != sequence:
                verdict.doubled.append(f"{name} at {executed[name]} and {sequence}")
                continue
            if op.answer is not None:
                if op.answer.sequence == sequence and op.answer.outcome != outcome_of(caused):
                    verdict.contradicted.append(f"{name} at {sequence} caused {caused}")
                if op.answer.at_ns < latest_call_ns:
                    verdict.reordered.append(f"{name} at {sequence} follows what was called after its answer")
            latest_call_ns = max(latest_call_ns, op.called_ns)
    for name, op in asked.items():
        if op.answer is not None and executed.get(name) != op.answer.sequence:
            verdict.lost.append(f"{name} was answered at {op.answer.sequence}, executed at {executed.get(name)}")
    return verdict


def _hashes(operations: Iterable[Operation], verdict: Verdict) -> dict[int, str]:
    """Return the state hashes that the answers tell, by sequence number."""
    hashes: dict[int, str] = {}
    for op in operations:
        if op.answer is not None:
            told = hashes.setdefault(op.answer.state_sequence, op.answer.state_hash)
            if told != op.answer.state_hash:
                verdict.contradicted.append(f"two state hashes at {op.answer.state_sequence}")
    return hashes


def longest_gap_s(answers_ns: Iterable[int], until_ns: int | None = None) -> float:
    """Return the longest time without an answer, in seconds, up to ``until_ns``."""
    times = sorted(answers_ns)
    if until_ns is not None:
        times.append(until_ns)
    return max([after - before for before, after in itertools.pairwise(times)], default=0) / 1e9
