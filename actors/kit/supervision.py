"""Supervisor: starts actors, restarts each one that fails (one for one) after a growing pause, and escalates at a
limit.

=========================================  ======================================================================
a child                                    then
=========================================  ======================================================================
was stopped, by anyone                     the supervisor releases it
failed, for the n-th time in ``window_s``  n <= ``restarts_max``: it is started again after a pause; others go on
…                                          n > ``restarts_max``: it is given up: ``on_escalation``, or else the
                                           supervisor fails by :class:`RestartLimit` and stops its other children
cannot be started again                    that counts as one more failure
=========================================  ======================================================================

Messages: Supervise, Release, CurrentRef (ask); ChildEnded, StartAgain (its own).
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import random
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

import pykka

from ...transport.errors import ConfigurationError, OpenOutcryError
from ...transport.log import get_logger
from .actor import Actor, Mailbox, stop_and_join, tell_always

logger = get_logger(__name__)

STOP_S_MAX: Final = 10.0
"""Seconds that an ending supervisor waits for each child."""

Start = Callable[[], pykka.ActorRef[Any]]
"""Starts one incarnation of a child; it runs on the supervisor's thread."""


class RestartLimit(OpenOutcryError):
    """A child failed more often than its policy allows; the failure of the supervisor that gave it up."""

    default_code = "restart_limit"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """How to restart a failed child.

    The pause before the n-th restart within the window is ``backoff_min_s * 2**(n-1)``, at most ``backoff_max_s``, made
    shorter or longer at random by up to ``jitter`` of it, so that many children do not restart at one moment.
    """

    restarts_max: int = 5
    """Restarts within ``window_s`` before the supervisor gives the child up."""
    window_s: float = 60.0
    backoff_min_s: float = 0.1
    backoff_max_s: float = 10.0
    jitter: float = 0.2
    """0 to 1."""

    def __post_init__(self) -> None:
        if self.restarts_max < 0 or self.window_s <= 0:
            raise ConfigurationError("a restart policy allows 0 or more restarts in a window of more than 0 seconds")
        if not 0 <= self.backoff_min_s <= self.backoff_max_s or not 0 <= self.jitter <= 1:
            raise ConfigurationError("a restart policy has 0 <= backoff_min_s <= backoff_max_s and a jitter of 0 to 1")

    def pause_s(self, restart: int, chance: float) -> float:
        """Return the pause before restart number ``restart`` (1 = first); ``chance`` is a random number in [0, 1)."""
        pause = min(self.backoff_max_s, self.backoff_min_s * 2.0 ** min(restart - 1, 64))
        return pause * (1 + self.jitter * (2 * chance - 1))


@dataclasses.dataclass(frozen=True, slots=True)
class Escalation:
    """A child was given up; see :class:`Supervisor`."""

    name: str
    error: BaseException
    """Its last failure."""
    restarts: int
    """How often it was started again within the policy's window."""


@dataclasses.dataclass(frozen=True, slots=True)
class Supervise:
    """Ask: start a child and supervise it; answers its ref. An exception of the first start is raised in the asker."""

    name: str
    start: Start
    policy: RestartPolicy | None = None
    """None = the supervisor's."""


@dataclasses.dataclass(frozen=True, slots=True)
class Release:
    """Ask: stop a child and release it; answers whether there was one."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class CurrentRef:
    """Ask: answers the ref of a child's current incarnation; None while it waits for a restart, or is unknown."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class ChildEnded:
    """A child to its supervisor: incarnation ``number`` has ended; ``error`` is None if it was stopped."""

    name: str
    number: int
    error: BaseException | None


@dataclasses.dataclass(frozen=True, slots=True)
class StartAgain:
    """A timer to the supervisor: the pause of a child is over."""

    name: str
    number: int


@dataclasses.dataclass(slots=True)
class _Child:
    start: Start
    policy: RestartPolicy
    number: int = 0
    ref: pykka.ActorRef[Any] | None = None
    failed_at_s: collections.deque[float] = dataclasses.field(default_factory=collections.deque)


class Supervisor(Actor):
    """See the table in the module's docstring. A supervisor may be the child of another.

    >>> class Feed(Actor):
    ...     def on_receive(self, message: object) -> object:
    ...         return f"got {message}"
    >>> supervisor = Supervisor.start(policy=RestartPolicy(restarts_max=3, window_s=10))
    >>> feed = supervisor.ask(Supervise("feed", Feed.start), timeout=5)
    >>> feed.ask("a message", timeout=5)
    'got a message'
    >>> supervisor.stop()  # and its children
    True
    >>> feed.is_alive()
    False

    A child's ref is that of one incarnation; ask :class:`CurrentRef` after a restart, or let ``start`` hand it to those
    who need it. Children must be :class:`~.actor.Actor`: for others Pykka cannot tell whether they failed.
    """

    def __init__(
        self,
        *,
        policy: RestartPolicy | None = None,
        on_escalation: Callable[[Escalation], None] | None = None,
    ) -> None:
        """``on_escalation`` runs on the supervisor's thread, which then goes on with the other children."""
        super().__init__()
        self._policy = policy or RestartPolicy()
        self._on_escalation = on_escalation
        self._children: dict[str, _Child] = {}
        self._numbers = itertools.count(1)
        self._chance = random.Random()  # noqa: S311 (spreads restarts; nothing to guess)
        self.restarts = 0
        """How often any child was started again."""

    def on_receive(self, message: Any) -> Any:
        if isinstance(message, ChildEnded):
            self._ended(message)
        elif isinstance(message, StartAgain):
            self._start_again(message)
        elif isinstance(message, Supervise):
            return self.supervise(message.name, message.start, message.policy)
        elif isinstance(message, Release):
            return self.release(message.name)
        elif isinstance(message, CurrentRef):
            child = self._children.get(message.name)
            return None if child is None else child.ref
        else:
            return super().on_receive(message)
        return None

    def supervise(self, name: str, start: Start, policy: RestartPolicy | None = None) -> pykka.ActorRef[Any]:
        """Start a child and return its ref; for classes derived from this one, on the actor's own thread.

        Raises:
            ConfigurationError: there is a child of that name (code ``child_exists``), or what ``start`` returned is no
                :class:`~.actor.Actor`.
        """
        if name in self._children:
            raise ConfigurationError(f"{name!r} is supervised already; release it first", code="child_exists")
        child = _Child(start, policy or self._policy)
        ref = self._begin(name, child)
        self._children[name] = child
        return ref

    def release(self, name: str) -> bool:
        """Stop a child, if it lives, and release it; return whether there was one."""
        child = self._children.pop(name, None)
        if child is not None and child.ref is not None:
            stop_and_join(child.ref, timeout_s=STOP_S_MAX)
        return child is not None

    def on_stop(self) -> None:
        for name in reversed(list(self._children)):
            self.release(name)

    def on_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        del exception_type, exception_value, traceback
        self.on_stop()

    def _begin(self, name: str, child: _Child) -> pykka.ActorRef[Any]:
        child.number = next(self._numbers)  # ignore others: notices of a released child may still arrive
        number, supervisor = child.number, self.actor_ref
        ref = child.start()
        if not isinstance(ref.actor_inbox, Mailbox):
            ref.stop(block=False)
            raise ConfigurationError(f"{ref} cannot be supervised: it is no openoutcry.actors.Actor")
        child.ref = ref
        # The mailbox never refuses the notice: without it the child would stay dead.
        ref.actor_inbox.on_end(lambda error: _notify(supervisor, ChildEnded(name, number, error)))
        return ref

    def _ended(self, ended: ChildEnded) -> None:
        child = self._children.get(ended.name)
        if child is None or child.number != ended.number:
            return
        child.ref = None
        if ended.error is None:
            del self._children[ended.name]
        else:
            self._failed(ended.name, child, ended.error)

    def _failed(self, name: str, child: _Child, error: BaseException) -> None:
        now_s, policy, failed_at_s = self.clock.now_s(), child.policy, child.failed_at_s
        while failed_at_s and now_s - failed_at_s[0] > policy.window_s:
            failed_at_s.popleft()
        restarts = len(failed_at_s)
        if restarts >= policy.restarts_max:
            del self._children[name]
            self._escalate(Escalation(name, error, restarts))
            return
        failed_at_s.append(now_s)
        pause_s = policy.pause_s(restarts + 1, self._chance.random())
        logger.error("child_failed", actor=name, restart_s=round(pause_s, 3), error=error)
        self.tell_after(pause_s, StartAgain(name, child.number))

    def _start_again(self, again: StartAgain) -> None:
        child = self._children.get(again.name)
        if child is None or child.number != again.number:
            return
        self.restarts += 1
        try:
            self._begin(again.name, child)
        except Exception as error:
            self._failed(again.name, child, error)

    def _escalate(self, escalation: Escalation) -> None:
        error = escalation.error
        logger.critical("child_given_up", actor=escalation.name, restarts=escalation.restarts, error=error)
        if self._on_escalation is None:
            raise RestartLimit(
                f"{escalation.name} failed after {escalation.restarts} restarts and is given up: {error!r}"
            ) from error
        self._on_escalation(escalation)


def _notify(supervisor: pykka.ActorRef[Any], ended: ChildEnded) -> None:
    tell_always(supervisor, ended)
