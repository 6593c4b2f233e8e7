"""Messages to and from the CoordinatorActor and the MarketsActor. Values only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from pykka import ActorRef

from ...transport.coordinator import DiskMark
from ...transport.errors import OpenOutcryError


@dataclasses.dataclass(frozen=True, slots=True)
class CoordinatorCall:
    """BookActor to the CoordinatorActor: call ``run(coordinator)``; CoordinatorAnswer brings ``what`` back."""

    reply_to: ActorRef[Any]
    run: Callable[[Any], Any]
    what: Any


@dataclasses.dataclass(frozen=True, slots=True)
class CoordinatorAnswer:
    """CoordinatorActor to BookActor: the store's answer; ``error`` if it could not be reached."""

    what: Any
    record: Any
    error: Exception | None


@dataclasses.dataclass(frozen=True, slots=True)
class StoreQuery:
    """The API or the MarketsActor to the CoordinatorActor (ask): returns, or raises, what ``run(coordinator)`` does.

    It must only read.
    """

    run: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, slots=True)
class StoreStatus:
    """The API to the CoordinatorActor (ask): returns what is wrong with the store, None if nothing."""


@dataclasses.dataclass(frozen=True, slots=True)
class LookSoon:
    """The node to its MarketsActor: the records of the markets may have changed."""


@dataclasses.dataclass(frozen=True, slots=True)
class DiskMarked:
    """BookActor to the CoordinatorActor: this node's disk holds ``market`` up to ``mark``; report it with the lease.

    If ``what`` is given, report soon, and send it back to ``reply_to`` in a CoordinatorAnswer.
    """

    reply_to: ActorRef[Any]
    market: str
    mark: DiskMark
    what: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class NodeIdTaken:
    """CoordinatorActor to the BookActors: another process has the lease of this node, so these replicas stop."""

    error: OpenOutcryError
