"""126 short cases from other engines' own test suites, run through the edge, the border check and the book.

What the scenarios call things, and what they are here:

- Their order id is the submitter's; ours is the sequence number. So an id of theirs becomes a client order id. A live
  id used again is then a client order id used again, which is refused; an id used again after its order is gone is a
  *new* client order id here, because ``(account, client_order_id)`` stays taken for the whole dedupe window.
- Self-trade prevention is the market's there and the order's here. An order without an owner has it off.
- ``cancel_taker``, ``cancel_maker``, ``cancel_both`` are CANCEL_NEWEST, CANCEL_OLDEST, CANCEL_BOTH.
- Prices and quantities are in units there: ``tick: 5`` is a tick size of "5" here. A string is not a price on the
  wire, where theirs are refused, but it is how a user writes one at our edge; so theirs are put on the wire.
- "Another's order" and "no such order" are one answer here: the account has no open order of that id.

The three cases marked as conventions (a smaller and an equal quantity keep their place in the queue, a larger one
loses it) are what we do. No case differs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openoutcry.actors.book.commands import (
    ACCEPTED,
    AMEND,
    CANCEL,
    CANCELLED,
    DUPLICATE,
    REJECTED,
    SUBMIT,
    TRADE,
    CancelReason,
    Command,
    Event,
    OrderType,
    RejectCode,
    SelfTradePrevention,
    TimeInForce,
    checked_commands,
)
from openoutcry.actors.book.orderbook import OrderBook
from openoutcry.actors.book.rules import MarketRules
from openoutcry.transport.errors import InvalidRequest, ProtocolError
from recorded import DATA

SIDES = {"buy": 0, "sell": 1}
ORDERS = {
    "gtc": (OrderType.LIMIT, TimeInForce.GTC),
    "ioc": (OrderType.LIMIT, TimeInForce.IOC),
    "fok": (OrderType.LIMIT, TimeInForce.FOK),
    "post_only": (OrderType.POST_ONLY, TimeInForce.GTC),
    "market": (OrderType.MARKET, TimeInForce.IOC),
}
STP = {
    "none": SelfTradePrevention.NONE,
    "cancel_taker": SelfTradePrevention.CANCEL_NEWEST,
    "cancel_maker": SelfTradePrevention.CANCEL_OLDEST,
    "cancel_both": SelfTradePrevention.CANCEL_BOTH,
}
NOT_ON_THE_WIRE = "protocol"
REASONS = {
    "bad_price": {"float_refused", "invalid_price", "price_off_tick", RejectCode.PRICE_OUT_OF_RANGE, NOT_ON_THE_WIRE},
    "bad_qty": {
        "float_refused",
        "invalid_quantity",
        "quantity_off_lot",
        RejectCode.QUANTITY_TOO_SMALL,
        NOT_ON_THE_WIRE,
    },
    "bad_side": {NOT_ON_THE_WIRE},
    "bad_tif": {NOT_ON_THE_WIRE},
    "duplicate_id": {RejectCode.CLIENT_ORDER_ID_REUSED},
    "unknown_id": {RejectCode.UNKNOWN_ORDER},
    "not_owner": {RejectCode.UNKNOWN_ORDER},
    "unfillable": {RejectCode.FOK_UNFILLABLE},
    "would_cross": {RejectCode.POST_ONLY_WOULD_TRADE},
}
NEVER_ENTERED = 2**40


class Market:
    """A book that is spoken to in the scenarios' words."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.tick, self.lot = config.get("tick", 1), config.get("lot", 1)
        self.rules = MarketRules(
            tick_size=f"{self.tick}",
            lot_size=f"{self.lot}",
            quantity_min_lots=config.get("min_qty", 1) // self.lot,
        )
        self.stp = int(STP[config.get("stp", "none")])
        self.book = OrderBook(self.rules)
        self.order_ids: dict[Any, int] = {}
        self.their_ids: dict[int, Any] = {}
        self.client_order_ids: dict[Any, str] = {}
        self.owners: dict[Any, str] = {}

    def execute(self, step: dict[str, Any]) -> tuple[list[Event], str | None]:
        """Return the events of one step, and the code under which it was refused."""
        try:
            (command,) = checked_commands((self.command(step),))
        except (InvalidRequest, ProtocolError) as error:
            return [], error.code
        sequence = self.book.sequence + 1
        events = self.book.apply(sequence, 0, (command,))
        if events[0][0] == ACCEPTED:
            self.order_ids[step["id"]] = sequence
            self.their_ids[sequence] = step["id"]
        if events[0][0] == DUPLICATE:
            return events, RejectCode.CLIENT_ORDER_ID_REUSED
        return events, events[0][-1] if events[0][0] == REJECTED else None

    def command(self, step: dict[str, Any]) -> Command:
        order_id = self.order_ids.get(step["id"], NEVER_ENTERED)
        price = self.at_the_edge(step["price"], self.rules.price_to_ticks) if "price" in step else None
        quantity = self.at_the_edge(step["qty"], self.rules.quantity_to_lots) if "qty" in step else None
        if step["op"] == "new":
            owner = step.get("owner")
            account = self.owners[step["id"]] = owner or "nobody"
            if self.book.order(order_id) is None:
                self.client_order_ids[step["id"]] = f"{step['id']} at {self.book.sequence + 1}"
            name = self.client_order_ids[step["id"]]
            side = SIDES.get(step["side"], step["side"])
            order_type, time_in_force = ORDERS.get(step["tif"], (OrderType.LIMIT, step["tif"]))
            tif = int(time_in_force) if isinstance(time_in_force, TimeInForce) else time_in_force
            stp = self.stp if owner else int(SelfTradePrevention.NONE)
            return (SUBMIT, account, name, side, int(order_type), price, quantity, tif, 0, stp)
        account = step.get("owner") or self.owners.get(step["id"], "nobody")
        if step["op"] == "cancel":
            return (CANCEL, account, "", order_id)
        return (AMEND, account, "", order_id, price, quantity)

    @staticmethod
    def at_the_edge(value: Any, convert: Callable[[Any], int]) -> Any:
        if isinstance(value, dict):
            value = float(value["$float"])
        return value if value is None or isinstance(value, str) else convert(value)

    def queues(self, side: int) -> list[list[Any]]:
        """The side as a scenario's ``final_book`` has it."""
        return [
            [
                level.price_ticks * self.tick,
                [
                    [self.their_ids[order.order_id], order.open_lots * self.lot]
                    for order in self.book.orders_at(level.price_ticks)
                ],
            ]
            for level in self.book.depth(side)
        ]

    def totals(self) -> dict[str, list[int]]:
        sides = [self.book.depth(side) for side in (0, 1)]
        return {
            "orders": [sum(level.orders for level in levels) for levels in sides],
            "volume": [sum(level.quantity_lots for level in levels) * self.lot for levels in sides],
        }


def all_scenarios() -> list[Any]:
    return [
        pytest.param(scenario, id=f"{path.stem}-{scenario['id']}")
        for path in sorted((DATA / "scenarios").glob("*.json"))
        for scenario in json.loads(path.read_text())["scenarios"]
    ]


SCENARIOS = all_scenarios()


def test_all_126_scenarios_are_here(data: Path) -> None:
    assert len(SCENARIOS) == 126


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(scenario: dict[str, Any]) -> None:
    market = Market(scenario["config"])
    for at, step in enumerate(scenario["commands"]):
        expect, where = step["expect"], f"step {at}: {step}"
        events, code = market.execute(step)

        assert ("accepted" if code is None else "rejected") == expect["result"], where
        if code is not None:
            assert code in REASONS[expect["reason"]], where
            assert len(events) <= 1, "a refused command changed something"
        order_id = market.order_ids.get(step["id"], NEVER_ENTERED)
        trades = [
            [
                market.their_ids[event[5]],
                market.their_ids[event[6]],
                int(market.rules.ticks_to_price(event[3])),
                int(market.rules.lots_to_quantity(event[4])),
            ]
            for event in events
            if event[0] == TRADE
        ]
        assert trades == expect["trades"], where
        prevented = [
            market.their_ids[event[2]]
            for event in events
            if event[0] == CANCELLED and event[-1] == CancelReason.SELF_TRADE and event[2] != order_id
        ]
        assert prevented == expect["stp_cancelled"], where
        if code is None:
            left = market.book.order(order_id)
            assert (left.open_lots * market.lot if left else 0) == expect["rest"], where
        if "totals" in expect:
            assert market.totals() == expect["totals"], where
    market.book.check()
    assert {"bids": market.queues(0), "asks": market.queues(1)} == scenario["final_book"]
