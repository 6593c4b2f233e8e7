"""A node of the exchange is a group of these actors; programs embed it through :class:`ExchangeNode`.

The names below are imported when they are first used: pytest loads :mod:`.testing` as a plugin in every run on a
machine that has this package, and should not pay for sockets there.
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..transport.errors import (
        AccessDenied,
        ActorStopped,
        Closed,
        ConfigurationError,
        InvalidRequest,
        MessageRefused,
        OpenOutcryError,
        Overloaded,
        RemoteFailure,
        RequestTimeout,
        StorageError,
        Unavailable,
        UnknownActor,
        Unreachable,
    )
    from .aio import AsyncNode
    from .book.commands import OrderType, SelfTradePrevention, Side, TimeInForce
    from .book.rules import MarketRules
    from .book.status import MarketStatus
    from .kit.actor import Actor, stop_and_join
    from .kit.supervision import RestartPolicy, Supervise, Supervisor
    from .market.aio import AsyncMarket, AsyncSubscription
    from .market.border import OrderOptions, RequestOptions
    from .market.handle import Market
    from .market.subscription import Subscription
    from .market.views import (
        Accepted,
        Amended,
        BookView,
        Cancelled,
        Configured,
        Duplicate,
        MarketEvent,
        MarketUpdate,
        Noted,
        OpenOrder,
        OrderRejected,
        OrderResult,
        OrderResults,
        PriceLevel,
        Rejected,
        Trade,
        as_json,
    )
    from .node import ExchangeNode, open_nodes, spare_gc
    from .remote.refs import RemoteFuture, RemoteRef, Terminated
    from .remote.schema import message
    from .settings import NodeOptions
    from .telemetry.status import NodeStatus

__all__ = [
    "Accepted",
    "AccessDenied",
    "Actor",
    "ActorStopped",
    "Amended",
    "AsyncMarket",
    "AsyncNode",
    "AsyncSubscription",
    "BookView",
    "Cancelled",
    "Closed",
    "ConfigurationError",
    "Configured",
    "Duplicate",
    "ExchangeNode",
    "InvalidRequest",
    "Market",
    "MarketEvent",
    "MarketRules",
    "MarketStatus",
    "MarketUpdate",
    "MessageRefused",
    "NodeOptions",
    "NodeStatus",
    "Noted",
    "OpenOrder",
    "OpenOutcryError",
    "OrderOptions",
    "OrderRejected",
    "OrderResult",
    "OrderResults",
    "OrderType",
    "Overloaded",
    "PriceLevel",
    "Rejected",
    "RemoteFailure",
    "RemoteFuture",
    "RemoteRef",
    "RequestOptions",
    "RequestTimeout",
    "RestartPolicy",
    "SelfTradePrevention",
    "Side",
    "StorageError",
    "Subscription",
    "Supervise",
    "Supervisor",
    "Terminated",
    "TimeInForce",
    "Trade",
    "Unavailable",
    "UnknownActor",
    "Unreachable",
    "as_json",
    "message",
    "open_nodes",
    "spare_gc",
    "stop_and_join",
]

_ROOMS = (
    ".kit.actor",
    ".kit.supervision",
    ".node",
    ".remote.refs",
    ".remote.schema",
    ".market.handle",
    ".market.aio",
    ".market.border",
    ".market.views",
    ".market.subscription",
    ".book.rules",
    ".book.status",
    ".telemetry.status",
    ".book.commands",
    "..transport.errors",
    ".aio",
    ".settings",
)

logging.getLogger("openoutcry").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name in __all__:
        for room in _ROOMS:
            module = importlib.import_module(room, __name__)
            if hasattr(module, name):
                globals()[name] = found = getattr(module, name)
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
