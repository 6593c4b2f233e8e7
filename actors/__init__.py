"""A node of the exchange is a group of these actors; programs embed it through :class:`ExchangeNode`."""

import logging

from ..transport.errors import (
    Closed,
    ConfigurationError,
    InvalidRequest,
    OpenOutcryError,
    Overloaded,
    RequestTimeout,
    StorageError,
    Unavailable,
)
from .book.commands import OrderType, SelfTradePrevention, Side, TimeInForce
from .book.rules import MarketRules
from .node import ExchangeNode
from .subscription import Subscription
from .views import (
    Accepted,
    Amended,
    BookView,
    Cancelled,
    Configured,
    Duplicate,
    MarketEvent,
    MarketUpdate,
    OpenOrder,
    OrderRejected,
    OrderResult,
    PriceLevel,
    Rejected,
    Trade,
    as_json,
)

logging.getLogger("openoutcry").addHandler(logging.NullHandler())

__all__ = [
    "Accepted",
    "Amended",
    "BookView",
    "Cancelled",
    "Closed",
    "Configured",
    "ConfigurationError",
    "Duplicate",
    "ExchangeNode",
    "InvalidRequest",
    "MarketEvent",
    "MarketRules",
    "MarketUpdate",
    "OpenOrder",
    "OpenOutcryError",
    "OrderRejected",
    "OrderResult",
    "OrderType",
    "Overloaded",
    "PriceLevel",
    "Rejected",
    "RequestTimeout",
    "SelfTradePrevention",
    "Side",
    "StorageError",
    "Subscription",
    "TimeInForce",
    "Trade",
    "Unavailable",
    "as_json",
]
