"""Commands and events as the log and the wire carry them: their layouts, their codes and the border check.

Inside, a command and an event are plain tuples whose first item is their kind: they are what msgpack carries, what
the journal stores and what the book matches, with no conversion between. Prices are ticks, quantities are lots,
times are nanoseconds since the Unix epoch, all ``int``.

Commands (``account`` is who asks, ``client_order_id`` names the request for exactly-once execution; ``""`` = unnamed)::

    (SUBMIT, account, client_order_id, side, order_type, price | None, quantity, time_in_force, expire_ns, stp)
    (CANCEL, account, client_order_id, order_id)
    (CANCEL_ALL, account, client_order_id)
    (AMEND, account, client_order_id, order_id, price | None, open_quantity | None)
    (CLOCK, "", "")                         lets good-till-date orders expire when nothing else happens
    (CONFIGURE, "", "", rules)              the market's rules, :meth:`MarketRules.to_tuple`; the log's first command
    (SET_TIME, "", "", text)                the log continues from its record's time, earlier or not; alone in a record
    (NOTE, "", "", text)                    changes nothing; tells readers of the log what an operator did to the market

Events, each with the sequence number of the command that caused it::

    (ACCEPTED, sequence, order_id, account, client_order_id, side, price | None, quantity)
    (REJECTED, sequence, account, client_order_id, code)
    (TRADE, sequence, trade_id, price, quantity, maker_id, taker_id, maker_account, taker_account, taker_side, time_ns)
    (CANCELLED, sequence, order_id, account, side, price | None, quantity, open_quantity, reason)  the order's own price
    (AMENDED, sequence, order_id, account, side, price, open_quantity, priority_kept)
    (DUPLICATE, sequence, first_sequence)   the same request was answered before; that answer stands
    (CONFIGURED, sequence, rules)
    (NOTED, sequence, text)
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final, TypeAlias

from ...transport.codec import INT64_MAX, NAME_LENGTH_MAX
from ...transport.errors import ProtocolError
from .rules import MarketRules

Command: TypeAlias = tuple[Any, ...]
Event: TypeAlias = tuple[Any, ...]

SUBMIT: Final = 1
CANCEL: Final = 2
CANCEL_ALL: Final = 3
AMEND: Final = 4
CLOCK: Final = 5
CONFIGURE: Final = 6
NOTE: Final = 7
SET_TIME: Final = 8

ACCEPTED: Final = 1
REJECTED: Final = 2
TRADE: Final = 3
CANCELLED: Final = 4
AMENDED: Final = 5
DUPLICATE: Final = 6
CONFIGURED: Final = 7
NOTED: Final = 8

ORDER_ID: Final = 2
"""Where an accepted, amended or cancelled event has its order; the names below are of one kind of event each."""
REJECTED_CODE: Final = 4
TRADE_QUANTITY: Final = 4
TRADE_TAKER_ID: Final = 6
ACCEPTED_CLIENT_ORDER_ID: Final = 4
ACCEPTED_QUANTITY: Final = 7
AMENDED_OPEN_QUANTITY: Final = 6
CANCELLED_QUANTITY: Final = 6
CANCELLED_REASON: Final = 8


class Side(IntEnum):
    """Which side of the book an order is on."""

    BUY = 0
    SELL = 1


class OrderType(IntEnum):
    """How an order may trade."""

    LIMIT = 0
    """Trades at its price or better."""
    MARKET = 1
    """Trades at any price within its protection bound; never rests."""
    POST_ONLY = 2
    """A limit order that is rejected rather than trade at once."""


class TimeInForce(IntEnum):
    """How long an order lives."""

    GTC = 0
    """Good till cancelled."""
    IOC = 1
    """Immediate or cancel: what does not trade at once is cancelled."""
    FOK = 2
    """Fill or kill: trades in full at once, or is rejected and changes nothing."""
    GTD = 3
    """Good till date: expires at ``expire_ns`` of the log's time."""


class SelfTradePrevention(IntEnum):
    """What happens when an order would trade with another of its own account; the taker's mode decides."""

    NONE = 0
    """The trade happens."""
    CANCEL_NEWEST = 1
    """The taker's remainder is cancelled."""
    CANCEL_OLDEST = 2
    """The resting order is cancelled and matching goes on."""
    CANCEL_BOTH = 3
    """Both are cancelled."""
    DECREMENT_AND_CANCEL = 4
    """Both are reduced by the smaller open quantity; whichever reaches zero is cancelled."""


class CancelReason:
    """Why a quantity was cancelled: the ``reason`` of a CANCELLED event."""

    REQUESTED: Final = "requested"
    UNFILLED: Final = "unfilled"
    EXPIRED: Final = "expired"
    SELF_TRADE: Final = "self_trade"


class RejectCode:
    """Why the book rejected a command: the ``code`` of a REJECTED event."""

    UNKNOWN_ORDER: Final = "unknown_order"
    QUANTITY_TOO_SMALL: Final = "quantity_too_small"
    QUANTITY_TOO_LARGE: Final = "quantity_too_large"
    PRICE_OUT_OF_RANGE: Final = "price_out_of_range"
    PRICE_OUT_OF_BAND: Final = "price_out_of_band"
    TOO_MANY_OPEN_ORDERS: Final = "too_many_open_orders"
    POST_ONLY_WOULD_TRADE: Final = "post_only_would_trade"
    FOK_UNFILLABLE: Final = "fok_unfillable"
    INVALID_TIME_IN_FORCE: Final = "invalid_time_in_force"
    ALREADY_EXPIRED: Final = "already_expired"
    CLIENT_ORDER_ID_REUSED: Final = "client_order_id_reused"
    MARKET_NOT_CONFIGURED: Final = "market_not_configured"
    UNITS_IN_USE: Final = "units_in_use"


MESSAGES: Final[dict[str, str]] = {
    RejectCode.UNKNOWN_ORDER: "the account has no open order of that id: it never had, or it was filled or cancelled",
    RejectCode.QUANTITY_TOO_SMALL: "the quantity is below the market's minimum",
    RejectCode.QUANTITY_TOO_LARGE: "the quantity is above the market's maximum",
    RejectCode.PRICE_OUT_OF_RANGE: "the price is outside the market's lowest and highest price",
    RejectCode.PRICE_OUT_OF_BAND: "the price is too far from the last trade for the market's price band",
    RejectCode.TOO_MANY_OPEN_ORDERS: "the account has as many open orders as the market allows; cancel some first",
    RejectCode.POST_ONLY_WOULD_TRADE: "the post-only order would trade at once; use a less aggressive price",
    RejectCode.FOK_UNFILLABLE: "the fill-or-kill order cannot be filled in full at once; nothing was traded",
    RejectCode.INVALID_TIME_IN_FORCE: "the order type does not allow that time in force: a market order is ioc or fok, "
    "a post-only order gtc or gtd, and only gtd takes an expiry",
    RejectCode.ALREADY_EXPIRED: "the expiry is not after the exchange's time",
    RejectCode.CLIENT_ORDER_ID_REUSED: "the client order id was used before for a different command; choose a new one",
    RejectCode.MARKET_NOT_CONFIGURED: "the market's rules are not set yet",
    RejectCode.UNITS_IN_USE: "tick and lot size stay as they are once there are orders or trades; open another market",
}
"""What each rejection code means and what to do about it, for people."""

REASON_LENGTH_MAX: Final = 500
"""Most characters of an operator's reason, which a note has to hold."""
NOTE_SIZE_MAX: Final = 4096
"""Most bytes of a note: readers of a log accept no longer string."""


def checked_commands(commands: Any, *, internal: bool = False) -> tuple[Command, ...]:
    """Return ``commands`` if every one is well formed: kinds, types, ranges and lengths; the border check.

    The book decides whether the market allows a well-formed command. ``internal``
    commands (CLOCK, CONFIGURE, NOTE, SET_TIME) come from a leader's log only, never from a participant.

    Raises:
        ProtocolError: something breaks the module's layouts; use none of it.
    """
    if type(commands) is not tuple:
        raise ProtocolError(f"commands: expected an array, got {type(commands).__name__}")
    for command in commands:
        if type(command) is not tuple or len(command) < 3:
            raise ProtocolError("command: expected an array of a kind, an account, a client order id and more")
        kind, account, client_order_id = command[:3]
        if not (
            type(account) is str
            and type(client_order_id) is str
            and len(account) <= NAME_LENGTH_MAX
            and len(client_order_id) <= NAME_LENGTH_MAX
            and (account.isascii() or is_utf8(account))
            and (client_order_id.isascii() or is_utf8(client_order_id))
        ):
            raise ProtocolError(
                f"command: account and client order id are strings of at most {NAME_LENGTH_MAX} characters"
            )
        if not account and not (internal and kind in (CLOCK, CONFIGURE, NOTE, SET_TIME)):
            raise ProtocolError("command: the account is empty")
        well_formed = False
        if kind == SUBMIT and len(command) == 10:
            _, _, _, side, order_type, price, quantity, time_in_force, expire_ns, stp = command
            well_formed = (
                type(side)
                is type(order_type)
                is type(quantity)
                is type(time_in_force)
                is type(expire_ns)
                is type(stp)
                is int
                and 0 <= side <= 1
                and 0 <= order_type <= 2
                and (_is_price(price) or (price is None and order_type == OrderType.MARKET))
                and 1 <= quantity <= INT64_MAX
                and 0 <= time_in_force <= 3
                and 0 <= expire_ns <= INT64_MAX
                and 0 <= stp <= 4
            )
        elif kind == CANCEL and len(command) == 4:
            well_formed = type(command[3]) is int and 1 <= command[3] <= INT64_MAX
        elif kind == CANCEL_ALL and len(command) == 3:
            well_formed = True
        elif kind == AMEND and len(command) == 6:
            _, _, _, order_id, price, quantity = command
            well_formed = (
                type(order_id) is int
                and 1 <= order_id <= INT64_MAX
                and (price is None or _is_price(price))
                and (quantity is None or (type(quantity) is int and 1 <= quantity <= INT64_MAX))
            )
        elif internal and kind == CLOCK and len(command) == 3:
            well_formed = True
        elif internal and kind == CONFIGURE and len(command) == 4:
            MarketRules.from_tuple(command[3])
            well_formed = True
        elif internal and kind in (NOTE, SET_TIME) and len(command) == 4:
            text = command[3]
            well_formed = type(text) is str and is_utf8(text) and 1 <= len(text.encode()) <= NOTE_SIZE_MAX
        if not well_formed or type(kind) is not int:
            shown = kind if type(kind) is int and SUBMIT <= kind <= SET_TIME else "that"
            raise ProtocolError(f"command: not a well-formed command of kind {shown}")
    return commands


def is_utf8(name: str) -> bool:
    """Return whether a journal, a link and a digest can carry ``name``."""
    try:
        name.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _is_price(price: Any) -> bool:
    return type(price) is int and -INT64_MAX <= price <= INT64_MAX
