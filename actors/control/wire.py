"""Messages between a node and the command line, and the file through which they find each other. Values only.

The link is nng's Req/Rep with re-sending switched off (by default Req repeats a request silently). A client that gets
no answer does not know the outcome; every command carries a client order id, so repeating it is safe.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Final

from ...transport import errors
from ...transport.codec import Array, Bool, Bytes, Codec, Int, Optional, Str
from ...transport.errors import OpenOutcryError, ProtocolError
from ..book.commands import REASON_LENGTH_MAX, Event
from ..book.rules import MarketRules

CONTROL_FILE: Final = "control.json"
"""Process id, address and token, in the node's data directory. Only users who can read it have the token."""
TIMEOUT_MS_MAX: Final = 60_000
"""Longest timeout of a request, in milliseconds."""
REQUEST_SIZE_MAX: Final = 16 * 1024
"""Most bytes of a request; a larger one closes its client's connection."""
ITEMS_MAX: Final = 10_000
"""Most levels, trades, orders or events of one answer."""

Token = Annotated[str, Str(64, 1)]
Name = Annotated[str, Str(255, 1)]
OptionalName = Annotated[str | None, Optional(Str(255, 1))]
Number = Annotated[str, Str(64, 1)]
OptionalNumber = Annotated[str | None, Optional(Str(64, 1))]
Limit = Annotated[int, Int(1, ITEMS_MAX)]
Timeout = Annotated[int, Int(1, TIMEOUT_MS_MAX)]


def _rules(value: Any, _name: str) -> MarketRules:
    return MarketRules.from_tuple(value)


# -- requests: the arguments of ExchangeNode's methods; a price or quantity is a decimal string ----------------------


@dataclasses.dataclass(frozen=True, slots=True)
class SubmitOrder:
    """:meth:`ExchangeNode.submit_order`."""

    token: Token
    timeout_ms: Timeout
    market: Name
    side: Name
    price: OptionalNumber
    quantity: Number
    order_type: Name
    time_in_force: OptionalName
    expire_ns: Annotated[int, Int()]
    self_trade_prevention: Name
    account: OptionalName
    client_order_id: Name


@dataclasses.dataclass(frozen=True, slots=True)
class CancelOrder:
    """:meth:`ExchangeNode.cancel_order`; without an order id :meth:`ExchangeNode.cancel_all`."""

    token: Token
    timeout_ms: Timeout
    market: Name
    order_id: Annotated[int | None, Optional(Int(1))]
    account: OptionalName
    client_order_id: Name


@dataclasses.dataclass(frozen=True, slots=True)
class AmendOrder:
    """:meth:`ExchangeNode.amend_order`."""

    token: Token
    timeout_ms: Timeout
    market: Name
    order_id: Annotated[int, Int(1)]
    price: OptionalNumber
    quantity: OptionalNumber
    account: OptionalName
    client_order_id: Name


@dataclasses.dataclass(frozen=True, slots=True)
class GetBook:
    """:meth:`ExchangeNode.get_order_book`, or null while the node is at sequence ``known``."""

    token: Token
    market: Name
    depth: Limit
    known: Annotated[int | None, Optional(Int())]


@dataclasses.dataclass(frozen=True, slots=True)
class GetTrades:
    """:meth:`ExchangeNode.trades`."""

    token: Token
    market: Name
    limit: Limit


@dataclasses.dataclass(frozen=True, slots=True)
class GetOrders:
    """:meth:`ExchangeNode.open_orders`, the oldest ``limit`` of them."""

    token: Token
    market: Name
    account: OptionalName
    limit: Limit


@dataclasses.dataclass(frozen=True, slots=True)
class GetEvents:
    """Events applied after sequence ``after``, without waiting; None: only the current sequence number."""

    token: Token
    market: Name
    after: Annotated[int | None, Optional(Int())]


@dataclasses.dataclass(frozen=True, slots=True)
class GetStatus:
    """:meth:`ExchangeNode.status`."""

    token: Token


@dataclasses.dataclass(frozen=True, slots=True)
class Transfer:
    """:meth:`ExchangeNode.transfer`; answers the new leader."""

    token: Token
    timeout_ms: Timeout
    market: Name
    to: OptionalName


@dataclasses.dataclass(frozen=True, slots=True)
class SetTime:
    """:meth:`ExchangeNode.set_time`; answers its result."""

    token: Token
    timeout_ms: Timeout
    market: Name
    reason: Annotated[str, Str(REASON_LENGTH_MAX)]


@dataclasses.dataclass(frozen=True, slots=True)
class CreateMarket:
    """:meth:`ExchangeNode.create_market`; answers null."""

    token: Token
    timeout_ms: Timeout
    market: Name
    rules: Annotated[Any, _rules]
    """On the wire :meth:`MarketRules.to_tuple`."""


@dataclasses.dataclass(frozen=True, slots=True)
class ListMarkets:
    """Every market that the node has joined or the coordinator lists: ``market``, ``joined``, ``opened`` (the
    coordinator lists it: some node has opened it), ``rules`` if known.
    """

    token: Token


@dataclasses.dataclass(frozen=True, slots=True)
class GetForcePlan:
    """:meth:`ExchangeNode.force_plan`."""

    token: Token
    market: Name


@dataclasses.dataclass(frozen=True, slots=True)
class ForceLeader:
    """:meth:`ExchangeNode.force_leader`, if the plan still has the same version and sequence."""

    token: Token
    timeout_ms: Timeout
    market: Name
    reason: Annotated[str, Str(REASON_LENGTH_MAX, 1)]
    version: Annotated[int, Int(1)]
    sequence: Annotated[int, Int()]


# -- answers -----------------------------------------------------------------------------------------------------------


def _event(value: Any, name: str) -> Event:
    if type(value) is not tuple or len(value) < 3 or type(value[0]) is not int:
        raise ProtocolError(f"{name}: not an event")
    return value


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """An :class:`OrderResult`, also of a rejection."""

    market: Name
    sequence: Annotated[int, Int()]
    duplicate: Annotated[bool, Bool()]
    state_sequence: Annotated[int, Int()]
    state_hash: Annotated[str, Str(128)]
    rules: Annotated[Any, _rules]
    """On the wire :meth:`MarketRules.to_tuple`."""
    events: Annotated[tuple[Event, ...], Array(_event)]


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """The answer to a query: the result of :func:`as_json`, as JSON in UTF-8."""

    body: Annotated[bytes, Bytes()]


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """The exception that the request raised."""

    kind: Annotated[str, Str(64)]
    """The name of its class in :mod:`openoutcry.transport.errors`."""
    code: Annotated[str, Str(64)]
    message: Annotated[str, Str(1000)]


REQUESTS: Final[Codec[Any]] = Codec(
    {
        1: SubmitOrder,
        2: CancelOrder,
        3: AmendOrder,
        4: GetBook,
        5: GetTrades,
        6: GetOrders,
        7: GetEvents,
        8: GetStatus,
        9: Transfer,
        11: CreateMarket,
        12: ListMarkets,
        13: GetForcePlan,
        14: ForceLeader,
        15: SetTime,
    }
)
ANSWERS: Final[Codec[Any]] = Codec({17: Result, 18: Value, 19: Failure})
ERRORS: Final[dict[str, type[OpenOutcryError]]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, OpenOutcryError)
}
Request = (
    SubmitOrder
    | CancelOrder
    | AmendOrder
    | GetBook
    | GetTrades
    | GetOrders
    | GetEvents
    | GetStatus
    | Transfer
    | SetTime
    | CreateMarket
    | ListMarkets
    | GetForcePlan
    | ForceLeader
)
"""Any request: the classes of :data:`REQUESTS`."""
Answer = Result | Value | Failure
"""Any answer: the classes of :data:`ANSWERS`."""
