"""Messages of links and of the directory between the actors of one node. Values only."""

from __future__ import annotations

import dataclasses

from .link import Link
from .wire import Hello


@dataclasses.dataclass(frozen=True, slots=True)
class HelloReceived:
    """The inbox's reader to a PeerActor: its peer said hello over pipe ``pipe_id``."""

    hello: Hello
    pipe_id: int


@dataclasses.dataclass(frozen=True, slots=True)
class PipeRemoved:
    """nng to a PeerActor: the pipe that the peer sends over has closed."""

    pipe_id: int


@dataclasses.dataclass(frozen=True, slots=True)
class OutletConnected:
    """nng to a PeerActor: the pipe of session ``session``, over which it sends, has come up."""

    session: int


@dataclasses.dataclass(frozen=True, slots=True)
class OutletBroken:
    """nng to a PeerActor: the pipe of session ``session``, over which it sends, has closed."""

    session: int


@dataclasses.dataclass(frozen=True, slots=True)
class PeerUp:
    """PeerActor to every BookActor: the link to ``node`` is up; ``link`` sends over it."""

    node: str
    name: str
    link: Link


@dataclasses.dataclass(frozen=True, slots=True)
class PeerDown:
    """PeerActor to every BookActor: the link to ``node`` has ended."""

    node: str


@dataclasses.dataclass(frozen=True, slots=True)
class PeerGone:
    """PeerActor to every BookActor, after PeerDown: nothing listens where ``node`` did, so its process has ended."""

    node: str


@dataclasses.dataclass(frozen=True, slots=True)
class PeerFound:
    """DiscoveryActor to the node, which passes it on to a PeerActor: another node is announced at ``address``."""

    node: str
    name: str
    address: str
    joins_all: bool = False
    """It joins every market, also those created later."""


@dataclasses.dataclass(frozen=True, slots=True)
class PeerLost:
    """DiscoveryActor to the node: the announcement of ``node`` has ended."""

    node: str
