"""The test kit for programs built on Open Outcry: probes, a fake clock, exchanges with faults, and their fixtures.

Owns what it starts (probes; nodes, their rendezvous and their files) and stops exactly that. Never touches another
actor, never calls ``ActorRegistry.stop_all()``, and imports neither Pykka nor nng before a test asks for them: pytest
loads this module as the plugin ``openoutcry`` in every run.

On slow machines set ``OPENOUTCRY_TEST_TIME_FACTOR`` (say, to 5): it multiplies every wait for something to happen.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import queue
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Self, TypeVar, cast, overload

import pytest

from ..transport.numerals import float_of, written

if TYPE_CHECKING:
    import pykka

    from ..transport.certificates import Authority
    from .book.rules import MarketRules
    from .kit.actor import Timer
    from .node import ExchangeNode
    from .remote.refs import RemoteRef, Terminated
    from .testkit.processes import NodeProcess
    from .testkit.proxy import Proxy

TIME_FACTOR_VARIABLE: Final = "OPENOUTCRY_TEST_TIME_FACTOR"

_LISTED_MAX = 50
_REPR_LENGTH_MAX = 200
_STOP_S = 3.0
_START_S = 15.0
_POLL_S = 0.005

_T = TypeVar("_T")
_NodeT = TypeVar("_NodeT", bound="ExchangeNode | NodeProcess")


def _scaled(within: float) -> float:
    """Return ``within`` (seconds) times the time factor of this machine."""
    text = os.environ.get(TIME_FACTOR_VARIABLE, "1")
    factor = float_of(text)
    if factor is None or factor <= 0:
        raise ValueError(f"{TIME_FACTOR_VARIABLE}={text!r}: expected a number greater than 0")
    return within * factor


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
    """A real actor that keeps every message it is told or asked, and the object by which a test looks at them.

    1. Hand :attr:`ref` to the code under test.
    2. Read the conversation in order: :meth:`expect` takes the next message, :meth:`expect_sequence` several,
       :meth:`fish` skips to one, :meth:`expect_none` checks that there is none. Each takes a ``within`` in seconds; a
       failure is an ``AssertionError`` that lists all that did arrive, and leaves unread messages unread.
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
        """The message received last, read or not; None if there was none."""
        with self._arrival:
            return self._received[-1].message if self._received else None

    def another(self) -> ActorProbe:
        """Start one more probe; it is stopped together with this one."""
        other = ActorProbe()
        self._others.append(other)
        return other

    def reply_with(self, reply: Any) -> None:
        """Answer every ask from now on with ``reply``, or with what it returns if it is callable.

        A callable gets the message, runs on the probe's thread and is called for asks only; an exception that it
        raises is raised where the ask was made. Without a call of this method asks are answered with None.
        """
        self._reply = reply

    @overload
    def expect(self, wanted: type[_T], *, within: float = 3.0) -> _T: ...
    @overload
    def expect(self, wanted: object, *, within: float = 3.0) -> Any: ...
    def expect(self, wanted: object, *, within: float = 3.0) -> Any:
        """Return the next unread message, which must come ``within`` seconds and be what is ``wanted``.

        Raises:
            AssertionError: no message in time, or another one; an unexpected message stays unread.
        """
        __tracebackhide__ = True
        return self._next(wanted, self._deadline_s(within), "expected", within)

    def expect_sequence(self, *wanted: object, within: float = 3.0) -> list[Any]:
        """Return the next unread messages, which must be what is ``wanted``, one by one and in that order.

        ``within`` seconds are for all of them together. They may be of any number of senders, but nothing else may
        come between.

        >>> with ActorProbe() as probe:
        ...     for message in ("opened", 7, 8):
        ...         probe.ref.tell(message)
        ...     probe.expect_sequence("opened", int, lambda message: message > 7)
        ['opened', 7, 8]

        Raises:
            AssertionError: another message came, or too few in time; all of them stay unread.
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
            raise self._failure(f"{expected} {_name_of(wanted)}, but nothing came within {written(_scaled(within))} s")
        message = self._received[self._read].message
        if not matches(message):
            raise self._failure(f"{expected} {_name_of(wanted)}, but the next message is {_shown(message)}")
        self._read += 1
        return message

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Give all expectations of the block ``seconds`` together, and the block itself no more.

        >>> with ActorProbe() as probe:
        ...     with probe.within(2.0):
        ...         probe.ref.tell("one")
        ...         _ = probe.expect("one"), probe.ref.tell("two"), probe.expect("two")

        Raises:
            AssertionError: the block took longer.
        """
        __tracebackhide__ = True
        before_s, began_s = self._until_s, time.monotonic()
        self._until_s = min(before_s, began_s + _scaled(seconds))
        try:
            yield
        finally:
            self._until_s = before_s
        if (took_s := time.monotonic() - began_s) > _scaled(seconds):
            raise self._failure(
                f"expected all of it within {written(_scaled(seconds))} s, but it took {written(took_s, 3)} s"
            )

    def _deadline_s(self, within: float) -> float:
        return min(time.monotonic() + _scaled(within), self._until_s)

    @overload
    def fish(self, wanted: type[_T], *, within: float = 3.0) -> _T: ...
    @overload
    def fish(self, wanted: object, *, within: float = 3.0) -> Any: ...
    def fish(self, wanted: object, *, within: float = 3.0) -> Any:
        """Return the first unread message that is ``wanted``, waiting ``within`` seconds for it; skip those before it.

        Raises:
            AssertionError: no such message in time; nothing is skipped then.
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
        raise self._failure(f"fished for {_name_of(wanted)}, but it did not come within {written(_scaled(within))} s")

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
        from .remote.refs import RemoteRef, Terminated  # noqa: PLC0415

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

        The end of an actor is no message of the conversation: it may come before, between or after those.

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
            AssertionError: it lives, as far as is known here.
            ValueError: :meth:`watch` was not called for it.
        """
        __tracebackhide__ = True
        from .remote.actors import ended_by  # noqa: PLC0415
        from .remote.refs import RemoteRef  # noqa: PLC0415

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
                    f"expected {ref} to end, but nothing is known of that after {written(_scaled(within))} s"
                )
            self._remote.discard(ref)
            return self._ends.pop(ref)

    def expect_stopped(self, ref: pykka.ActorRef[Any], *, within: float = 3.0) -> None:
        """Wait up to ``within`` seconds until the watched actor ``ref`` has stopped or failed.

        Pykka counts an actor as stopped before its ``on_stop`` runs: that may still be under way.

        Raises:
            AssertionError: it is still alive.
            ValueError: :meth:`watch` was not called for it.
        """
        __tracebackhide__ = True
        if ref.actor_urn not in self._watched:
            raise ValueError(f"{ref} is not watched: call watch(ref) before the step that should stop it")
        if not ref.actor_stopped.wait(max(0.0, self._deadline_s(within) - time.monotonic())):
            raise self._failure(f"expected {ref} to stop, but it is alive after {written(_scaled(within))} s")
        self._watched.discard(ref.actor_urn)

    def stop(self) -> None:
        """Stop the probe, and those made by :meth:`another`, once they have handled what was sent before. Idempotent.

        Raises:
            AssertionError: a probe is stuck in a callable given to :meth:`reply_with`.
        """
        for other in self._others:
            other.stop()
        if self.ref.is_alive():
            self.ref.stop(block=False)
        if not self.ref.actor_stopped.wait(_scaled(_STOP_S)):
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
        except BaseException as error:  # as of pytest.fail(): Pykka would stop every actor of the process
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


class FakeClock:
    """A clock for the timers of :class:`~.kit.actor.Actor` that stands still until the test moves it.

    >>> from openoutcry.actors.kit.actor import Actor, use_clock
    >>> class Countdown(Actor):
    ...     left = 3
    ...
    ...     def on_start(self) -> None:
    ...         self.tell_every(60, "a minute has passed")
    ...
    ...     def on_receive(self, message: object) -> int:
    ...         if message == "a minute has passed":
    ...             self.left -= 1
    ...         return self.left
    >>> clock = FakeClock()
    >>> use_clock(clock)  # the fixture fake_clock does that, and takes it back after the test
    >>> countdown = Countdown.start()
    >>> countdown.ask("how many?", timeout=3)
    3
    >>> clock.advance(120)
    >>> countdown.ask("how many?", timeout=3)
    1
    >>> countdown.stop()
    True
    >>> use_clock(None)

    Only actors that were made while it was in use follow it; nodes and their links live by the machine's clock.
    """

    def __init__(self) -> None:
        self._changed = threading.Lock()
        self._now_s = 0.0
        self._timers: list[Timer] = []

    def now_s(self) -> float:
        """Return how far the clock was moved, in seconds."""
        return self._now_s

    def start(self, timer: Timer) -> None:
        """Fire ``timer`` when the clock is moved to where it is due."""
        with self._changed:
            self._timers.append(timer)

    def advance(self, seconds: float) -> None:
        """Move the clock, and return once every message that fell due on the way has been handled, one after the other.

        What a handler starts itself counts too if it falls due before the end. Not to be called by an actor.

        Raises:
            AssertionError: an actor did not get as far as to handle a message within 3 s.
            InvalidRequest: back, or for no number of seconds (code ``invalid_delay``).
        """
        from ..transport.errors import InvalidRequest  # noqa: PLC0415

        __tracebackhide__ = True
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < math.inf:
            raise InvalidRequest(f"a clock is moved by 0 or more seconds, not {seconds!r:.40}", code="invalid_delay")
        end_s = self._now_s + seconds
        while (timer := self._next(end_s)) is not None:
            self._now_s = max(self._now_s, timer.due_s)
            if not timer.fire(self._now_s):
                with self._changed:
                    self._timers.remove(timer)
            deadline_s = time.monotonic() + _scaled(_STOP_S)
            while timer.pending:
                if time.monotonic() > deadline_s:
                    raise AssertionError(
                        f"{timer} was not handled within {written(_scaled(_STOP_S))} s: is its actor stuck?"
                    )
                time.sleep(0)
        self._now_s = end_s

    def _next(self, end_s: float) -> Timer | None:
        with self._changed:
            self._timers = [timer for timer in self._timers if not timer.cancelled]
            due = [timer for timer in self._timers if timer.due_s <= end_s]
        return min(due, key=lambda timer: timer.due_s, default=None)


class _AnyExchange(Generic[_NodeT]):
    """Nodes of one exchange, started, ready and in sync, with all that they share."""

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 2,
        markets: Mapping[str, MarketRules] | Sequence[str] = ("BTC-USD",),
        faults: bool = False,
        identities: bool = False,
        **node_options: Any,
    ) -> None:
        """Start ``nodes`` nodes.

        Args:
            folder: where all files are: a data folder for each node, and the SQLite coordinator that they share.
            nodes: how many.
            markets: names with their rules, or just names: markets with default rules. May be empty.
            faults: put a proxy before each node, for :meth:`cut`, :meth:`drop` and :meth:`delay`.
            identities: give each node an identity of :attr:`authority`: links are TLS, and ``node-0`` may act for the
                accounts ``node-0`` and ``node-0/…`` only. Not together with ``faults``: a proxy cannot read TLS.
            node_options: go to every :class:`~openoutcry.actors.node.ExchangeNode`.
        """
        # Here, so that a run that starts no exchange pays nothing.
        from ..transport.forks import guard  # noqa: PLC0415
        from ..transport.rendezvous import Rendezvous  # noqa: PLC0415
        from .book.rules import MarketRules  # noqa: PLC0415

        guard(self)
        assert nodes >= 1, "an exchange has at least one node"
        assert not (faults and identities), "faults and identities exclude each other: a proxy cannot read TLS"
        self._folder = folder
        self._markets = dict(markets if isinstance(markets, Mapping) else {name: MarketRules() for name in markets})
        self._node_options = node_options
        self._proxies: list[Proxy] | None = [] if faults else None
        self.nodes: list[_NodeT] = []
        """The nodes, in order; :meth:`restart` replaces one in place."""
        folder.mkdir(parents=True, exist_ok=True)
        self.authority: Authority | None = None
        """Who issues the nodes' identities, if they have any."""
        if identities:
            from ..transport.certificates import Authority, Identity  # noqa: PLC0415

            self.authority = Authority.create(folder / "authority")
            identity = Identity(self.authority.issue("rendezvous"))
            self._rendezvous = Rendezvous("tls+tcp://127.0.0.1:0", identity=identity)
        else:
            self._rendezvous = Rendezvous("tcp://127.0.0.1:0")
        try:
            self._rendezvous.start()
            for index in range(nodes):
                self.nodes.append(self._start_node(index))
            self._wait_in_sync()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def __getitem__(self, index: int) -> _NodeT:
        return self.nodes[index]

    def __iter__(self) -> Iterator[_NodeT]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    def wait_same_sequence(self, market: str, *, timeout: float = 10.0) -> int:
        """Wait until all nodes have applied the same sequence number of ``market``, and return it.

        Call it when the orders of the test have been answered: while more are under way, "the same" does not last.
        ``timeout`` is in seconds.

        Raises:
            AssertionError: they did not; the message shows where each node is.
        """
        __tracebackhide__ = True
        deadline_s = time.monotonic() + _scaled(timeout)
        while True:
            first, *others = sequences = [_outcome(node.sequence, market) for node in self.nodes]
            if isinstance(first, int) and all(other == first for other in others):
                return first
            if time.monotonic() >= deadline_s:
                raise self._failure(
                    f"{market}: no common sequence number within {written(_scaled(timeout))} s", sequences
                )
            time.sleep(_POLL_S)

    def assert_same_hash(self, market: str, *, timeout: float = 10.0) -> str:
        """Wait as :meth:`wait_same_sequence` does, check that all books are equal, and return their state hash.

        Raises:
            AssertionError: the books differ at the same sequence number, or there is none in time.
        """
        __tracebackhide__ = True
        sequence = self.wait_same_sequence(market, timeout=timeout)
        first, *others = positions = [_outcome(node.position, market) for node in self.nodes]
        if isinstance(first, Exception) or any(other != first for other in others):
            raise self._failure(f"{market}: (sequence, state hash) differ, after all had {sequence}", positions)
        return str(first[1])

    @property
    def directory_address(self) -> str:
        """The address of the rendezvous that the nodes share."""
        return self._rendezvous.address

    def cut(self, one: int, other: int) -> None:
        """Cut the link between two nodes, as a firewall that resets connections would; both notice at once."""
        self._proxy(one).refuse(self.nodes[other].name)
        self._proxy(other).refuse(self.nodes[one].name)

    def drop(self, source: int, target: int) -> None:
        """Let what ``source`` sends to ``target`` go nowhere, without an error: silence, one way."""
        self._proxy(target).swallow([self.nodes[source].name])

    def delay(self, source: int, target: int, seconds: float) -> None:
        """Let what ``source`` sends to ``target`` arrive ``seconds`` later."""
        self._proxy(target).delays_s[self.nodes[source].name] = seconds

    def heal(self) -> None:
        """Take all of :meth:`cut`, :meth:`drop` and :meth:`delay` back; the nodes find each other again."""
        for index in range(len(self.nodes)):
            self._proxy(index).heal()

    def _proxy(self, index: int) -> Proxy:
        assert self._proxies is not None, "to inject faults, start the exchange with faults=True"
        return self._proxies[index]

    def add(self, **node_options: Any) -> _NodeT:
        """Start one more node and return it at once, before it is ready; it counts in all later waits."""
        self.nodes.append(self._start_node(len(self.nodes), **node_options))
        return self.nodes[-1]

    def restart(self, index: int, *, wait: bool = True) -> _NodeT:
        """Close node ``index`` if it is not, and start it again on its data folder.

        Return the new node once all nodes are in sync, or at once without ``wait`` (where others are closed too).
        """
        self.nodes[index].close()
        self.nodes[index] = self._start_node(index)
        if wait:
            self._wait_in_sync()
        return self.nodes[index]

    def close(self) -> None:
        """Close all nodes, the last one first, then the rendezvous, whatever fails on the way. Idempotent."""
        with contextlib.ExitStack() as closing:
            closing.callback(self._rendezvous.close)
            for proxy in self._proxies or ():
                closing.callback(proxy.close)
            for node in self.nodes:
                closing.callback(node.close)

    def _make(self, name: str, options: dict[str, Any]) -> _NodeT:
        raise NotImplementedError

    def _start_node(self, index: int, **more: Any) -> _NodeT:
        name = f"node-{index}"
        options = {
            "markets": self._markets,
            "data_dir": self._folder / name,
            "directory": [self._rendezvous.address],
            "coordinator": self._folder / "coordinator.sqlite",
            **self._node_options,
            **more,
        }
        if self.authority is not None and "identity" not in options:
            path = self._folder / f"{name}.pem"
            if not path.exists():
                self.authority.issue_file(path, name)
            options["identity"] = path
        if self._proxies is None:
            return self._make(name, options)
        from .testkit.proxy import Proxy  # noqa: PLC0415

        if index == len(self._proxies):
            self._proxies.append(Proxy())
        proxy = self._proxies[index]
        node: Any = self._make(name, {**options, "advertise": proxy.address})
        host, _, port = node.listen_address.removeprefix("tcp://").rpartition(":")
        proxy.target = (host, int(port))
        return cast("_NodeT", node)

    def _wait_in_sync(self) -> None:
        for node in self.nodes:
            node.wait_ready(timeout=_scaled(_START_S))
        for market in self._markets:
            for node in self.nodes:
                node.wait_in_sync(market, len(self.nodes), _scaled(_START_S))

    def _failure(self, what: str, found: Sequence[object]) -> AssertionError:
        return AssertionError("\n".join([what, *(f"    node-{index}  {value}" for index, value in enumerate(found))]))


class Exchange(_AnyExchange["ExchangeNode"]):
    """Nodes in this process; made by the fixture ``exchange``.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Exchange(Path(folder), nodes=2) as net:
    ...     order = net[0].submit_order("BTC-USD", "buy", "99", "1")
    ...     net.wait_same_sequence("BTC-USD") == order.sequence
    ...     net.assert_same_hash("BTC-USD") == order.state_hash
    True
    True
    """

    def _make(self, name: str, options: dict[str, Any]) -> ExchangeNode:
        from .node import ExchangeNode  # noqa: PLC0415

        return ExchangeNode(name, **options)


class ProcessExchange(_AnyExchange["NodeProcess"]):
    """Nodes in processes of their own, which can be killed; made by the fixture ``exchange_processes``.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, ProcessExchange(Path(folder), nodes=2) as net:
    ...     order = net[0].submit_order("BTC-USD", "buy", "99", "1")
    ...     net[0].kill()
    ...     _ = net.restart(0)
    ...     _ = net.assert_same_hash("BTC-USD")
    ...     net[0].get_order("BTC-USD", order.order_id).price
    Decimal('99.00')
    """

    def _make(self, name: str, options: dict[str, Any]) -> NodeProcess:
        from .testkit.processes import NodeProcess  # noqa: PLC0415

        return NodeProcess(name, options)


def _outcome(call: Callable[[str], _T], market: str) -> _T | Exception:
    """Return what ``call`` returns or raises: a node that is not ready raises, and a failure should list that."""
    from ..transport.errors import OpenOutcryError  # noqa: PLC0415

    try:
        return call(market)
    except OpenOutcryError as error:
        return error


@pytest.fixture
def actor_probe() -> Iterator[ActorProbe]:
    """A started :class:`ActorProbe`; ``actor_probe.another()`` makes more. All are stopped after the test."""
    with ActorProbe() as probe:
        yield probe


@pytest.fixture
def fake_clock() -> Iterator[FakeClock]:
    """A :class:`FakeClock` for the timers of every :class:`~.kit.actor.Actor` that is started in the test."""
    from .kit.actor import use_clock  # noqa: PLC0415

    clock = FakeClock()
    use_clock(clock)
    yield clock
    use_clock(None)


@pytest.fixture
def exchange(tmp_path: Path) -> Iterator[Callable[..., Exchange]]:
    """A factory of exchanges: ``exchange(nodes=3, markets=["BTC-USD"], **node_options)`` returns an :class:`Exchange`.

    Each call makes an exchange of its own, with its files below ``tmp_path``; all are closed after the test.
    """
    numbers = itertools.count()
    with contextlib.ExitStack() as started:

        def start(
            nodes: int = 2, markets: Mapping[str, MarketRules] | Sequence[str] = ("BTC-USD",), **node_options: Any
        ) -> Exchange:
            folder = tmp_path / f"exchange-{next(numbers)}"
            return started.enter_context(Exchange(folder, nodes=nodes, markets=markets, **node_options))

        yield start


@pytest.fixture
def exchange_processes(tmp_path: Path) -> Iterator[Callable[..., ProcessExchange]]:
    """A factory as ``exchange``, of exchanges whose nodes are processes: see :class:`ProcessExchange`.

    ``net[0].kill()`` is ``kill -9``; ``net[0].run(function, …)`` runs ``function(node, …)`` there.
    """
    numbers = itertools.count()
    with contextlib.ExitStack() as started:

        def start(
            nodes: int = 2, markets: Mapping[str, MarketRules] | Sequence[str] = ("BTC-USD",), **node_options: Any
        ) -> ProcessExchange:
            folder = tmp_path / f"processes-{next(numbers)}"
            return started.enter_context(ProcessExchange(folder, nodes=nodes, markets=markets, **node_options))

        yield start
