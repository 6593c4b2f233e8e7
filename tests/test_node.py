"""A node as a program embeds it: commands, queries, market data, membership, life; real sockets, one process."""

from __future__ import annotations

import asyncio
import inspect
import json
import queue
import shutil
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pykka
import pynng
import pytest
from openoutcry.actors import (
    Accepted,
    AsyncNode,
    Cancelled,
    Closed,
    ConfigurationError,
    ExchangeNode,
    InvalidRequest,
    Market,
    MarketRules,
    MarketUpdate,
    OrderRejected,
    Overloaded,
    RequestTimeout,
    StorageError,
    Trade,
    Unavailable,
    as_json,
)
from openoutcry.actors.book.commands import CANCEL, CANCEL_ALL
from openoutcry.actors.book.messages import JournalFailed
from openoutcry.actors.market import queries
from openoutcry.actors.market.aio import AsyncMarket
from openoutcry.actors.testing import eventually
from openoutcry.transport.errors import copied
from signatures import parameters_of

MARKET = "BTC-USD"
RULES = MarketRules(tick_size="0.25", lot_size="0.1")


def in_sync(node: ExchangeNode) -> int:
    return len(node.status().markets[MARKET].in_sync)


def test_what_is_too_much_to_be_read_at_once_is_read_from_a_copy_of_one_moment(
    exchange: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (node,) = exchange(nodes=1, markets={MARKET: RULES})
    prices = [f"{100 + number * 7 % 25}.25" for number in range(60)]
    for account in ("ann", "bob"):
        node.submit_many(MARKET, [node.order(MARKET, "buy", price, "0.3", account=account) for price in prices])
    node.submit_order(MARKET, "sell", "110.25", "1.1", account="cyd")

    def everything() -> list[Any]:
        reads = node.get_order_book(MARKET), node.get_order_book(MARKET, 3), node.all_orders(MARKET)
        return [
            *reads,
            node.open_orders(MARKET, "ann"),
            node.orders_at(MARKET, "103.25"),
            node.open_orders(MARKET, "x"),
        ]

    async def from_an_event_loop() -> list[Any]:
        market = AsyncNode(node).market(MARKET)
        return [await market.book(), await market.book(3), await market.open_orders("ann")]

    at_once, of_the_loop = everything(), asyncio.run(from_an_event_loop())
    monkeypatch.setattr(queries, "AT_ONCE_MAX", 2)
    assert everything() == at_once
    assert asyncio.run(from_an_event_loop()) == of_the_loop

    ended = threading.Event()

    def trade() -> None:
        for _ in range(100):
            order = node.submit_order(MARKET, "buy", "50.25", "0.1")
            node.cancel_order(MARKET, order.order_id)
        ended.set()

    trading = threading.Thread(target=trade)
    trading.start()
    while not ended.is_set():  # one order comes and goes
        orders = node.all_orders(MARKET)
        assert len({order.sequence for order in orders}) == 1
        book = node.get_order_book(MARKET)
        assert sum(level.orders for level in book.bids) in (len(at_once[2]), len(at_once[2]) + 1)
    trading.join(10)


def test_orders_submitted_at_any_node_meet_in_one_book(exchange: Any) -> None:
    net = exchange(nodes=3, markets={MARKET: RULES})
    ask = net[1].submit_order(MARKET, "sell", "100.25", "0.3")
    bid = net[2].submit_order(MARKET, "buy", Decimal("100.5"), "0.5", account="carol")
    assert ask.status == "resting"
    assert [(t.price, t.quantity, t.maker_account, t.taker_account) for t in bid.trades] == [
        (Decimal("100.25"), Decimal("0.3"), net[1].name, "carol")
    ]
    net.wait_same_sequence(MARKET)
    net.assert_same_hash(MARKET)
    for node in net:
        view = node.get_order_book(MARKET)
        assert [(level.price, level.quantity, level.orders) for level in view.bids] == [
            (Decimal("100.50"), Decimal("0.2"), 1)
        ]
        assert view.asks == ()
        assert view.state_hash == net[0].state_hash(MARKET)
        assert node.trades(MARKET) == list(bid.trades)
        order = node.get_order(MARKET, bid.order_id)
        assert order is not None
        assert (order.filled_quantity, order.open_quantity) == (Decimal("0.3"), Decimal("0.2"))
        assert node.open_orders(MARKET, "carol") == [order]


def test_an_answer_means_that_this_node_has_applied_the_command(exchange: Any) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES})
    for node in (*net, *net):
        result = node.submit_order(MARKET, "buy", "99", "1")
        assert node.sequence(MARKET) >= result.sequence
        assert node.get_order(MARKET, result.order_id) is not None


def test_a_retry_gets_the_first_answer_and_is_not_executed_again(exchange: Any) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES})
    first = net[1].submit_order(MARKET, "buy", "99", "1", account="ann", client_order_id="one")
    again = net[0].submit_order(MARKET, "buy", "99", "1", account="ann", client_order_id="one")
    assert not first.duplicate
    assert again.duplicate
    assert (again.order_id, again.sequence, again.events) == (first.order_id, first.sequence, first.events)
    assert len(net[0].open_orders(MARKET, "ann")) == 1
    with pytest.raises(OrderRejected) as caught:
        net[0].submit_order(MARKET, "sell", "99", "1", account="ann", client_order_id="one")
    assert caught.value.code == "client_order_id_reused"


def test_cancel_and_amend_work_from_a_node_that_did_not_enter_the_order(exchange: Any) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES})
    order = net[0].submit_order(MARKET, "buy", "99", "1", account="ann")
    amended = net[1].amend_order(MARKET, order.order_id, price="98", quantity="0.5", account="ann")
    assert amended.status == "amended"
    with pytest.raises(OrderRejected) as caught:
        net[1].cancel_order(MARKET, order.order_id, account="eve")
    assert caught.value.code == "unknown_order"
    assert net[1].cancel_order(MARKET, order.order_id, account="ann").status == "cancelled"
    net[0].submit_order(MARKET, "buy", "97", "1", account="ann")
    assert len(net[1].cancel_all(MARKET, account="ann").events) == 1
    assert net[1].get_order_book(MARKET).bids == ()


@pytest.mark.parametrize("orders", [0, 1, 3])
def test_a_cancel_all_tells_which_orders_are_gone_and_names_none_as_its_own(exchange: Any, orders: int) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES})
    node = net[1]
    ids = tuple([node.submit_order(MARKET, "buy", "99", "1", account="ann").order_id for _ in range(orders)])
    results = [
        node.cancel_all(MARKET, account="ann", client_order_id="all"),
        net[0].cancel_all(MARKET, account="ann", client_order_id="all"),
    ]
    order = node.submit_order(MARKET, "buy", "99", "1", account="ann")
    again = node.submit_many(MARKET, [(CANCEL_ALL, "ann", "all"), (CANCEL, "ann", "one", order.order_id)])
    results += [again[0], next(iter(again))]
    for result in results:
        assert (result.status, result.order_id, result.cancelled_ids) == ("accepted", None, ids)
        assert as_json(result)["cancelled_ids"] == list(ids)
    assert [result.duplicate for result in results] == [False, True, True, True]
    for one in (again[1], list(again)[1]):
        assert (one.status, one.order_id, one.cancelled_ids) == ("cancelled", order.order_id, (order.order_id,))


def test_a_batch_is_answered_command_by_command_with_rejections_as_results(exchange: Any) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES})
    node = net[1]
    commands = [node.order(MARKET, "buy", f"{90 + number % 5}", "1") for number in range(5000)]
    commands.insert(2500, node.cancel(10**9))
    results = node.submit_many(MARKET, commands, timeout=60)
    assert len(results) == 5001
    assert {result.status for result in results} == {"resting", "rejected"}
    assert results[2500].code == "unknown_order"
    assert [result.sequence for result in results] == sorted({result.sequence for result in results})
    assert node.get_order_book(MARKET).bids[0].orders == 1000


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"price": 100.5}, "float_refused"),
        ({"quantity": 1.0}, "float_refused"),
        ({"price": "100.3"}, "price_off_tick"),
        ({"quantity": "0.25"}, "quantity_off_lot"),
        ({"quantity": "-1"}, "invalid_quantity"),
        ({"price": "dear"}, "invalid_price"),
        ({"price": None}, "invalid_price"),
        ({"side": "long"}, "invalid_side"),
        ({"time_in_force": "day"}, "invalid_time_in_force"),
        ({"account": ""}, "invalid_account"),
        ({"market": "ETH-USD"}, "unknown_market"),
    ],
)
def test_a_malformed_request_is_refused_at_the_edge_with_its_own_code(
    exchange: Any, arguments: dict[str, Any], code: str
) -> None:
    net = exchange(nodes=1, markets={MARKET: RULES})
    before = net[0].sequence(MARKET)
    with pytest.raises(InvalidRequest) as caught:
        net[0].submit_order(**{"market": MARKET, "side": "buy", "price": "100", "quantity": "1", **arguments})
    assert caught.value.code == code
    assert net[0].sequence(MARKET) == before


class Mute:
    """What has no text."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


WRONG = [["a list"], b"bytes", {}, ("a tuple",), 10**5000, Mute(), 1.5, object]
"""What no name and no number of an order is: unhashable, unprintable, or of another type."""
ACTOR = pykka.ActorRef.__new__(pykka.ActorRef)
GOOD: dict[str, dict[str, Any]] = {
    "submit_order": {"market": MARKET, "side": "buy", "price": "1", "quantity": "1"},
    "cancel_order": {"market": MARKET, "order_id": 1},
    "cancel_all": {"market": MARKET},
    "amend_order": {"market": MARKET, "order_id": 1, "price": "1"},
    "submit_many": {"market": MARKET, "commands": []},
    "submit_many_async": {"market": MARKET, "commands": []},
    "order": {"market": MARKET, "side": "buy", "price": "1", "quantity": "1"},
    "cancel": {"order_id": 1},
    "amend": {"market": MARKET, "order_id": 1, "price": "1"},
    "market": {"name": MARKET},
    "rules": {"market": MARKET},
    "get_order_book": {"market": MARKET},
    "get_order": {"market": MARKET, "order_id": 1},
    "open_orders": {"market": MARKET},
    "all_orders": {"market": MARKET},
    "orders_at": {"market": MARKET, "price": "1"},
    "trades": {"market": MARKET},
    "sequence": {"market": MARKET},
    "state_hash": {"market": MARKET},
    "position": {"market": MARKET},
    "queues": {"market": MARKET},
    "market_statuses": {"timeout": 1},
    "wait_ready": {},
    "wait_in_sync": {"market": MARKET, "nodes": 1},
    "wait_sequence": {"market": MARKET, "sequence": 1},
    "subscribe": {"market": MARKET},
    "open_market": {"market": "NEW", "rules": RULES},
    "create_market": {"market": "NEW", "rules": RULES},
    "transfer": {"market": MARKET, "to": "alone"},
    "set_time": {"market": MARKET, "reason": "a test"},
    "force_plan": {"market": MARKET},
    "force_leader": {"market": MARKET, "reason": "a test"},
    "announce": {"service": "prices", "address": "tcp://127.0.0.1:1"},
    "unannounce": {"service": "prices"},
    "lookup": {"service": "prices"},
    "register": {"name": "actor", "ref": ACTOR, "accepts": []},
    "unregister": {"name": "actor"},
    "actor": {"address": "actor@alone"},
    "wait_actor": {"address": "actor@alone"},
    "watch": {"ref": ACTOR, "watcher": ACTOR},
    "unwatch": {"ref": ACTOR, "watcher": ACTOR},
}
"""Arguments that each method takes."""
NAMES = {
    "market", "order_id", "account", "client_order_id", "to", "commands", "rules", "service", "address", "metadata",
    "name", "ref", "accepts", "watcher", "nodes", "sequence", "timeout",
}  # fmt: skip
"""Arguments that are checked for their type."""
FITS = {("to", type), ("accepts", dict), ("metadata", dict), ("commands", dict), ("timeout", float)}
"""What is not wrong there."""


OF_A_MARKET: dict[str, dict[str, Any]] = {
    "submit": {"side": "buy", "price": "1", "quantity": "1"},
    "cancel": {"order_id": 1},
    "cancel_all": {},
    "amend": {"order_id": 1, "price": "1"},
    "submit_many": {"commands": []},
    "submit_many_async": {"commands": []},
    "make_order": {"side": "buy", "price": "1", "quantity": "1"},
    "make_cancel": {"order_id": 1},
    "make_amend": {"order_id": 1, "price": "1"},
    "order": {"order_id": 1},
    "open_orders": {},
    "read": {"question": queries.sequence},
    "subscribe": {},
    "wait_ready": {},
    "wait_in_sync": {"nodes": 1},
    "wait_sequence": {"sequence": 1},
}
"""The same for what a market is asked."""


def wrong_calls(kind: type, good: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield method, argument and arguments of every public call of ``kind`` with one that is of a wrong type."""
    for method, function in inspect.getmembers(kind, inspect.isfunction):
        for argument in NAMES.intersection([each.name for each in parameters_of(function)]):
            for value in WRONG:
                if not method.startswith("_") and (argument, type(value)) not in FITS:
                    yield method, argument, {**good[method], argument: value}


def test_what_is_of_a_wrong_type_is_refused_at_the_edge_by_every_method(tmp_path: Path) -> None:
    def refused(caught: pytest.ExceptionInfo[InvalidRequest], called: str) -> None:
        assert len(str(caught.value)) < 400, f"{called}: it can be written, and read"

    async def await_each(node: ExchangeNode) -> None:
        awaited = AsyncNode(node)
        for method, argument, arguments in wrong_calls(AsyncNode, GOOD):
            with pytest.raises(InvalidRequest) as caught:
                await getattr(awaited, method)(**arguments)
            refused(caught, f"AsyncNode.{method}: {argument}")
        for method, argument, arguments in wrong_calls(AsyncMarket, OF_A_MARKET):
            with pytest.raises(InvalidRequest) as caught:
                await getattr(awaited.market(MARKET), method)(**arguments)
            refused(caught, f"AsyncMarket.{method}: {argument}")

    with ExchangeNode("alone", markets={MARKET: RULES}, data_dir=tmp_path, serve_directory="tcp://127.0.0.1:0") as node:
        node.wait_ready()
        called = set()
        for method, argument, arguments in wrong_calls(ExchangeNode, GOOD):
            with pytest.raises(InvalidRequest) as caught:
                getattr(node, method)(**arguments)
            refused(caught, f"{method}: {argument}")
            called.add(method)
        assert called == set(GOOD), "every method that is given something is called"
        market, called = node.market(MARKET), set()
        for method, argument, arguments in wrong_calls(Market, OF_A_MARKET):
            with pytest.raises(InvalidRequest) as caught:
                getattr(market, method)(**arguments)
            refused(caught, f"Market.{method}: {argument}")
            called.add(method)
        assert called == set(OF_A_MARKET), "every method that is given something is called"
        asyncio.run(await_each(node))
        assert (node.sequence(MARKET), node.markets) == (1, (MARKET,)), "nothing has come of it"


def test_a_float_is_refused_with_a_message_that_says_why_and_what_to_write(exchange: Any) -> None:
    net = exchange(nodes=1, markets={MARKET: RULES})
    with pytest.raises(InvalidRequest, match=r'never a float: 100\.1 is not exact in binary; write "100\.1" in quotes'):
        net[0].submit_order(MARKET, "buy", 100.1, "1")


def test_a_subscriber_gets_every_event_once_in_order_at_every_node(exchange: Any) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES})
    net.wait_same_sequence(MARKET)
    called: list[MarketUpdate] = []
    into: queue.Queue[MarketUpdate] = queue.Queue()
    start = net[1].sequence(MARKET)
    subscriptions = [
        net[0].subscribe(MARKET, called.append, after=start),
        net[1].subscribe(MARKET, into, after=start),
        net[1].subscribe(MARKET, after=start),
    ]
    for number in range(50):
        net[number % 2].submit_order(MARKET, ("buy", "sell")[number % 2], "100", "1")
    last = net.wait_same_sequence(MARKET)
    eventually(lambda: all([s.last_sequence == last for s in subscriptions[:2]]), "the subscribers have everything")
    read = []
    while subscriptions[2].last_sequence < last:
        update = subscriptions[2].get(timeout=10)
        assert update is not None
        read.append(update)
    seen = [[event for update in updates for event in update.events] for updates in (called, list(into.queue), read)]
    assert seen[0] == seen[1] == seen[2]
    assert sum([isinstance(event, Accepted) for event in seen[0]]) == 50
    assert sum([isinstance(event, Trade) for event in seen[0]]) == 25
    for updates in (called, read):
        ends = [start] + [update.sequence for update in updates]
        assert [update.first_sequence for update in updates] == [end + 1 for end in ends[:-1]]
    net[1].close()
    assert subscriptions[2].get(timeout=5) is None


def test_a_subscriber_that_falls_behind_is_cut_and_resumes_without_a_gap(exchange: Any) -> None:
    net = exchange(nodes=1, markets={MARKET: RULES})
    node = net[0]
    slow = node.subscribe(MARKET, queue_size_max=3)
    for _ in range(10):
        node.submit_order(MARKET, "buy", "100", "1")
    received = list(slow)
    assert len(received) == 3
    assert isinstance(slow.error, Overloaded)
    resumed = node.subscribe(MARKET, after=slow.last_sequence)
    update = resumed.get(timeout=5)
    assert update is not None
    assert (update.first_sequence, update.sequence) == (slow.last_sequence + 1, node.sequence(MARKET))
    assert len(update.events) == 7


def test_good_till_date_orders_leave_an_idle_market_on_time(exchange: Any) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES})
    expire_ns = time.time_ns() + 300_000_000
    order = net[1].submit_order(MARKET, "buy", "100", "1", time_in_force="gtd", expire_ns=expire_ns)
    events = net[1].subscribe(MARKET, after=order.sequence)
    update = events.get(timeout=10)
    assert update is not None
    (event,) = update.events
    assert isinstance(event, Cancelled)
    assert (event.order_id, event.reason) == (order.order_id, "expired")
    assert update.timestamp_ns >= expire_ns
    assert net[1].get_order(MARKET, order.order_id) is None


def test_a_node_that_joins_late_catches_up_and_joins_the_in_sync_set_while_orders_flow(
    exchange: Any, tmp_path: Path
) -> None:
    net = exchange(nodes=1, markets={MARKET: RULES})
    node = net[0]
    node.submit_many(MARKET, [node.order(MARKET, "buy", "90", "1") for _ in range(5000)], timeout=60)
    stop = threading.Event()
    sent: list[int] = []

    def trade() -> None:
        while not stop.is_set():
            batch = [node.order(MARKET, ("buy", "sell")[n % 2], "100", "1") for n in range(50)]
            sent.extend([result.sequence for result in node.submit_many(MARKET, batch, timeout=60)])

    trader = threading.Thread(target=trade)
    trader.start()
    try:
        late = net.add()
        eventually(lambda: in_sync(node) == 2, "the late node is in sync")
    finally:
        stop.set()
        trader.join()
    late.wait_sequence(MARKET, sent[-1])
    assert late.position(MARKET) == node.position(MARKET)


def test_a_dead_follower_is_removed_and_returns_with_the_same_book(exchange: Any) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES})
    leader = net[0]
    leader.submit_order(MARKET, "buy", "100", "1")
    net[1].close()
    eventually(lambda: in_sync(leader) == 1, "the follower is out of the in-sync set")
    for _ in range(20):
        leader.submit_order(MARKET, "sell", "101", "1")
    net.restart(1)
    eventually(lambda: in_sync(leader) == 2, "the follower is back")
    net.wait_same_sequence(MARKET)
    net.assert_same_hash(MARKET)


def test_a_leader_that_is_closed_hands_over_and_commands_in_flight_are_answered(exchange: Any) -> None:
    net = exchange(nodes=3, markets={MARKET: RULES})
    survivor = net[1]
    first = survivor.submit_order(MARKET, "buy", "100", "1", client_order_id="first")
    stop = threading.Event()
    answered: list[int] = []
    gaps: list[float] = []

    def trade() -> None:
        last = time.monotonic()
        while not stop.is_set():
            answered.append(survivor.submit_order(MARKET, "sell", "101", "1", timeout=10).sequence)
            gaps.append(time.monotonic() - last)
            last = time.monotonic()

    trader = threading.Thread(target=trade)
    trader.start()
    try:
        eventually(lambda: len(answered) > 20, "orders flow")
        net[0].close()
        seen = len(answered)
        eventually(lambda: len(answered) > seen + 20, "orders flow again")
    finally:
        stop.set()
        trader.join()
    assert survivor.status().markets[MARKET].leader != net[0].node_id
    assert len(set(answered)) == len(answered)
    assert len(survivor.all_orders(MARKET)) == 1 + len(answered), "each order is in the book once"
    assert survivor.submit_order(MARKET, "buy", "100", "1", client_order_id="first").order_id == first.order_id
    net.restart(0)
    net.wait_same_sequence(MARKET)
    net.assert_same_hash(MARKET)


def test_a_replica_that_is_not_in_sync_never_leads_and_says_so_in_time(exchange: Any) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES})
    net[0].submit_order(MARKET, "buy", "100", "1")
    net.wait_same_sequence(MARKET)
    net[1].close()
    eventually(lambda: in_sync(net[0]) == 1, "the follower is out of the in-sync set")
    late = net[0].submit_order(MARKET, "buy", "100", "1")
    net[0].close()
    behind = net.restart(1, wait=False)
    assert behind.sequence(MARKET) < late.sequence, "reads go on, and say where they are true"
    command = (1, "ann", "retry-me", 0, 0, 400, 10, 0, 0, 0)
    started = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        behind.submit_many(MARKET, [command], timeout=1)
    assert caught.value.code == "leader_unreachable"
    assert time.monotonic() - started < 5
    net.restart(0)
    (result,) = behind.submit_many(MARKET, [command])
    assert (result.status, result.duplicate) == ("resting", False)
    net.wait_same_sequence(MARKET)
    net.assert_same_hash(MARKET)


def test_a_market_that_needs_two_disks_refuses_commands_while_there_is_one(exchange: Any) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES}, min_in_sync=2)
    net[0].submit_order(MARKET, "buy", "100", "1")
    net[1].close()

    def refused() -> Any:
        with pytest.raises(Unavailable) as caught:
            net[0].submit_order(MARKET, "buy", "100", "1", timeout=2)
        return caught.value.code == "not_enough_in_sync"

    eventually(refused, "the leader knows that it is alone")
    net.restart(1)
    eventually(lambda: in_sync(net[0]) == 2, "the second disk is back")
    net[0].submit_order(MARKET, "buy", "100", "1")


def test_a_pruned_log_and_a_snapshot_recover_the_same_book(exchange: Any) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES}, snapshot_every=500)
    node = net[1]
    first = node.submit_order(MARKET, "buy", "90", "1", account="ann", client_order_id="first")
    for _ in range(8):
        batch = [node.order(MARKET, ("buy", "sell")[n % 2], f"{95 + n % 11}", "1") for n in range(300)]
        node.submit_many(MARKET, batch, timeout=30)
    sequence = net.wait_same_sequence(MARKET)
    state = net.assert_same_hash(MARKET)
    folder = net[0].data_dir / "markets" / MARKET / "snapshots"
    eventually(lambda: 1 <= len(list(folder.glob("*.snap"))) <= 2, "the last snapshots are kept")
    book = net[0].all_orders(MARKET)
    for each in net:
        each.close()
    net.restart(0, wait=False)
    net.restart(1, wait=False)
    for each in net:
        each.wait_ready()
        recovered = each.status().markets[MARKET].recovered
        assert sequence - 1000 < recovered <= sequence + 1, "or with the opening, when the other had gone"
        assert [(o.order_id, o.open_quantity) for o in each.all_orders(MARKET)] == [
            (o.order_id, o.open_quantity) for o in book
        ]
    assert net.assert_same_hash(MARKET) != state, "the opening of the new epoch is part of the state"
    again = net[1].submit_order(MARKET, "buy", "90", "1", account="ann", client_order_id="first")
    assert (again.duplicate, again.order_id) == (True, first.order_id), "what was answered is part of the snapshot"


def test_a_wiped_replica_takes_over_the_leaders_state_and_is_in_sync_again_under_load(exchange: Any) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES}, snapshot_every=1000)
    leader = net[0]
    for at in range(0, 60_000, 5000):
        batch = [leader.order(MARKET, "buy", f"{10 + n % 40}", "1") for n in range(at, at + 5000)]
        leader.submit_many(MARKET, batch, timeout=60)
    net.wait_same_sequence(MARKET, timeout=30)
    net[1].close()
    eventually(lambda: in_sync(leader) == 1, "the follower is out of the in-sync set")
    shutil.rmtree(net[1].data_dir)
    stop = threading.Event()

    def trade() -> None:
        while not stop.is_set():
            leader.submit_many(MARKET, [leader.order(MARKET, ("buy", "sell")[n % 2], "100", "1") for n in range(50)])

    trader = threading.Thread(target=trade)
    trader.start()
    try:
        wiped = net.restart(1, wait=False)
        eventually(lambda: in_sync(leader) == 2, "the wiped replica is in sync")
    finally:
        stop.set()
        trader.join()
    net.wait_same_sequence(MARKET, timeout=30)
    net.assert_same_hash(MARKET)
    assert len(wiped.all_orders(MARKET)) >= 60_000
    snapshots = list((wiped.data_dir / "markets" / MARKET / "snapshots").glob("*.snap"))
    assert snapshots, "it came by a snapshot, not by the log"


def test_all_nodes_restart_from_disk_to_the_same_sequence_and_hash(exchange: Any) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES})
    for number in range(30):
        net[number % 2].submit_order(MARKET, ("buy", "sell")[number % 2], f"{100 + number % 3}", "1")
    net.wait_same_sequence(MARKET)
    orders = net[0].all_orders(MARKET)
    trades = net[0].trades(MARKET)
    for node in net:
        node.close()
    for index in range(2):
        net.restart(index, wait=False)
    for node in net:
        node.wait_ready()
    net.wait_same_sequence(MARKET)
    net.assert_same_hash(MARKET)
    for node in net:
        assert [o.order_id for o in node.all_orders(MARKET)] == [o.order_id for o in orders]
        assert node.trades(MARKET) == trades


def test_a_malformed_frame_costs_its_sender_the_link_and_nothing_else(exchange: Any) -> None:
    net = exchange(nodes=1, markets={MARKET: RULES})
    node = net[0]
    frames = [
        b"",
        b"\x00",
        b"\x01\xff\x90",
        b"\x01\x05\xc1",
        b"\x63\x01\x90",
        b"\x01\x02" + b"\x91" * 500,
        b"\x01\x02\x93\xa1x\x01\x90",
    ]
    for number, frame in enumerate(frames, 1):
        gone = threading.Event()
        with pynng.Push0(send_timeout=5000) as socket:
            socket.add_post_pipe_remove_cb(lambda _pipe, gone=gone: gone.set())
            socket.dial(node.address, block=True)
            socket.send(frame)
            assert gone.wait(10), f"the link survived frame {frame!r}"
        eventually(lambda n=number: node.status().frames_refused == n, "the refusal is counted")
    node.submit_order(MARKET, "buy", "100", "1")


def test_a_node_with_another_coordinator_is_kept_out(exchange: Any, tmp_path: Path) -> None:
    net = exchange(nodes=1, markets={MARKET: RULES})
    with pytest.raises(ConfigurationError, match="coordinator") as caught:
        ExchangeNode("stranger", markets=[MARKET], directory=net.directory_address)
    assert caught.value.code == "no_coordinator"
    store = tmp_path / "stranger.sqlite"
    with ExchangeNode("stranger", markets=[MARKET], directory=net.directory_address, coordinator=store) as stranger:
        for one, other in ((stranger, net[0]), (net[0], stranger)):
            eventually(lambda one=one: one.status().peers, "they have heard of each other")
            eventually(
                lambda one=one, other=other: one.group.links.strangers() == [other.name], "and that they are strangers"
            )
        with pytest.raises(RequestTimeout, match="node-0 in the directory: another coordinator, so another exchange"):
            stranger.wait_ready(timeout=0.2)
        for node in (stranger, net[0]):
            assert [(p["up"], p["other_coordinator"]) for p in node.status().peers.values()] == [(False, True)]


def test_a_node_that_is_not_ready_says_why(tmp_path: Path) -> None:
    with ExchangeNode("sole", markets={MARKET: RULES}, min_in_sync=2) as sole:
        eventually(lambda: sole.status().markets[MARKET].role == "leading", "it leads, of nobody")
        with pytest.raises(Unavailable, match="1 replicas are in sync, 2 needed") as few:
            sole.submit_order(MARKET, "buy", "1", "1")
        assert few.value.code == "not_enough_in_sync"
        with pytest.raises(RequestTimeout, match="1 replicas are in sync, 2 needed"):
            sole.wait_ready(timeout=0.2)
    nowhere, store = "tcp://127.0.0.1:1", tmp_path / "coordinator.sqlite"
    with (
        ExchangeNode("early", markets=[MARKET], directory=nowhere, coordinator=store) as early,
        pytest.raises(Unavailable, match=f"no other node is linked to this one through the directory {nowhere}"),
    ):
        early.rules(MARKET)


def test_a_market_that_exists_with_other_rules_is_a_configuration_error(exchange: Any) -> None:
    net = exchange(nodes=1, markets={MARKET: RULES})
    with pytest.raises(ConfigurationError) as caught:
        net.add(markets={MARKET: MarketRules(tick_size="5")}).wait_ready()
    assert caught.value.code == "rules_mismatch"


def test_closing_is_idempotent_and_leaves_no_thread_socket_or_file(tmp_path: Path) -> None:
    before = {thread.name for thread in threading.enumerate()}
    node = ExchangeNode("alone", markets={MARKET: RULES}, serve_directory="tcp://127.0.0.1:0")
    folder = node.data_dir
    with node:
        node.wait_ready()
        node.submit_order(MARKET, "buy", "100", "1")
        subscription = node.subscribe(MARKET, lambda _: None)
    node.close()
    assert subscription.ended
    assert {thread.name for thread in threading.enumerate()} == before
    assert not folder.exists()
    with pytest.raises(Closed):
        node.submit_order(MARKET, "buy", "100", "1")
    with pytest.raises(Closed):
        node.get_order_book(MARKET)


def test_each_caller_of_a_replica_that_has_stopped_gets_an_error_of_its_own(exchange: Any) -> None:
    node = exchange(nodes=1, markets={MARKET: RULES})[0]
    node.market(MARKET).ref.tell(JournalFailed(StorageError("the disk is gone", code="disk_failed")))
    for call in (
        lambda: node.submit_order(MARKET, "buy", "100", "1"),
        lambda: node.subscribe(MARKET),
        node.wait_ready,
        lambda: node.force_plan(MARKET),
        lambda: node.force_leader(MARKET, reason="a test"),
    ):
        depths = []
        for _ in range(3):
            with pytest.raises(StorageError, match="the disk is gone") as caught:
                call()
            assert caught.value.code == "disk_failed"
            depths.append(len(caught.traceback))
        assert len(set(depths)) == 1, "one object would gather the traceback of every call"


def test_an_error_that_is_raised_anew_is_the_same_in_all_but_its_traceback() -> None:
    class Odd(StorageError):
        def __init__(self, sector: int) -> None:
            super().__init__(f"sector {sector} is lost", code="odd")
            self.sector = sector

    error = Odd(7)
    error.__cause__ = OSError("gone")
    with pytest.raises(Odd):
        raise error
    again = copied(error)
    assert again is not error
    assert (type(again), str(again), again.message, again.code, again.sector) == (
        Odd,
        "sector 7 is lost",
        "sector 7 is lost",
        "odd",
        7,
    )
    assert (again.__cause__, again.__traceback__) == (error.__cause__, None)


def test_two_nodes_cannot_share_a_data_directory(tmp_path: Path) -> None:
    with ExchangeNode("one", data_dir=tmp_path), pytest.raises(ConfigurationError) as caught:
        ExchangeNode("one", data_dir=tmp_path)
    assert caught.value.code == "data_dir_in_use"
    with pytest.raises(ConfigurationError, match="belongs to node 'one'"):
        ExchangeNode("two", data_dir=tmp_path)


def test_services_are_announced_found_and_withdrawn(exchange: Any) -> None:
    net = exchange(nodes=2, markets={MARKET: RULES})
    assert net[0].announce("prices", "tcp://127.0.0.1:9", {"feed": "spot"}) == 1
    (entry,) = net[1].lookup("prices").entries
    assert (entry.node, entry.address, dict(entry.metadata)) == (net[0].node_id, "tcp://127.0.0.1:9", {"feed": "spot"})
    net[0].unannounce("prices")
    assert net[1].lookup("prices").entries == ()


def test_the_results_of_a_batch_are_a_sequence_and_go_into_json(exchange: Any) -> None:
    net = exchange(nodes=1, markets={MARKET: MarketRules()})
    node = net[0]
    results = node.submit_many(MARKET, [node.order(MARKET, "buy", str(price), "1") for price in range(1, 1501)])
    assert len(results) == 1500
    assert [result.sequence for result in results] == list(range(results[0].sequence, results[-1].sequence + 1))
    assert [result.sequence for result in results[700:1100:100]] == [
        results[at].sequence for at in range(700, 1100, 100)
    ]
    with pytest.raises(IndexError):
        results[1500]
    assert [found["sequence"] for found in json.loads(json.dumps(as_json(results)))] == [r.sequence for r in results]


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\nb", "x" * 65])
def test_name_that_is_no_part_of_a_path_and_no_text_of_a_line_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="a node's name has 1 to 64 characters that can be seen"):
        ExchangeNode(name)
