"""PeerActor: one remote node: its link, its frames, its health. Knows nothing of markets.

A link is two one-way streams: our outlet into the peer's inbox, and the peer's into ours. :mod:`.life` decides what
happens to it, and when; this actor owns the outlet and does what was decided.

Messages: PeerFound, HelloReceived, PipeRemoved, OutletConnected, OutletBroken, SendFrame, SendNext, ResetLink.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final

from ...transport.errors import ConfigurationError, TransportError, WouldBlock, present
from ...transport.identity import check_addresses
from ...transport.log import get_logger
from ...transport.sockets import Outlet, refuses
from ..kit.node_actor import TICK, ActorFailed, NodeActor, tell
from ..kit.uptime import uptime_ns
from .life import SILENCE_MS_MAX, Effect, Life, State
from .link import Link, ResetLink, SendFrame, SendNext
from .messages import HelloReceived, OutletBroken, OutletConnected, PeerDown, PeerFound, PeerGone, PeerUp, PipeRemoved
from .meters import LinkMeters
from .wire import LINK_CODEC, Credentials, Hello, may_link

if TYPE_CHECKING:
    from ...transport.certificates import Identity

logger = get_logger(__name__)

UNLINKED_S: Final = 5.0
"""Log one warning if an announced peer is still unlinked after this many seconds."""


class PeerActor(NodeActor):
    """Owns the outlet to one remote node and the state of the link to it."""

    tick_ms: ClassVar[int] = 200

    def __init__(
        self,
        *,
        me: Hello,
        node: str,
        name: str,
        address: str,
        tell_all: Callable[[PeerUp | PeerDown | PeerGone], None],
        report: Callable[[ActorFailed], None],
        meters: LinkMeters | None = None,
        identity: Identity | None = None,
    ) -> None:
        """``me``: how this node introduces itself; ``tell_all``: sends a message to every actor that listens to links.

        With an ``identity`` the peer must prove that it is called ``name``.
        """
        super().__init__(report=report)
        self._me = me
        self._node = node
        self._name = name
        self._address = address
        self._log = logger.bind(node=me.node, peer=node, peer_name=name)
        self._tell_all = tell_all
        self._identity = identity
        self._meters = meters or LinkMeters()
        self._life = Life(time.time_ns(), time.monotonic())
        self._missed = False
        self._outlet: Outlet | None = None
        self._link: Link | None = None
        self._complained = False
        self._warn_at_s = time.monotonic() + UNLINKED_S

    def on_start(self) -> None:
        self._do(self._life.tick(time.monotonic(), 0.0))

    def on_stop(self) -> None:
        self._close()
        if self._life.state is State.UP:
            self._tell_all(PeerDown(self._node))

    def on_receive(self, message: Any) -> Any:
        life, now_s = self._life, time.monotonic()
        if isinstance(message, SendFrame):
            if message.session == life.session and life.state is State.UP:
                self._send(message.frame)
                if self._link is not None:
                    self._link.sent()
        elif isinstance(message, SendNext):
            if message.session == life.session and life.state is State.UP:
                if frame := message.take():
                    self._send(frame)
                if self._link is not None:
                    self._link.sent(frame)
        elif message is TICK:
            self._tick()
        elif isinstance(message, HelloReceived):
            self._received_hello(message)
        elif isinstance(message, OutletConnected):
            effects = life.made(message.session, now_s)
            if effects and self._identity is not None:
                self._send(LINK_CODEC.encode(Credentials(self._identity.certificate)))
            self._do(effects)
        elif isinstance(message, OutletBroken):
            self._do(life.broke(message.session, now_s, "the connection broke"))
        elif isinstance(message, PeerFound):
            if life.state is not State.UP:  # else its hellos say where it is
                self._moved_to(message.address)
        elif isinstance(message, PipeRemoved):
            self._do(life.pipe_removed(message.pipe_id, now_s))
        elif isinstance(message, ResetLink) and message.session == life.session:
            self._log.warning("link_reset", reason=message.reason)
            self._do(life.broke(message.session, now_s, message.reason))
        return None

    def _received_hello(self, message: HelloReceived) -> None:
        hello, now_s = message.hello, time.monotonic()
        if not may_link(hello.coordinator, self._me.coordinator):
            if not self._complained:
                self._complained = True
                self._log.error("coordinator_differs", address=hello.address)
            return
        self._moved_to(hello.address)
        self._do(self._life.hello(hello.session, hello.echo, message.pipe_id, now_s))

    def _moved_to(self, address: str) -> None:
        """Dial the node at ``address`` from now on, if that is another one: it came back there."""
        if address != self._address:
            self._address = address
            self._complained = False
            self._do(self._life.moved(time.monotonic()))

    def _tick(self) -> None:
        now_s = time.monotonic()
        # A received message may wait here behind sends, so the reader notes when it arrived.
        self._do(self._life.tick(now_s, self._meters.received_s))
        self._look_for_it()
        if not self._meters.ups and not self._complained and now_s > self._warn_at_s:
            self._warn_at_s = math.inf  # once; other problems with the peer are still logged
            self._log.warning(
                "link_not_made", address=self._address, connected=self._life.connected, hint=self._why_not_made()
            )

    def _why_not_made(self) -> str:
        """Return a hint what to check, by how far the link has come: connected, certificates valid."""
        if self._life.connected and not self._life.received:
            return f"it was reached; can it reach this node at {self._me.address}?"
        if self._life.connected:
            return "both nodes reach each other, but no hello was answered: are they of the same version?"
        if self._life.received:
            return f"it reaches this node; can this node reach it at {self._address}?"
        return (
            "is it reachable?" if self._identity is None else "is it reachable, and its certificate of our authority?"
        )

    def _do(self, effects: list[Effect]) -> None:
        """Do what the life of the link demands."""
        for effect in effects:
            session = self._life.session
            if effect is Effect.CLOSE:
                self._close()
            elif effect is Effect.OPEN:
                self._open()
            elif effect is Effect.HELLO:
                self._send(LINK_CODEC.encode(self._hello()))
            elif effect is Effect.UP:
                self._come_up()
            else:
                self._log.info("link_down", reason=self._life.reason)
                self._tell_all(PeerDown(self._node))
                self._missed = True
                self._look_for_it()
            if self._life.session != session:
                return  # the connection broke meanwhile, and that was handled

    def _hello(self) -> Hello:
        pong_ns, came_ns = self._meters.ping
        now_ns = uptime_ns()
        return dataclasses.replace(
            self._me,
            session=self._life.session,
            echo=self._life.their_session,
            to=self._node,
            wall_ns=max(0, time.time_ns()),
            ping_ns=now_ns,
            pong_ns=pong_ns,
            held_ns=max(0, now_ns - came_ns) if pong_ns else 0,
        )

    def _come_up(self) -> None:
        self._missed = False
        self._meters.ups += 1
        self._log.info("link_up", address=self._address)
        outlet = present(self._outlet, "a link is up without an outlet")
        self._link = Link(self._life.session, self._life.their_session, outlet, self.actor_ref, self._meters)
        self._tell_all(PeerUp(self._node, self._name, self._link))

    def _send(self, frame: bytes) -> None:
        """Send one frame; close the link if the peer takes nothing for ``SILENCE_MS_MAX``."""
        if self._outlet is None:
            return
        try:
            self._outlet.send(frame, timeout_ms=SILENCE_MS_MAX)
        except WouldBlock:
            self._broke(f"the peer took no frame for {SILENCE_MS_MAX} ms")
        except TransportError as error:
            self._broke(error.message)

    def _broke(self, reason: str) -> None:
        self._do(self._life.broke(self._life.session, time.monotonic(), reason))

    def _look_for_it(self) -> None:
        """Distinguish an ended process from a cut link, so that nobody waits for a dead leader's lease."""
        if self._missed and not self._life.connected and refuses(self._address):
            self._missed = False
            self._log.info("peer_ended", address=self._address)
            self._tell_all(PeerGone(self._node))

    def _close(self) -> None:
        if self._link is not None:
            self._link.end()
            self._link = None
        if self._outlet is not None:
            self._outlet.close()
            self._outlet = None

    def _open(self) -> None:
        session, ref = self._life.session, self.actor_ref
        try:
            if self._address == self._me.address:
                raise ConfigurationError(
                    f"{self._name} is announced at the address of this node, {self._address}: it was there before, or "
                    "both were given the same address, and one of them needs another"
                )
            check_addresses([self._address], self._identity)
            self._outlet = Outlet(
                self._address,
                on_connected=lambda: _hand_over(ref, OutletConnected(session)),
                on_broken=lambda: _hand_over(ref, OutletBroken(session)),
                name=self._name,
                identity=self._identity,
            )
        except ConfigurationError as error:
            if not self._complained:
                self._complained = True
                self._log.error("peer_unreachable", address=self._address, error=error)


def _hand_over(ref: Any, message: object) -> None:
    tell(ref, message)
