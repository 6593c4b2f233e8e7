"""The replication protocol under seeded schedules of faults: see :mod:`world` for what can go wrong, and how.

200 schedules are the default, 500 the gate's; ``OPENOUTCRY_SEEDS=10000`` runs as many (some fifteen minutes). A
failure names its seed, and ``OPENOUTCRY_FIRST_SEED=<seed> OPENOUTCRY_SEEDS=1`` replays it.
"""

from __future__ import annotations

import dataclasses
import os
import random
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from openoutcry.actors.book.disk import DiskState
from openoutcry.actors.book.messages import LogRead
from openoutcry.actors.book.record import EMPTY, Record, Tail
from openoutcry.actors.book.replica import (
    ApplyRecords,
    CreateRecord,
    CutJournal,
    Following,
    KeepDisk,
    KeepFetched,
    LeadershipLost,
    OfferSnapshot,
    PersistRecords,
    PutAside,
    ReadJournal,
    ReadMarks,
    ReadRecord,
    RepairBegun,
    RepairEnded,
    Replica,
    ReportMark,
    Role,
    Send,
    Stop,
    SwapRecord,
    Troubled,
    _Follower,
)
from openoutcry.actors.book.wire import Ack, Append, Join, Lead, Objection, Resign, Rewind
from openoutcry.transport.coordinator import DiskMark, MarketRecord, next_epoch, seen_of, successor
from openoutcry.transport.errors import ProtocolError

sys.path.insert(0, str(Path(__file__).parent))
from world import World

SEEDS = int(os.environ.get("OPENOUTCRY_SEEDS", "200"))
FIRST = int(os.environ.get("OPENOUTCRY_FIRST_SEED", "0"))


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_replicas_agree_and_lose_nothing_under_any_schedule(block: int) -> None:
    acknowledged = 0
    for seed in range(FIRST + block, FIRST + SEEDS, 10):
        world = World(seed)
        try:
            world.run(600)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        acknowledged += world.acknowledged
    assert SEEDS < 10 or acknowledged > 0, "the simulation did nothing"


def follower(*, epoch: int, records: int) -> Replica:
    """Return a follower "b" of the leader "a", that has joined with ``records`` records of which none is committed."""
    log = []
    tail = EMPTY
    for number in range(records):
        log.append(Record.make(tail, epoch=1, timestamp_ns=number, commands=((3, "ann", f"c{number}"),), origins=()))
        tail = log[-1].tail
    replica = Replica(market="M", node="b", applied=EMPTY, pending=log, incarnation=1)
    replica.start()
    replica.on_peer_up("a")
    replica.on_record(MarketRecord("M", epoch, epoch, "a", ("a", "b")), 0)
    return replica


def leader() -> Replica:
    """Return the leader "a", alone in sync in epoch 2 and without records, that has a link to "b"."""
    replica = Replica(market="M", node="a", applied=EMPTY, incarnation=1)
    replica.start()
    replica.on_peer_up("b")
    (claim,) = replica.on_record(MarketRecord("M", 1, 1, "a", ("a",)), 0)
    assert isinstance(claim, SwapRecord)
    replica.on_swapped(claim, MarketRecord("M", 2, 2, "a", ("a",)), 0)
    assert replica.role is Role.LEADING
    return replica


def join(number: int) -> Join:
    """Return join ``number`` of an empty follower in epoch 2."""
    return Join("M", 2, number, 0, 0, EMPTY.chain, 0, observer=False, life="")


def sent(effects: list[Any], kind: type) -> list[Any]:
    return [effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, kind)]


def test_an_order_to_cut_that_answers_an_earlier_join_is_ignored() -> None:
    """It was under way when the link broke; since then the log has been matched, and what it would cut acknowledged."""
    replica = follower(epoch=2, records=3)
    late = Rewind("M", 2, replica._join_number, 1, ())
    replica.on_peer_down("a", 0)
    (join,) = sent(replica.on_peer_up("a"), Join)
    fits = Append("M", 2, 3, replica.tail.chain, (), 0, 0, "", join.join)
    replica.on_append("a", fits)
    assert replica.matched
    assert replica.on_rewind("a", late) == []
    assert replica.tail.sequence == 3


def test_a_restarted_replica_follows_nobody_before_it_has_asked_the_coordinator() -> None:
    """It may have led or followed a later epoch of which no entry is on its disk: then its promise would be broken."""
    replica = Replica(market="M", node="b", applied=EMPTY, incarnation=1)
    replica.start()
    replica.on_peer_up("a")
    assert replica.on_lead("a", Lead("M", 2, ("a", "b"), 0)) == []
    replica.on_record(MarketRecord("M", 9, 3, "c", ("b", "c")), 0)
    assert not sent(replica.on_lead("a", Lead("M", 2, ("a", "b"), 0)), Join)
    assert (replica.leader, replica.epoch) == ("c", 3)


def test_a_new_leader_waits_for_no_member_whose_process_has_ended() -> None:
    replica = follower(epoch=2, records=1)
    replica.on_record(MarketRecord("M", 2, 2, "a", ("a", "b", "c")), 0)
    for gone in ("c", "a"):
        replica.on_peer_down(gone, 0)
        replica.on_peer_gone(gone, 0)
    (claim,) = [e for e in replica.on_record(replica.record, 0) if isinstance(e, SwapRecord)]
    assert (claim.epoch, claim.in_sync) == (3, ("b", "c"))
    (without,) = [
        e
        for e in replica.on_swapped(claim, MarketRecord("M", 3, 3, "b", claim.in_sync), 0)
        if isinstance(e, SwapRecord)
    ]
    assert without.in_sync == ("b",)


def test_a_leader_whose_node_ends_waits_for_who_could_take_over_and_takes_nobody_out() -> None:
    replica = leader()
    (read,) = replica.on_join("b", join(1), 0)
    replica.on_log_read(LogRead("b", 0, read.token, EMPTY.chain, (), (), 0), 0)
    persist = replica.propose(((3, "ann", ""),), (), timestamp_ns=1, now_ns=0)[-1]
    replica.on_durable(persist.generation, 1)
    (swap,) = replica.on_ack("b", Ack("M", 2, 1, 1, 0), 0)
    replica.on_swapped(swap, MarketRecord("M", 3, 2, "a", ("a", "b")), 0)
    replica._followers.clear()  # as of one that has just begun to lead: nobody has joined yet
    replica.resign()
    assert (replica.successors(), replica.heirs()) == ([], ["b"])
    replica.retired = True
    assert replica.on_peer_down("b", 0) == []
    assert replica.on_tick(100_000_000_000) == [ReadRecord()], "but for the audit, nothing"
    assert replica.heirs() == []
    replica.retired = False
    assert [effect.in_sync for effect in replica.on_tick(100_000_000_001)] == [("a",)]


def test_a_member_that_was_gone_and_has_been_taken_back_meanwhile_is_waited_for_like_any_other() -> None:
    replica = follower(epoch=2, records=1)
    replica.on_record(MarketRecord("M", 3, 2, "a", ("a", "b", "c")), 0)
    replica.on_peer_gone("c", 0)
    for in_sync in (("a", "b"), ("a", "b", "c")):  # "a" has taken it out, and back
        replica.on_lead("a", Lead("M", 2, in_sync, 0))
    replica.on_resign("a", Resign("M", 2))
    (claim,) = replica.on_record(MarketRecord("M", 5, 2, "a", ("a", "b", "c")), 0)
    assert claim.in_sync == ("b", "c")
    effects = replica.on_swapped(claim, MarketRecord("M", 6, 3, "b", ("b", "c")), 0)
    assert not [effect for effect in effects if isinstance(effect, SwapRecord)], "it is taken out at once"


def test_a_follower_that_leaves_while_it_is_being_added_is_not_waited_for() -> None:
    replica = leader()
    replica.propose(((3, "ann", "c"),), (), timestamp_ns=1, now_ns=0)
    (record,) = replica.pending
    replica.on_durable(replica._generation, 1)
    (read,) = replica.on_join("b", join(1), 0)
    assert isinstance(read, ReadJournal)
    replica.on_log_read(LogRead("b", 0, read.token, EMPTY.chain, (record.body,), (), 0), 0)
    (adding,) = [e for e in replica.on_ack("b", Ack("M", 2, 1, 1, 0), 0) if isinstance(e, SwapRecord)]
    assert adding.in_sync == ("a", "b")
    replica.on_peer_down("b", 0)
    effects = replica.on_swapped(adding, MarketRecord("M", 3, 2, "a", ("a", "b")), 0)
    (leaving_out,) = [e for e in effects if isinstance(e, SwapRecord)]
    assert leaving_out.in_sync == ("a",)


def test_acks_and_joins_of_an_earlier_life_of_the_link_do_not_count() -> None:
    replica = leader()
    assert replica.on_join("b", join(7), 0)
    assert replica.on_join("b", join(6), 0) == []
    assert replica._followers["b"].join == 7
    assert replica.on_ack("b", Ack("M", 2, 6, 0, 0), 0) == []


@pytest.mark.parametrize(
    "lie", [Lead("M", 2, ("b", "c"), 0), Lead("M", 2**62, ("c",), 0)], ids=["same epoch", "huge epoch"]
)
def test_who_says_that_it_leads_is_believed_only_if_the_coordinator_says_so_too(lie: Lead) -> None:
    replica = follower(epoch=2, records=0)
    assert replica.on_lead("c", lie) == [ReadRecord()]
    assert replica.on_lead("c", lie) == [], "one question at a time"
    replica.on_record(MarketRecord("M", 2, 2, "a", ("a", "b")), 0)
    assert ReadRecord() in replica.on_tick(10**9), "the answer may be older than the second claim"
    replica.on_record(MarketRecord("M", 2, 2, "a", ("a", "b")), 0)
    record = Record.make(EMPTY, epoch=2, timestamp_ns=1, commands=((3, "ann", "c"),), origins=())
    replica.on_append("a", Append("M", 2, 0, EMPTY.chain, (record.body,), 0, 0, "", replica._join_number))
    assert (replica.leader, replica.epoch, replica.tail) == ("a", 2, record.tail)
    replica.on_peer_up("c")
    assert replica.on_lead("c", Lead("M", 3, ("b", "c"), 0)) == [ReadRecord()]
    assert sent(replica.on_record(MarketRecord("M", 3, 3, "c", ("b", "c")), 0), Join)
    assert (replica.leader, replica.epoch) == ("c", 3)


def test_a_leader_goes_on_when_another_lies_that_it_leads() -> None:
    replica = leader()
    assert replica.on_lead("b", Lead("M", 7, ("b",), 0)) == [ReadRecord()]
    replica.on_record(MarketRecord("M", 2, 2, "a", ("a",)), 0)
    assert (replica.role, replica.epoch) == (Role.LEADING, 2)


def test_a_record_of_a_later_epoch_than_its_leader_s_is_refused() -> None:
    replica = follower(epoch=2, records=0)
    record = Record.make(EMPTY, epoch=3, timestamp_ns=1, commands=((3, "ann", "c"),), origins=())
    with pytest.raises(ProtocolError):
        replica.on_append("a", Append("M", 2, 0, EMPTY.chain, (record.body,), 0, 0, "", replica._join_number))
    assert replica.tail == EMPTY


def test_a_flood_of_joins_makes_the_leader_read_once_at_a_time() -> None:
    replica = leader()
    effects = [e for number in range(1, 1001) for e in replica.on_join("b", join(number), 0)]
    (first,) = effects
    assert isinstance(first, ReadJournal)
    (second,) = replica.on_log_read(LogRead("b", 0, first.token, EMPTY.chain, (), (), 0), 0)
    assert isinstance(second, ReadJournal), "the last join's answer is of another read than the first's"
    assert sent(replica.on_log_read(LogRead("b", 0, second.token, EMPTY.chain, (), (), 0), 0), Append)
    assert replica._followers["b"].join == 1000


def test_what_has_become_durable_since_the_log_was_read_for_a_follower_is_read_too() -> None:
    """The leader writes on by itself while the answer waits for it; there may be no later command to bring this one."""
    replica = leader()
    (read,) = replica.on_join("b", join(1), 0)
    nothing = LogRead("b", 0, read.token, EMPTY.chain, (), (), 0)
    persist = replica.propose(((3, "ann", "c"),), (), timestamp_ns=1, now_ns=0)[-1]
    (record,) = persist.records
    replica.on_durable(persist.generation, 1)
    (again,) = [effect for effect in replica.on_log_read(nothing, 0) if isinstance(effect, ReadJournal)]
    effects = replica.on_log_read(LogRead("b", 0, again.token, EMPTY.chain, (record.body,), (), 0), 0)
    assert [append.bodies for append in sent(effects, Append)] == [(record.body,)]
    assert replica._followers["b"].streaming


def test_a_follower_whose_place_in_the_log_was_pruned_is_offered_the_state_once_and_no_log_until_it_joins() -> None:
    replica = leader()

    def commit() -> list[Any]:
        persist = replica.propose(((3, "ann", ""),), (), timestamp_ns=1, now_ns=0)[-1]
        assert isinstance(persist, PersistRecords)
        effects = replica.on_durable(persist.generation, persist.records[-1].last_sequence)
        replica.on_applied(replica.committed, "")
        return effects

    (read,) = replica.on_join("b", join(1), 0)
    replica.on_log_read(LogRead("b", 0, read.token, EMPTY.chain, (), (), 0), 0)
    replica._followers["b"].streaming = False  # as one that has more in flight than it may
    offers = []
    for _ in range(20):
        for effect in commit():
            assert isinstance(effect, ReadJournal | ApplyRecords)
            if isinstance(effect, ReadJournal):
                offers += replica.on_log_read(LogRead("b", 0, effect.token, None, (), (), 1), 0)
    assert offers == [OfferSnapshot("b", 0)]
    (again,) = replica.on_join("b", join(2), 0)
    assert isinstance(again, ReadJournal)


def test_a_follower_joins_again_if_the_state_that_it_was_offered_does_not_come() -> None:
    replica = follower(epoch=2, records=1)
    second_ns = 1_000_000_000
    start = replica.pending[-1].tail
    replica.on_append("a", Append("M", 2, start.sequence, start.chain, (), 0, 0, "", replica._join_number))
    assert replica.matched
    replica.on_fetching(1000, second_ns)
    assert not replica.matched
    assert not sent(replica.on_tick(second_ns + 1), Join)
    replica.on_fetching(1000, 3 * second_ns)
    assert not sent(replica.on_tick(3 * second_ns + 1), Join)
    assert sent(replica.on_tick(5 * second_ns), Join)
    assert not replica.matched
    replica.on_append("a", Append("M", 2, start.sequence, start.chain, (), 0, 0, "", replica._join_number))
    assert replica.matched, "the log has come instead"


def test_an_aligned_follower_joins_again_if_what_lies_between_does_not_come() -> None:
    replica = follower(epoch=2, records=1)
    second_ns = 1_000_000_000
    end = replica.pending[-1].tail
    first = Record.make(end, epoch=2, timestamp_ns=2, commands=((3, "ann", "c"),), origins=())
    second = Record.make(first.tail, epoch=2, timestamp_ns=3, commands=((3, "ann", "d"),), origins=())

    def hear(before: Tail, *bodies: bytes) -> None:
        replica.on_append("a", Append("M", 2, before.sequence, before.chain, bodies, 0, 0, "", replica._join_number))

    hear(first.tail, second.body)
    assert replica.following is Following.JOINING, "the leader may not know of the join yet"
    hear(end)
    replica.on_tick(second_ns)
    hear(first.tail, second.body)
    assert replica.following is Following.MISFIT
    assert replica.matched, "requests go to the leader meanwhile"
    assert not sent(replica.on_tick(2 * second_ns), Join)
    hear(end, first.body)
    assert replica.following is Following.ALIGNED, "it has come"
    replica.on_tick(3 * second_ns)
    hear(second.tail)
    assert sent(replica.on_tick(4 * second_ns + 1), Join)
    assert replica.following is Following.JOINING


LEADS_TO = {
    Following.UNCHECKED: {Following.APART},
    Following.APART: {Following.JOINING, Following.REPLACING},
    Following.JOINING: {Following.ALIGNED, Following.APART, Following.REPLACING},
    Following.ALIGNED: {Following.MISFIT, Following.JOINING, Following.APART, Following.REPLACING},
    Following.MISFIT: {Following.ALIGNED, Following.JOINING, Following.APART, Following.REPLACING},
    Following.REPLACING: {Following.APART},
}
"""The table in the docstring of ``replica.py``."""


class Watched(Replica):
    """Writes down how its state changes."""

    changes: ClassVar[set[tuple[Following, Following]]] = set()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "following" and "following" in self.__dict__ and value is not self.following:
            self.changes.add((self.following, value))
        super().__setattr__(name, value)


def test_a_follower_changes_its_state_only_as_the_table_says() -> None:
    Watched.changes.clear()
    for seed in range(20):
        World(seed, replica_class=Watched).run(600)
    assert [(before, after) for before, after in Watched.changes if after not in LEADS_TO[before]] == []
    left = {before for before, _ in Watched.changes}
    assert left == set(Following) - {Following.MISFIT}, "the links of the simulation lose nothing while they are up"


def test_a_follower_that_parted_from_the_leader_long_ago_is_told_once_where() -> None:
    replica = follower(epoch=2, records=900)
    shared = [(record.last_sequence, record.chain) for record in replica.pending][:100]
    others = [(sequence, bytes(31) + b"x") for sequence in range(101, 901)]
    effects = replica.on_rewind("a", Rewind("M", 2, replica._join_number, 0, (*shared, *others)))
    assert effects[0] == CutJournal(100)
    (again,) = sent(effects, Join)
    assert (again.tail_sequence, again.tail_chain) == shared[-1]


def test_a_follower_cuts_no_more_than_it_is_told_while_the_place_is_not_known() -> None:
    replica = follower(epoch=2, records=9)
    others = tuple((sequence, bytes(31) + b"x") for sequence in (7, 8, 9))
    assert replica.on_rewind("a", Rewind("M", 2, replica._join_number, 6, others))[0] == CutJournal(6)


def test_a_member_that_lost_its_log_is_marked_until_it_holds_an_entry_of_its_leader_s_own_epoch() -> None:
    """Before, what former leaders had acknowledged may be missing: the leader may not know yet that it is committed."""
    replica = Replica(market="M", node="b", applied=EMPTY, incarnation=1)
    replica.on_peer_up("a")
    effects = replica.on_record(MarketRecord("M", 2, 2, "a", ("a", "b")), 0)
    assert effects[0] == RepairBegun(), "marked before anything can be appended, as it may be restarted halfway"
    (asked,) = sent(effects, Join)
    tail, effects = EMPTY, []
    for epoch in (1, 2):
        assert RepairEnded() not in effects
        record = Record.make(tail, epoch=epoch, timestamp_ns=1, commands=((3, "ann", "c"),), origins=())
        last = record.last_sequence
        append = Append("M", 2, tail.sequence, tail.chain, (record.body,), last, 0, "", asked.join)
        effects = [*replica.on_append("a", append), *replica.on_durable(0, last)]
        tail = record.tail
    assert RepairEnded() in effects


@pytest.mark.parametrize(("epoch", "sender"), [(1, "a"), (1, "c"), (2, "c"), (3, "a"), (3, "c")])
def test_records_of_another_epoch_or_of_another_than_its_leader_are_refused(epoch: int, sender: str) -> None:
    replica = follower(epoch=2, records=3)
    record = Record.make(replica.tail, epoch=1, timestamp_ns=9, commands=((3, "ann", "c"),), origins=())
    for join_number in (0, replica._join_number):
        append = Append("M", epoch, 3, replica.tail.chain, (record.body,), 4, 0, "", join_number)
        assert replica.on_append(sender, append) == []
    assert (replica.tail.sequence, replica.committed, replica.matched) == (3, 0, False)


def test_a_leader_steps_back_for_a_follower_that_holds_a_committed_entry_which_it_lacks() -> None:
    replica = leader()
    replica.in_sync = ("a", "b")
    held = Tail(1, 5, bytes(32))
    effects = replica.on_objection("b", Objection("M", 2, 2, 2, "a", False, *held))
    assert [type(effect) for effect in effects] == [RepairBegun, LeadershipLost, Send]
    assert (effects[-1].nodes, effects[-1].message) == (("b",), Resign("M", 2))
    assert (replica.role, replica.repairing) == (Role.FOLLOWING, True)
    assert replica.on_leader_lapsed("b") == [], "it leads no more until it is whole"


def test_an_objection_from_before_a_leadership_by_force_does_not_count() -> None:
    replica = leader()
    replica.record = MarketRecord("M", 2, 2, "a", ("a",), forced=2)
    assert replica.on_objection("b", Objection("M", 2, 2, 2, "a", False, 1, 5, bytes(32))) == []
    assert replica.role is Role.LEADING


def test_a_member_that_holds_less_than_its_leader_has_committed_is_repaired_before_it_may_lead() -> None:
    replica = follower(epoch=2, records=3)
    assert not [e for e in replica.on_lead("a", Lead("M", 2, ("a", "b"), 3)) if isinstance(e, RepairBegun)]
    assert not [e for e in replica.on_lead("a", Lead("M", 2, ("a",), 9)) if isinstance(e, RepairBegun)], "not in sync"
    assert [e for e in replica.on_lead("a", Lead("M", 2, ("a", "b"), 4)) if isinstance(e, RepairBegun)]
    assert replica.on_leader_lapsed("a") == []


def with_disk(*, leads: bool, marks: dict[str, DiskMark] | None = None) -> tuple[Replica, list[Any]]:
    """Return replica "a", whose disk is compared, and what followed when it had learned who leads."""
    replica = Replica(market="M", node="a", applied=EMPTY, incarnation=1, disk=DiskState().begin())
    assert replica.start() == [ReadMarks()]
    assert replica.on_marks(marks or {}) == [ReadRecord()]
    record = MarketRecord("M", 1, 1, "a" if leads else "b", ("a",) if leads else ("a", "b"))
    report = replica.on_record(record, 0)[-1]
    assert isinstance(report, ReportMark)
    assert replica.role is Role.FOLLOWING, "nothing is done before this life is reported"
    assert ReadRecord() in replica.on_marked(report.mark)
    return replica, replica.on_record(record, 0)


def test_a_leader_that_hears_of_a_newer_record_than_the_store_holds_stops_and_a_follower_takes_nothing_over() -> None:
    for leads in (True, False):
        replica, effects = with_disk(leads=leads)
        current = MarketRecord("M", 1, 1, "b", ("a", "b"))
        if leads:
            (claim,) = [effect for effect in effects if isinstance(effect, SwapRecord)]
            current = MarketRecord("M", 2, 2, "a", ("a",))
            replica.on_swapped(claim, current, 0)
        (read,) = replica.on_objection("c", Objection("M", 1, 9, 9, "b", False, 0, 0, bytes(32)))
        assert isinstance(read, ReadRecord)
        told = replica.on_record(current, 0, read.claim)[-1]
        assert isinstance(told, Stop if leads else Troubled)
        assert told.error is not None
        assert told.error.code == "coordinator_behind"
        if not leads:
            replica.on_leader_lapsed("b")
            assert not [e for e in replica.on_record(current, 0) if isinstance(e, SwapRecord)]
            replica.on_record(MarketRecord("M", 9, 9, "b", ("a", "b")), 0)
            assert replica.trouble is None, "the newer store is back"


def test_a_leader_whose_node_id_another_process_leads_under_stops() -> None:
    (stop,) = [e for e in leader().on_record(MarketRecord("M", 3, 3, "a", ("a",)), 0) if isinstance(e, Stop)]
    assert stop.error.code == "node_id_in_use"
    assert "leads it in epoch 3" in str(stop.error)


def test_a_record_older_than_one_that_was_seen_is_found_out_though_the_log_does_not_show_it() -> None:
    disk = DiskState(version=7, epoch=3, leader="a").begin()
    replica = Replica(market="M", node="a", applied=EMPTY, incarnation=1, disk=disk)
    replica.on_peer_up("b")
    replica.on_marks({})
    for older in (None, MarketRecord("M", 6, 3, "a", ("a",)), MarketRecord("M", 8, 2, "a", ("a",))):
        effects = replica.on_record(older, 0)
        assert replica.trouble is not None
        assert replica.trouble.code == "coordinator_behind"
        (objection,) = sent(effects, Objection)
        assert (objection.seen_version, objection.seen_epoch) == (7, 3)
        assert not [effect for effect in effects if isinstance(effect, CreateRecord | SwapRecord)]


@pytest.mark.parametrize("seed", range(50))
def test_a_record_that_goes_on_from_an_older_one_never_passes_for_newer_however_long(seed: int) -> None:
    chance = random.Random(seed)

    def swap(record: MarketRecord, *, takes_over: bool) -> MarketRecord:
        leader = chance.choice(record.in_sync) if takes_over else record.leader
        epoch = next_epoch(record) if takes_over else record.epoch
        others = [name for name in "abcd" if name != leader and chance.random() < 0.7]
        return successor(record, epoch=epoch, leader=leader, in_sync=(leader, *others))

    history = [MarketRecord("M", 1, 1, "a", ("a", "b", "c"))]
    while len(history) < 12:
        history.append(swap(history[-1], takes_over=chance.random() < 0.4))
    seen = [seen_of(record) for record in history]
    for at, later in enumerate(seen):
        assert all(each.leads_to(later) for each in seen[: at + 1])
        assert not any(each.leads_to(later) for each in seen[at + 1 :]), "an older copy"
    copied = chance.choice([at for at, record in enumerate(history[:-1]) if len(record.in_sync) > 1])
    other = history[copied]
    left = next(name for name in other.in_sync if name != history[copied + 1].leader)
    other = successor(other, epoch=next_epoch(other), leader=left, in_sync=other.in_sync)
    for _ in range(20):
        assert not any(each.leads_to(seen_of(other)) for each in seen[copied + 1 :]), "it goes on from an older copy"
        other = swap(other, takes_over=False)


def test_a_store_that_went_on_from_an_older_copy_is_not_believed_after_a_restart_and_who_leads_by_it_stops() -> None:
    knows = Replica(market="M", node="b", applied=EMPTY, incarnation=1, disk=DiskState(store="s").begin())
    knows.on_peer_up("c")
    knows.on_marks({})
    knows.on_record(MarketRecord("M", 8, 5, "a", ("a", "b")), 0)
    effects = knows.on_record(MarketRecord("M", 9, 8, "c", ("c",)), 0)
    kept = [effect.state for effect in effects if isinstance(effect, KeepDisk)][-1]
    again = Replica(market="M", node="b", applied=EMPTY, incarnation=2, disk=kept.begin())
    again.on_peer_up("c")
    again.on_marks({})
    effects = again.on_record(MarketRecord("M", 30, 29, "c", ("c",)), 0)
    assert again.trouble is not None
    assert again.trouble.code == "coordinator_behind"
    (objection,) = sent(effects, Objection)
    leads, claimed = with_disk(leads=True)
    (claim,) = [effect for effect in claimed if isinstance(effect, SwapRecord)]
    current = MarketRecord("M", 2, 2, "a", ("a",))
    leads.on_swapped(claim, current, 0)
    (read,) = leads.on_objection("b", objection)
    assert isinstance(leads.on_record(current, 0, read.claim)[-1], Stop)


def test_who_started_under_an_older_store_reads_its_disk_marks_again_with_the_newer_one() -> None:
    mark = DiskMark(3, "third", 0, 0)
    disk = DiskState(number=3, life="third", version=2, epoch=2, leader="a").begin()
    replica = Replica(market="M", node="b", applied=EMPTY, incarnation=1, disk=disk)
    record = MarketRecord("M", 2, 2, "a", ("a",))
    replica.on_marks({"b": DiskMark(2, "second", 0, 0)})
    replica.on_record(record, 0)
    assert replica.trouble is not None
    assert "has reported start 3 of its disk, and the store knows 2" in str(replica.trouble)
    assert replica.on_record(record, 0)[-1] == ReadMarks()
    assert replica.on_marks({"b": mark}) == [ReadRecord()]
    assert isinstance(replica.on_record(record, 0)[-1], ReportMark)
    assert replica.trouble is None


def test_a_swap_that_an_older_store_refused_is_tried_again_with_the_newer_one() -> None:
    replica = leader()
    record = MarketRecord("M", 2, 2, "a", ("a",))
    replica._followers["b"] = _Follower(1, 1, observer=False, probe=EMPTY, life="last")
    (swap,) = replica._start_swap(2, ("a", "b"))
    assert swap.lives == (("b", "last"),)
    for _ in range(3):
        assert replica.on_swapped(swap, None, 0) == [ReadRecord()]
        replica.on_record(MarketRecord("M", 1, 1, "a", ("a",)), 0)
    assert replica.on_swapped(swap, None, 0) == [ReadRecord()]
    assert replica.on_record(record, 0) == [swap], "it was refused because that store was older"
    replica.on_swapped(swap, None, 0)
    assert not replica._followers["b"].former
    replica.on_record(record, 0)
    assert replica._followers["b"].former, "its disk is of another life"


def committed(*epochs: int, node: str = "a", since: int = 0) -> tuple[Replica, Tail]:
    """Return a replica that has committed a record in each of ``epochs``, and where its log ends."""
    replica = Replica(market="M", node="b", applied=EMPTY, incarnation=1)
    tail = EMPTY
    for number, epoch in enumerate(epochs):
        name = f"{node if number >= since else ''}{number}"
        record = Record.make(tail, epoch=epoch, timestamp_ns=number, commands=((3, "ann", name),), origins=())
        replica.pending.append(record)
        tail = replica.tail = record.tail
        replica.durable = tail.sequence
        replica._commit(tail.sequence)
    return replica, tail


@pytest.mark.parametrize(
    ("here", "there", "found"),
    [
        ((1, 1, 2), (1, 1, 2, 2, 5), "one"),
        ((1, 1, 2), (1, 1, 5, 5, 5), "forked"),
        ((1, 1, 2, 2), (1, 1, 2, 5, 5), "forked"),
        ((1, 1, 3), (1, 1, 1, 1, 5), "forked"),
        ((1, 1, 2, 2), (1, 1, 2, 2, 2), "another with the same epochs"),
        ((1, 1, 2), (1, 1, 2, 2, 5), "not known here"),
        ((1, 1, 2), (1, 1, 2, 2, 5), "not known there"),
        ((), (1, 1), "nothing held"),
    ],
)
def test_a_state_is_taken_only_of_a_log_that_holds_what_is_committed_here(
    here: tuple[int, ...], there: tuple[int, ...], found: str
) -> None:
    replica, base = committed(*here, since=2)
    other, end = committed(*there, node="a" if "same epochs" not in found else "c", since=2)
    replica.on_peer_up("a")
    replica.on_record(MarketRecord("M", 9, 9, "a", ("a",)), 0)
    if found == "not known here":
        replica.disk = dataclasses.replace(replica.disk, epochs=())
    epochs = other.disk.epochs if found != "not known there" else other.disk.epochs[-1:]
    replica.following = Following.ALIGNED
    assert replica.wants_snapshot("a", 9, end)
    effects = replica.on_state_offered("a", epochs)
    if found in ("one", "nothing held"):
        assert effects == []
    elif "known" in found:
        assert [type(effect) for effect in effects] == [PutAside], "nothing says that it is the same log"
    else:
        assert replica.trouble is not None
        assert replica.trouble.code == "diverged"
        (objection,) = sent(effects, Objection)
        assert (objection.tail_epoch, objection.tail_sequence) == (base.epoch, base.sequence)
        assert replica.following is Following.APART
        assert not [effect for effect in effects if isinstance(effect, PutAside | KeepFetched)]
