"""The life of a link to one peer: which state it is in, what may happen then, and what follows. Pure.

Two nodes have a link when each has a connection to the other, and both have said so: a hello carries the sender's
number of this life (``session``) and the receiver's, as the sender received it last (``echo``).

=========  ====================================================  ===================================================
state      input                                                 then
=========  ====================================================  ===================================================
WAITING    the pause is over                                     OPEN; DIALLING
DIALLING   our connection is made                                HELLO; GREETING
GREETING   hello that echoes our session                         HELLO, UP; UP
GREETING   the peer's connection broke                           await a hello over its next one
WAITING    hello of another life                                 the pause is short again
UP         hello of a later life, our or its connection broke,   CLOSE, OPEN, DOWN; new session; DIALLING
           silence, no frame taken, reset
UP         hello of an earlier life over another connection      ignored: a process that was replaced is still there
others     our connection broke, no frame taken, the peer moved  CLOSE; new session; WAITING, for longer each time
DIALLING,  ``DIAL_S`` or ``GREET_S`` have passed                 CLOSE, OPEN; new session; DIALLING
GREETING
=========  ====================================================  ===================================================

So no state except UP lasts longer than its bound, and UP lasts as long as frames arrive from the peer.
"""

from __future__ import annotations

import enum
from typing import Final

SILENCE_MS_MAX: Final = 2000
"""Milliseconds without a hello after which a link goes down."""
DIAL_S: Final = 2.0
"""Seconds to wait for a connection before dialling again; doubled each time, up to ``DIAL_S_MAX``."""
DIAL_S_MAX: Final = 5.0
"""Most seconds for one attempt to connect; long, so that a slow handshake succeeds in the end."""
GREET_S: Final = 2.0
"""Seconds to wait for a link over a new connection before dialling again; doubled as ``DIAL_S``."""
PAUSE_S: Final = 0.2
"""Seconds before the next attempt after a connection that ended early; doubled each time, up to ``PAUSE_S_MAX``."""
PAUSE_S_MAX: Final = 2.0
"""Longest pause between two attempts, in seconds."""


class State(enum.Enum):
    """See the table in the module's docstring."""

    WAITING = "waiting"
    DIALLING = "dialling"
    GREETING = "greeting"
    UP = "up"


class Effect(enum.Enum):
    """What the owner of the life must do, in order."""

    CLOSE = "close"
    """Close our connection, if there is one."""
    OPEN = "open"
    """Connect, for the current session."""
    HELLO = "hello"
    """Send a hello with the current sessions; if that fails, call :meth:`Life.broke` and skip the rest."""
    UP = "up"
    """Announce that the link is up."""
    DOWN = "down"
    """Announce that the link is down, for :attr:`Life.reason`."""


class Life:
    """One peer's link. Times are in seconds of a clock that never goes back."""

    def __init__(self, session: int, now_s: float) -> None:
        """``session``: later than those of lives before this one, such as the time in nanoseconds."""
        self.state = State.WAITING
        self.session = session
        self.their_session = 0
        """The peer's number of this life as received last; 0 before."""
        self.reason = ""
        """Why the link last went down, or why the last attempt failed."""
        self._their_pipe = 0
        self._due_s = now_s
        self._received_s = now_s
        self._failed = 0

    @property
    def connected(self) -> bool:
        """Whether our connection to the peer is made."""
        return self.state in (State.GREETING, State.UP)

    @property
    def received(self) -> bool:
        """Whether a hello has arrived over the peer's current connection."""
        return self._their_pipe != 0

    def made(self, session: int, now_s: float) -> list[Effect]:
        """Our connection of ``session`` is made."""
        if session != self.session or self.state is not State.DIALLING:
            return []
        self.state, self._due_s = State.GREETING, now_s + self._bound_s(GREET_S)
        return [Effect.HELLO]

    def broke(self, session: int, now_s: float, reason: str) -> list[Effect]:
        """Our connection of ``session`` has ended or takes no frame, or the peer broke the protocol."""
        return self._again(now_s, reason, pauses=True) if session == self.session else []

    def pipe_removed(self, pipe: int, now_s: float) -> list[Effect]:
        """A connection of the peer has ended."""
        if pipe != self._their_pipe:
            return []
        self._their_pipe = self.their_session = 0
        return self._again(now_s, "the peer's connection broke", pauses=True) if self.state is State.UP else []

    def moved(self, now_s: float) -> list[Effect]:
        """The peer says that it is dialled at another address."""
        self._failed = 0
        return self._again(now_s, "the peer moved", pauses=True)

    def hello(self, session: int, echo: int, pipe: int, now_s: float) -> list[Effect]:
        """The peer has said hello over its connection ``pipe``."""
        effects = []
        if self.state is State.UP and session < self.their_session:
            return []
        self._received_s, self._their_pipe = now_s, pipe
        if session != self.their_session:
            if self.state is State.UP:
                effects = self._again(now_s, "the peer began the link again", pauses=False)
            elif self.state is State.WAITING:
                self._due_s = min(self._due_s, now_s + PAUSE_S)
            self._failed = 0  # it is there, and began a life: probably it has just started
            self.their_session = session
            effects += [Effect.HELLO] if self.connected else []
        if echo == self.session and self.state is State.GREETING:
            self.state, self._failed = State.UP, 0
            effects += [Effect.HELLO, Effect.UP]
        return effects

    def tick(self, now_s: float, received_s: float) -> list[Effect]:
        """Some time has passed; the last frame from the peer arrived at ``received_s``."""
        if self.state is State.UP:
            if now_s - max(self._received_s, received_s) <= SILENCE_MS_MAX / 1000:
                return [Effect.HELLO]
            self.their_session = 0
            return self._again(now_s, f"nothing received for {SILENCE_MS_MAX} ms", pauses=False)
        if now_s < self._due_s:
            return [Effect.HELLO] if self.state is State.GREETING else []
        if self.state is State.WAITING:
            return self._dial(now_s)
        reason = "no connection was made" if self.state is State.DIALLING else "no hello answered ours"
        return self._again(now_s, reason, pauses=False)

    def _again(self, now_s: float, reason: str, *, pauses: bool) -> list[Effect]:
        """Give up the current session.

        Dial at once if the link was up; otherwise pause, as the peer may end every attempt.
        """
        was_up = self.state is State.UP
        self.reason = reason
        self.session += 1
        self.state, self._due_s = State.WAITING, now_s + min(PAUSE_S * 2**self._failed, PAUSE_S_MAX)
        self._failed = 0 if was_up else min(self._failed + 1, 10)
        effects = [Effect.CLOSE]
        if was_up or not pauses:
            effects += self._dial(now_s)
        return [*effects, Effect.DOWN] if was_up else effects

    def _dial(self, now_s: float) -> list[Effect]:
        self.state, self._due_s = State.DIALLING, now_s + self._bound_s(DIAL_S)
        return [Effect.OPEN]

    def _bound_s(self, first_s: float) -> float:
        return float(min(first_s * 2**self._failed, DIAL_S_MAX))
