"""Frames: the links of one market's replica, and what may come over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ...transport.errors import OpenOutcryError, Unavailable
from ...transport.identity import Member
from ..peers.messages import PeerUp
from .commands import Command
from .wire import MARKET_CODEC, MarketMessage


class Frames:
    """Sends a market's messages over the links that are up; says for which accounts a node may ask.

    Owned by the BookActor.
    """

    def __init__(self, market: str, member_of: Callable[[str], Member | None] | None) -> None:
        """``member_of``: the contents of a node's certificate; None: nodes have none, and may ask for every account."""
        self._market = market
        self._member_of = member_of
        self.links: dict[str, PeerUp] = {}
        """By node id, the links that are up."""
        self.refused = 0
        """How many frames broke the protocol."""

    def send(self, nodes: Iterable[str], message: MarketMessage) -> None:
        """Send ``message`` to each of ``nodes`` that there is a link to."""
        frame = MARKET_CODEC.encode(message)
        for node in nodes:
            if (link := self.links.get(node)) is not None:
                link.link.send(frame)

    def refuse(self, sender: str, why: str) -> None:
        """A frame of ``sender`` breaks the protocol: end the link."""
        self.refused += 1
        if (link := self.links.get(sender)) is not None:
            link.link.reset(f"market {self._market}: {why}")

    def denied(self, sender: str, commands: tuple[Command, ...]) -> OpenOutcryError | None:
        """Return why ``sender`` may not ask for ``commands``, or None."""
        if self._member_of is None:
            return None
        member = self._member_of(sender)
        if member is None:
            # It was forgotten, and will say hello again soon: do not deny it for that.
            return Unavailable(f"market {self._market}: {sender} is not known now; nothing was executed, retry")
        return member.denied([command[1] for command in commands])
