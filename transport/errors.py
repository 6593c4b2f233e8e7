"""The exceptions of Open Outcry: one base, one stable ``code`` each, the same codes on the wire.

.. code-block:: text

    OpenOutcryError
    ├── InvalidRequest        what you asked for is malformed; nothing was sent
    │   └── MessageRefused    a message to an actor is not of a type it accepts, or not as its type says
    ├── AccessDenied          it is not yours to ask for: the account is none that the node may act for
    ├── OrderRejected         the book refused the command; it carries the result
    ├── Unavailable           the market or its leader cannot be used now; a retry is safe
    │   ├── Overloaded        a bound was hit: slow down, then retry
    │   ├── RequestTimeout    no answer in time: the outcome is unknown; retry with the same client order id
    │   ├── UnknownActor      no actor is registered under that name
    │   ├── ActorStopped      the actor has ended; another may serve under its name
    │   └── Unreachable       there is no link to the actor's node
    ├── RemoteFailure         an actor of another process raised an exception while it handled the message
    ├── ConfigurationError    the node cannot start, or stopped, because of how it is set up
    ├── StorageError          the disk or the journal on it cannot be trusted; the replica has stopped
    ├── InvariantBroken       a check of the program's own failed; what failed it goes no further
    └── TransportError        something that crosses a process boundary
        ├── Closed            closed by this side
        ├── LinkBroken        broken by the other side, or by the network between
        ├── WouldBlock        the peer is not keeping up; nothing was sent
        └── ProtocolError     the peer sent what the protocol does not allow
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

from .plain import plain

_E = TypeVar("_E", bound=BaseException)


class Copied(Exception):
    """An exception that can be copied and pickled with all its attributes, whatever its class's arguments are."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (type(self), self.args), self.__dict__


class OpenOutcryError(Copied):
    """Base of every exception this library raises on purpose.

    ``code`` is stable and fit for programs; ``message`` says what was wrong and what to do.
    """

    default_code: ClassVar[str] = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        self.message = plain(message)
        """One line, of what a terminal shows as it is: it may quote what a peer has sent."""
        super().__init__(self.message)
        self.code = code or self.default_code

    def __str__(self) -> str:
        return self.message


class InvalidRequest(OpenOutcryError, ValueError):
    """The request is malformed (a float for a price, an unknown side, …); it was not sent anywhere."""

    default_code = "invalid_request"


class AccessDenied(OpenOutcryError):
    """The node may not act for that account: its certificate names others. Nothing was executed."""

    default_code = "access_denied"


class Unavailable(OpenOutcryError):
    """The market, its leader or this node cannot serve now; retrying with the same client order id is safe."""

    default_code = "unavailable"


class Overloaded(Unavailable):
    """A bound was reached (commands in flight); wait for answers, or retry later."""

    default_code = "overloaded"


class RequestTimeout(Unavailable, TimeoutError):
    """No answer within the deadline. The command may still be executed: retry with the same client order id."""

    default_code = "timeout"


class MessageRefused(InvalidRequest):
    """A message to a remote actor, or its answer, is of no registered or accepted type, or too large.

    Codes: ``message_refused``, ``message_too_large``, ``reply_refused``.
    """

    default_code = "message_refused"


class UnknownActor(Unavailable):
    """Nobody is registered under that name, at that node or in the directory."""

    default_code = "unknown_actor"


class ActorStopped(Unavailable):
    """The remote actor has ended, or is served no more; what it was told last may not have been handled."""

    default_code = "actor_stopped"


class Unreachable(Unavailable):
    """There is no link to the remote actor's node; what was under way to it may be lost."""

    default_code = "unreachable"


class RemoteFailure(OpenOutcryError):
    """The remote actor raised an exception that is none of this library's; the message names its type and text."""

    default_code = "remote_failure"


class ConfigurationError(OpenOutcryError):
    """The node's settings contradict each other, its disk, or the market they name."""

    default_code = "configuration"

    def __init__(self, message: str, *, code: str | None = None, market: str | None = None) -> None:
        super().__init__(message, code=code)
        self.market = market
        """The market whose rules are others (code ``rules_mismatch``)."""


class StorageError(OpenOutcryError):
    """The journal could not be written, synced or read back; the replica stops rather than guess."""

    default_code = "storage"


class InvariantBroken(OpenOutcryError):
    """Something that always holds does not: a fault of this program, or input that its checks have let through.

    Whoever finds it stops rather than go on with a state that is wrong. It is raised, never asserted: ``python -O``
    drops assertions.
    """

    default_code = "invariant"


class TransportError(OpenOutcryError):
    """Base of the errors of sockets and frames."""

    default_code = "transport"


class Closed(TransportError):
    """This side has closed the socket, actor or node."""

    default_code = "closed"


class LinkBroken(TransportError):
    """The other side, or the network, broke the link. What was sent may not have arrived."""

    default_code = "link_broken"


class WouldBlock(TransportError):
    """The peer does not keep up and the buffers are full; nothing was sent."""

    default_code = "would_block"


class ProtocolError(TransportError):
    """A frame that the protocol does not allow: bad version, kind, type, range, length or order."""

    default_code = "protocol"


def text_of(error: BaseException | None) -> str:
    """Return type and text of any exception, also one whose text cannot be had."""
    kind = type(error).__qualname__
    try:
        return f"{kind}: {error}"
    except Exception as without:  # an application's ``__str__``
        return f"{kind} (its text raises {type(without).__qualname__})"


_T = TypeVar("_T")
_Own = TypeVar("_Own", bound=OpenOutcryError)


def ensure(holds: object, invariant: str) -> None:
    """Raise :class:`InvariantBroken` unless ``holds``; ``invariant`` says what was found instead."""
    if not holds:
        raise InvariantBroken(invariant)


def present(value: _T | None, invariant: str) -> _T:
    """Return ``value``, which the program's own logic has set by now; InvariantBroken if it is None."""
    if value is None:
        raise InvariantBroken(invariant)
    return value


def _remade(kind: type[_E], args: tuple[Any, ...]) -> _E:
    """Return an exception of ``kind`` that has ``args``, not by ``__init__``, whose arguments are others.

    ``args`` is set afterwards: an OSError (a TimeoutError is one) drops what only its ``__new__`` is given.
    """
    made = kind.__new__(kind)
    made.args = args
    return made


def anew(error: _Own, message: str | None = None, *, code: str | None = None) -> _Own:
    """Return the same error as another object, to be raised in its place; with another text or code, if given.

    What many callers get is raised anew for each: one object would gather the tracebacks of all, and never lose them.
    """
    made = _remade(type(error), error.args)
    made.__dict__.update(error.__dict__)
    if message is not None:
        made.message = message
        made.args = (message,)
    if code is not None:
        made.code = code
    made.__cause__ = error.__cause__
    return made


def shown(value: object, length: int = 40) -> str:
    """Return at most ``length`` characters of ``value`` as Python writes it, for a message; whatever it is."""
    try:
        return plain(f"{value!r:.{length}}")
    except Exception:  # Python writes no int of more than 4,300 digits; and a class may have a `__repr__` of its own
        return f"a value of type {type(value).__name__} that cannot be written"
