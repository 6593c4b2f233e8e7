"""The replication protocol under seeded schedules of faults: see :mod:`world` for what can go wrong, and how.

``OPENOUTCRY_SEEDS=10000`` runs as many schedules (some five minutes); a failure names its seed, and
``OPENOUTCRY_FIRST_SEED=<seed> OPENOUTCRY_SEEDS=1`` replays it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from openoutcry.actors.book.record import EMPTY, Record
from openoutcry.actors.book.replica import Replica, Role, Send
from openoutcry.actors.messages import Ack, Append, Join, Lead, Rewind
from openoutcry.transport.coordinator import MarketRecord

sys.path.insert(0, str(Path(__file__).parent))
from world import World

SEEDS = int(os.environ.get("OPENOUTCRY_SEEDS", "300"))
FIRST = int(os.environ.get("OPENOUTCRY_FIRST_SEED", "0"))


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


def sent(effects: list[object], kind: type) -> list[object]:
    return [effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, kind)]


def test_an_order_to_cut_that_answers_an_earlier_join_is_ignored() -> None:
    """It was under way when the link broke; since then the log has been matched, and what it would cut acknowledged."""
    replica = follower(epoch=2, records=3)
    late = Rewind("M", 2, replica._join_number, 1)
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
    assert replica.on_lead("a", Lead("M", 2, ("a", "b"))) == []
    replica.on_record(MarketRecord("M", 9, 3, "c", ("b", "c")), 0)
    assert replica.on_lead("a", Lead("M", 2, ("a", "b"))) == []
    assert (replica.leader, replica.epoch) == ("c", 3)


def test_acks_and_joins_of_an_earlier_life_of_the_link_do_not_count() -> None:
    leader = Replica(market="M", node="a", applied=EMPTY, incarnation=1)
    leader.start()
    leader.on_peer_up("b")
    (claim,) = leader.on_record(MarketRecord("M", 1, 1, "a", ("a",)), 0)
    leader.on_swapped(claim, MarketRecord("M", 2, 2, "a", ("a",)), 0)
    assert leader.role is Role.LEADING
    now, before = (Join("M", 2, number, 0, 0, EMPTY.chain, 0, observer=False) for number in (7, 6))
    assert leader.on_join("b", now, 0)
    assert leader.on_join("b", before, 0) == []
    assert leader._followers["b"].join == 7
    assert leader.on_ack("b", Ack("M", 2, 6, 0, 0), 0) == []
