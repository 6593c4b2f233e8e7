"""Link: one life of a link, while it is up, as other actors hold it; and what it hands to its PeerActor."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import pykka

from ...transport.sockets import Outlet
from ..kit.actor import tell
from .meters import LinkMeters


@dataclasses.dataclass(frozen=True, slots=True)
class SendFrame:
    """Any actor to a PeerActor: send this frame if the link is still the one of ``session``; otherwise discard it."""

    session: int
    frame: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class SendNext:
    """Remote actors to a PeerActor: send what ``take`` returns, if the link is still the one of ``session``."""

    session: int
    take: Callable[[], bytes | None]


@dataclasses.dataclass(frozen=True, slots=True)
class ResetLink:
    """Any actor to a PeerActor: the peer broke the protocol in this life of the link; end it and start again."""

    session: int
    reason: str


class Link:
    """One life of a link, while it is up: sends frames from any thread, in each thread's order.

    If nng takes a frame at once, it goes out on the sender's own thread: a hand-over to the PeerActor would cost more
    time than the network. If nng has no room, the frame and all later ones wait at the PeerActor.
    """

    def __init__(
        self, session: int, their_session: int, outlet: Outlet, peer: pykka.ActorRef[Any], meters: LinkMeters
    ) -> None:
        self.session = session
        """The number of this life at this side."""
        self.their_session = their_session
        """Its number at the other side."""
        self._outlet = outlet
        self._peer = peer
        self._meters = meters
        self._lock = threading.Lock()
        self._queued = 0
        self._ended = False

    @property
    def busy(self) -> bool:
        """Whether frames wait; a further frame would wait too."""
        return self._queued > 0

    def send(self, frame: bytes) -> None:
        """Send ``frame``, or discard it if the link has ended."""
        with self._lock:
            if self._ended:
                return
            self._meters.frames_out += 1
            self._meters.bytes_out += len(frame)
            if not self._queued and self._outlet.send_nowait(frame):
                return
            self._queued += 1
        tell(self._peer, SendFrame(self.session, frame))

    def send_next(self, take: Callable[[], bytes | None]) -> None:
        """Send what ``take`` returns on the PeerActor's thread: everything collected until then, in one frame."""
        with self._lock:
            if self._ended:
                return
            self._queued += 1
        tell(self._peer, SendNext(self.session, take))

    def reset(self, reason: str) -> None:
        """End the link: the peer broke the protocol."""
        tell(self._peer, ResetLink(self.session, reason))

    def sent(self, taken: bytes | None = None) -> None:
        """A waiting frame, or the one ``taken`` last, has been sent. PeerActor only."""
        with self._lock:
            self._queued -= 1
            if taken is not None:
                self._meters.frames_out += 1
                self._meters.bytes_out += len(taken)

    def end(self) -> None:
        """Stop sending; afterwards no other thread uses the outlet. PeerActor only."""
        with self._lock:
            self._ended = True
