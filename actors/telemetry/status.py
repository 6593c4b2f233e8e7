"""NodeStatus: what an operator asks about a node. NodeView: a node, as those see it who watch it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from ..book.status import MarketStatus
from ..peers.clocks import Clocks
from .meters import NodeMeters


@dataclasses.dataclass(frozen=True, slots=True)
class NodeStatus:
    """The state of a node, its links and its markets."""

    name: str
    node_id: str
    address: str
    """Where other nodes reach it."""
    identity: Mapping[str, Any] | None
    """What its certificate says, None without one."""
    directory: tuple[str, ...]
    """The rendezvous through which it finds other nodes."""
    coordinator: str
    """The id of the coordinator's store."""
    coordinator_error: str | None
    clock: Mapping[str, Any]
    """This machine's clock among those of the nodes that it is linked to."""
    peers: Mapping[str, Mapping[str, Any]]
    """By node id, what is known of each other node: ``name``, ``up``, …"""
    frames_refused: int
    failures: tuple[str, ...]
    """What has failed, the last 20, a line each."""
    actors: tuple[str, ...]
    """The names of the actors that are registered here."""
    messages_refused: int
    markets: Mapping[str, MarketStatus]

    def __getitem__(self, field: str) -> Any:
        """Return a field by its name, as ``status["role"]``.

        Raises:
            KeyError: there is no such field.
        """
        if field not in self.__slots__:
            raise KeyError(field)
        return getattr(self, field)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON carries it."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        lists = {name: list(found[name]) for name in ("directory", "failures", "actors")}
        return found | lists | {"markets": {name: market.to_dict() for name, market in self.markets.items()}}


class NodeView(Protocol):
    """A node, as health and metrics see it; :class:`~openoutcry.actors.node.ExchangeNode` is one."""

    @property
    def name(self) -> str: ...
    @property
    def node_id(self) -> str: ...
    @property
    def phase(self) -> str:
        """``starting``, ``running``, ``closing`` or ``closed``; while it starts, only name and meters are there."""

    @property
    def meters(self) -> NodeMeters: ...
    @property
    def clocks(self) -> Clocks: ...
    @property
    def frames_refused(self) -> int: ...
    @property
    def messages_refused(self) -> int: ...
    @property
    def certificate_ends_ns(self) -> int | None: ...

    def market_statuses(self, timeout: float) -> dict[str, MarketStatus]: ...
    def dead_actors(self) -> list[str]: ...
    def links_up(self) -> set[str]: ...
    def queues(self, market: str) -> dict[str, tuple[int, int]]: ...
    def remote_queues(self) -> dict[str, tuple[int, int]]: ...
    def coordinator_answers(self) -> bool: ...
