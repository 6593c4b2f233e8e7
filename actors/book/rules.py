"""A market's rules, and the only place where decimal strings become ticks and lots. Pure."""

from __future__ import annotations

import dataclasses
from decimal import Context, Decimal
from functools import lru_cache
from typing import Any, Final

from ...transport.codec import INT64_MAX
from ...transport.errors import ConfigurationError, InvalidRequest, ProtocolError, quoted
from ...transport.numerals import DIGITS_MAX, PlainDecimal, decimal_of, is_huge, written

DEDUPE_WINDOW_MAX: Final = 2**20
"""Largest dedupe window: a book and its snapshots hold this many commands and their events."""
_EXACT: Final = Context(prec=200)
"""Wide enough that no division of two numbers of forty digits is rounded."""

WRITTEN_MAX: Final = 16_384
"""Most parsed prices and quantities to cache: a market sees the same ones often."""

DecimalLike = str | int | Decimal
"""A price or a quantity as a user writes it; never a float."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MarketRules:
    """What a market allows. Part of the log and of the state: the same on every node.

    ``tick_size`` and ``lot_size`` are decimal strings (price and quantity units a tick and a lot stand for); all
    else is in ticks, lots and counts. 0 switches an optional limit off.

    Raises:
        ConfigurationError: a value is of the wrong type or out of range.
    """

    tick_size: str = "0.01"
    lot_size: str = "1"
    quantity_min_lots: int = 1
    quantity_max_lots: int = INT64_MAX
    price_min_ticks: int = 1
    """Lowest price; below 1 where negative prices make sense, as for energy."""
    price_max_ticks: int = INT64_MAX
    price_band_ticks: int = 0
    """Largest distance of an order's price from the last trade (before one: from ``reference_price_ticks``).

    A market order without a bound of its own trades up to there.
    """
    reference_price_ticks: int = 0
    market_protection_ticks: int = 0
    """How far beyond the best opposite price a market order without a bound of its own may trade; 0 = anywhere."""
    open_orders_max: int = 0
    """Most open orders of one account."""
    dedupe_window: int = 65_536
    """Number of commands for which the market remembers an ``(account, client_order_id)``; at most 1,048,576."""
    amend_keeps_priority: bool = True
    """False: every amend goes to the back of its level, even one that only lowers the quantity."""

    def __post_init__(self) -> None:
        for name in ("tick_size", "lot_size"):
            value = getattr(self, name)
            unit = decimal_of(value) if type(value) is str else None
            if unit is None or unit <= 0 or len(written(unit)) > DIGITS_MAX:
                raise ConfigurationError(
                    f'{name} must be a positive decimal string such as "0.01", not {quoted(value, 60)}'
                )
            object.__setattr__(self, name, written(unit))
        for name, low in (
            ("quantity_min_lots", 1),
            ("quantity_max_lots", 1),
            ("price_min_ticks", -INT64_MAX),
            ("price_max_ticks", -INT64_MAX),
            ("price_band_ticks", 0),
            ("reference_price_ticks", -INT64_MAX),
            ("market_protection_ticks", 0),
            ("open_orders_max", 0),
            ("dedupe_window", 1),
        ):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= INT64_MAX:
                raise ConfigurationError(f"{name} must be an integer of at least {low}, not {quoted(value, 60)}")
        if type(self.amend_keeps_priority) is not bool:
            raise ConfigurationError("amend_keeps_priority must be true or false")
        if self.dedupe_window > DEDUPE_WINDOW_MAX:
            raise ConfigurationError(f"dedupe_window is at most {DEDUPE_WINDOW_MAX}, not {self.dedupe_window}")
        if self.quantity_min_lots > self.quantity_max_lots:
            raise ConfigurationError("quantity_min_lots exceeds quantity_max_lots: no order would be allowed")
        if self.price_min_ticks > self.price_max_ticks:
            raise ConfigurationError("price_min_ticks exceeds price_max_ticks: no order would be allowed")

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the rules as msgpack carries them: the fields' values in order."""
        return tuple([getattr(self, field.name) for field in dataclasses.fields(self)])

    @classmethod
    def from_tuple(cls, values: Any) -> MarketRules:
        """Return the rules that :meth:`to_tuple` gave.

        Raises:
            ProtocolError: the values are not those of any rules.
        """
        fields = dataclasses.fields(cls)
        if type(values) is not tuple or len(values) != len(fields):
            raise ProtocolError(f"market rules: expected an array of {len(fields)} items")
        try:
            return cls(**{field.name: value for field, value in zip(fields, values, strict=True)})
        except ConfigurationError as error:
            raise ProtocolError(f"market rules: {error}") from error

    def price_to_ticks(self, price: DecimalLike) -> int:
        """Return ``price`` as a number of ticks.

        Raises:
            InvalidRequest: a float (code ``float_refused``), not a number (``invalid_price``), or not a whole
                number of ticks (``price_off_tick``).
        """
        return _to_units(price, self.tick_size, "price", "tick")

    def quantity_to_lots(self, quantity: DecimalLike) -> int:
        """Return ``quantity`` as a number of lots.

        Raises:
            InvalidRequest: a float (code ``float_refused``), not a positive number (``invalid_quantity``), or
                not a whole number of lots (``quantity_off_lot``).
        """
        lots = _to_units(quantity, self.lot_size, "quantity", "lot")
        if lots < 1:
            raise InvalidRequest(f"the quantity must be positive, not {_shown(quantity)}", code="invalid_quantity")
        return lots

    def ticks_to_price(self, ticks: int) -> Decimal:
        """Return the price of ``ticks`` ticks, with the decimals of the tick size."""
        return _times(ticks, self.tick_size)

    def lots_to_quantity(self, lots: int) -> Decimal:
        """Return the quantity of ``lots`` lots, with the decimals of the lot size."""
        return _times(lots, self.lot_size)


def _times(count: int, unit: str) -> Decimal:
    found = _EXACT.multiply(Decimal(count), Decimal(unit))
    # Decimal writes what has more than six decimals with an exponent.
    return found if found.adjusted() >= -6 else PlainDecimal(found)


def _shown(value: DecimalLike) -> str:
    return quoted(value) if isinstance(value, str) else written(value)


def _to_units(value: DecimalLike, unit: str, what: str, unit_name: str) -> int:
    if type(value) is str or type(value) is int:
        return _units_of_written(value, unit, what, unit_name)
    if isinstance(value, float):
        text = written(value, None)
        raise InvalidRequest(
            f"a {what} is a str, int or Decimal, never a float: {text} is not exact in binary; "
            f'write "{text}" in quotes',
            code="float_refused",
        )
    if type(value) is bool or not isinstance(value, (str, int, Decimal)):
        raise InvalidRequest(f"a {what} is a str, int or Decimal, not {type(value).__name__}", code=f"invalid_{what}")
    return _units_of(value, unit, what, unit_name)


def _units_of(value: DecimalLike, unit: str, what: str, unit_name: str) -> int:
    if (isinstance(value, str) and len(value) > 40) or (isinstance(value, int) and abs(value) >= 10**40):
        raise InvalidRequest(f"a {what} has at most 40 digits", code=f"invalid_{what}")
    number = decimal_of(value) if isinstance(value, str) else Decimal(value)
    if number is None or is_huge(number):
        raise InvalidRequest(
            f"{_shown(value)} is not a {what}: write digits and a point, as in 20.05", code=f"invalid_{what}"
        )
    units, rest = _EXACT.divmod(number, Decimal(unit))
    if abs(units) > INT64_MAX:
        raise InvalidRequest(f"the {what} {_shown(value)} is too large to represent", code=f"invalid_{what}")
    if rest:
        raise InvalidRequest(
            f"the {what} {_shown(value)} is not a whole number of {unit_name}s of {unit}",
            code=f"{what}_off_{unit_name}",
        )
    return int(units)


# Typed, so that 1 does not answer for True; of values of at most 40 digits, since no error is kept.
_units_of_written = lru_cache(WRITTEN_MAX, typed=True)(_units_of)


def difference(found: MarketRules, wanted: MarketRules) -> str:
    """Return in words which rules differ."""
    fields = [
        (field.name, getattr(found, field.name), getattr(wanted, field.name)) for field in dataclasses.fields(found)
    ]
    return ", ".join([f"{name} is {is_!r}, not {given!r}" for name, is_, given in fields if is_ != given])
