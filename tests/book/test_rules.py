"""Decimals become ticks and lots exactly or not at all, and nothing malformed passes the border."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from openoutcry.actors.book.commands import (
    AMEND,
    CANCEL,
    CANCEL_ALL,
    CLOCK,
    CONFIGURE,
    MESSAGES,
    NOTE,
    REJECTED,
    SUBMIT,
    TRADE,
    Command,
    OrderType,
    RejectCode,
    TimeInForce,
    checked_commands,
)
from openoutcry.actors.book.orderbook import OrderBook
from openoutcry.actors.book.rules import MarketRules
from openoutcry.actors.market.views import as_json, to_level
from openoutcry.transport import codec
from openoutcry.transport.codec import INT64_MAX, NAME_LENGTH_MAX
from openoutcry.transport.errors import ConfigurationError, InvalidRequest, ProtocolError

RULES = MarketRules(tick_size="0.05", lot_size="0.001")
LIMIT, MARKET, POST_ONLY = map(int, OrderType)
GTC, IOC, FOK, GTD = map(int, TimeInForce)


# -- decimals to ticks and lots, and back ----------------------------------------------------------------------


def test_decimals_become_whole_ticks_and_lots_and_come_back_with_the_same_digits() -> None:
    prices = {"100.25": 2005, "1e2": 2000, 7: 140, Decimal("-0.05"): -1, "0": 0}
    assert {price: RULES.price_to_ticks(price) for price in prices} == prices
    quantities = {"0.001": 1, 3: 3000, Decimal("2.50"): 2500}
    assert {quantity: RULES.quantity_to_lots(quantity) for quantity in quantities} == quantities
    assert f"{RULES.ticks_to_price(2005)} {RULES.lots_to_quantity(2500)}" == "100.25 2.500"
    huge = MarketRules(tick_size="0.000000000000000001")
    assert f"{huge.ticks_to_price(INT64_MAX)}" == "9.223372036854775807"


@given(
    st.integers(-INT64_MAX, INT64_MAX),
    st.sampled_from(("0.01", "0.05", "5", "0.25", "1e-8", "0.000000000000000003", "1e3", "7")),
)
def test_price_of_any_ticks_is_those_ticks_and_half_a_tick_beside_is_refused(ticks: int, tick_size: str) -> None:
    rules = MarketRules(tick_size=tick_size)
    price = rules.ticks_to_price(ticks)
    assert Fraction(price) == ticks * Fraction(tick_size)
    assert rules.price_to_ticks(price) == ticks
    with pytest.raises(InvalidRequest) as caught:
        rules.price_to_ticks(price + Decimal(tick_size) / 2)
    assert caught.value.code == "price_off_tick"


@pytest.mark.parametrize("convert", [RULES.price_to_ticks, RULES.quantity_to_lots], ids=["price", "quantity"])
@pytest.mark.parametrize("value", [100.25, 1.0, float("nan"), float("inf")])
def test_float_is_refused_and_the_message_says_why(convert: Callable[[Any], int], value: float) -> None:
    with pytest.raises(InvalidRequest, match=r"never a float: .* not exact in binary") as caught:
        convert(value)
    assert caught.value.code == "float_refused"


@pytest.mark.parametrize(
    "value",
    [
        *(True, None, b"1", (), "", "abc", "nan", "sNaN", "inf", "-Infinity", "1,5", "0x10", "1" * 41),
        *("1e1000000", "1e-1000000", "0e1000000", "1e999999999999999999", Decimal("1e1000000"), Decimal("nan")),
        *(2**64 * 100, 10**5000, -(10**5000)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_a_number_of_sensible_size_is_refused_at_once(value: Any) -> None:
    for convert, code in ((RULES.price_to_ticks, "invalid_price"), (RULES.quantity_to_lots, "invalid_quantity")):
        with pytest.raises(InvalidRequest) as caught:
            convert(value)
        assert caught.value.code == code
        assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("convert", "value", "code"),
    [
        (RULES.price_to_ticks, "100.26", "price_off_tick"),
        (RULES.price_to_ticks, "0.0000000000000000000000000000000000001", "price_off_tick"),
        (RULES.price_to_ticks, Decimal("0.05" + "0" * 500 + "1"), "price_off_tick"),
        (RULES.price_to_ticks, Decimal("0.04" + "9" * 500), "price_off_tick"),
        (RULES.quantity_to_lots, "0.0005", "quantity_off_lot"),
        (RULES.quantity_to_lots, "0", "invalid_quantity"),
        (RULES.quantity_to_lots, "-1", "invalid_quantity"),
    ],
)
def test_each_way_to_miss_the_grid_has_its_own_code(convert: Callable[[Any], int], value: Any, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        convert(value)
    assert caught.value.code == code


NUMERALS = st.from_regex(r"\A[-+]?[0-9]{0,20}\.?[0-9]{0,20}([eE][-+]?[0-9]{1,8})?\Z")


@given(st.text(max_size=45) | NUMERALS | st.decimals())
def test_whatever_is_written_gives_ticks_or_an_invalid_request(value: Any) -> None:
    for convert in (RULES.price_to_ticks, RULES.quantity_to_lots):
        try:
            units = convert(value)
        except InvalidRequest:
            continue
        assert abs(units) <= INT64_MAX
        unit = RULES.tick_size if convert == RULES.price_to_ticks else RULES.lot_size
        assert units * Fraction(unit) == Fraction(Decimal(value))


# -- a market's rules ------------------------------------------------------------------------------------------


def repr_of_keys(wrong: dict[str, Any]) -> str:
    return " and ".join(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tick_size": value}
        for value in (
            "0",
            "-1",
            "nan",
            "inf",
            "abc",
            "",
            0.01,
            1,
            None,
            "1e-300",
            "1e300",
            "1e9999999999",
            "0" * 50 + "1",
        )
    ]
    + [
        {"lot_size": "0"},
        {"quantity_min_lots": 0},
        {"quantity_min_lots": True},
        {"quantity_min_lots": 10**5000},
        {"quantity_max_lots": 2**63},
        {"quantity_min_lots": 10, "quantity_max_lots": 9},
        {"price_min_ticks": 5, "price_max_ticks": 4},
        {"price_min_ticks": -(2**63)},
        {"price_band_ticks": -1},
        {"reference_price_ticks": 1.5},
        {"market_protection_ticks": -1},
        {"open_orders_max": -1},
        {"dedupe_window": 0},
        {"dedupe_window": 2**20 + 1},
        {"amend_keeps_priority": 1},
    ],
    ids=repr_of_keys,
)
def test_rules_that_make_no_sense_are_a_configuration_error_that_names_them(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        MarketRules(**wrong)


def test_rules_travel_as_a_tuple_and_come_back_equal() -> None:
    fields = dataclasses.fields(MarketRules)
    rules = MarketRules(tick_size="0.5", price_min_ticks=-7, open_orders_max=3, amend_keeps_priority=False)
    carried = codec.unpack(codec.pack(rules.to_tuple()))
    assert MarketRules.from_tuple(carried) == rules
    assert len({repr(getattr(rules, field.name)) for field in fields} - {repr(field.default) for field in fields}) == 4


@pytest.mark.parametrize("values", [None, (), [], MarketRules().to_tuple()[:-1], (*MarketRules().to_tuple()[:-1], 1)])
def test_a_tuple_that_is_not_rules_is_a_protocol_error(values: Any) -> None:
    with pytest.raises(ProtocolError, match="market rules"):
        MarketRules.from_tuple(values)


# -- what the market does not allow ----------------------------------------------------------------------------


def submit(price: int | None = 10, quantity: int = 5, *, kind: int = LIMIT, tif: int = GTC, **more: Any) -> Command:
    side, name, expire_ns = more.get("side", 0), more.get("name", ""), more.get("expire_ns", 0)
    return (SUBMIT, more.get("account", "ann"), name, side, kind, price, quantity, tif, expire_ns, 0)


RESTING_ASK = submit(12, account="bob", side=1)

VIOLATIONS: dict[str, tuple[dict[str, Any] | None, tuple[Command, ...]]] = {
    RejectCode.UNKNOWN_ORDER: ({}, ((CANCEL, "ann", "", 1),)),
    RejectCode.QUANTITY_TOO_SMALL: ({"quantity_min_lots": 6}, (submit(),)),
    RejectCode.QUANTITY_TOO_LARGE: ({"quantity_max_lots": 4}, (submit(),)),
    RejectCode.PRICE_OUT_OF_RANGE: ({"price_max_ticks": 9}, (submit(),)),
    RejectCode.PRICE_OUT_OF_BAND: ({"price_band_ticks": 2, "reference_price_ticks": 13}, (submit(),)),
    RejectCode.TOO_MANY_OPEN_ORDERS: ({"open_orders_max": 1}, (submit(), submit())),
    RejectCode.POST_ONLY_WOULD_TRADE: ({}, (RESTING_ASK, submit(12, kind=POST_ONLY))),
    RejectCode.FOK_UNFILLABLE: ({}, (RESTING_ASK, submit(12, 6, tif=FOK))),
    RejectCode.INVALID_TIME_IN_FORCE: ({}, (submit(None, kind=MARKET),)),
    RejectCode.ALREADY_EXPIRED: ({}, (submit(tif=GTD, expire_ns=100),)),
    RejectCode.CLIENT_ORDER_ID_REUSED: ({}, (submit(name="x"), submit(11, name="x"))),
    RejectCode.MARKET_NOT_CONFIGURED: (None, (submit(),)),
    RejectCode.UNITS_IN_USE: ({}, (submit(), (CONFIGURE, "", "", MarketRules(tick_size="0.02").to_tuple()))),
}


def codes_of(rules: dict[str, Any] | None, *commands: Command) -> list[str]:
    book = OrderBook(None if rules is None else MarketRules(**rules))
    return [
        event[-1] for event in book.apply(1, 100, checked_commands(commands, internal=True)) if event[0] == REJECTED
    ]


@pytest.mark.parametrize("code", VIOLATIONS)
def test_each_violation_is_rejected_under_its_own_code_and_only_there(code: str) -> None:
    rules, commands = VIOLATIONS[code]
    assert codes_of(rules, *commands) == [code]


def test_every_code_has_a_violation_here_and_a_message_for_people() -> None:
    codes = {value for name, value in vars(RejectCode).items() if name.isupper()}
    assert codes == set(VIOLATIONS) == set(MESSAGES)


@pytest.mark.parametrize(
    "allowed",
    [
        ({"quantity_min_lots": 5, "quantity_max_lots": 5}, submit()),
        ({"price_min_ticks": 10, "price_max_ticks": 10}, submit()),
        ({"price_band_ticks": 3, "reference_price_ticks": 13}, submit()),
        ({"price_band_ticks": 3}, submit(10**9)),
        ({"open_orders_max": 1}, submit(), submit(tif=IOC)),
        ({}, RESTING_ASK, submit(12, 5, tif=FOK)),
        ({}, RESTING_ASK, submit(11, kind=POST_ONLY)),
        ({}, submit(tif=GTD, expire_ns=101)),
        ({}, submit(name="x"), submit(11, name="x", account="bob")),
    ],
    ids=str,
)
def test_what_lies_just_within_the_rules_is_accepted(allowed: tuple[Any, ...]) -> None:
    assert codes_of(*allowed) == []


def test_tick_and_lot_size_change_only_while_no_order_and_no_trade_is_counted_in_them() -> None:
    for unit in ({"tick_size": "0.02"}, {"lot_size": "10"}):
        other = (CONFIGURE, "", "", MarketRules(**unit).to_tuple())
        wider = (CONFIGURE, "", "", MarketRules(quantity_max_lots=7).to_tuple())
        assert codes_of({}, submit(), (CANCEL, "ann", "", 1), other, submit()) == []
        assert codes_of({}, submit(), wider) == []
        assert codes_of({}, submit(), other, submit(quantity=1000)) == [RejectCode.UNITS_IN_USE], (
            "the rules stay as they are"
        )
        assert codes_of({}, submit(12), RESTING_ASK, other) == [RejectCode.UNITS_IN_USE], (
            "the last trade's price stands"
        )


def traded_lots(rules: dict[str, Any], *commands: Command) -> list[tuple[int, int]]:
    """Price and lots of each trade."""
    events = OrderBook(MarketRules(**rules)).apply(1, 0, commands)
    return [event[3:5] for event in events if event[0] == TRADE]


def test_market_order_without_a_bound_trades_within_the_band_only() -> None:
    band = {"price_band_ticks": 2, "reference_price_ticks": 12}
    asks = [submit(price, 5, account="bob", side=1) for price in (12, 13, 14)]
    wider = (CONFIGURE, "", "", MarketRules(price_band_ticks=9, reference_price_ticks=12).to_tuple())
    far = (*asks, wider, submit(15, 5, account="bob", side=1), (CONFIGURE, "", "", MarketRules(**band).to_tuple()))
    sweep = submit(None, 100, kind=MARKET, tif=IOC)
    assert traded_lots(band, *far, sweep) == [(12, 5), (13, 5), (14, 5)]
    assert traded_lots(band, *far, sweep, sweep) == [(12, 5), (13, 5), (14, 5), (15, 5)], "the band follows the trades"
    assert codes_of(band, *far, submit(None, 20, kind=MARKET, tif=FOK)) == [RejectCode.FOK_UNFILLABLE]
    assert codes_of(band, *far, submit(15, 20, kind=MARKET, tif=IOC)) == [RejectCode.PRICE_OUT_OF_BAND]


def test_depth_of_a_level_adds_up_beyond_64_bits() -> None:
    rules = MarketRules()
    book = OrderBook(rules)
    book.apply(1, 0, (submit(10, INT64_MAX), submit(10, INT64_MAX, account="bob"), submit(10, INT64_MAX)))
    (level,) = book.depth(0)
    assert (level.quantity_lots, level.orders) == (3 * INT64_MAX, 3)
    assert json.loads(json.dumps(as_json(to_level(level, rules))))["quantity"] == str(3 * INT64_MAX)
    taker = submit(10, INT64_MAX, account="cyd", side=1, tif=FOK)
    assert book.apply(4, 0, (taker, taker, taker, taker))[-1][-1] == RejectCode.FOK_UNFILLABLE


def test_band_holds_around_a_last_trade_at_price_zero() -> None:
    """As for energy, where prices go below zero: 0 is a price, and not "no trade yet"."""
    rules = {"price_min_ticks": -1000, "price_band_ticks": 3}
    at_zero = (submit(0, 1, side=1), submit(0, 1, account="bob"))
    assert codes_of(rules, *at_zero, submit(-3)) == []
    assert codes_of(rules, *at_zero, submit(-4)) == [RejectCode.PRICE_OUT_OF_BAND]


def test_amend_is_held_to_the_limits_of_what_it_changes_only() -> None:
    """An order that the band has moved away from, or that was filled below the minimum, can still be made smaller."""
    narrow = MarketRules(price_max_ticks=9, quantity_min_lots=4, quantity_max_lots=6).to_tuple()
    start: tuple[Command, ...] = (submit(10, 5), (CONFIGURE, "", "", narrow))

    def amended(price: int | None, quantity: int | None) -> list[str]:
        book = OrderBook(MarketRules())
        events = book.apply(1, 0, (*start, (AMEND, "ann", "", 1, price, quantity)))
        return [event[-1] for event in events if event[0] == REJECTED]

    assert amended(10, 4) == amended(None, 4) == amended(9, None) == amended(9, 5) == []
    assert amended(11, None) == [RejectCode.PRICE_OUT_OF_RANGE]
    assert amended(None, 3) == [RejectCode.QUANTITY_TOO_SMALL]
    assert amended(None, 7) == [RejectCode.QUANTITY_TOO_LARGE]


def test_order_cannot_be_refilled_by_amends_until_it_outgrows_a_snapshot() -> None:
    book = OrderBook(MarketRules())
    fill = submit(10, INT64_MAX - 1, account="bob", side=1)
    refill = (AMEND, "ann", "", 1, None, INT64_MAX)
    events = book.apply(1, 0, (submit(10, INT64_MAX), fill, refill, refill))
    assert [event[-1] for event in events if event[0] == REJECTED] == [RejectCode.QUANTITY_TOO_LARGE] * 2
    assert OrderBook.restore(book.snapshot()).state_hash() == book.state_hash()


# -- the border check ------------------------------------------------------------------------------------------

WELL_FORMED: tuple[Command, ...] = (
    (SUBMIT, "ann", "1", 0, LIMIT, 10, 5, GTC, 0, 0),
    (SUBMIT, "ann", "", 1, MARKET, None, INT64_MAX, IOC, INT64_MAX, 4),
    (CANCEL, "ann", "é" * NAME_LENGTH_MAX, 1),
    (CANCEL_ALL, "ann", "3"),
    (AMEND, "ann", "", 1, None, None),
    (AMEND, "ann", "", INT64_MAX, -INT64_MAX, 1),
)
INTERNAL: tuple[Command, ...] = (
    (CLOCK, "", ""),
    (CONFIGURE, "", "", MarketRules().to_tuple()),
    (NOTE, "", "", "leadership was forced"),
)


def test_well_formed_commands_pass_the_border_unchanged() -> None:
    assert checked_commands(WELL_FORMED) is WELL_FORMED
    assert checked_commands(INTERNAL, internal=True) is INTERNAL


@pytest.mark.parametrize("command", INTERNAL)
def test_participant_cannot_send_what_only_a_leader_may(command: Command) -> None:
    for account in ("", "ann"):
        with pytest.raises(ProtocolError):
            checked_commands(((command[0], account, *command[2:]),))


WRONG = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(),
    st.integers(),
    st.sampled_from((-1, 0, 5, 2**63, -(2**63), 2**200, "", "x" * 65, "\ud800", b"ann", 1.0, 5.0, (), [])),
    st.text(max_size=3),
)


@given(st.sampled_from(WELL_FORMED + INTERNAL), st.integers(0, 9), WRONG, st.booleans())
@example(WELL_FORMED[0], 1, "\ud800", False)
@example(WELL_FORMED[0], 0, 10**5000, False)
@example(WELL_FORMED[0], 0, True, False)
@example(WELL_FORMED[0], 5, None, False)
@example(WELL_FORMED[0], 6, 5.0, False)
@example(INTERNAL[1], 3, (), True)
@example(INTERNAL[2], 3, "\ud800", True)
@example(INTERNAL[2], 3, "", True)
@example(INTERNAL[2], 3, b"text", True)
def test_one_wrong_field_is_a_protocol_error_or_a_command_that_every_replica_can_apply_and_carry(
    command: Command, at: int, wrong: Any, internal: bool
) -> None:
    altered = (*command[:at], wrong, *command[at + 1 :])
    try:
        checked = checked_commands((altered,), internal=internal)
    except ProtocolError:
        return
    book = OrderBook(MarketRules())
    book.apply(1, 0, checked)
    book.check()
    carried = codec.unpack(codec.pack(checked))
    assert (carried, [list(map(type, one)) for one in carried]) == (checked, [list(map(type, one)) for one in checked])
    assert OrderBook.restore(book.snapshot()).state_hash() == book.state_hash()


def test_no_field_takes_a_value_of_the_wrong_type_or_range() -> None:
    for command in WELL_FORMED:
        for field in range(len(command)):
            for wrong in (True, 1.0, "\ud800", b"", [], -(2**63)):
                with pytest.raises(ProtocolError):
                    checked_commands(((*command[:field], wrong, *command[field + 1 :]),))


@given(st.recursive(WRONG, lambda inner: st.lists(inner, max_size=10).map(tuple), max_leaves=12), st.booleans())
@example([WELL_FORMED[0]], False)
@example((list(WELL_FORMED[0]),), False)
@example((WELL_FORMED[0][:-1],), False)
@example(((*WELL_FORMED[0], 0),), False)
def test_nothing_but_a_tuple_of_well_formed_commands_passes(commands: Any, internal: bool) -> None:
    try:
        assert checked_commands(commands, internal=internal) is commands
    except ProtocolError:
        return
    assert type(commands) is tuple
    assert all(type(command) is tuple and command[0] in range(SUBMIT, NOTE + 1) for command in commands)
