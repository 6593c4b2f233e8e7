"""NodeSupervisor: creates PeerActors for the nodes that are found, and restarts failed actors. One per node."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, Final

from ...transport.log import get_logger
from ..kit.actor import SYSTEM_CLOCK
from ..kit.node_actor import TICK, ActorFailed
from ..kit.supervision import RestartPolicy, Supervisor
from ..peers.links import LINK_OF, Links
from ..peers.messages import HelloReceived, PeerFound, PeerLost

logger = get_logger(__name__)

_KEPT: Final = RestartPolicy(restarts_max=1_000_000, window_s=60.0, backoff_min_s=0.1, backoff_max_s=30.0)
"""Restart policy of the DiscoveryActor and the MarketsActor: they are never given up."""


class NodeSupervisor(Supervisor):
    """Creates PeerActors for the nodes that are found, and restarts failed actors.

    A failed BookActor is not restarted: its state is suspect, so its market stops and says so; restarting the node
    recovers it from disk. The other actors have no state to lose.
    """

    mailbox_size_max: ClassVar[int] = 0  # like all actors of a node

    def __init__(self, links: Links, failed: Callable[[ActorFailed], None]) -> None:
        """``failed`` is called, on this actor's thread, with every failure of an actor that is not restarted."""
        super().__init__(
            policy=_KEPT, on_escalation=lambda escalation: links.given_up(escalation.name.removeprefix(LINK_OF))
        )
        self.clock = SYSTEM_CLOCK
        self._links = links
        self._failed_actor = failed

    def on_start(self) -> None:
        self.tell_every(1.0, TICK)

    def on_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the others as they are: a node without its supervisor still trades."""
        del exception_type, traceback
        logger.critical("supervisor_failed", error=exception_value)

    def on_receive(self, message: Any) -> Any:
        links = self._links
        match message:
            case PeerFound():
                links.found(message, self)
            case PeerLost():
                links.lost(message.node, self)
            case HelloReceived():
                links.greeted(message, self)
            case ActorFailed():
                self._failed_actor(message)
            case _ if message is TICK:
                links.forget_absent(self)
            case _:
                return super().on_receive(message)
        return None
