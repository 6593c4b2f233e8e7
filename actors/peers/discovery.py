"""DiscoveryActor: announces this node, looks services up, and watches who else is there. Makes no link itself.

Owns the :class:`~openoutcry.transport.survey.Directory` of its node. Every tick it polls for nodes and tells the node
what changed; every third of the TTL, and at once when a rendezvous comes (back), it announces all of its entries again.

Messages: DirectoryChanged (from nng's threads); Announce, Unannounce, Find (ask, from the API).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from ...transport.errors import TransportError
from ...transport.log import get_logger
from ...transport.survey import Directory, ServiceEntry
from ..kit.node_actor import TICK, ActorFailed, NodeActor, tell
from .messages import PeerFound, PeerLost

if TYPE_CHECKING:
    from ...transport.certificates import Identity

logger = get_logger(__name__)

JOINS_ALL: Final = "joins_all"
"""Key of a node's announcement: ``yes`` if it joins every market."""
NODE_SERVICE: Final = "openoutcry.node"
"""The service under which every node announces its inbox."""

COMPLAIN_S: Final = 2.0
"""How long the directory may be silent before that is logged, in seconds."""


@dataclasses.dataclass(frozen=True, slots=True)
class DirectoryChanged:
    """A rendezvous has connected or gone."""


@dataclasses.dataclass(frozen=True, slots=True)
class Announce:
    """Announce ``entry`` until it is unannounced or the node ends; answers how many rendezvous took it."""

    entry: ServiceEntry


@dataclasses.dataclass(frozen=True, slots=True)
class Unannounce:
    """Take ``entry`` back; answers how many rendezvous acknowledged."""

    entry: ServiceEntry


@dataclasses.dataclass(frozen=True, slots=True)
class Find:
    """Look ``service`` up; answers a :class:`~openoutcry.transport.survey.Lookup`.

    The actor may do nothing else until ``deadline_s``, of :func:`time.monotonic`: ask for a short time, and again.
    """

    service: str
    deadline_s: float


class DiscoveryActor(NodeActor):
    """Keeps one node known to others, and others known to it."""

    tick_ms: ClassVar[int] = 100

    def __init__(
        self,
        *,
        rendezvous: Sequence[str],
        entry: ServiceEntry,
        services: Sequence[ServiceEntry] = (),
        ttl_ms: int,
        tell_node: Callable[[PeerFound | PeerLost], None],
        report: Callable[[ActorFailed], None],
        identity: Identity | None = None,
    ) -> None:
        """``entry``: the node's own; ``services``: what else it announces from the start."""
        super().__init__(report=report)
        self._entry = entry
        self._services = services
        self._ttl_ms = ttl_ms
        self._tell_node = tell_node
        self._refresh_at_s = 0.0
        self._answered_s = time.monotonic()
        self._complained = False
        ref = self.actor_ref
        self._directory = Directory(rendezvous, ttl_ms=ttl_ms, on_change=lambda: _hand_over(ref), identity=identity)

    def on_start(self) -> None:
        for entry in (self._entry, *self._services):
            self._directory.announce(entry)

    def on_stop(self) -> None:
        try:
            self._directory.unannounce(self._entry)
        except TransportError as error:
            logger.debug("goodbye_failed", error=error)
        self._directory.close()

    def on_receive(self, message: Any) -> Any:
        directory = self._directory
        if message is TICK or isinstance(message, DirectoryChanged):
            if directory.reconnected() or time.monotonic() >= self._refresh_at_s:
                self._refresh_at_s = time.monotonic() + self._ttl_ms / 3000
                directory.refresh()
            self._poll()
        elif isinstance(message, Announce):
            return directory.announce(message.entry)
        elif isinstance(message, Unannounce):
            return directory.unannounce(message.entry)
        elif isinstance(message, Find):
            return directory.lookup(message.service, deadline=message.deadline_s)
        return None

    def _poll(self) -> None:
        changes = self._directory.poll(NODE_SERVICE)
        if changes.complete and self._directory.connected:
            self._answered_s = time.monotonic()
            if self._complained:
                self._complained = False
                logger.info("directory_answers")
        elif not self._complained and time.monotonic() - self._answered_s > COMPLAIN_S:
            self._complained = True
            logger.warning("directory_silent", rendezvous=self._directory.rendezvous)
        added = {entry.node for entry in changes.added}
        for entry in changes.removed:
            if entry.node not in added and entry.node != self._entry.node:
                self._tell_node(PeerLost(entry.node))
        for entry in changes.added:
            if entry.node != self._entry.node:
                said = dict(entry.metadata)
                name, joins_all = said.get("name", entry.node), said.get(JOINS_ALL) == "yes"
                self._tell_node(PeerFound(entry.node, name, entry.address, joins_all))


def _hand_over(ref: Any) -> None:
    tell(ref, DirectoryChanged())
