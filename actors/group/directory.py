"""Directory: a node's side of the directory: what it announces there, and what it looks up. Owns its DiscoveryActor."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

import pykka

from ...transport.errors import Unavailable
from ...transport.survey import Lookup, ServiceEntry
from ..kit.node_actor import ActorFailed, stop_and_join
from ..market.border import TIMEOUT_S_MAX, checked_service
from ..market.handle import Host
from ..peers.discovery import JOINS_ALL, NODE_SERVICE, Announce, DiscoveryActor, Find, Unannounce

if TYPE_CHECKING:
    from ...transport.certificates import Identity

_FIND_S: Final = 0.5
"""Seconds of one lookup by the DiscoveryActor, which must also announce the node meanwhile."""


class Directory:
    """What the node at ``address`` announces through the rendezvous, and how it looks up what others announce."""

    def __init__(
        self,
        host: Host,
        address: str,
        *,
        rendezvous: Sequence[str],
        ttl_ms: int,
        joins_all: bool,
        identity: Identity | None,
        report: Callable[[ActorFailed], None],
    ) -> None:
        self.rendezvous = tuple(dict.fromkeys(rendezvous))
        self._host = host
        self._address = address
        self._ttl_ms = ttl_ms
        self._joins_all = joins_all
        self._identity = identity
        self._report = report
        self._actor: pykka.ActorRef[DiscoveryActor] | None = None
        self._services: dict[str, ServiceEntry] = {}

    @property
    def actor(self) -> pykka.ActorRef[DiscoveryActor] | None:
        """The actor that runs now; None without a directory."""
        return self._actor

    def start(self, tell_node: Callable[[object], object]) -> pykka.ActorRef[DiscoveryActor]:
        """Start or restart the DiscoveryActor: it announces all current announcements."""
        all_joined = {JOINS_ALL: "yes"} if self._joins_all else {}
        self._actor = DiscoveryActor.start(
            rendezvous=self.rendezvous,
            entry=self._entry(NODE_SERVICE, self._address, {"name": self._host.requester.name} | all_joined),
            services=tuple(self._services.values()),
            ttl_ms=self._ttl_ms,
            tell_node=lambda message: tell_node(message) and None,
            report=self._report,
            identity=self._identity,
        )
        return self._actor

    def stop(self) -> None:
        """Stop it: the node says goodbye."""
        if self._actor is not None:
            stop_and_join(self._actor, timeout_s=5)

    def announce(self, service: str, address: str, metadata: Mapping[str, str] | None) -> int:
        """Announce a service, see :meth:`~..node.ExchangeNode.announce`."""
        entry = self._entry(checked_service(service, address, metadata), address, metadata)
        known = cast("int", self._ask(Announce(entry), self._host.timeout_s))
        self._services[service] = entry
        return known

    def unannounce(self, service: str) -> int:
        """Take a service out of the directory; return how many rendezvous have acknowledged."""
        self._services.pop(checked_service(service), None)
        return cast("int", self._ask(Unannounce(self._entry(service, "-", None)), self._host.timeout_s))

    def lookup(self, service: str, timeout: float | None) -> Lookup:
        """Return who announces ``service``, see :meth:`~..node.ExchangeNode.lookup`."""
        checked_service(service)
        deadline_s = self._host.deadline_s(timeout)
        while True:
            # In short pieces: the actor must announce this node meanwhile, and end when it is closed.
            piece_s = min(deadline_s, time.monotonic() + _FIND_S)
            try:
                return cast("Lookup", self._ask(Find(service, piece_s), self._host.timeout_s + _FIND_S))
            except Unavailable:
                if time.monotonic() >= deadline_s or self._actor is None:
                    raise

    def nodes_of(self, service: str, seconds: float) -> list[str]:
        """Return the ids of the nodes that announce ``service``, after ``seconds`` at most."""
        return [entry.node for entry in self.lookup(service, min(seconds, TIMEOUT_S_MAX)).entries]

    def announce_actor(self, service: str, whether: bool) -> None:
        """Announce a registered actor, or withdraw it, without waiting: discovery keeps trying."""
        if self._actor is None:
            return
        entry = self._entry(service, self._address, None)
        if whether:
            self._services[service] = entry
        else:
            self._services.pop(service, None)
        # Keep this an ask: an exception in an ask only fails the answer, and not the actor.
        self._actor.ask(Announce(entry) if whether else Unannounce(entry), block=False)

    def _entry(self, service: str, address: str, metadata: Mapping[str, str] | None) -> ServiceEntry:
        return ServiceEntry(service, self._host.node_id, address, tuple(sorted((metadata or {}).items())))

    def _ask(self, message: object, timeout: float) -> Any:
        if self._actor is None:
            raise Unavailable("this node was started without a directory", code="directory_unavailable")
        return self._host.ask(self._actor, message, timeout)
