"""The directory's server side: who offers what, for how long. Any node can play it.

Owns one ``Respondent0`` listener, one thread and the table of leases. Never dials anyone, never passes a survey
on, and never judges an entry beyond its size.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import queue
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pynng

from . import sockets
from .errors import ConfigurationError, Overloaded, ProtocolError, ensure
from .forks import guard
from .identity import CERTIFICATE_REFUSED, check_addresses, name_of
from .interrupts import uninterrupted
from .log import get_logger
from .survey import (
    ANSWERS,
    ENTRIES_PER_NODE_MAX,
    PAGE_SIZE_MAX,
    RENDEZVOUS_MAX,
    REQUESTS,
    SURVEY_FRAME_SIZE_MAX,
    TTL_MS_MAX,
    TTL_MS_MIN,
    Acknowledge,
    Announce,
    Find,
    Found,
    Request,
    Row,
    ServiceEntry,
    Unchanged,
    decode,
    row_size,
)

if TYPE_CHECKING:
    from .certificates import Identity

logger = get_logger(__name__)

LEASES_MAX: Final = 16_384
"""Most entries that one rendezvous leases; further announcements are refused (``directory_full``)."""

SILENT_S: Final = 60 + TTL_MS_MAX / 1000
"""Seconds of silence after which a TLS connection is closed; its leases have expired long before."""

_IDLE_MS = 100

_Key = tuple[str, str]


@dataclass(slots=True)
class _Lease:
    row: Row
    size: int
    pipe_id: int
    expires_ns: int


@dataclass(slots=True)
class _Service:
    nodes: list[str] = field(default_factory=list)  # sorted
    version: int = 0


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the entries of one service, in order of their nodes."""

    version: int
    """Changes whenever the entries of the service do; 0 while there are none."""
    rows: tuple[Row, ...]
    more: bool


class LeaseTable:
    """Entries, each leased to the pipe that announced it last, until a time. Pure: no sockets, threads or clocks.

    Invariants: there are at most ``leases_max`` leases, at most ``leases_per_pipe_max`` of any one pipe; every
    lease is listed once under its pipe and once, in order, under its service; there is no empty list.
    """

    def __init__(self, *, leases_max: int = LEASES_MAX, leases_per_pipe_max: int = ENTRIES_PER_NODE_MAX) -> None:
        self._leases_max = leases_max
        self._leases_per_pipe_max = leases_per_pipe_max
        self._leases: dict[_Key, _Lease] = {}
        self._of_pipe: dict[int, set[_Key]] = {}
        self._services: dict[str, _Service] = {}
        self._version = 0
        self._lapse_ns: float = float("inf")  # no lease expires before this

    def __len__(self) -> int:
        return len(self._leases)

    def announce(self, row: Row, *, pipe_id: int, ttl_ms: int, now_ns: int) -> None:
        """Lease ``row`` to ``pipe_id`` for ``ttl_ms``: a new lease, a renewal, or one taken over from another pipe.

        Raises:
            Overloaded: the table (code ``directory_full``) or the pipe's share of it
                (``too_many_announcements``) is full.
            ProtocolError: the row exceeds ``ENTRY_SIZE_MAX``.
        """
        key = (row[0], row[1])
        size = row_size(row)
        held = self._leases.get(key)
        if held is None and len(self._leases) >= self._leases_max:
            raise Overloaded(f"the rendezvous holds {self._leases_max} entries, its limit", code="directory_full")
        if held is None or held.pipe_id != pipe_id:
            if len(self._of_pipe.get(pipe_id, ())) >= self._leases_per_pipe_max:
                raise Overloaded(
                    f"this client has announced {self._leases_per_pipe_max} entries, its limit",
                    code="too_many_announcements",
                )
            if held is not None:
                self._disown(key, held.pipe_id)
            self._of_pipe.setdefault(pipe_id, set()).add(key)
        expires_ns = now_ns + ttl_ms * 1_000_000
        self._lapse_ns = min(self._lapse_ns, expires_ns)
        self._leases[key] = _Lease(row, size, pipe_id, expires_ns)
        service = self._services.setdefault(row[0], _Service())
        if held is None:
            bisect.insort(service.nodes, row[1])
        if held is None or held.row != row:
            self._version += 1
            service.version = self._version

    def withdraw(self, service: str, node: str, *, pipe_id: int) -> bool:
        """End a lease, if it is (still) this pipe's; return whether it was."""
        held = self._leases.get((service, node))
        if held is None or held.pipe_id != pipe_id:
            return False
        self._remove((service, node))
        return True

    def drop_pipe(self, pipe_id: int) -> int:
        """End all leases of a pipe that has gone; return how many."""
        keys = list(self._of_pipe.get(pipe_id, ()))
        for key in keys:
            self._remove(key)
        return len(keys)

    def lapse(self, now_ns: int) -> int:
        """End the leases whose time has come; return how many."""
        if now_ns < self._lapse_ns:
            return 0
        lapsed = [key for key, lease in self._leases.items() if lease.expires_ns <= now_ns]
        for key in lapsed:
            self._remove(key)
        self._lapse_ns = min((lease.expires_ns for lease in self._leases.values()), default=float("inf"))
        return len(lapsed)

    def find(self, service: str, *, after: str = "", size_max: int = PAGE_SIZE_MAX) -> Page:
        """Return the entries of ``service`` at nodes above ``after``, up to ``size_max`` bytes of them."""
        listed = self._services.get(service)
        if listed is None:
            return Page(0, (), False)
        rows: list[Row] = []
        size = 0
        for node in listed.nodes[bisect.bisect_right(listed.nodes, after) :]:
            lease = self._leases[service, node]
            size += lease.size
            if size > size_max:
                return Page(listed.version, tuple(rows), True)
            rows.append(lease.row)
        return Page(listed.version, tuple(rows), False)

    def services(self) -> dict[str, tuple[ServiceEntry, ...]]:
        """Return all entries by service, both in order."""
        return {
            name: tuple([ServiceEntry(*self._leases[name, node].row) for node in self._services[name].nodes])
            for name in sorted(self._services)
        }

    def check(self) -> None:
        """Check the invariants; InvariantBroken says which one does not hold."""
        ensure(len(self._leases) <= self._leases_max, "there are too many leases")
        counts = [len(keys) for keys in self._of_pipe.values()]
        ensure(all([0 < count <= self._leases_per_pipe_max for count in counts]), "a pipe has no lease, or too many")
        by_pipe = sorted((key, pipe_id) for pipe_id, keys in self._of_pipe.items() for key in keys)
        ensure(
            by_pipe == sorted((key, lease.pipe_id) for key, lease in self._leases.items()), "a lease's pipe is wrong"
        )
        ensure(all([listed.nodes for listed in self._services.values()]), "a service is listed without a node")
        listed_keys = [(name, node) for name in sorted(self._services) for node in self._services[name].nodes]
        ensure(listed_keys == sorted(self._leases), "the services and the leases disagree")
        ensure(all([lease.expires_ns >= self._lapse_ns for lease in self._leases.values()]), "a lease lapses too early")

    def _remove(self, key: _Key) -> None:
        self._disown(key, self._leases.pop(key).pipe_id)
        name, node = key
        listed = self._services[name]
        del listed.nodes[bisect.bisect_left(listed.nodes, node)]
        self._version += 1
        listed.version = self._version
        if not listed.nodes:
            del self._services[name]

    def _disown(self, key: _Key, pipe_id: int) -> None:
        keys = self._of_pipe[pipe_id]
        keys.remove(key)
        if not keys:
            del self._of_pipe[pipe_id]


class Rendezvous:
    """A place where nodes announce their services and look up those of others.

    1. It listens from construction; :meth:`start` starts the one thread that answers.
    2. A lease ends when its client says goodbye, when the pipe it came over goes (a killed process: within
       milliseconds), or when its TTL expires (a stopped process, a cut cable).
    3. Every answer names the other rendezvous (``peers``), so that clients learn of them.
    4. :meth:`close` stops the thread, joins it, then closes the socket. Nothing is kept: after a restart, clients
       reconnect and announce again.

    ``advertise`` is this rendezvous' own address as clients reach it, where that differs from ``address``.
    """

    def __init__(
        self,
        address: str,
        *,
        peers: Sequence[str] = (),
        advertise: str | None = None,
        identity: Identity | None = None,
    ) -> None:
        """Listen at ``address``; with an ``identity``, only to members of its exchange.

        Each member may then announce only nodes of its own name.
        """
        check_addresses([address, *([advertise] if advertise else [])], identity)
        if len(peers) > RENDEZVOUS_MAX or not all(0 < len(peer) <= 255 for peer in (*peers, advertise or address)):
            raise ConfigurationError(f"a rendezvous takes up to {RENDEZVOUS_MAX} peers, each of up to 255 characters")
        self._instance = int.from_bytes(os.urandom(8)) >> 1
        self._table = LeaseTable()
        self._lock = threading.Lock()
        self._gone: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self.frames_refused = 0
        """Malformed surveys, each of which cost its sender the pipe, since the start."""
        self._socket = sockets.open_socket(
            pynng.Respondent0,
            recv_timeout_ms=_IDLE_MS,
            frame_size_max=SURVEY_FRAME_SIZE_MAX,
            tls=identity and identity.server(),
        )
        guard(self)
        self._secure = identity is not None
        self._silent = sockets.SilentPipes(self._socket, SILENT_S) if identity is not None else None
        self._socket.add_post_pipe_remove_cb(lambda pipe: self._gone.put(pipe.id))
        try:
            self.address = sockets.listen(self._socket, address)
        except BaseException:
            self._socket.close()
            raise
        # Clients of this rendezvous know its address; the answer is for others, who could not dial 0.0.0.0.
        own = advertise or self.address
        self._addresses = tuple(peers) if sockets.is_wildcard(own) else (own, *peers)
        self._thread = threading.Thread(target=self._serve, name="rendezvous", daemon=True)

    def __enter__(self) -> Rendezvous:
        self.start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def start(self) -> None:
        """Begin to answer."""
        sockets.close_at_exit(self)
        self._thread.start()

    def close(self) -> None:
        """Stop answering, join the thread, then close the socket. Idempotent."""
        uninterrupted(self._close)

    def _close(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            with sockets.woken(self._socket, pynng.Surveyor0):
                self._thread.join()
        self._socket.close()

    def services(self) -> dict[str, tuple[ServiceEntry, ...]]:
        """Return a snapshot of all entries, by service; any thread may ask."""
        with self._lock:
            return self._table.services()

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
            except pynng.Closed:
                return
            except Exception:
                logger.exception("rendezvous_failed", address=self.address)
                self._stopping.wait(_IDLE_MS / 1000)

    def _turn(self) -> None:
        for pipe_id in self._silent.close_silent() if self._silent is not None else ():
            self._gone.put(pipe_id)
        try:
            message = self._socket.recv_msg()
        except pynng.Timeout:
            with self._lock:
                self._expire()
            return
        pipe = message.pipe
        if pipe is None or self._stopping.is_set():
            return  # it is closed already, or it only woke this thread
        if self._silent is not None:
            self._silent.received(pipe.id, pipe)
        try:
            request = decode(REQUESTS, message.bytes)
            if self._secure and isinstance(request, Announce):
                _check_own(request, sockets.certified_name(pipe))
            answer = self._answer(pipe.id, request)
        except ProtocolError as error:
            self.frames_refused += 1
            logger.warning("rendezvous_refused", address=self.address, pipe=pipe.id, error=error)
            _close(pipe)
            return
        except BaseException:
            _close(pipe)  # its client need not wait for an answer
            raise
        try:
            self._socket.send(answer)
        except pynng.NNGException as error:
            logger.warning("rendezvous_unread", address=self.address, pipe=pipe.id, error=error)
            _close(pipe)

    def _answer(self, pipe_id: int, request: Request) -> bytes:
        with self._lock:
            if isinstance(request, Announce):
                answer = self._announce(pipe_id, request)
                # Only now: a pipe that closed right after its announcement must not leave a lease behind.
                self._expire()
                return ANSWERS.encode(answer)
            self._expire()
            return ANSWERS.encode(self._find(request))

    def _announce(self, pipe_id: int, request: Announce) -> Acknowledge:
        if 0 < request.ttl_ms < TTL_MS_MIN:
            raise ProtocolError(f"ttl_ms: expected 0 or at least {TTL_MS_MIN}, got {request.ttl_ms}")
        refused, reason = 0, ""
        now_ns = time.monotonic_ns()
        for row in request.rows:
            if request.ttl_ms == 0:
                self._table.withdraw(row[0], row[1], pipe_id=pipe_id)
                continue
            try:
                self._table.announce(row, pipe_id=pipe_id, ttl_ms=request.ttl_ms, now_ns=now_ns)
            except Overloaded as error:
                refused, reason = refused + 1, error.message
        return Acknowledge(self._instance, refused, reason, self._addresses)

    def _find(self, request: Find) -> Found | Unchanged:
        page = self._table.find(request.service, after=request.after)
        if not request.after and (self._instance, page.version) in request.known:
            return Unchanged(self._instance)
        return Found(self._instance, page.version, page.rows, page.more, self._addresses)

    def _expire(self) -> None:
        for pipe_id in _drained(self._gone):
            self._table.drop_pipe(pipe_id)
            if self._silent is not None:
                self._silent.removed(pipe_id)
        self._table.lapse(time.monotonic_ns())


def _check_own(request: Announce, name: str) -> None:
    """Check that the owner of certificate ``name`` announces and withdraws only its own nodes."""
    for _, node, _, _ in request.rows:
        if not name or name_of(node) != name:
            raise ProtocolError(
                f"{name or 'who has no name'} announces {node}, which is not its own", code=CERTIFICATE_REFUSED
            )


def _drained(gone: queue.SimpleQueue[int]) -> Iterable[int]:
    while True:
        try:
            yield gone.get_nowait()
        except queue.Empty:
            return


def _close(pipe: Any) -> None:
    with contextlib.suppress(pynng.NNGException):  # it is gone already
        pipe.close()
