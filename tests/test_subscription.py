"""A subscriber can do no harm: what it asks for is checked, what it raises is its own affair, and its end is an end."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from openoutcry.actors import ExchangeNode, InvalidRequest, MarketRules, Unavailable
from openoutcry.actors.book.actor import Watch
from processes import eventually

MARKET = "BTC-USD"


@pytest.fixture
def node() -> Iterator[ExchangeNode]:
    """A node that stands alone and can trade."""
    with ExchangeNode("alone", markets={MARKET: MarketRules()}) as made:
        made.wait_ready()
        yield made


def watchers(node: ExchangeNode) -> int:
    found: int = node.status()["markets"][MARKET]["subscribers"]
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
def test_a_queue_that_holds_nothing_is_no_queue(node: ExchangeNode, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        node.subscribe(MARKET, queue_size_max=value)
    assert caught.value.code == "invalid_queue_size_max"


@pytest.mark.parametrize("after", [None, 0], ids=["from now on", "from the beginning"])
def test_one_that_raises_on_the_markets_thread_is_cut_and_the_others_and_the_market_go_on(
    node: ExchangeNode, after: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    before, failing = (
        node.subscribe(MARKET, after=after),
        node._subscribe(MARKET, None, after, 100, fail),
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


def test_one_that_raises_whatever_it_is_told_does_not_keep_the_replica_from_ending(node: ExchangeNode) -> None:
    told: list[Any] = []

    def watcher(news: Any) -> bool:
        told.append(news)
        raise ValueError("always")

    book = node._books[MARKET]
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
