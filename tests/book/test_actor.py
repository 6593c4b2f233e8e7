"""A BookActor driven by hand, in one thread: what it does between two messages is in the order that the log has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openoutcry.actors import MarketRules
from openoutcry.actors.book.actor import BookActor
from openoutcry.actors.book.commands import CONFIGURE, SUBMIT
from openoutcry.actors.book.orderbook import OrderBook
from openoutcry.actors.book.record import EMPTY, Record
from openoutcry.actors.messages import (
    CODEC,
    Ack,
    Append,
    CoordinatorAnswer,
    Heard,
    Join,
    PeerUp,
    SnapshotTaken,
    TakeSnapshot,
)
from openoutcry.actors.submission import Submissions
from openoutcry.transport.coordinator import MarketRecord

MARKET, HERE, LEADER = "M", "here.1", "leader.1"
RULES = MarketRules()


class Told:
    """Stands for an actor, or a link: keeps what it is told, or sends."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def tell(self, message: object) -> None:
        self.messages.append(message)

    def send(self, frame: bytes) -> None:
        self.messages.append(CODEC.decode(frame))


@pytest.fixture
def follower(tmp_path: Path) -> Iterator[tuple[BookActor, Told, list[TakeSnapshot]]]:
    """A replica that has joined the log of a leader; the link to that; and the snapshots that it wants taken."""
    coordinator, link = Told(), Told()
    snapshots: list[TakeSnapshot] = []
    actor = BookActor(
        market=MARKET,
        node=HERE,
        rules=None,
        submissions=Submissions(100),
        folder=tmp_path / MARKET,
        coordinator=coordinator,  # type: ignore[arg-type]
        take_snapshot=snapshots.append,
        min_in_sync=1,
        snapshot_every=1,
        observer=False,
        report=lambda failed: pytest.fail(str(failed)),
    )
    actor.on_start()
    record = MarketRecord(MARKET, 1, 1, LEADER, (LEADER,))
    actor.on_receive(CoordinatorAnswer(coordinator.messages.pop().what, record, None))
    actor.on_receive(PeerUp(LEADER, "leader", link))  # type: ignore[arg-type]
    assert isinstance(link.messages[0], Join)
    try:
        yield actor, link, snapshots
    finally:
        actor.on_stop()


def log() -> list[Record]:
    """The market's rules, and then single orders."""
    commands = [(CONFIGURE, "", "", RULES.to_tuple())]
    commands += [(SUBMIT, "ann", f"o{number}", number % 2, 0, 100, 1, 0, 0, 0) for number in range(6)]
    records, tail = [], EMPTY
    for number, command in enumerate(commands):
        records.append(Record.make(tail, epoch=1, timestamp_ns=number, commands=(command,), origins=()))
        tail = records[-1].tail
    return records


def hear(actor: BookActor, records: list[Record], first: int, last: int, committed: int) -> None:
    """Let the replica hear records ``first`` to ``last``, and that all up to ``committed`` are committed."""
    before = records[first - 2].tail if first > 1 else EMPTY
    bodies = tuple([record.body for record in records[first - 1 : last]])
    append = Append(MARKET, 1, before.sequence, before.chain, bodies, committed, 0, "", actor.replica._join_number)
    actor.on_receive(Heard(LEADER, append))


@pytest.mark.parametrize("sync_s", [0.0, 1.0], ids=["quick disk", "slow disk"])
def test_what_was_committed_before_is_applied_before_what_is_committed_by_a_write_that_is_quick(
    follower: tuple[BookActor, Told, list[TakeSnapshot]], sync_s: float
) -> None:
    actor, link, snapshots = follower
    records = log()
    for first, last, committed in ((1, 2, 1), (3, 3, 3), (4, 5, 4), (6, 6, 5), (7, 7, 7)):
        actor._writer._sync_s = sync_s
        hear(actor, records, first, last, committed)
        while actor.replica.durable < last:
            actor.on_receive(actor.actor_inbox.get().message)
        assert [message.durable for message in link.messages if isinstance(message, Ack)][-1] == last
        assert actor.book.sequence == actor.replica.applied == actor.replica.committed == committed
        for taken in snapshots:
            actor.on_receive(_taken(taken))
        snapshots.clear()
    book = OrderBook()
    for record in records:
        book.apply(record.first_sequence, record.timestamp_ns, record.commands)
    assert actor.book.state_hash() == book.state_hash()


def _taken(asked: TakeSnapshot) -> Any:
    """What the SnapshotActor answers; the state has to be the one at the tail that is named."""
    data = b"".join(asked.image.pieces())
    assert OrderBook.restore(data).sequence == asked.tail.sequence
    return SnapshotTaken(asked.number, asked.tail, None, len(data), data)
