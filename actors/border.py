"""The border: what callers write becomes commands, checked once. Pure.

Decimals become ticks and lots (by the market's rules), names become codes. Whatever is malformed raises
:class:`~openoutcry.transport.errors.InvalidRequest`, and nothing of it gets as far as a log. A command that was made
here needs no other check; one that comes from elsewhere has :func:`checked`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar, cast

from ..transport.errors import InvalidRequest, ProtocolError, shown
from .book.commands import (
    AMEND,
    CANCEL,
    INT64_MAX,
    NAME_LENGTH_MAX,
    SUBMIT,
    Command,
    OrderType,
    SelfTradePrevention,
    Side,
    TimeInForce,
    checked_commands,
    is_utf8,
)
from .book.rules import DecimalLike, MarketRules

TIMEOUT_S_MAX: Final = 86_400.0
"""Longest time-out of a call, in seconds."""

_Choice = TypeVar("_Choice", Side, OrderType, TimeInForce, SelfTradePrevention)

_NAMED: Final[dict[type[Any], dict[str, Any]]] = {
    kind: {member.name.lower(): member for member in kind}
    for kind in (Side, OrderType, TimeInForce, SelfTradePrevention)
}


def submit_command(
    rules: MarketRules,
    account: str,
    client_order_id: str,
    side: str | Side,
    price: DecimalLike | None,
    quantity: DecimalLike,
    order_type: str | OrderType,
    time_in_force: str | TimeInForce | None,
    expire_ns: int,
    self_trade_prevention: str | SelfTradePrevention,
) -> Command:
    """Return the command that enters an order; see :meth:`~.node.ExchangeNode.submit_order` for the arguments."""
    kind = _member(OrderType, order_type, "order_type")
    if time_in_force is None:
        tif = TimeInForce.IOC if kind is OrderType.MARKET else TimeInForce.GTC
    else:
        tif = _member(TimeInForce, time_in_force, "time_in_force")
    if price is None and kind is not OrderType.MARKET:
        raise InvalidRequest("only a market order goes without a price", code="invalid_price")
    if type(expire_ns) is not int or not 0 <= expire_ns <= INT64_MAX:
        raise InvalidRequest("expire_ns is a number of nanoseconds since the Unix epoch", code="invalid_expiry")
    return (
        SUBMIT,
        account,
        client_order_id,
        int(_member(Side, side, "side")),
        int(kind),
        rules.price_to_ticks(price) if price is not None else None,
        rules.quantity_to_lots(quantity),
        int(tif),
        expire_ns,
        int(_member(SelfTradePrevention, self_trade_prevention, "self_trade_prevention")),
    )


def cancel_command(account: str, client_order_id: str, order_id: int) -> Command:
    """Return the command that cancels an order."""
    return (CANCEL, account, client_order_id, checked_order_id(order_id))


def amend_command(
    rules: MarketRules,
    account: str,
    client_order_id: str,
    order_id: int,
    price: DecimalLike | None,
    quantity: DecimalLike | None,
) -> Command:
    """Return the command that gives an order a new price, a new open quantity, or both."""
    if price is None and quantity is None:
        raise InvalidRequest("an amend names a new price, a new quantity, or both", code="invalid_amend")
    return (
        AMEND,
        account,
        client_order_id,
        checked_order_id(order_id),
        rules.price_to_ticks(price) if price is not None else None,
        rules.quantity_to_lots(quantity) if quantity is not None else None,
    )


def checked(commands: Iterable[Command]) -> tuple[Command, ...]:
    """Return ``commands``, made by whomever, if a leader can take them."""
    try:
        each = iter(commands)
    except TypeError:
        raise InvalidRequest(f"a batch is a list of commands, not {shown(commands)}", code="invalid_command") from None
    try:
        return checked_commands(tuple(each))
    except ProtocolError as error:
        raise InvalidRequest(error.message, code="invalid_command") from error


def checked_market(value: str) -> str:
    """Return ``value`` if it can be the name of a market, whether there is such a market or not."""
    return _text(value, "a market's name", "invalid_market")


def checked_node(value: str) -> str:
    """Return ``value`` if it can be the name or the id of a node, whether there is such a node or not."""
    return _text(value, "a node's name or id", "invalid_node")


def checked_service(service: str, address: str = "", metadata: Mapping[str, str] | None = None) -> str:
    """Return the name of a service if all that is told of it is text; the directory looks at the rest."""
    _text(address, "a service's address", "invalid_request")
    if metadata is not None and not isinstance(metadata, Mapping):
        raise InvalidRequest(f"a service's metadata are a mapping of strings, not {shown(metadata)}")
    for each in itertools.chain.from_iterable((metadata or {}).items()):
        _text(each, "a key or value of a service's metadata", "invalid_request")
    return _text(service, "a service's name", "invalid_request")


def checked_rules(value: MarketRules) -> MarketRules:
    """Return ``value`` if it is the rules of a market."""
    if not isinstance(value, MarketRules):
        raise InvalidRequest(f"rules are MarketRules, not {type(value).__name__}", code="invalid_rules")
    return value


def checked_order_id(value: int) -> int:
    """Return ``value`` if it can be the number of an order."""
    if type(value) is not int or not 1 <= value <= INT64_MAX:
        raise InvalidRequest(f"an order id is a positive integer, not {shown(value)}", code="invalid_order_id")
    return value


def checked_account(value: str) -> str:
    """Return ``value`` if it can be the name of an account."""
    return _name(value, "account", "invalid_account")


def checked_client_order_id(value: str) -> str:
    """Return ``value`` if it can name a request."""
    return _name(value, "client order id", "invalid_client_order_id")


def checked_timeout(seconds: float) -> float:
    """Return ``seconds`` if a call can wait so long."""
    if not isinstance(seconds, (int, float)) or not 0 <= seconds <= TIMEOUT_S_MAX:
        raise InvalidRequest(
            f"a timeout is 0 to {TIMEOUT_S_MAX:g} seconds, not {shown(seconds)}", code="invalid_timeout"
        )
    return seconds


def checked_count(value: int, what: str, *, at_least: int = 0) -> int:
    """Return ``value`` if it can say how many; ``what`` names it."""
    if type(value) is not int or not at_least <= value <= INT64_MAX:
        raise InvalidRequest(
            f"{what} is a whole number from {at_least} to {INT64_MAX}, not {shown(value)}", code=f"invalid_{what}"
        )
    return value


def _member(kind: type[_Choice], value: str | _Choice, what: str) -> _Choice:
    if type(value) is kind:
        return value
    choices = _NAMED[kind]
    if isinstance(value, str):
        found = choices.get(value)
        if found is None:
            found = choices.get(value.lower())
        if found is not None:
            return cast("_Choice", found)
    raise InvalidRequest(f"{what} is one of {', '.join(choices)}, not {shown(value)}", code=f"invalid_{what}")


def _name(value: str, what: str, code: str) -> str:
    if type(value) is not str or not 1 <= len(value) <= NAME_LENGTH_MAX or not (value.isascii() or is_utf8(value)):
        raise InvalidRequest(f"the {what} is a string of 1 to {NAME_LENGTH_MAX} characters", code=code)
    return value


def _text(value: str, what: str, code: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{what} is a string, not {shown(value)}", code=code)
    return value
