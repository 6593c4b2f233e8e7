"""How a bot is tested: real nodes, a probe that hears what it reports, a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from market_maker import MARKET, RULES, MarketMaker, Quoted
from openoutcry.actors import stop_and_join
from openoutcry.actors.testing import ActorProbe, Exchange, FakeClock


@pytest.fixture
def net(exchange: Callable[..., Exchange]) -> Exchange:
    """Two nodes: the bot trades at the first, its customers at the second."""
    return exchange(nodes=2, markets={MARKET: RULES})


@pytest.fixture
def bot(net: Exchange, actor_probe: ActorProbe, fake_clock: FakeClock) -> Iterator[Any]:
    """A bot that reports to the probe; its first quotes have been read."""
    ref = MarketMaker.start(net[0], MARKET, fair=Decimal("20.00"), report_to=actor_probe.ref)
    assert actor_probe.expect(Quoted, within=10) == Quoted(Decimal("19.90"), Decimal("20.10"), Decimal(0))
    yield ref
    stop_and_join(ref, timeout_s=10)


def test_bot_moves_its_quotes_against_what_it_has_traded(net: Exchange, bot: Any, actor_probe: ActorProbe) -> None:
    bought = net[1].submit_order(MARKET, "buy", "20.10", 3, account="customer", time_in_force="ioc")
    assert bought.filled_quantity == 3
    assert actor_probe.expect(Quoted) == Quoted(Decimal("19.93"), Decimal("20.13"), Decimal(-3))

    net[1].submit_order(MARKET, "sell", "19.93", 5, account="customer", time_in_force="ioc")
    assert actor_probe.expect(Quoted) == Quoted(Decimal("19.88"), Decimal("20.08"), Decimal(2))
    actor_probe.expect_none()
    net.assert_same_hash(MARKET)


def test_bot_quotes_again_when_its_quotes_are_gone(
    net: Exchange, bot: Any, actor_probe: ActorProbe, fake_clock: FakeClock
) -> None:
    fake_clock.advance(10)
    actor_probe.expect_none()  # nothing to mend
    net[0].cancel_all(MARKET, account="maker-node-0")
    fake_clock.advance(1)
    actor_probe.expect(Quoted)
    assert len(net[0].open_orders(MARKET, "maker-node-0")) == 2


def test_bot_whose_subscription_was_cut_counts_what_it_missed(
    net: Exchange, bot: Any, actor_probe: ActorProbe, fake_clock: FakeClock
) -> None:
    bot._actor_weakref()._subscription.close()
    net[1].submit_order(MARKET, "buy", "20.10", 3, account="customer", time_in_force="ioc")
    net.wait_same_sequence(MARKET)
    actor_probe.expect_none(0.05)
    fake_clock.advance(1)
    assert actor_probe.expect(Quoted) == Quoted(Decimal("19.93"), Decimal("20.13"), Decimal(-3))


def test_bot_leaves_nothing_behind_when_it_stops(net: Exchange, bot: Any) -> None:
    bot.stop()
    net.wait_same_sequence(MARKET)
    assert net[1].all_orders(MARKET) == []
