"""A BookActor driven by hand, in one thread: what it does between two messages is in the order that the log has."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openoutcry.actors import MarketRules
from openoutcry.actors.book.actor import BookActor
from openoutcry.actors.book.commands import CONFIGURE, SUBMIT
from openoutcry.actors.book.messages import (
    CutLog,
    IsLeaseExpired,
    Query,
    Received,
    SnapshotFailed,
    SnapshotTaken,
    TakeSnapshot,
)
from openoutcry.actors.book.orderbook import OrderBook
from openoutcry.actors.book.record import EMPTY, Record
from openoutcry.actors.book.replica import ReadRecord, Role
from openoutcry.actors.book.shell import Setup
from openoutcry.actors.book.snapshots import write_scratch
from openoutcry.actors.book.submission import Submissions
from openoutcry.actors.book.wire import CHUNK_SIZE, Ack, Append, Chunk, Fetch, Join, Rewind, StateOffer
from openoutcry.actors.group import CODEC
from openoutcry.actors.kit.node_actor import TICK
from openoutcry.actors.leadership.messages import CoordinatorAnswer
from openoutcry.actors.peers.messages import PeerDown, PeerUp
from openoutcry.transport.coordinator import MarketRecord
from openoutcry.transport.errors import OpenOutcryError, StorageError, Unavailable

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
        Setup(
            market=MARKET,
            node=HERE,
            rules=None,
            submissions=Submissions(100),
            folder=tmp_path / MARKET,
            coordinator=coordinator,  # type: ignore[arg-type]
            store="store",
            take_snapshot=lambda taken: snapshots.append(taken) is None,
            min_in_sync=1,
            snapshot_every=1,
            observer=False,
        ),
        report=lambda failed: pytest.fail(str(failed)),
    )
    actor.on_start()
    record = MarketRecord(MARKET, 1, 1, LEADER, (LEADER,))
    actor.on_receive(CoordinatorAnswer(coordinator.messages.pop().what, {}, None))  # of all disks
    actor.on_receive(CoordinatorAnswer(coordinator.messages.pop().what, record, None))
    actor.on_receive(CoordinatorAnswer(coordinator.messages.pop().what, None, None))  # this life is reported
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


def epochs() -> tuple[tuple[int, int, bytes], ...]:
    """Of a log that goes on as :func:`log` does: one."""
    return ((1, 1, log()[0].chain),)


def hear(actor: BookActor, records: list[Record], first: int, last: int, committed: int) -> None:
    """Let the replica hear records ``first`` to ``last``, and that all up to ``committed`` are committed."""
    before = records[first - 2].tail if first > 1 else EMPTY
    bodies = tuple([record.body for record in records[first - 1 : last]])
    append = Append(MARKET, 1, before.sequence, before.chain, bodies, committed, 0, "", actor.replica._join_number)
    actor.on_receive(Received(LEADER, append))


def handle(actor: BookActor, until: Callable[[], bool], within_s: float = 10.0) -> None:
    """Let the actor handle what it is told, until something holds."""
    deadline_s = time.monotonic() + within_s
    while not until():
        assert time.monotonic() < deadline_s, "it never holds"
        actor.on_receive(actor.actor_inbox.get().message)


@pytest.mark.parametrize("sync_s", [0.0, 1.0], ids=["quick disk", "slow disk"])
def test_earlier_committed_entries_are_applied_before_those_of_a_quick_write(
    follower: tuple[BookActor, Told, list[TakeSnapshot]], sync_s: float
) -> None:
    actor, link, snapshots = follower
    records = log()
    for first, last, committed in ((1, 2, 1), (3, 3, 3), (4, 5, 4), (6, 6, 5), (7, 7, 7)):
        actor.shell.log_work.writer._sync_s = sync_s
        hear(actor, records, first, last, committed)
        handle(actor, lambda last=last: actor.replica.durable == last)  # type: ignore[misc]
        assert [message.durable for message in link.messages if isinstance(message, Ack)][-1] == last
        assert actor.shell.book.sequence == actor.replica.applied == actor.replica.committed == committed
        for taken in snapshots:
            actor.on_receive(_taken(taken))
        snapshots.clear()
    book = OrderBook()
    for record in records:
        book.apply(record.first_sequence, record.timestamp_ns, record.commands)
    assert actor.shell.book.state_hash() == book.state_hash()


def _taken(asked: TakeSnapshot) -> Any:
    """What the SnapshotActor answers; the state has to be the one at the tail that is named."""
    data = b"".join(asked.image.pieces())
    assert OrderBook.restore(data).sequence == asked.tail.sequence
    return SnapshotTaken(asked.number, asked.tail, None, len(data), data)


def test_a_follower_that_had_the_log_fetches_the_state_it_is_offered_and_no_tick_drops_it(
    follower: tuple[BookActor, Told, list[TakeSnapshot]],
) -> None:
    actor, link, _ = follower
    hear(actor, log(), 1, 3, 3)
    handle(actor, lambda: actor.replica.durable == 3)
    link.messages.clear()
    size = 3 * CHUNK_SIZE
    actor.on_receive(Received(LEADER, StateOffer(MARKET, 1, 100_000, size, 1, bytes(32), epochs())))
    for offset in range(0, size - CHUNK_SIZE, CHUNK_SIZE):
        actor.on_receive(TICK)
        assert [(type(m), m.offset) for m in link.messages if not isinstance(m, Ack)] == [(Fetch, offset)]
        link.messages.clear()
        actor.on_receive(Received(LEADER, Chunk(MARKET, 1, 100_000, offset, bytes(CHUNK_SIZE))))
    assert not actor.shell.ready


def test_an_invalid_state_is_fetched_again_from_its_beginning(
    follower: tuple[BookActor, Told, list[TakeSnapshot]],
) -> None:
    actor, link, _ = follower
    link.reset = link.messages.append  # type: ignore[attr-defined]
    offer = StateOffer(MARKET, 1, 100_000, 10, 1, bytes(32), epochs())
    for _ in range(2):
        link.messages.clear()
        actor.on_receive(Received(LEADER, offer))
        assert [message.offset for message in link.messages] == [0]
        actor.on_receive(Received(LEADER, Chunk(MARKET, 1, 100_000, 0, b"not a book")))
        assert "checksum" in link.messages[-1]


@pytest.mark.parametrize("taken", [True, False])
def test_a_snapshot_that_comes_while_the_log_is_put_aside_is_dropped(
    follower: tuple[BookActor, Told, list[TakeSnapshot]], *, taken: bool
) -> None:
    actor, link, snapshots = follower
    hear(actor, log(), 1, 3, 3)
    handle(actor, lambda: actor.replica.applied == 3 and bool(snapshots))
    asked = snapshots[-1]
    assert asked.scratch is not None
    size = write_scratch(asked.scratch, asked.tail, asked.image.pieces())
    other = "other.1"
    actor.on_receive(PeerUp(other, "other", link))  # type: ignore[arg-type]
    actor.on_receive(CoordinatorAnswer(ReadRecord(), MarketRecord(MARKET, 2, 2, other, (other,), 2), None))
    actor.on_receive(Received(other, Rewind(MARKET, 2, actor.replica._join_number, 1, ())))
    if taken:
        actor.on_receive(SnapshotTaken(asked.number, asked.tail, asked.scratch, size, b""))
    else:
        actor.on_receive(SnapshotFailed(asked.number, True, StorageError("the folder has another name by now")))
    handle(actor, lambda: actor.shell.aside is not None)
    actor.shell.log_work._hand(CutLog(0))  # whatever it has been handed before has been done when this has
    handle(actor, lambda: actor.shell.log_work.writer.handled == actor.shell.log_work.writer.handed)
    assert actor.replica.role is Role.FOLLOWING
    assert actor.replica.tail == EMPTY


def test_callers_get_an_answer_if_the_replica_stops_at_a_later_record(
    follower: tuple[BookActor, Told, list[TakeSnapshot]],
) -> None:
    actor, _, _ = follower
    records = log()
    hear(actor, records, 1, 1, 1)
    handle(actor, lambda: actor.replica.applied == 1)
    actor.shell.submissions.open(lambda _: None)
    order = (SUBMIT, "ann", "q", 0, 0, 100, 1, 0, 0, 0)
    asked = [actor.shell.submissions.submit((order,), time.monotonic() + 30) for _ in range(2)]
    actor.shell.take_submissions()
    bodies, tail = [], records[0].tail
    for number in actor.core.requests.outstanding:
        record = Record.make(tail, epoch=1, timestamp_ns=5, commands=(order,), origins=((HERE, number, 1),))
        bodies.append(record.body)
        tail = record.tail
    before = records[0]
    wrong_hash = Append(MARKET, 1, 1, before.chain, tuple(bodies), 3, 3, "00", actor.replica._join_number)
    actor.on_receive(Received(LEADER, wrong_hash))
    handle(actor, lambda: actor.replica.role is Role.STOPPED)
    for request in asked:
        with pytest.raises(OpenOutcryError, match="diverged") as caught:
            request.result()
        assert f"`openoutcry verify {actor.shell.storage.folder.parent.parent.absolute()}`" in str(caught.value)
    assert actor.shell.submissions.in_flight == 0


def test_no_caller_is_given_the_answer_of_another_command(
    follower: tuple[BookActor, Told, list[TakeSnapshot]],
) -> None:
    """An old copy of this disk, or one beside it, asks under the same node id: its numbers may be in the log."""
    actor, _, _ = follower
    records = log()
    hear(actor, records, 1, 1, 1)
    handle(actor, lambda: actor.replica.applied == 1)
    actor.shell.submissions.open(lambda _: None)
    order, other = [(SUBMIT, "ann", "q", 0, 0, price, 1, 0, 0, 0) for price in (100, 101)]
    asked, answered = [actor.shell.submissions.submit((order,), time.monotonic() + 30) for _ in range(2)]
    actor.shell.take_submissions()
    (number, right) = actor.core.requests.outstanding
    record = Record.make(
        records[0].tail, epoch=1, timestamp_ns=5, commands=(other, order), origins=((HERE, number, 1), (HERE, right, 1))
    )
    before = records[0]
    join = actor.replica._join_number
    actor.on_receive(Received(LEADER, Append(MARKET, 1, 1, before.chain, (record.body,), 3, 0, "", join)))
    handle(actor, lambda: not actor.core.requests.outstanding)
    with pytest.raises(Unavailable, match="second process") as refused:
        asked.result()
    assert refused.value.code == "answer_of_another"
    answered.result()
    assert (asked.first_sequence, answered.first_sequence) == (0, 3)


def test_a_restored_disk_does_not_repeat_the_numbers_of_requests(tmp_path: Path) -> None:
    firsts = set()
    for copy in ("first", "second", "third"):
        actor = BookActor(
            Setup(
                market=MARKET,
                node=HERE,
                rules=None,
                submissions=Submissions(100),
                folder=tmp_path / copy / MARKET,
                coordinator=Told(),  # type: ignore[arg-type]
                store="store",
                take_snapshot=lambda _: True,
                min_in_sync=1,
                snapshot_every=1,
                observer=False,
                clock_ns=lambda: 1,
            ),
            report=lambda failed: pytest.fail(str(failed)),
        )
        firsts.add(actor.core.requests.last_number)
        actor.on_stop()
    assert len(firsts) == 3
    assert min(abs(a - b) for a in firsts for b in firsts if a != b) > 2**32


def test_what_breaks_while_somebody_asks_ends_the_replica_all_the_same(
    follower: tuple[BookActor, Told, list[TakeSnapshot]], monkeypatch: pytest.MonkeyPatch
) -> None:
    actor, _, _ = follower

    def broken() -> None:
        raise AssertionError("an invariant")

    with monkeypatch.context() as patch:
        patch.setattr(actor.shell, "_propose_waiting", broken)
        actor.core.requests.add_own((SUBMIT, "ann", "", 0, 0, 100, 1, 0, 0, 0))
        with pytest.raises(AssertionError, match="an invariant"):
            actor.on_receive(Query(lambda book: book.ready))
    with pytest.raises(AssertionError, match="an invariant"):
        actor.on_receive(TICK)


def test_an_unreachable_coordinator_is_logged_once_per_outage(
    follower: tuple[BookActor, Told, list[TakeSnapshot]], caplog: pytest.LogCaptureFixture
) -> None:
    actor, _, _ = follower
    away = CoordinatorAnswer(ReadRecord(), None, Unavailable("it is away"))
    record = MarketRecord(MARKET, 1, 1, LEADER, (LEADER,))
    for answer in (away, away, away, CoordinatorAnswer(ReadRecord(), record, None), away):
        actor.on_receive(answer)
    warned = [record for record in caplog.records if getattr(record, "event", "") == "coordinator_call_failed"]
    assert len(warned) == 2


def test_an_expired_lease_is_logged_only_by_a_replica_that_may_take_over(
    follower: tuple[BookActor, Told, list[TakeSnapshot]], caplog: pytest.LogCaptureFixture
) -> None:
    actor, _, _ = follower
    actor.replica.in_sync = (HERE, LEADER)
    actor.on_receive(PeerDown(LEADER))
    for repairing in (True, False):
        actor.replica.repairing = repairing
        actor.on_receive(CoordinatorAnswer(IsLeaseExpired("gone.1"), True, None))  # not its leader
        actor.on_receive(CoordinatorAnswer(IsLeaseExpired(LEADER), True, None))
        told = [record for record in caplog.records if getattr(record, "event", "") == "leader_lapsed"]
        assert len(told) == (0 if repairing else 1)
