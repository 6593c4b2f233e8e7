"""Probes: actors that keep every message, for a test to look at. Imports no Pykka before a probe is made."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import queue
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, overload

from ...transport.numerals import written
from .waits import HANDLED_S, scaled

if TYPE_CHECKING:
    import pykka

    from ..remote.refs import RemoteRef, Terminated

_LISTED_MAX: Final = 50
_REPR_LENGTH_MAX: Final = 200

_T = TypeVar("_T")


class _Received(NamedTuple):
    after_s: float
    message: Any
    asked: bool


class _Inbox(queue.SimpleQueue[Any]):
    """A mailbox that knows whether the envelope last taken out of it waits for a reply."""

    asked = False

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        envelope = super().get(block, timeout)
        self.asked = envelope.reply_to is not None
        return envelope


@functools.cache
def _actor_class() -> type[pykka.ThreadingActor]:
    import pykka  # noqa: PLC0415 (here, so that a run that uses no probe pays nothing)

    class ProbeActor(pykka.ThreadingActor):
        use_daemon_thread = True

        def __init__(self, receive: Callable[[Any, bool], Any], stopped: Callable[[], None]) -> None:
            super().__init__()
            self._receive = receive
            self._stopped = stopped

        @staticmethod
        def _create_actor_inbox() -> _Inbox:
            return _Inbox()

        def on_receive(self, message: Any) -> Any:
            assert isinstance(self.actor_inbox, _Inbox)
            return self._receive(message, self.actor_inbox.asked)

        def on_stop(self) -> None:
            self._stopped()

    return ProbeActor


class ActorProbe:
    """A real actor that keeps every message it receives, and the object through which a test reads them.

    1. Hand :attr:`ref` to the code under test.
    2. Read the conversation in order: :meth:`expect` takes the next message, :meth:`expect_sequence` several,
       :meth:`fish` skips to one, :meth:`expect_none` checks that there is none. Each takes a ``within`` in seconds; a
       failure is an ``AssertionError`` that lists all messages that arrived, and leaves unread messages unread.
    3. Stop it: the fixture ``actor_probe`` does; otherwise call :meth:`stop` or use it in a ``with`` statement.

    What to expect is a class (or a union of classes), a predicate, or a value that the message must equal.
    One thread reads a probe; any number may send to it. Messages are kept, not copied. Calls through
    ``ref.proxy()`` are not messages: give the code under test an actor of your own for those.

    >>> with ActorProbe() as probe:
    ...     for message in ("opened", 1, 2, "closed"):
    ...         probe.ref.tell(message)
    ...     probe.expect("opened"), probe.fish(2), probe.expect(str)
    ('opened', 2, 'closed')

    A probe is an actor like any other, so it can be registered at a node and told from another one:

    >>> from openoutcry.actors import ExchangeNode, message
    >>> @message("example.greeting")
    ... class Greeting:
    ...     text: str
    >>> with ExchangeNode("here", serve_directory="tcp://127.0.0.1:0") as here, ActorProbe() as probe:
    ...     here.register("probe", probe.ref, accepts=[Greeting])
    ...     with ExchangeNode("there", directory=here.directory_address) as there:
    ...         there.actor("probe@here").tell(Greeting("hello"))
    ...     probe.expect(Greeting).text
    'hello'
    """

    def __init__(self) -> None:
        self._until_s = math.inf
        self._remote: set[RemoteRef] = set()
        self._ends: dict[RemoteRef, Terminated] = {}
        self._is_end: Callable[[Any], bool] = lambda _: False
        self._arrival = threading.Condition()
        self._received: list[_Received] = []
        self._read = 0
        self._reply: Any = None
        self._watched: set[str] = set()
        self._others: list[ActorProbe] = []
        self._started_s = time.monotonic()
        self.ref: pykka.ActorRef[Any] = _actor_class().start(self._receive, self._notify)
        """The probe's address, for the code under test."""

    def __enter__(self) -> ActorProbe:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.stop()

    @property
    def messages(self) -> tuple[Any, ...]:
        """Every message received so far, read or not, in order of arrival."""
        with self._arrival:
            return tuple(received.message for received in self._received)

    @property
    def last(self) -> Any:
        """The last message received, read or not; None if there was none."""
        with self._arrival:
            return self._received[-1].message if self._received else None

    def another(self) -> ActorProbe:
        """Start one more probe; it is stopped together with this one."""
        other = ActorProbe()
        self._others.append(other)
        return other

    def reply_with(self, reply: Any) -> None:
        """Answer every ask from now on with ``reply``, or with its result if it is callable.

        A callable gets the message, runs on the probe's thread and is called for asks only; its exceptions are raised
        in the asker. Without a call of this method asks are answered with None.
        """
        self._reply = reply

    @overload
    def expect(self, wanted: type[_T], *, within: float = 3.0) -> _T: ...
    @overload
    def expect(self, wanted: object, *, within: float = 3.0) -> Any: ...
    def expect(self, wanted: object, *, within: float = 3.0) -> Any:
        """Return the next unread message, which must arrive ``within`` seconds and match ``wanted``.

        Raises:
            AssertionError: no message in time, or another one; an unexpected message stays unread.
        """
        __tracebackhide__ = True
        return self._next(wanted, self._deadline_s(within), "expected", within)

    def expect_sequence(self, *wanted: object, within: float = 3.0) -> list[Any]:
        """Return the next unread messages, which must match ``wanted``, one by one and in that order.

        ``within`` seconds apply to all of them together. They may come from several senders, but no other message may
        come between.

        >>> with ActorProbe() as probe:
        ...     for message in ("opened", 7, 8):
        ...         probe.ref.tell(message)
        ...     probe.expect_sequence("opened", int, lambda message: message > 7)
        ['opened', 7, 8]

        Raises:
            AssertionError: another message came, or too few in time; all stay unread.
        """
        __tracebackhide__ = True
        first, deadline_s = self._read, self._deadline_s(within)
        try:
            return [
                self._next(each, deadline_s, f"expected as number {number} of {len(wanted)}", within)
                for number, each in enumerate(wanted, 1)
            ]
        except AssertionError:
            self._read = first
            raise

    def _next(self, wanted: object, deadline_s: float, expected: str, within: float) -> Any:
        __tracebackhide__ = True
        matches = _predicate(wanted)
        if not self._wait_for_message(self._read, deadline_s):
            raise self._failure(f"{expected} {_name_of(wanted)}, but nothing came within {written(scaled(within))} s")
        message = self._received[self._read].message
        if not matches(message):
            raise self._failure(f"{expected} {_name_of(wanted)}, but the next message is {_shown(message)}")
        self._read += 1
        return message

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Limit all expectations of the block together, and the block itself, to ``seconds``.

        >>> with ActorProbe() as probe:
        ...     with probe.within(2.0):
        ...         probe.ref.tell("one")
        ...         _ = probe.expect("one"), probe.ref.tell("two"), probe.expect("two")

        Raises:
            AssertionError: the block took longer.
        """
        __tracebackhide__ = True
        before_s, began_s = self._until_s, time.monotonic()
        self._until_s = min(before_s, began_s + scaled(seconds))
        try:
            yield
        finally:
            self._until_s = before_s
        if (took_s := time.monotonic() - began_s) > scaled(seconds):
            raise self._failure(
                f"expected all of it within {written(scaled(seconds))} s, but it took {written(took_s, 3)} s"
            )

    def _deadline_s(self, within: float) -> float:
        return min(time.monotonic() + scaled(within), self._until_s)

    @overload
    def fish(self, wanted: type[_T], *, within: float = 3.0) -> _T: ...
    @overload
    def fish(self, wanted: object, *, within: float = 3.0) -> Any: ...
    def fish(self, wanted: object, *, within: float = 3.0) -> Any:
        """Return the first unread message that matches ``wanted``, waiting ``within`` seconds for it; skip those before
        it.

        Raises:
            AssertionError: no such message in time; then it skips nothing.
        """
        __tracebackhide__ = True
        matches = _predicate(wanted)
        deadline_s = self._deadline_s(within)
        for index in itertools.count(self._read):
            if not self._wait_for_message(index, deadline_s):
                break
            message = self._received[index].message
            if matches(message):
                self._read = index + 1
                return message
        raise self._failure(f"fished for {_name_of(wanted)}, but it did not come within {written(scaled(within))} s")

    def expect_none(self, within: float = 0.1) -> None:
        """Check that no message is unread and that none comes ``within`` seconds (not scaled by the time factor).

        Raises:
            AssertionError: there is a message; it stays unread.
        """
        __tracebackhide__ = True
        if self._wait_for_message(self._read, time.monotonic() + within, until_stopped=False):
            message = self._received[self._read].message
            raise self._failure(f"expected no message for {written(within)} s, but got {_shown(message)}")

    def watch(self, ref: pykka.ActorRef[Any] | RemoteRef) -> None:
        """Remember the living actor ``ref`` for :meth:`expect_terminated`: watch first, then do what should end it.

        Raises:
            AssertionError: it is already stopped, so that a later check of its stop would prove nothing.
        """
        __tracebackhide__ = True
        from ..remote.refs import RemoteRef, Terminated  # noqa: PLC0415

        if isinstance(ref, RemoteRef):
            with self._arrival:
                self._is_end = lambda message: isinstance(message, Terminated) and message.ref in self._remote
                self._remote.add(ref)
            ref.watch(self.ref)
            return
        if not ref.is_alive():
            raise AssertionError(f"cannot watch {ref}: it has already stopped")
        self._watched.add(ref.actor_urn)

    def expect_terminated(self, ref: pykka.ActorRef[Any] | RemoteRef, *, within: float = 3.0) -> Terminated:
        """Wait up to ``within`` seconds until the watched actor has ended, here or elsewhere, and return how.

        The end of an actor is not a message of the conversation: it may come before, between or after those.

        >>> import pykka
        >>> class Plain(pykka.ThreadingActor):
        ...     pass
        >>> actor = Plain.start()
        >>> with ActorProbe() as probe:
        ...     probe.watch(actor)
        ...     _ = actor.stop()
        ...     probe.expect_terminated(actor).reason
        'stopped'

        Raises:
            AssertionError: it lives, as far as known here.
            ValueError: :meth:`watch` was not called for it.
        """
        __tracebackhide__ = True
        from ..remote.actors import ended_by  # noqa: PLC0415
        from ..remote.refs import RemoteRef  # noqa: PLC0415

        if not isinstance(ref, RemoteRef):
            deadline_s = self._deadline_s(within)
            self.expect_stopped(ref, within=within)
            return ended_by(ref, max(0.0, deadline_s - time.monotonic()))
        if ref not in self._remote:
            raise ValueError(f"{ref} is not watched: call watch(ref) before the step that should end it")
        with self._arrival:
            deadline_s = self._deadline_s(within)
            if not self._arrival.wait_for(lambda: ref in self._ends, max(0.0, deadline_s - time.monotonic())):
                raise self._failure(
                    f"expected {ref} to end, but nothing is known of that after {written(scaled(within))} s"
                )
            self._remote.discard(ref)
            return self._ends.pop(ref)

    def expect_stopped(self, ref: pykka.ActorRef[Any], *, within: float = 3.0) -> None:
        """Wait up to ``within`` seconds until the watched actor ``ref`` has stopped or failed.

        Pykka counts an actor as stopped before its ``on_stop`` runs: that may still be running.

        Raises:
            AssertionError: it is still alive.
            ValueError: :meth:`watch` was not called for it.
        """
        __tracebackhide__ = True
        if ref.actor_urn not in self._watched:
            raise ValueError(f"{ref} is not watched: call watch(ref) before the step that should stop it")
        if not ref.actor_stopped.wait(max(0.0, self._deadline_s(within) - time.monotonic())):
            raise self._failure(f"expected {ref} to stop, but it is alive after {written(scaled(within))} s")
        self._watched.discard(ref.actor_urn)

    def stop(self) -> None:
        """Stop the probe, and those made by :meth:`another`, after they handled earlier messages. Idempotent.

        Raises:
            AssertionError: a probe is stuck in a callable given to :meth:`reply_with`.
        """
        for other in self._others:
            other.stop()
        if self.ref.is_alive():
            self.ref.stop(block=False)
        if not self.ref.actor_stopped.wait(scaled(HANDLED_S)):
            raise AssertionError(f"{self.ref} did not stop: is it stuck in what was given to reply_with()?")

    def _receive(self, message: Any, asked: bool) -> Any:
        with self._arrival:
            if self._is_end(message):
                self._ends[message.ref] = message
                self._arrival.notify_all()
                return None
            self._received.append(_Received(time.monotonic() - self._started_s, message, asked))
            self._arrival.notify_all()
        reply = self._reply
        if not asked or not callable(reply):
            return reply
        try:
            return reply(message)
        except Exception:
            raise
        except BaseException as error:  # such as that of pytest.fail(): Pykka would stop every actor of the process
            raise AssertionError(f"what was given to reply_with() raised {error!r}") from error

    def _notify(self) -> None:
        with self._arrival:
            self._arrival.notify_all()

    def _wait_for_message(self, index: int, deadline_s: float, *, until_stopped: bool = True) -> bool:
        """Return whether message ``index`` has come by ``deadline_s``; a stopped probe does not wait."""
        with self._arrival:
            self._arrival.wait_for(
                lambda: len(self._received) > index or (until_stopped and not self.ref.is_alive()),
                timeout=max(0.0, deadline_s - time.monotonic()),
            )
            return len(self._received) > index

    def _failure(self, what: str) -> AssertionError:
        with self._arrival:
            received = list(self._received)
        lines = [
            what if self.ref.is_alive() else f"{what} (the probe has been stopped)",
            f"{len(received)} received, of which unread (from >): {len(received) - self._read}",
        ]
        first = max(0, len(received) - _LISTED_MAX)
        if first:
            lines.append(f"    … {first} earlier")
        for index, (after_s, message, asked) in enumerate(received[first:], first):
            marker = ">" if index == self._read else " "
            lines.append(f"  {marker} {after_s:8.3f} s  {'ask ' if asked else 'tell'}  {_shown(message)}")
        return AssertionError("\n".join(lines))


def _predicate(wanted: object) -> Callable[[Any], object]:
    if isinstance(wanted, (type, types.UnionType)):
        return lambda message: isinstance(message, wanted)
    if callable(wanted):
        return wanted
    return lambda message: message == wanted


def _name_of(wanted: object) -> str:
    if isinstance(wanted, type):
        return f"a {wanted.__qualname__}"
    if isinstance(wanted, types.FunctionType):
        code = wanted.__code__
        return f"a message that passes {wanted.__name__} ({Path(code.co_filename).name}:{code.co_firstlineno})"
    return _shown(wanted)


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__qualname__}, whose repr raised {error!r}>"
    return text if len(text) <= _REPR_LENGTH_MAX else f"{text[:_REPR_LENGTH_MAX]}… ({len(text)} characters)"
