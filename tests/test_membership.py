"""Who leads, who is in sync, who only reads, and how a damaged replica comes back."""

from __future__ import annotations

import shutil
import threading
import time
from typing import Any

import pytest
from openoutcry.actors import ConfigurationError, MarketRules, StorageError, Unavailable
from openoutcry.actors.book.messages import HandOver
from openoutcry.actors.testing import eventually
from processes import flip_a_bit

MARKET = "BTC-USD"
RULES = MarketRules()


def status(node: Any) -> dict[str, Any]:
    found: dict[str, Any] = node.status().markets[MARKET].to_dict()
    return found


def test_leadership_is_transferred_to_the_node_that_is_named_while_orders_flow(exchange: Any) -> None:
    net = exchange(nodes=3, markets={MARKET: RULES})
    stop = threading.Event()
    answered: list[int] = []

    def trade() -> None:
        while not stop.is_set():
            answered.append(net[1].submit_order(MARKET, "buy", "100", "1", timeout=10).sequence)

    trader = threading.Thread(target=trade)
    trader.start()
    try:
        for leader, successor in ((0, 2), (2, 1), (1, 0)):
            eventually(lambda n=leader: len(status(net[n])["in_sync"]) == 3, "all are in sync")
            net[leader].transfer(MARKET, to=net[successor].node_id)
            eventually(lambda n=successor: status(net[n])["role"] == "leading", "the named node leads")
        seen = len(answered)
        eventually(lambda: len(answered) > seen + 5, "orders flow")
    finally:
        stop.set()
        trader.join()
    net.wait_same_sequence(MARKET)
    net.assert_same_hash(MARKET)
    assert len(net[0].all_orders(MARKET)) == len(answered) == len(set(answered))


@pytest.mark.parametrize("fails", ["leads", "follows"])
def test_a_replica_whose_actor_fails_holds_nobody_up_though_its_node_lives(exchange: Any, fails: str) -> None:
    net = exchange(nodes=3, markets={MARKET: RULES}, timeout=20)
    leader = next(index for index, node in enumerate(net) if status(node)["role"] == "leading")
    failed, caller = (leader, (leader + 1) % 3) if fails == "leads" else ((leader + 1) % 3, leader)
    began_s = time.monotonic()
    net[failed].market(MARKET).ref.tell("a message that no BookActor understands")
    first = net[caller].submit_order(MARKET, "buy", "100", "1").sequence
    assert time.monotonic() - began_s < 4, "nobody waits for a lease, or for what the dead never acknowledge"
    eventually(lambda: net[failed].node_id not in status(net[caller])["in_sync"], "it has left the in-sync set")
    with pytest.raises(StorageError) as refused:
        net[failed].submit_order(MARKET, "buy", "100", "1")
    assert refused.value.code == "replica_failed"
    again = net.restart(failed)
    assert again.submit_order(MARKET, "buy", "100", "1").sequence == first + 1
    net.assert_same_hash(MARKET)


def test_a_leader_without_another_in_sync_leads_on_and_says_so(exchange: Any) -> None:
    net = exchange(nodes=1, markets={MARKET: RULES})
    with pytest.raises(Unavailable) as caught:
        net[0].transfer(MARKET, timeout=1)
    assert caught.value.code == "not_transferred"
    net[0].transfer(MARKET, to=net[0].name)
    net[0].submit_order(MARKET, "buy", "100", "1")


def test_a_node_that_is_not_in_sync_is_refused_the_lead_and_the_market_never_pauses(exchange: Any) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES})
    observer = net.add(markets=[], observe=[MARKET])
    eventually(lambda: observer.node_id in status(net[0])["followers"], "the observer follows")
    assert net[0].market(MARKET).ref.ask(HandOver(observer.node_id), timeout=5), "there is nobody to take over"
    assert not net[0].market(MARKET).read(lambda actor: actor.replica.resigned)
    with pytest.raises(Unavailable) as caught:
        net[0].transfer(MARKET, to=observer.node_id)
    assert caught.value.code == "not_transferred"
    net[0].submit_order(MARKET, "buy", "100", "1")


def test_an_observer_reads_everything_and_is_never_waited_for_nor_in_sync(exchange: Any) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES})
    observer = net.add(markets=(), observe=[MARKET])
    observer.wait_ready()
    result = net[0].submit_order(MARKET, "buy", "100", "1")
    observer.wait_sequence(MARKET, result.sequence)
    assert observer.get_order(MARKET, result.order_id) is not None
    mine = observer.submit_order(MARKET, "sell", "101", "1")
    net.wait_same_sequence(MARKET)
    net.assert_same_hash(MARKET)
    assert net[1].get_order(MARKET, mine.order_id) is not None, "orders may be submitted at an observer too"
    assert observer.node_id not in status(net[0])["in_sync"]
    net[1].close()
    net[0].close()
    with pytest.raises(Unavailable) as caught:
        observer.submit_order(MARKET, "buy", "100", "1", timeout=1)
    assert caught.value.code == "leader_unreachable", "an observer never takes over"


@pytest.mark.parametrize("damaged", [0, 1], ids=["the leader's", "a follower's"])
def test_a_damaged_journal_is_put_aside_and_made_good_from_a_peer(exchange: Any, damaged: int) -> None:
    net = exchange(nodes=3, markets={MARKET: RULES})
    for number in range(30):
        net[number % 3].submit_order(MARKET, ("buy", "sell")[number % 2], f"{99 + number % 3}", "1")
    net.wait_same_sequence(MARKET)
    net[damaged].close()
    survivor = net[2]
    folder = net[damaged].data_dir / "markets" / MARKET
    flip_a_bit(folder)
    survivor.submit_order(MARKET, "buy", "90", "1", timeout=10)
    net.restart(damaged)
    assert (folder.parent / f"{MARKET}.damaged-1").exists()
    eventually(lambda: status(net[damaged])["repairing"] is None, "the repair is over")
    net.wait_same_sequence(MARKET)
    net.assert_same_hash(MARKET)
    net[damaged].submit_order(MARKET, "buy", "90", "1")


def test_a_damaged_journal_that_nobody_can_make_good_leads_no_market(exchange: Any) -> None:
    net = exchange(nodes=1, markets={MARKET: RULES})
    for _ in range(5):
        net[0].submit_order(MARKET, "buy", "100", "1")
    net[0].close()
    flip_a_bit(net[0].data_dir / "markets" / MARKET)
    node = net.restart(0, wait=False)
    assert "damaged" in status(node)["repairing"]
    with pytest.raises(StorageError, match=f"damaged.*openoutcry force-leader {MARKET}") as refused:
        node.wait_ready(5)
    assert refused.value.code == "old_disk"
    assert status(node)["role"] == "following"


def test_a_market_is_opened_and_joined_while_nodes_run(exchange: Any) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES})
    net[1].open_market("ETH-USD", MarketRules(tick_size="0.5"))
    net[0].open_market("ETH-USD")
    net[0].wait_in_sync("ETH-USD", 2)
    order = net[0].submit_order("ETH-USD", "buy", "10.5", "1")
    assert net[1].submit_order("ETH-USD", "sell", "10.5", "1").trades[0].maker_order_id == order.order_id
    with pytest.raises(ConfigurationError) as caught:
        net[0].open_market("ETH-USD")
    assert caught.value.code == "market_joined"


def test_a_leader_accepts_orders_again_when_the_hand_over_is_abandoned(exchange: Any) -> None:
    net = exchange(nodes=1, markets={MARKET: RULES})
    net[0].market(MARKET).ref.tell(HandOver())
    eventually(lambda: net[0].market(MARKET).read(lambda actor: actor.replica.resigned), "it resigns")
    assert net[0].submit_order(MARKET, "buy", "100", "1", timeout=30).status == "resting"


def test_the_only_replica_does_not_start_an_empty_log_after_losing_its_own(exchange: Any) -> None:
    net = exchange(nodes=1, markets={MARKET: RULES})
    net[0].submit_order(MARKET, "buy", "100", "1")
    folder = net[0].data_dir / "markets" / MARKET
    net[0].close()
    shutil.rmtree(folder)
    net.restart(0, wait=False)
    eventually(lambda: status(net[0])["repairing"] == "its log was lost", "it says what has happened")
    with pytest.raises(Unavailable):
        net[0].submit_order(MARKET, "buy", "100", "1", timeout=1)
    assert status(net[0])["appended"] == 0


def test_a_leader_that_is_closed_as_soon_as_it_leads_leaves_the_market_to_another(exchange: Any) -> None:
    net = exchange(nodes=3, markets={MARKET: RULES}, balance=False)
    for _ in range(5):
        leader = next(at for at, node in enumerate(net) if status(node)["role"] == "leading")
        others = [at for at in range(3) if at != leader]
        eventually(lambda at=leader: len(status(net[at])["in_sync"]) == 3, "all are in sync")
        net[leader].transfer(MARKET, to=net[others[0]].name)
        net[others[0]].close()
        for at in (leader, others[1]):
            net[at].submit_order(MARKET, "buy", "100", "1", timeout=10)
        net.restart(others[0])
    net.assert_same_hash(MARKET)
