"""The exceptions of Open Outcry: one base, one stable ``code`` each, the same codes on the wire.

.. code-block:: text

    OpenOutcryError
    ├── InvalidRequest        what you asked for is malformed; nothing was sent
    │   └── MessageRefused    an actor does not accept this type of message, or a field does not fit it
    ├── AccessDenied          the node may not act for that account
    ├── OrderRejected         the book refused the command; it carries the result
    ├── Unavailable           the market or its leader cannot be used now; a retry is safe
    │   ├── Overloaded        a bound was hit: slow down, then retry
    │   ├── RequestTimeout    no answer in time: the outcome is unknown; retry with the same client order id
    │   ├── UnknownActor      no actor is registered under that name
    │   ├── ActorStopped      the actor has ended; another may serve under its name
    │   └── Unreachable       there is no link to the actor's node
    ├── RemoteFailure         an actor of another process raised an exception while it handled the message
    ├── ConfigurationError    the node cannot start, or stopped, because of its settings
    ├── StorageError          the disk or its journal cannot be trusted; the replica has stopped
    ├── InvariantBroken       an internal check failed; the part that failed it has stopped
    └── TransportError        a failure between processes
        ├── Closed            closed by this side
        ├── LinkBroken        broken by the other side, or by the network between
        ├── WouldBlock        the peer is not keeping up; nothing was sent
        └── ProtocolError     the peer broke the protocol
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
    """Base of every exception that this library raises on purpose.

    ``code`` is stable, for programs to compare; ``message`` says what was wrong and what to do.
    """

    default_code: ClassVar[str] = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        self.message = plain(message)
        """One line that a terminal can show safely: it may quote what a peer has sent."""
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
    """A message to a remote actor, or its answer, has no registered or accepted type, or is too large.

    Codes: ``message_refused``, ``message_too_large``, ``reply_refused``.
    """

    default_code = "message_refused"


class UnknownActor(Unavailable):
    """No actor is registered under that name, at that node or in the directory."""

    default_code = "unknown_actor"


class ActorStopped(Unavailable):
    """The remote actor has ended, or its node no longer serves it; it may not have handled the last messages."""

    default_code = "actor_stopped"


class Unreachable(Unavailable):
    """There is no link to the remote actor's node; messages on their way may be lost."""

    default_code = "unreachable"


class RemoteFailure(OpenOutcryError):
    """The remote actor raised an exception from outside this library; the message has its type and text."""

    default_code = "remote_failure"


class ConfigurationError(OpenOutcryError):
    """The node's settings contradict each other, its disk, or the market they name."""

    default_code = "configuration"

    def __init__(self, message: str, *, code: str | None = None, market: str | None = None) -> None:
        super().__init__(message, code=code)
        self.market = market
        """The market that has other rules (code ``rules_mismatch``)."""


class StorageError(OpenOutcryError):
    """The journal could not be written, synced or read back; the replica stops rather than guess."""

    default_code = "storage"


class InvariantBroken(OpenOutcryError):
    """Something that must always hold does not: a bug in this program, or input that its checks let through.

    The part that finds it stops rather than continue with a wrong state. It is raised, never asserted, because
    ``python -O`` drops assertions.
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
    """Return type and text of any exception, even if ``str`` of it fails."""
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
    """Return an exception of ``kind`` with ``args``, without calling ``__init__``, which takes other arguments.

    ``args`` is set afterwards: an OSError (a TimeoutError is one) drops arguments that only ``__new__`` gets.
    """
    made = kind.__new__(kind)
    made.args = args
    return made


def copied(error: _Own, message: str | None = None, *, code: str | None = None) -> _Own:
    """Return a copy of the error to be raised in its place, with another message or code if given.

    Raise a copy for each caller: one shared object would collect the tracebacks of all and never free them.
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


def quoted(value: object, length: int = 40) -> str:
    """Return at most ``length`` characters of ``repr(value)`` for a message; works for every value."""
    try:
        return plain(f"{value!r:.{length}}")
    except Exception:  # Python writes no int of more than 4,300 digits; and a class may have a `__repr__` of its own
        return f"a value of type {type(value).__name__} that cannot be written"
