"""The border: what callers write becomes commands, checked once. Pure.

Decimals become ticks and lots (by the market's rules), names become codes. Malformed input raises
:class:`~openoutcry.transport.errors.InvalidRequest`, and never reaches a log. A command made here needs no other check;
use :func:`checked` for commands from elsewhere.
"""

from __future__ import annotations

import difflib
import itertools
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Any, Final, TypedDict, TypeVar, Unpack, cast, overload

from ...transport.codec import INT64_MAX, NAME_LENGTH_MAX
from ...transport.errors import InvalidRequest, ProtocolError, quoted
from ...transport.numerals import written
from ...transport.plain import fault_of
from ..book.commands import (
    AMEND,
    CANCEL,
    CANCEL_ALL,
    SUBMIT,
    Command,
    OrderType,
    SelfTradePrevention,
    Side,
    TimeInForce,
    checked_commands,
    is_utf8,
)
from ..book.rules import DecimalLike, MarketRules

TIMEOUT_S_MAX: Final = 86_400.0
"""Longest timeout of a call, in seconds."""

ExpiryLike = int | datetime | timedelta
"""When an order expires: nanoseconds since the Unix epoch, a datetime with a time zone, or how long from now."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS: Final = ((10**11, "seconds", 10**9), (10**14, "milliseconds", 10**6), (10**17, "microseconds", 10**3))
"""Bounds below which a time since 1970 is in a coarser unit than nanoseconds, and the factor to convert it.

The last bound is a day of 1973 in nanoseconds: no order expires then."""
_EXPIRY_RECIPE: Final = (
    "give time.time_ns() + 3600 * 10**9 for an hour from now, a datetime with a time zone, or a timedelta"
)

_Choice = TypeVar("_Choice", Side, OrderType, TimeInForce, SelfTradePrevention)
_Options = TypeVar("_Options", bound=Mapping[str, Any])

_NAMED: Final[dict[type[Any], dict[str, Any]]] = {
    kind: {member.name.lower(): member for member in kind}
    for kind in (Side, OrderType, TimeInForce, SelfTradePrevention)
}


class RequestOptions(TypedDict, total=False):
    """Options of every command."""

    account: str | None
    """The account that sends it; default the node's name."""
    client_order_id: str | None
    """Names the request, within the dedupe window: a retry gets the first answer. Default: a new one."""


class OrderOptions(RequestOptions, total=False):
    """Options of an order, declared only here: every call that takes an order has these."""

    order_type: str | OrderType
    """``"limit"`` (the default), ``"market"`` or ``"post_only"``."""
    time_in_force: str | TimeInForce | None
    """``"gtc"``, ``"ioc"``, ``"fok"`` or ``"gtd"``; default gtc, for a market order ioc."""
    expire_ns: ExpiryLike
    """For gtd: when the order expires, by the market's time: nanoseconds since the Unix epoch, a datetime with a time
    zone, or a timedelta from now (by this machine's clock)."""
    self_trade_prevention: str | SelfTradePrevention
    """``"none"`` (the default), ``"cancel_newest"``, ``"cancel_oldest"``, ``"cancel_both"`` or
    ``"decrement_and_cancel"``: what happens when it meets an order of the same account."""


class Requester:
    """The default account of a node's commands; names requests that have no name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._prefix = f"{uuid.uuid4().hex[:20]}."
        self._numbers = itertools.count(1)

    def account(self, account: str | None) -> str:
        """Return the account that sends a command."""
        return self.name if account is None else checked_account(account)

    def request_name(self, client_order_id: str | None) -> str:
        """Return the name of a request: the given one, or a new one."""
        if client_order_id is None:
            return f"{self._prefix}{next(self._numbers):x}"
        return checked_client_order_id(client_order_id)


def submit_command(
    rules: MarketRules,
    requester: Requester,
    side: str | Side,
    price: DecimalLike | None,
    quantity: DecimalLike,
    *,
    order_type: str | OrderType = OrderType.LIMIT,
    time_in_force: str | TimeInForce | None = None,
    expire_ns: ExpiryLike = 0,
    self_trade_prevention: str | SelfTradePrevention = SelfTradePrevention.NONE,
    account: str | None = None,
    client_order_id: str | None = None,
) -> Command:
    """Return the command that enters an order; see :class:`OrderOptions` for the arguments after ``*``."""
    on_behalf, named = requester.account(account), requester.request_name(client_order_id)
    kind = _member(OrderType, order_type, "order_type")
    if time_in_force is None:
        tif = TimeInForce.IOC if kind is OrderType.MARKET else TimeInForce.GTC
    else:
        tif = _member(TimeInForce, time_in_force, "time_in_force")
    if price is None and kind is not OrderType.MARKET:
        raise InvalidRequest(
            f"a {kind.name.lower()} order needs a price; only a market order goes without", code="invalid_price"
        )
    expires = checked_expiry(expire_ns)
    if tif is TimeInForce.GTD and not expires:
        raise InvalidRequest(f"a gtd order says when it lapses, by expire_ns: {_EXPIRY_RECIPE}", code="invalid_expiry")
    return (
        SUBMIT,
        on_behalf,
        named,
        int(_member(Side, side, "side")),
        int(kind),
        rules.price_to_ticks(price) if price is not None else None,
        rules.quantity_to_lots(quantity),
        int(tif),
        expires,
        int(_member(SelfTradePrevention, self_trade_prevention, "self_trade_prevention")),
    )


def checked_expiry(value: ExpiryLike, now_ns: Callable[[], int] = time.time_ns) -> int:
    """Return when an order expires, in nanoseconds since the Unix epoch; 0: no expiry was given.

    A timedelta counts from this machine's clock; a retry with the same client order id must give the same time.

    Raises:
        InvalidRequest: it is not a time, has no time zone, or is in another unit (code ``invalid_expiry``).
    """
    if isinstance(value, datetime | timedelta):
        try:
            if isinstance(value, timedelta):
                expire_ns = now_ns() + value // timedelta(microseconds=1) * 1000
            elif value.utcoffset() is None:
                raise _no_expiry(
                    f"{quoted(value, 80)} has no time zone: give value.astimezone() if it is this machine's local "
                    "time, value.replace(tzinfo=UTC) if it is UTC"
                )
            else:
                expire_ns = (value - _EPOCH) // timedelta(microseconds=1) * 1000
        except (OverflowError, TypeError, ArithmeticError) as error:
            raise _no_expiry(f"{quoted(value, 80)} cannot be counted: {error}") from error
        if not 0 < expire_ns <= INT64_MAX:
            raise _no_expiry(f"{quoted(value, 80)} is outside the years 1970 to 2262")
        return expire_ns
    if type(value) is not int:
        if isinstance(value, float):
            raise _no_expiry(f"{quoted(value)} is a float: floats are too coarse for nanoseconds; {_EXPIRY_RECIPE}")
        raise _no_expiry(f"{quoted(value)} is a {type(value).__name__}; {_EXPIRY_RECIPE}")
    if not 0 <= value <= INT64_MAX:
        raise _no_expiry(f"{quoted(value)} is below 0 or above {INT64_MAX}; {_EXPIRY_RECIPE}")
    for below, unit, factor in _UNITS if value else ():
        if value < below:
            raise _no_expiry(
                f"{value} would be in 1970 to 1973; as {unit} since the Unix epoch, multiply it by {factor:_}. If it "
                f"is a duration, {_EXPIRY_RECIPE}"
            )
    return value


def _no_expiry(what: str) -> InvalidRequest:
    return InvalidRequest(f"expire_ns is in nanoseconds since the Unix epoch: {what}", code="invalid_expiry")


def cancel_command(requester: Requester, order_id: int, **options: Unpack[RequestOptions]) -> Command:
    """Return the command that cancels an order."""
    return (CANCEL, *_named(requester, options), checked_order_id(order_id))


def cancel_all_command(requester: Requester, **options: Unpack[RequestOptions]) -> Command:
    """Return the command that cancels every open order of an account."""
    return (CANCEL_ALL, *_named(requester, options))


def amend_command(
    rules: MarketRules,
    requester: Requester,
    order_id: int,
    price: DecimalLike | None,
    quantity: DecimalLike | None,
    **options: Unpack[RequestOptions],
) -> Command:
    """Return the command that gives an order a new price, a new open quantity, or both."""
    named = _named(requester, options)
    if price is None and quantity is None:
        raise InvalidRequest("an amend names a new price, a new quantity, or both", code="invalid_amend")
    return (
        AMEND,
        *named,
        checked_order_id(order_id),
        rules.price_to_ticks(price) if price is not None else None,
        rules.quantity_to_lots(quantity) if quantity is not None else None,
    )


def known(options: _Options, kind: type[Any], what: str) -> _Options:
    """Return ``options``, all of which ``kind`` declares; ``what`` names the command.

    Raises:
        TypeError: there is no such option.
    """
    for name in options.keys() - kind.__annotations__.keys():
        close = difflib.get_close_matches(name, kind.__annotations__, 1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(kind.__annotations__)}"
        raise TypeError(f"{what} got an unexpected keyword argument {name!r}{hint}")
    return options


def _named(requester: Requester, options: RequestOptions) -> tuple[str, str]:
    known(options, RequestOptions, "a request")
    return requester.account(options.get("account")), requester.request_name(options.get("client_order_id"))


def checked(commands: Iterable[Command]) -> tuple[Command, ...]:
    """Return ``commands`` of any origin, if a leader can accept them."""
    try:
        each = iter(commands)
    except TypeError:
        raise InvalidRequest(f"a batch is a list of commands, not {quoted(commands)}", code="invalid_command") from None
    try:
        made = checked_commands(tuple(each))
    except ProtocolError as error:
        raise InvalidRequest(error.message, code="invalid_command") from error
    for account in {command[1] for command in made}:
        checked_account(account)
    ids = "".join([command[2] for command in made])
    if " " in ids or not (ids.isascii() and ids.isprintable()):  # otherwise all names in it are plain
        for command in made:
            if command[2]:
                checked_client_order_id(command[2])
    return made


def checked_market(value: str) -> str:
    """Return ``value`` if it can be the name of a market, whether there is such a market or not."""
    return _text(value, "a market's name", "invalid_market")


def checked_node(value: str) -> str:
    """Return ``value`` if it can be the name or the id of a node, whether there is such a node or not."""
    return _text(value, "a node's name or id", "invalid_node")


def checked_service(service: str, address: str = "", metadata: Mapping[str, str] | None = None) -> str:
    """Return the name of a service if its fields are text; the directory checks the rest."""
    _text(address, "a service's address", "invalid_request")
    if metadata is not None and not isinstance(metadata, Mapping):
        raise InvalidRequest(f"a service's metadata are a mapping of strings, not {quoted(metadata)}")
    for each in itertools.chain.from_iterable((metadata or {}).items()):
        _text(each, "a key or value of a service's metadata", "invalid_request")
    if fault := fault_of(_text(service, "a service's name", "invalid_request")):
        raise InvalidRequest(f"{quoted(service, 80)} cannot be a service's name: {fault}")
    return service


def checked_rules(value: MarketRules) -> MarketRules:
    """Return ``value`` if it is a MarketRules."""
    if not isinstance(value, MarketRules):
        raise InvalidRequest(f"rules are MarketRules, not {type(value).__name__}", code="invalid_rules")
    return value


def checked_order_id(value: int) -> int:
    """Return ``value`` if it can be the number of an order."""
    if type(value) is not int or not 1 <= value <= INT64_MAX:
        raise InvalidRequest(f"an order id is a positive integer, not {quoted(value)}", code="invalid_order_id")
    return value


def checked_account(value: str) -> str:
    """Return ``value`` if it can be the name of an account."""
    return _name(value, "account", "invalid_account")


def checked_client_order_id(value: str) -> str:
    """Return ``value`` if it can name a request."""
    return _name(value, "client order id", "invalid_client_order_id")


def checked_timeout(seconds: float) -> float:
    """Return ``seconds`` if a call can wait that long."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= TIMEOUT_S_MAX:
        raise InvalidRequest(
            f"a timeout is 0 to {written(TIMEOUT_S_MAX)} seconds, not {quoted(seconds)}", code="invalid_timeout"
        )
    return seconds


def checked_count(value: int, what: str, *, at_least: int = 0) -> int:
    """Return ``value`` if it is a valid count; ``what`` names it."""
    if type(value) is not int or not at_least <= value <= INT64_MAX:
        raise InvalidRequest(
            f"{what} is a whole number from {at_least} to {INT64_MAX}, not {quoted(value)}", code=f"invalid_{what}"
        )
    return value


@overload
def as_word(value: str | IntEnum) -> str: ...
@overload
def as_word(value: str | IntEnum | None) -> str | None: ...
def as_word(value: str | IntEnum | None) -> str | None:
    """Return a side, an order type, … as its name, for links that carry text."""
    return value.name.lower() if isinstance(value, IntEnum) else value


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
    raise InvalidRequest(f"{what} is one of {', '.join(choices)}, not {quoted(value)}", code=f"invalid_{what}")


def _name(value: str, what: str, code: str) -> str:
    if type(value) is not str or not 1 <= len(value) <= NAME_LENGTH_MAX or not (value.isascii() or is_utf8(value)):
        raise InvalidRequest(f"the {what} is a string of 1 to {NAME_LENGTH_MAX} characters", code=code)
    if fault := fault_of(value):
        raise InvalidRequest(f"{quoted(value, 80)} cannot be the {what}: {fault}", code=code)
    return value


def _text(value: str, what: str, code: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{what} is a string, not {quoted(value)}", code=code)
    return value
