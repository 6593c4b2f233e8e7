"""A subscriber can do no harm: what it asks for is checked, what it raises is its own affair, and its end is an end."""

from __future__ import annotations

import copy
import logging
import pickle
import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from openoutcry.actors import ExchangeNode, InvalidRequest, MarketRules, Unavailable
from openoutcry.actors.book.commands import ACCEPTED, ACCEPTED_QUANTITY
from openoutcry.actors.book.feed import Watch
from openoutcry.actors.market import views
from openoutcry.actors.market.subscription import Subscription
from openoutcry.actors.market.views import MarketUpdate, as_json
from openoutcry.actors.testing import eventually

MARKET = "BTC-USD"


@pytest.fixture
def node() -> Iterator[ExchangeNode]:
    """A node that stands alone and can trade."""
    with ExchangeNode("alone", markets={MARKET: MarketRules()}) as made:
        made.wait_ready()
        yield made


class Mute(Exception):
    """What has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no")


def watchers(node: ExchangeNode) -> int:
    found: int = node.status().markets[MARKET].subscribers
    return found


def fail() -> None:
    raise ValueError("it is mine alone")


@pytest.mark.parametrize("value", ["100", 1.5, float("nan"), -1, 2**63, True, []])
@pytest.mark.parametrize("named", ["after", "queue_size_max"])
def test_what_a_subscriber_asks_for_is_checked_before_the_market_hears_of_it(
    node: ExchangeNode, named: str, value: Any
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        node.subscribe(MARKET, **{named: value})
    assert caught.value.code == f"invalid_{named}"
    assert watchers(node) == 0


@pytest.mark.parametrize("value", [None, 0])
def test_a_queue_that_can_hold_nothing_is_refused(node: ExchangeNode, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        node.subscribe(MARKET, queue_size_max=value)
    assert caught.value.code == "invalid_queue_size_max"


@pytest.mark.parametrize("after", [None, 0], ids=["from now on", "from the beginning"])
def test_one_that_raises_on_the_markets_thread_is_cut_and_the_others_and_the_market_go_on(
    node: ExchangeNode, after: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    before, failing = (
        node.subscribe(MARKET, after=after),
        node.market(MARKET).subscribe(after=after, queue_size_max=100, arrived=fail),
    )
    behind = node.subscribe(MARKET, after=after)
    order = node.submit_order(MARKET, "buy", "100", "1")
    for subscription in (before, behind):
        eventually(lambda s=subscription: s.get(timeout=10).sequence == order.sequence, "the others get the event")
    while failing.get(timeout=10) is not None:
        pass
    assert isinstance(failing.error, Unavailable)
    assert (failing.error.code, "it is mine alone" in str(failing.error)) == ("subscriber_failed", True)
    (record,) = [record for record in caplog.records if vars(record).get("event") == "subscriber_failed"]
    assert (record.levelno, record.exc_info is not None) == (logging.ERROR, True)
    assert watchers(node) == 2
    assert node.submit_order(MARKET, "buy", "100", "1").sequence == order.sequence + 1


@pytest.mark.parametrize("after_cut", [False, True], ids=["ends by it", "was cut before"])
def test_a_function_that_raises_ends_its_subscription_with_an_error_that_says_so(
    node: ExchangeNode, after_cut: bool, caplog: pytest.LogCaptureFixture
) -> None:
    given: list[int] = []
    go_on = threading.Event()

    def function(update: MarketUpdate) -> None:
        given.append(update.sequence)
        assert go_on.wait(10)
        raise Mute

    subscription = node.subscribe(MARKET, function, queue_size_max=1)
    first = node.submit_order(MARKET, "buy", "100", "1")
    eventually(lambda: given, "the function has the first update")
    if after_cut:
        eventually(lambda: node.submit_order(MARKET, "buy", "100", "1") and subscription.ended, "too many wait")
    go_on.set()
    eventually(lambda: subscription.ended and watchers(node) == 0, "the market tells it nothing any more")
    assert (given, subscription.last_sequence) == ([first.sequence], first.sequence)
    eventually(lambda: [r for r in caplog.records if vars(r).get("event") == "subscriber_failed"], "it is logged")
    assert subscription.error is not None
    if after_cut:
        assert subscription.error.code == "overloaded", "the first end is the one that counts"
    else:
        assert isinstance(subscription.error, Unavailable)
        assert (subscription.error.code, "Mute" in subscription.error.message) == ("subscriber_failed", True)


def test_a_function_that_closes_its_own_subscription_ends_it_without_an_error(node: ExchangeNode) -> None:
    made: list[Subscription] = []

    def function(_: MarketUpdate) -> None:
        made[0].close()

    made.append(node.subscribe(MARKET, function))
    node.submit_order(MARKET, "buy", "100", "1")
    eventually(lambda: made[0].ended, "it has closed it")
    assert made[0].error is None


def test_a_subscriber_that_always_raises_does_not_keep_the_replica_from_ending(node: ExchangeNode) -> None:
    told: list[Any] = []

    def watcher(news: Any) -> bool:
        told.append(news)
        raise ValueError("always")

    book = node.market(MARKET).ref
    book.ask(Watch(watcher, None), timeout=10)
    left = node.subscribe(MARKET)
    node.close()
    assert left.get(timeout=10) is None
    assert len(told) == 2, "that the node is closed, and that it has raised"


def test_one_that_is_closed_is_forgotten_though_nothing_happens_in_the_market(node: ExchangeNode) -> None:
    first, second = node.subscribe(MARKET), node.subscribe(MARKET)
    assert watchers(node) == 2
    first.close()
    eventually(lambda: watchers(node) == 1, "the market tells it nothing any more")
    second.close()
    eventually(lambda: watchers(node) == 0, "nor the other")


def test_all_subscribers_are_given_one_value_whose_decimals_are_made_once_and_only_if_looked_at(
    node: ExchangeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted: list[Any] = []
    convert = views.to_event
    monkeypatch.setattr(views, "to_event", lambda event, rules: converted.append(event) or convert(event, rules))
    into: queue.Queue[MarketUpdate] = queue.Queue()
    subscriptions = [node.subscribe(MARKET) for _ in range(3)]
    node.subscribe(MARKET, into)
    node.submit_order(MARKET, "buy", "100", "1")
    first, *others = [*[subscription.get(timeout=10) for subscription in subscriptions], into.get(timeout=10)]
    assert isinstance(first, MarketUpdate)
    assert all(other is first for other in others)
    assert [event[0] for event in first.raw_events] == [ACCEPTED]
    assert first.rules.lots_to_quantity(first.raw_events[0][ACCEPTED_QUANTITY]) == 1
    assert converted == [], "who looks at raw events only pays for no decimals"
    assert all(other.events is first.events for other in others)
    assert converted == list(first.raw_events)
    with pytest.raises(AttributeError):
        first.sequence = 1  # type: ignore[misc]
    for twin in (copy.copy(first), pickle.loads(pickle.dumps(first))):
        assert (twin, hash(twin), twin.events, as_json(twin)) == (first, hash(first), first.events, as_json(first))
