"""Many markets on a set of nodes: leaders spread evenly, and markets created while nodes run or are down."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import types
from collections import Counter
from typing import Any

import pytest
from openoutcry.actors import ConfigurationError, InvalidRequest, MarketRules, RequestTimeout, Unavailable
from openoutcry.actors.group.markets import Markets
from openoutcry.actors.leadership import catalogue as markets_module
from openoutcry.actors.leadership.balance import Move
from openoutcry.actors.leadership.catalogue import MarketsActor
from openoutcry.actors.testing import eventually
from openoutcry.transport.coordinator import MarketRecord

MARKETS = [f"M{number}" for number in range(9)]
RULES = MarketRules(tick_size="0.5", lot_size="0.1")


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markets_module, "PERIOD_S", 0.3)
    monkeypatch.setattr(markets_module, "SOON_S", 0.05)
    monkeypatch.setattr(markets_module, "HOLD_S", 1.0)


def led(net: Any, nodes: tuple[int, ...]) -> list[int]:
    """Return how many markets each of ``nodes`` leads, fewest first."""
    found = [Counter(market.role for market in net[at].status().markets.values()) for at in nodes]
    return sorted([roles["leading"] for roles in found])


def test_leaders_spread_over_three_nodes_again_after_one_is_gone_and_back_and_nothing_is_lost(exchange: Any) -> None:
    net = exchange(nodes=3, markets=MARKETS, balance=True)
    stop = threading.Event()
    answered: dict[str, set[str]] = {market: set() for market in MARKETS}

    def trade() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            market, name = MARKETS[number % 9], f"order-{number}"
            net[0].submit_order(market, "buy", "100", "1", client_order_id=name, timeout=20)
            answered[market].add(name)

    trader = threading.Thread(target=trade)
    trader.start()
    try:
        eventually(lambda: led(net, (0, 1, 2)) == [3, 3, 3], "each node leads three markets")
        net[1].close()
        eventually(lambda: led(net, (0, 2)) == [4, 5], "the two that are left share the markets")
        net.restart(1)
        eventually(lambda: led(net, (0, 1, 2)) == [3, 3, 3], "the node that is back leads three again")
        assert trader.is_alive(), "a request failed"
    finally:
        stop.set()
        trader.join()
    for market in MARKETS:
        net.assert_same_hash(market)
        assert {order.client_order_id for order in net[1].all_orders(market)} == answered[market]


def test_leaders_stay_where_they_are_without_balance(exchange: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[object] = []
    look = MarketsActor._look
    monkeypatch.setattr(MarketsActor, "_look", lambda actor: looks.append(actor) or look(actor))
    net = exchange(nodes=2, markets=MARKETS[:4], balance=False)
    for market in MARKETS[:4]:
        if net[1].status().markets[market].role == "leading":
            net[1].transfer(market, "node-0")
    eventually(lambda: led(net, (0, 1)) == [0, 4], "one leads all")
    before = len(looks)
    eventually(lambda: len(looks) > before + 6, "the nodes have looked again")
    assert led(net, (0, 1)) == [0, 4]


class Looker:
    """A MarketsActor of node ``a``, with what it would ask and do; ``records`` is what it finds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *records: MarketRecord) -> None:
        self.records = records
        self.alive = {"a", "b"}
        self.failing: Exception | None = None
        self.moves: list[Move] = []
        self.joins: list[str] = []
        self.now_s = 0.0
        monkeypatch.setattr(markets_module, "time", types.SimpleNamespace(monotonic=lambda: self.now_s))
        self._actor = MarketsActor(
            node="a",
            read_all=lambda: self.records,
            alive=lambda: self.alive,
            join=self.joins.append,
            hand_over=self._hand_over,
            open_again=lambda: None,
            report=print,
        )

    def _hand_over(self, move: Move) -> None:
        self.moves.append(move)
        if self.failing is not None:
            raise self.failing

    def look(self) -> list[str]:
        """Look once, and return which markets it has tried to hand over."""
        self.moves.clear()
        self._actor._look()
        return [move.market for move in self.moves]


def record(market: str, leader: str, epoch: int = 1) -> MarketRecord:
    return MarketRecord(market, epoch, epoch, leader, ("a", "b"))


def test_one_market_is_handed_over_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    looker = Looker(monkeypatch, *(record(market, "a") for market in "mnopq"))
    assert looker.look() == ["m"]
    looker.records = (record("m", "b"), *looker.records[1:])
    assert looker.look() == ["n"]
    looker.records = (*looker.records[:1], record("n", "b"), *looker.records[2:])
    assert looker.look() == []


def test_a_market_that_was_handed_over_to_this_node_stays_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    looker = Looker(monkeypatch, *(record(market, "b") for market in "mno"))
    assert looker.look() == []
    looker.records = tuple(record(market, "a", 2) for market in "mno")
    assert looker.look() == []
    looker.now_s += markets_module.HOLD_S + 1
    assert looker.look() == ["m"]


def test_a_market_that_was_taken_over_from_a_node_that_led_and_went_between_two_looks_may_move_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looker = Looker(monkeypatch, *(record(market, "b") for market in "mno"))
    assert looker.look() == []
    looker.records = tuple(record(market, "a", 3) for market in "mno")  # handed over to c, which died
    assert looker.look() == ["m"]


def test_a_market_that_was_taken_over_from_a_node_that_is_gone_may_move_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looker = Looker(monkeypatch, *(MarketRecord(market, 1, 1, "c", ("a", "b", "c")) for market in "mno"))
    assert looker.look() == []
    looker.records = tuple(record(market, "a", 2) for market in "mno")
    assert looker.look() == ["m"]


def test_a_market_that_could_not_be_handed_over_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    looker = Looker(monkeypatch, *(record(market, "a") for market in "mno"))
    looker.failing = Unavailable("nobody took over")
    assert looker.look() == ["m"]
    assert looker.look() == ["n"]
    looker.now_s += markets_module.AGAIN_S + 1
    looker.failing = None
    assert looker.look() == ["m"]


def test_all_listed_markets_are_joined_and_a_store_that_is_away_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    looker = Looker(monkeypatch, record("m", "a"), record("n", "b"))
    looker.look()
    assert looker.joins == ["m", "n"]
    monkeypatch.setattr(looker._actor, "_read_all", raiser(Unavailable("the store is away")))
    assert looker.look() == []


def raiser(error: Exception) -> Any:
    def call() -> None:
        raise error

    return call


def test_a_market_created_at_any_node_is_joined_by_all_that_join_all_also_later(exchange: Any) -> None:
    net = exchange(nodes=2, markets=["OLD"], join_all=True)
    net[1].create_market("NEW", RULES)
    order = net[1].submit_order("NEW", "buy", "10.5", "0.1")
    eventually(lambda: "NEW" in net[0].markets, "the other node has joined it")
    net[0].wait_sequence("NEW", order.sequence)
    assert net[0].rules("NEW") == RULES
    net[0].close()
    net[1].create_market("NEWER", RULES)
    net.restart(0)
    assert net[0].markets == net[0].all_markets() == ("NEW", "NEWER", "OLD")
    late = net.add(markets=())
    late.wait_ready()
    late.wait_in_sync("NEWER", 3)
    assert late.submit_order("NEW", "sell", "10.5", "0.1").trades[0].maker_order_id == order.order_id
    for market in late.markets:
        net.assert_same_hash(market)


def test_a_market_is_created_once_whoever_asks_and_however_often(exchange: Any) -> None:
    net = exchange(nodes=3, join_all=True)
    makers = [threading.Thread(target=node.create_market, args=("NEW", RULES)) for node in net]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    for node in net:
        node.create_market("NEW", RULES)
        assert node.rules("NEW") == RULES
        with pytest.raises(InvalidRequest) as caught:
            node.create_market("NEW", dataclasses.replace(RULES, lot_size="7"))
        assert caught.value.code == "market_exists"
        assert caught.value.message.endswith(f"exists with other rules: lot_size is {RULES.lot_size!r}, not '7'")
    net.wait_same_sequence("NEW")
    net.assert_same_hash("NEW")


def test_a_node_that_asks_for_other_rules_than_a_market_has_does_not_join_it(exchange: Any) -> None:
    net = exchange(nodes=2)
    net[0].create_market("NEW", RULES)
    for _ in range(2):
        with pytest.raises(InvalidRequest) as caught:
            net[1].create_market("NEW", dataclasses.replace(RULES, lot_size="7"))
        assert caught.value.code == "market_exists"
        assert "NEW" not in net[1].markets
        assert net[0].status().markets["NEW"].in_sync == (net[0].node_id,)
    net.restart(1)
    assert "NEW" not in net[1].markets
    net[1].create_market("NEW", RULES)
    net[1].wait_in_sync("NEW", 2)
    assert not net[1].status().markets["NEW"].observer
    net[1].submit_order("NEW", "buy", "10.5", "0.1")
    net.assert_same_hash("NEW")


def test_a_market_is_created_again_at_a_node_that_is_just_joining_it_by_itself(
    exchange: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = exchange(nodes=2, markets={}, join_all=True)
    look = Markets.look_at

    def join_first(markets: Markets, market: str) -> Any:
        markets.join(market)
        return look(markets, market)

    monkeypatch.setattr(MarketsActor, "on_receive", lambda *_: None)
    net[0].create_market("NEW", RULES)
    monkeypatch.setattr(Markets, "look_at", join_first)
    net[1].create_market("NEW", RULES)
    assert net[1].rules("NEW") == RULES


def test_a_node_joins_again_what_was_created_at_it(exchange: Any) -> None:
    net = exchange(nodes=1)
    net[0].create_market("NEW", RULES)
    order = net[0].submit_order("NEW", "buy", "10.5", "0.1")
    net.restart(0)
    assert net[0].get_order("NEW", order.order_id) is not None
    assert net[0].rules("NEW") == RULES


def test_a_market_that_could_not_be_opened_in_time_is_opened_when_the_others_are_there(exchange: Any) -> None:
    net = exchange(nodes=1, min_in_sync=1)
    lonely = net.add(min_in_sync=2)
    with pytest.raises(RequestTimeout) as caught:
        lonely.create_market("NEW", RULES, timeout=0.3)
    assert caught.value.code == "not_enough_in_sync"
    net[0].create_market("NEW", RULES)
    lonely.create_market("NEW", RULES)
    lonely.submit_order("NEW", "buy", "10.5", "0.1")


def test_a_market_that_is_joined_before_it_exists_can_be_created_there(exchange: Any) -> None:
    net = exchange(nodes=1)
    node = net.add(markets=["NEW"])
    node.create_market("NEW", RULES)
    assert node.rules("NEW") == RULES


@pytest.mark.parametrize("name", ["", "_own", ".", "..", "a" * 65, " A", "A ", "Ä", "A\n", 7], ids=repr)
def test_a_malformed_or_reserved_name_is_refused(exchange: Any, name: Any) -> None:
    net = exchange(nodes=1)
    with pytest.raises(InvalidRequest) as caught:
        net[0].create_market(name, RULES)
    assert caught.value.code == "invalid_market"
    assert net[0].markets == ("BTC-USD",)


def test_rules_of_another_type_are_refused(exchange: Any) -> None:
    net = exchange(nodes=1)
    with pytest.raises(InvalidRequest) as caught:
        net[0].create_market("NEW", {"tick_size": "1"})
    assert caught.value.code == "invalid_rules"


def test_a_node_says_that_it_has_as_many_markets_as_it_can(monkeypatch: pytest.MonkeyPatch, exchange: Any) -> None:
    net = exchange(nodes=1)
    monkeypatch.setattr("openoutcry.actors.group.markets.MARKETS_MAX", 1)
    with pytest.raises(ConfigurationError) as caught:
        net[0].create_market("NEW", RULES)
    assert caught.value.code == "too_many_markets"
    net.restart(0)
    assert net[0].markets == ("BTC-USD",)
