"""PeerActor: one remote node: its link, its frames, its health. Knows nothing of markets.

A link is two one-way streams: our outlet into the peer's inbox, and the peer's into ours. Each side numbers its own
life of the link (``session``) and repeats :class:`~.wire.Hello` with the other's number as ``echo``.

========  ===========================================  ==============================================
state     input                                        then
========  ===========================================  ==============================================
DIALLING  our outlet connected                         say hello
DIALLING  our outlet broken                            new session; a new outlet on the next tick
DIALLING  hello that echoes our session                say hello; UP; tell ``PeerUp``
UP        hello with another session of the peer       DOWN as below, then treat as in DIALLING
UP        outlet broken, peer's pipe gone, silence,    tell ``PeerDown``; new session, new outlet: DIALLING
          no frame taken for too long
DIALLING  after UP: its host refuses to connect        tell ``PeerGone``: the process has ended
any       hello of a foreign coordinator or address    stay or go DIALLING; the error is logged once
========  ===========================================  ==============================================

Messages: HelloHeard, PipeRemoved, OutletConnected, OutletBroken, SendFrame, SendNext, ResetLink.
"""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final

from ...transport.errors import ConfigurationError, TransportError, WouldBlock, present
from ...transport.identity import check_addresses
from ...transport.log import get_logger
from ...transport.sockets import Outlet, refuses
from ..kit.node_actor import TICK, ActorFailed, NodeActor, tell
from .link import Link, ResetLink, SendFrame, SendNext
from .messages import HelloHeard, OutletBroken, OutletConnected, PeerDown, PeerGone, PeerUp, PipeRemoved
from .meters import LinkMeters
from .wire import LINK_CODEC, Credentials, Hello, may_link

if TYPE_CHECKING:
    from ...transport.certificates import Identity

logger = get_logger(__name__)

SILENCE_MS_MAX: Final = 2000
"""After this long without a hello from the peer the link is down."""


UNLINKED_S: Final = 5.0
"""After so long without its first link to a node that is announced, in seconds, this is told of in the log, once."""


class LinkState(enum.Enum):
    """See the table in the module's docstring."""

    DIALLING = "dialling"
    UP = "up"


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
        """``me``: how this node introduces itself; ``tell_all``: reaches every actor that cares for links.

        With an ``identity`` the peer has to prove that it is called ``name``.
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
        self._state = LinkState.DIALLING
        self._session = time.time_ns()
        self._their_session = 0
        self._their_pipe = 0
        self._heard_s = time.monotonic()
        self._connected = False
        self._missed = False
        self._outlet: Outlet | None = None
        self._link: Link | None = None
        self._complained = False
        self._dialled_s = time.monotonic()

    def on_start(self) -> None:
        self._open()

    def on_stop(self) -> None:
        self._close()
        if self._state is LinkState.UP:
            self._tell_all(PeerDown(self._node))

    def on_receive(self, message: Any) -> Any:
        if isinstance(message, SendFrame):
            if message.session == self._session and self._state is LinkState.UP:
                self._send(message.frame)
                if self._link is not None:
                    self._link.sent()
        elif isinstance(message, SendNext):
            if message.session == self._session and self._state is LinkState.UP:
                if frame := message.take():
                    self._send(frame)
                if self._link is not None:
                    self._link.sent(frame)
        elif message is TICK:
            self._tick()
        elif isinstance(message, HelloHeard):
            self._hear(message)
        elif isinstance(message, OutletConnected):
            if message.session == self._session:
                self._connected = True
                if self._identity is not None:
                    self._send(LINK_CODEC.encode(Credentials(self._identity.certificate)))
                self._say_hello()
        elif isinstance(message, OutletBroken):
            if message.session == self._session:
                self._reset("the connection broke")
        elif isinstance(message, PipeRemoved):
            if message.pipe_id == self._their_pipe:
                self._their_pipe = 0
                self._reset("the peer's connection broke")
        elif isinstance(message, ResetLink) and message.session == self._session:
            self._log.warning("link_reset", reason=message.reason)
            self._reset(message.reason)
        return None

    def _hear(self, message: HelloHeard) -> None:
        hello = message.hello
        if not may_link(hello.coordinator, self._me.coordinator):
            if not self._complained:
                self._complained = True
                self._log.error("coordinator_differs", address=hello.address)
            return
        if hello.address != self._address:
            # The node came back somewhere else.
            self._address = hello.address
            self._complained = False
            self._reset("the peer moved")
        self._heard_s = time.monotonic()
        self._their_pipe = message.pipe_id
        if hello.session != self._their_session:
            if self._state is LinkState.UP:
                self._reset("the peer began the link anew")
            self._their_session = hello.session
            self._say_hello()
        if hello.echo == self._session and self._state is LinkState.DIALLING:
            self._state = LinkState.UP
            self._missed = False
            self._say_hello()
            if self._state is not LinkState.UP:
                return  # it broke
            self._meters.ups += 1
            self._log.info("link_up", address=self._address)
            outlet = present(self._outlet, "a link is up without an outlet")
            self._link = Link(self._session, self._their_session, outlet, self.actor_ref, self._meters)
            self._tell_all(PeerUp(self._node, self._name, self._link))

    def _tick(self) -> None:
        heard_s = max(self._heard_s, self._meters.heard_s)  # what is heard may wait here behind what is to be sent
        if self._state is LinkState.UP and time.monotonic() - heard_s > SILENCE_MS_MAX / 1000:
            self._reset(f"nothing heard for {SILENCE_MS_MAX} ms")
        if self._outlet is None:
            self._open()
        self._say_hello()
        self._look_for_it()
        if not self._meters.ups and not self._complained and time.monotonic() - self._dialled_s > UNLINKED_S:
            self._dialled_s = math.inf  # once; what else is wrong with the peer is still to be told of
            why = (
                "is it reachable?"
                if self._identity is None
                else "is it reachable, and its certificate of our authority?"
            )
            self._log.warning("link_not_made", address=self._address, connected=self._connected, hint=why)

    def _say_hello(self) -> None:
        if self._connected:
            me = self._me
            hello = Hello(me.node, me.name, me.address, me.coordinator, self._session, self._their_session)
            self._send(LINK_CODEC.encode(hello))

    def _send(self, frame: bytes) -> None:
        """Send one frame; a peer that takes nothing for ``SILENCE_MS_MAX`` loses its link, not this actor its time."""
        if self._outlet is None:
            return
        try:
            self._outlet.send(frame, timeout_ms=SILENCE_MS_MAX)
        except WouldBlock:
            self._reset(f"the peer took no frame for {SILENCE_MS_MAX} ms")
        except TransportError as error:
            self._reset(error.message)

    def _reset(self, why: str) -> None:
        was_up = self._state is LinkState.UP
        self._state = LinkState.DIALLING
        self._close()
        self._session = max(time.time_ns(), self._session + 1)
        self._connected = False
        if was_up:  # else on a tick: no storm of attempts at a peer that ends each of them
            self._open()
            self._log.info("link_down", reason=why)
            self._tell_all(PeerDown(self._node))
            self._missed = True
            self._look_for_it()

    def _look_for_it(self) -> None:
        """Tell a process that has ended from a link that is cut, so that nobody waits for a dead leader's lease."""
        if self._missed and not self._connected and refuses(self._address):
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
        session, ref = self._session, self.actor_ref
        try:
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
