"""WatchedNode: the state of a node, for operators, health checks, metrics and tests."""

from __future__ import annotations

from ..book.status import MarketStatus
from ..peers.clocks import Clocks
from ..telemetry.meters import NodeMeters
from ..telemetry.status import NodeStatus
from .assembly import NodeGroup


class WatchedNode:
    """The part of :class:`~..node.ExchangeNode` that reports the node's state. Changes nothing."""

    _group: NodeGroup

    def status(self) -> NodeStatus:
        """Return the state of the node, its links and markets."""
        return self._group.status()

    def market_statuses(self, timeout: float) -> dict[str, MarketStatus]:
        """Return each market's status; one that does not answer in ``timeout`` seconds is ``unresponsive``."""
        return self._group.markets.statuses(timeout)

    def dead_actors(self, *, books: bool = True) -> list[str]:
        """Return a line for each failed actor that does not run; without ``books``, only for shared ones."""
        return self._group.dead_actors(books=books)

    def links_up(self) -> set[str]:
        """Return the ids of the nodes that this node has a link to."""
        return self._group.links.linked()

    def queues(self, market: str) -> dict[str, tuple[int, int]]:
        """Return the lengths of a market's queues by name, and their bounds, 0 without one.

        Raises:
            InvalidRequest: this node has not joined the market (code ``unknown_market``).
        """
        return self._group.markets.queues(market)

    def remote_queues(self) -> dict[str, tuple[int, int]]:
        """Return the lengths of the queues to and from remote actors, and the bound of each."""
        return self._group.remote.queues()

    def coordinator_answers(self) -> bool:
        """Return whether the coordinator answered the last request."""
        return self._group.store_error() is None

    @property
    def meters(self) -> NodeMeters:
        """The node's counters about itself."""
        return self._group.meters

    @property
    def clocks(self) -> Clocks:
        """This machine's clock among those of the nodes that this one is linked to."""
        return self._group.links.clocks()

    @property
    def certificate_ends_ns(self) -> int | None:
        """When the node's certificate expires, in nanoseconds since the Unix epoch; None without an identity."""
        identity = self._group.identity
        return None if identity is None else identity.member.ends_ns

    @property
    def messages_refused(self) -> int:
        """Messages of remote actors with an unknown type, or that did not fit it, since the start."""
        return self._group.remote.refused

    @property
    def frames_refused(self) -> int:
        """Frames that broke the protocol, since the start; each closed its sender's link."""
        return self._group.inbox.frames_refused
