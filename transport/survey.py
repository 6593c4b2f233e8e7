"""The directory's messages and its client: announce, look up and watch services over nng surveys.

Owns one ``Surveyor0`` that is dialled to one to seven rendezvous (:mod:`.rendezvous`). Never keeps a lease itself,
never starts a thread, and never decides what a service is good for.

How a survey ends as soon as its outcome is known (nng itself waits for its whole survey time):

1. pipes that come and go are queued by nng's threads and wake the wait through an ``os.pipe``;
2. the survey goes to the pipes connected at that moment, and these are awaited;
3. an answer, a malformed answer or the removal of its pipe each takes one pipe off the list; an empty list ends it;
4. a rendezvous that let a whole survey pass (stopped, cut off) then gets only ``SILENT_GRACE_MS`` after the others have
   answered, until it answers again.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final

import pynng

from . import sockets
from .codec import ADDRESS, Array, Bool, Codec, Int, Name, Str, Tuple, pack
from .errors import Closed, ConfigurationError, InvalidRequest, Overloaded, ProtocolError, TransportError, Unavailable
from .forks import guard
from .identity import MEMBER, check_addresses
from .log import get_logger

if TYPE_CHECKING:
    from .certificates import Identity

logger = get_logger(__name__)

SURVEY_FRAME_SIZE_MAX: Final = 256 * 1024
"""Largest frame, in bytes, of a survey or an answer."""
PAGE_SIZE_MAX: Final = SURVEY_FRAME_SIZE_MAX - 32 * 1024
"""Most bytes of entries in one frame; the rest is left for the other fields."""
ENTRY_SIZE_MAX: Final = 2048
"""Largest entry, in bytes of msgpack."""
ENTRIES_PER_NODE_MAX: Final = 512
"""Most entries that one client may announce (a rendezvous enforces it for each pipe)."""
RENDEZVOUS_MAX: Final = 7
"""Most rendezvous that one client is dialled to, and that one rendezvous may name as its peers."""
TTL_MS_MIN: Final = 100
TTL_MS_MAX: Final = 600_000
SILENT_GRACE_MS: Final = 25
"""Milliseconds to wait, after the others have answered, for a rendezvous that missed the previous survey."""

_PAGES_MAX = 1024
_RECONNECT_MS = (10, 200)

Row = tuple[str, str, str, tuple[tuple[str, str], ...]]
"""A :class:`ServiceEntry` on the wire."""

_NAME = Name(128, 1)
_ROW = Tuple((_NAME, _NAME, ADDRESS, Array(Tuple((Str(64, 1), Str(255))), 16)))
_ROWS = Array(_ROW, 32_768)
_ADDRESSES = Array(ADDRESS, RENDEZVOUS_MAX + 1)


@dataclass(frozen=True, slots=True, order=True)
class ServiceEntry:
    """One service at one node; ``(service, node)`` identifies it."""

    service: str
    """1 to 128 characters."""
    node: str
    """The node's id: 1 to 128 characters."""
    address: str
    """Where the node serves it, as a peer dials it: 1 to 255 characters."""
    metadata: tuple[tuple[str, str], ...] = ()
    """Up to 16 pairs of a key (64 characters) and a value (255 characters)."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """What the rendezvous know of a service: the union of their answers."""

    entries: tuple[ServiceEntry, ...]
    """Sorted, one for each node."""
    complete: bool
    """Whether every rendezvous that was asked has answered in full, or has gone."""
    answered: int
    connected: int
    """How many rendezvous were asked."""


@dataclass(frozen=True, slots=True)
class Changes:
    """How the view of a service differs from the previous poll's. A changed entry is both removed and added."""

    added: tuple[ServiceEntry, ...]
    removed: tuple[ServiceEntry, ...]
    complete: bool
    """As in :class:`Lookup`; an incomplete poll removes nothing that may still be there."""


@dataclass(frozen=True, slots=True)
class Announce:
    """Survey: lease these entries to me for ``ttl_ms``; 0 takes them back (a goodbye)."""

    ttl_ms: Annotated[int, Int(0, TTL_MS_MAX)]
    rows: Annotated[tuple[Row, ...], Array(_ROW, ENTRIES_PER_NODE_MAX)]


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Answer to :class:`Announce`."""

    instance: Annotated[int, Int()]
    """The rendezvous, new at each of its starts."""
    refused: Annotated[int, Int()]
    """How many of the entries were not leased."""
    reason: Annotated[str, Str(255)]
    """Why not, or empty."""
    rendezvous: Annotated[tuple[str, ...], _ADDRESSES]
    """The answerer's own address, then those of its peers."""


@dataclass(frozen=True, slots=True)
class Find:
    """Survey: which nodes, in order of their ids, offer ``service``?"""

    service: Annotated[str, _NAME]
    after: Annotated[str, Str(128)]
    """Only nodes above this id: empty for the first page, then the last id of the page before."""
    known: Annotated[tuple[tuple[int, int], ...], Array(Tuple((Int(), Int())), RENDEZVOUS_MAX)]
    """Pairs of a rendezvous' instance and its version of the service that the asker already has."""


@dataclass(frozen=True, slots=True)
class Found:
    """Answer to :class:`Find`: one page."""

    instance: Annotated[int, Int()]
    version: Annotated[int, Int()]
    """Changes whenever the entries of this service at this rendezvous do."""
    rows: Annotated[tuple[Row, ...], _ROWS]
    more: Annotated[bool, Bool()]
    """Whether there are nodes above the last one of this page."""
    rendezvous: Annotated[tuple[str, ...], _ADDRESSES]
    """The answerer's own address, then those of its peers."""


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Answer to :class:`Find`: the version that the asker named is still the current one."""

    instance: Annotated[int, Int()]


Request = Announce | Find
Answer = Acknowledge | Found | Unchanged

REQUESTS: Final[Codec[Any]] = Codec({1: Announce, 2: Find})
ANSWERS: Final[Codec[Any]] = Codec({17: Acknowledge, 18: Found, 19: Unchanged})


def row_of(entry: ServiceEntry) -> Row:
    """Return ``entry`` as it goes over the wire.

    Raises:
        ProtocolError: a field, or the whole, is outside its limits.
    """
    row: Row = _ROW((entry.service, entry.node, entry.address, entry.metadata), "entry")
    row_size(row)
    return row


def row_size(row: Row) -> int:
    """Return how many bytes ``row`` takes in a frame.

    Raises:
        ProtocolError: more than ``ENTRY_SIZE_MAX``.
    """
    size = len(pack(row))
    if size > ENTRY_SIZE_MAX:
        raise ProtocolError(f"an entry of {size} bytes exceeds the limit of {ENTRY_SIZE_MAX}")
    return size


def decode(codec: Codec[Any], frame: bytes) -> Any:
    """Return the message in ``frame``, which may not exceed ``SURVEY_FRAME_SIZE_MAX`` (``inproc`` lets any size in).

    Raises:
        ProtocolError: too large, or not one well-formed message of ``codec``.
    """
    if len(frame) > SURVEY_FRAME_SIZE_MAX:
        raise ProtocolError(f"a survey frame of {len(frame)} bytes exceeds the limit of {SURVEY_FRAME_SIZE_MAX}")
    return codec.decode(frame)


class _PipeEvents:
    """Which pipes are connected: nng's threads report changes and wake the owner's thread, which applies them."""

    def __init__(self, socket: pynng.Socket, on_change: Callable[[], None] | None) -> None:
        self.connected: set[int] = set()
        """Ids of the pipes that were up at the last :meth:`drain`."""
        self.came_up = False
        """Whether a pipe came up; the owner resets it."""
        self._on_change = on_change
        self._queue: queue.SimpleQueue[tuple[int, bool]] = queue.SimpleQueue()
        self._removed_early: set[int] = set()  # nng may report a removal before the connection that it ends
        self._lock = threading.Lock()
        self._open = True
        self.wake_fd, self._write_fd = os.pipe()
        os.set_blocking(self.wake_fd, False)
        os.set_blocking(self._write_fd, False)
        socket.add_post_pipe_connect_cb(lambda pipe: self._tell(pipe.id, True))
        socket.add_post_pipe_remove_cb(lambda pipe: self._tell(pipe.id, False))

    def _tell(self, pipe_id: int, up: bool) -> None:
        self._queue.put((pipe_id, up))
        with self._lock:
            if not self._open:
                return
            with contextlib.suppress(BlockingIOError):  # full: the owner has wake-ups enough
                os.write(self._write_fd, b"\0")
        if self._on_change is not None:
            self._on_change()

    def drain(self) -> None:
        """Apply the changes that nng's threads have reported."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.wake_fd, 4096)
        while True:
            try:
                pipe_id, up = self._queue.get_nowait()
            except queue.Empty:
                return
            if not up and pipe_id in self.connected:
                self.connected.remove(pipe_id)
            elif not up:
                if len(self._removed_early) >= 64:
                    self._removed_early.clear()
                self._removed_early.add(pipe_id)
            elif pipe_id in self._removed_early:
                self._removed_early.remove(pipe_id)
            else:
                self.connected.add(pipe_id)
                self.came_up = True

    def close(self) -> None:
        """Stop waking the owner. Call this once, before the socket is closed."""
        with self._lock:
            self._open = False
            os.close(self.wake_fd)
            os.close(self._write_fd)


@dataclass(slots=True)
class _Round:
    """The outcome of one survey."""

    answers: list[Any]
    asked: int
    complete: bool
    """There was at least one answer, and nobody is left who could still answer."""


@dataclass(slots=True)
class _Part:
    """What one rendezvous answered to all pages of one question."""

    version: int | None
    """None: it changed from page to page."""
    entries: dict[str, ServiceEntry] = field(default_factory=dict)
    more: bool = False


@dataclass(slots=True)
class _Finding:
    """What all rendezvous answered to one question."""

    parts: dict[int, _Part]
    unchanged: set[int]
    complete: bool
    answered: int
    asked: int


@dataclass(slots=True)
class _Sight:
    """The entries of one service as one rendezvous last reported them."""

    part: _Part
    seen_s: float


class _View:
    """A watched service: the union of what each rendezvous last reported. Pure: no sockets, no clocks.

    A rendezvous' newer report replaces its older one. If a rendezvous does not answer, or was restarted (it is then
    another instance), its report stays for one TTL: until then every live node has announced itself again.
    """

    def __init__(self, *, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._sights: dict[int, _Sight] = {}  # by instance, the latest seen last
        self._entries: dict[str, ServiceEntry] = {}

    def known(self) -> tuple[tuple[int, int], ...]:
        versions = [(instance, sight.part.version) for instance, sight in self._sights.items()]
        return tuple([(instance, version) for instance, version in versions if version is not None][-RENDEZVOUS_MAX:])

    def update(self, finding: _Finding, *, now_s: float) -> Changes:
        for instance in finding.unchanged:
            if (sight := self._sights.pop(instance, None)) is not None:
                self._sights[instance] = _Sight(sight.part, now_s)
        for instance, part in finding.parts.items():
            if not part.more:  # else it broke off between two pages: its last whole report stands
                self._sights.pop(instance, None)
                self._sights[instance] = _Sight(part, now_s)
        self._sights = {i: sight for i, sight in self._sights.items() if now_s - sight.seen_s <= self._ttl_s}
        entries = _union(sight.part for sight in self._sights.values())
        added = sorted(entry for node, entry in entries.items() if self._entries.get(node) != entry)
        removed = sorted(entry for node, entry in self._entries.items() if entries.get(node) != entry)
        self._entries = entries
        return Changes(tuple(added), tuple(removed), finding.complete)


class Directory:
    """A client of the rendezvous: announces this node's services, and finds those of others.

    Used by one thread, which also closes it. ``on_change()`` runs on one of nng's threads whenever a rendezvous
    has connected or gone, and may only hand over: the owner then calls :meth:`reconnected`, and if that is true
    :meth:`refresh`. The owner also calls :meth:`refresh` every third of ``ttl_ms``. One live rendezvous is
    enough; the client also dials the peers that it names, up to ``RENDEZVOUS_MAX`` in all. With an ``identity``, they
    must be members of its exchange.
    """

    def __init__(
        self,
        rendezvous: Sequence[str],
        *,
        survey_ms: int = 500,
        ttl_ms: int = 2000,
        on_change: Callable[[], None] | None = None,
        identity: Identity | None = None,
    ) -> None:
        if not 1 <= len(set(rendezvous)) <= RENDEZVOUS_MAX:
            raise ConfigurationError(f"a directory needs 1 to {RENDEZVOUS_MAX} rendezvous, got {len(set(rendezvous))}")
        if not TTL_MS_MIN <= ttl_ms <= TTL_MS_MAX:
            raise ConfigurationError(f"ttl_ms is {ttl_ms}; it must be in [{TTL_MS_MIN}, {TTL_MS_MAX}]")
        if survey_ms < 1:
            raise ConfigurationError(f"survey_ms is {survey_ms}; it must be at least 1")
        self._survey_s = survey_ms / 1000
        self._ttl_ms = ttl_ms
        self._identity = identity
        self._own: dict[tuple[str, str], Row] = {}
        self._views: dict[str, _View] = {}
        self._dialled: list[str] = []
        self._aliases: set[str] = set()
        self._silent: set[int] = set()
        self._refusing: set[int] = set()
        self._closed = False
        guard(self)
        self.answers_refused = 0
        """Malformed answers, each of which cost its sender the pipe, since the start."""
        self._socket = sockets.open_socket(
            pynng.Surveyor0,
            frame_size_max=SURVEY_FRAME_SIZE_MAX,
            reconnect_ms=_RECONNECT_MS,
            tls=identity and identity.client(MEMBER),
        )
        self._events = _PipeEvents(self._socket, on_change)
        try:
            self._socket.survey_time = survey_ms
            if (got := self._socket.survey_time) != survey_ms:
                raise TransportError(f"nng did not accept survey_time={survey_ms}: it reads back {got}")
            self._recv_fd: int = self._socket.recv_fd
            for address in rendezvous:
                self._dial(address)
        except BaseException:
            self.close()
            raise
        self._poller = select.poll()
        self._poller.register(self._recv_fd, select.POLLIN)
        self._poller.register(self._events.wake_fd, select.POLLIN)
        self._waker = select.poll()
        self._waker.register(self._events.wake_fd, select.POLLIN)

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    @property
    def rendezvous(self) -> tuple[str, ...]:
        """The addresses that are dialled: those given, and those learned."""
        return tuple(self._dialled)

    @property
    def connected(self) -> int:
        """How many rendezvous are connected now."""
        self._check_open()
        self._events.drain()
        return len(self._events.connected)

    def close(self) -> None:
        """Disconnect, which ends all leases of this client at once. Idempotent."""
        if not self._closed:
            self._closed = True
            self._events.close()
            sockets.close_dialled(self._socket)

    def announce(self, entry: ServiceEntry) -> int:
        """Announce ``entry`` for one TTL, and keep it for :meth:`refresh`; return how many rendezvous leased it.

        0 means that none is connected, has room or has answered within the survey time; a later refresh may do.

        Raises:
            InvalidRequest: a field of ``entry`` is outside its limits.
            Overloaded: ``ENTRIES_PER_NODE_MAX`` other entries are announced already.
            Closed: :meth:`close` was called.
        """
        self._check_open()
        row = _requested(entry)
        key = (entry.service, entry.node)
        if key not in self._own and len(self._own) >= ENTRIES_PER_NODE_MAX:
            raise Overloaded(f"{ENTRIES_PER_NODE_MAX} entries are announced already; take one back first")
        self._own[key] = row
        return self._announce([row], ttl_ms=self._ttl_ms)

    def unannounce(self, entry: ServiceEntry) -> int:
        """Take ``entry`` back; return how many rendezvous acknowledged the goodbye.

        Raises:
            InvalidRequest: a field of ``entry`` is outside its limits.
            Closed: :meth:`close` was called.
        """
        self._check_open()
        row = _requested(entry)
        self._own.pop((entry.service, entry.node), None)
        return self._announce([row], ttl_ms=0)

    def refresh(self) -> int:
        """Announce all own entries for another TTL; return how many rendezvous leased every one of them.

        Raises:
            Closed: :meth:`close` was called.
        """
        self._check_open()
        return self._announce(list(self._own.values()), ttl_ms=self._ttl_ms)

    def reconnected(self) -> bool:
        """Return whether a rendezvous has connected since the last call: it does not know the own entries yet.

        Raises:
            Closed: :meth:`close` was called.
        """
        self._check_open()
        self._events.drain()
        came_up, self._events.came_up = self._events.came_up, False
        return came_up

    def lookup(self, service: str, *, deadline: float) -> Lookup:
        """Return who offers ``service``, as soon as that can be known.

        ``deadline`` is in seconds of :func:`time.monotonic`. Until then this waits for a first rendezvous to
        connect and to answer; it waits for further ones only within the survey time.

        Raises:
            InvalidRequest: ``service`` is not a valid name.
            Unavailable: no rendezvous has answered by ``deadline`` (code ``directory_unavailable``).
            Closed: :meth:`close` was called.
        """
        self._check_open()
        _requested_name(service)
        while True:
            finding = self._find(service, known=(), deadline=deadline)
            if finding.answered:
                entries = _union(finding.parts.values())
                found = tuple(sorted(entries.values()))
                return Lookup(found, finding.complete, finding.answered, finding.asked)
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                certified = "" if self._identity is None else ", and certified by an authority that is trusted here"
                raise Unavailable(
                    f"no rendezvous of {', '.join(self._dialled)} has answered; is one running, reachable{certified}?",
                    code="directory_unavailable",
                )
            if not self._events.connected:
                self._waker.poll(math.ceil(min(remaining_s, self._survey_s) * 1000))

    def poll(self, service: str) -> Changes:
        """Return how ``service`` has changed since the last poll; the first one returns all there is as added.

        Takes at most one survey time for a page; cheap if nothing has changed. Entries from a rendezvous that does not
        answer stay for one TTL after its last answer.

        Raises:
            InvalidRequest: ``service`` is not a valid name.
            Closed: :meth:`close` was called.
        """
        self._check_open()
        _requested_name(service)
        view = self._views.setdefault(service, _View(ttl_s=self._ttl_ms / 1000))
        finding = self._find(service, known=view.known(), deadline=math.inf)
        return view.update(finding, now_s=time.monotonic())

    def forget(self, service: str) -> None:
        """End the polls of ``service``: the next one starts again with all entries."""
        self._views.pop(service, None)

    def _announce(self, rows: list[Row], *, ttl_ms: int) -> int:
        accepting: set[int] | None = None
        for batch in _batches(rows):
            answers = self._ask(Announce(ttl_ms, batch), deadline=math.inf).answers
            for answer in answers:
                self._note_refusal(answer)
            accepted = {answer.instance for answer in answers if not answer.refused}
            accepting = accepted if accepting is None else accepting & accepted
        return len(accepting or ())

    def _note_refusal(self, answer: Acknowledge) -> None:
        if not answer.refused:
            self._refusing.discard(answer.instance)
        elif answer.instance not in self._refusing:  # said once, not at every refresh
            self._refusing.add(answer.instance)
            logger.warning("announcements_refused", refused=answer.refused, reason=answer.reason)

    def _find(self, service: str, *, known: tuple[tuple[int, int], ...], deadline: float) -> _Finding:
        finding = _Finding({}, set(), True, 0, 0)
        after = ""
        for _ in range(_PAGES_MAX):
            outcome = self._ask(Find(service, after, known if not after else ()), deadline=deadline)
            finding.complete = finding.complete and outcome.complete
            if not after:
                finding.answered, finding.asked = len(outcome.answers), outcome.asked
            pages_end = []
            for answer in outcome.answers:
                if isinstance(answer, Unchanged):
                    finding.unchanged.add(answer.instance)
                elif answer.instance not in finding.unchanged and (not after or answer.instance in finding.parts):
                    part = finding.parts.setdefault(answer.instance, _Part(answer.version))
                    if part.version != answer.version:
                        part.version = None
                    part.entries.update({row[1]: ServiceEntry(*row) for row in answer.rows})
                    part.more = answer.more
                    if answer.more:
                        pages_end.append(answer.rows[-1][1])
            if not pages_end:
                break
            after = min(pages_end)
        if any(part.more for part in finding.parts.values()):
            finding.complete = False
        return finding

    def _ask(self, request: Request, *, deadline: float) -> _Round:
        """Survey all connected rendezvous and gather their answers: see the module's docstring."""
        events = self._events
        events.drain()
        awaited = set(events.connected)
        outcome = _Round([], len(awaited), False)
        if not awaited:
            return outcome
        self._socket.send(REQUESTS.encode(request))
        survey_ends = time.monotonic() + self._survey_s
        answered: set[int] = set()
        while awaited:
            now = time.monotonic()
            if answered and awaited <= self._silent:
                survey_ends = min(survey_ends, now + SILENT_GRACE_MS / 1000)
            if now >= min(survey_ends, deadline):
                break
            ready = self._poller.poll(math.ceil((min(survey_ends, deadline) - now) * 1000))
            # Only a readable socket is asked: nng's non-blocking receive would block for the rest of the survey.
            if any(fd == self._recv_fd for fd, _ in ready):
                try:
                    message = self._socket.recv_msg(block=False)
                except (pynng.Timeout, pynng.BadState, pynng.TryAgain):
                    survey_ends = now  # by nng's own clock, which started a moment earlier
                    break
                if (pipe := message.pipe) is not None and pipe.id not in answered:
                    awaited.discard(pipe.id)
                    answer = self._accept(request, pipe, message.bytes)
                    if answer is not None:
                        answered.add(pipe.id)
                        outcome.answers.append(answer)
            events.drain()
            awaited &= events.connected
        if time.monotonic() >= survey_ends:
            self._silent |= awaited
        self._silent = (self._silent - answered) & events.connected
        outcome.complete = bool(answered) and not awaited
        for answer in outcome.answers:
            if not isinstance(answer, Unchanged):
                self._learn(answer.rendezvous)
        return outcome

    def _accept(self, request: Request, pipe: Any, frame: bytes) -> Answer | None:
        try:
            answer: Answer = decode(ANSWERS, frame)
            _check_answer(request, answer)
        except ProtocolError as error:
            self.answers_refused += 1
            logger.warning("directory_malformed", error=error)
            with contextlib.suppress(pynng.NNGException):  # it is gone already
                pipe.close()
            return None
        return answer

    def _learn(self, addresses: tuple[str, ...]) -> None:
        self._aliases.update(addresses[:1])  # the answerer's own: it is connected, perhaps under another name
        if len(self._aliases) > 64 * RENDEZVOUS_MAX:
            self._aliases.clear()
        for address in addresses[1:]:
            known = address in self._dialled or address in self._aliases
            if not known and len(self._dialled) < RENDEZVOUS_MAX and address.partition("://")[0] in sockets.SCHEMES:
                logger.info("directory_learned", address=address)
                try:
                    self._dial(address)
                except ConfigurationError as error:
                    self._aliases.add(address)
                    logger.warning("directory_address_refused", address=address, error=error)

    def _dial(self, address: str) -> None:
        if address not in self._dialled:
            check_addresses([address], self._identity)
            sockets.dial(self._socket, address)
            self._dialled.append(address)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the directory is closed")


def _check_answer(request: Request, answer: Answer) -> None:
    if isinstance(request, Announce):
        if not isinstance(answer, Acknowledge):
            raise ProtocolError(f"{type(answer).__name__} does not answer an announcement")
        return
    if isinstance(answer, Unchanged):
        if answer.instance not in dict(request.known):
            raise ProtocolError("unchanged, but nothing of this rendezvous was said to be known")
        return
    if not isinstance(answer, Found):
        raise ProtocolError(f"{type(answer).__name__} does not answer a lookup")
    last = request.after
    for service, node, _address, _metadata in answer.rows:
        if service != request.service or node <= last:
            raise ProtocolError(f"{service} at {node} does not belong into a page of {request.service} after {last}")
        last = node
    if answer.more and not answer.rows:
        raise ProtocolError("an empty page cannot have more after it")


def _union(parts: Iterable[_Part]) -> dict[str, ServiceEntry]:
    """Return the entries by node. Where rendezvous differ for a moment, the greater entry is shown."""
    entries: dict[str, ServiceEntry] = {}
    for part in parts:
        for node, entry in part.entries.items():
            entries[node] = max(entry, entries.get(node, entry))
    return entries


def _batches(rows: list[Row]) -> Iterator[tuple[Row, ...]]:
    batch: list[Row] = []
    size = 0
    for row in rows:
        size += row_size(row)
        if size > PAGE_SIZE_MAX:
            yield tuple(batch)
            batch, size = [], row_size(row)
        batch.append(row)
    if batch:
        yield tuple(batch)


def _requested(entry: ServiceEntry) -> Row:
    try:
        return row_of(entry)
    except ProtocolError as error:
        raise InvalidRequest(f"cannot announce {entry}: {error}") from error


def _requested_name(service: str) -> None:
    try:
        _NAME(service, "service")
    except ProtocolError as error:
        raise InvalidRequest(str(error)) from error
