"""CoordinatorActor: the one thread that talks to the node's coordinator, so that no order waits for it.

It keeps the node's lease, which lets the others distinguish a dead leader from a slow one, and carries out the calls of
the BookActors. An unreachable store is an answer too: markets that need no change go on without it.

It also reports how far each market's log is on this node's disk (:class:`~openoutcry.transport.coordinator.DiskMark`):
for all markets in one write, with the lease. The report reveals an old copy of the disk that comes back.

Messages: CoordinatorCall, DiskMarked; answers with CoordinatorAnswer. StoreStatus (ask) returns what
is wrong, StoreQuery (ask) what it reads. NodeIdTaken goes to all BookActors when the lease is another's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import quote

import pykka

from ...transport.coordinator import NODE_ID_IN_USE, UNAVAILABLE_CODE, Coordinator, DiskMark
from ...transport.errors import ConfigurationError, OpenOutcryError, Unavailable, ensure
from ...transport.etcd import is_etcd, open_etcd
from ...transport.log import get_logger
from ...transport.sqlite import SqliteCoordinator
from ..kit.meters import SECONDS, Histogram
from ..kit.node_actor import TICK, ActorFailed, NodeActor, tell
from ..kit.uptime import uptime_ns
from ..peers.clocks import ClockMeter
from .messages import CoordinatorAnswer, CoordinatorCall, DiskMarked, NodeIdTaken, StoreQuery, StoreStatus

logger = get_logger(__name__)

LEASES_WAITED: Final = 2
"""How many times its lease a starting node waits for another process to release its node id."""
LEASE_LATE_S: Final = 2.0
"""Seconds to wait beyond that: etcd rounds leases up, and ends them late."""
LEASE_LOOK_S: Final = 0.1
"""Seconds between two tries meanwhile."""
MARKS_LATE_S: Final = 0.05
"""Seconds that the first report of a market's disk may wait for others to be written together."""


def open_coordinator(address: str | Path) -> Coordinator:
    """Open the store at ``address``: etcd's (``etcd://…``), or the path of an SQLite file, made if absent.

    Raises:
        ConfigurationError: the address is malformed, or the file is not a coordinator's.
        Unavailable: it cannot be reached.
    """
    if isinstance(address, str) and is_etcd(address):
        return open_etcd(address)
    return SqliteCoordinator(Path(address))


def holder_of(folder: Path) -> str:
    """Return a name of a data directory that is stable until its machine restarts; a copy has another name."""
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        machine = quote(socket.gethostname())
    found = folder.stat()
    return f"{machine}:{found.st_dev}:{found.st_ino}"


def take_lease(coordinator: Coordinator, node: str, *, holder: str, lease_ms: int) -> None:
    """Take the lease of ``node``; wait until the lease of a killed process has expired, if its disk was another.

    Raises:
        ConfigurationError: code ``node_id_in_use``: another process keeps renewing it.
        Unavailable: the store cannot be reached.
    """
    until_s = time.monotonic() + LEASES_WAITED * lease_ms / 1000 + LEASE_LATE_S
    while True:
        try:
            coordinator.renew(node, holder=holder, ttl_ms=lease_ms)
        except Unavailable as error:
            if error.code != NODE_ID_IN_USE:
                raise
            if time.monotonic() > until_s:
                raise ConfigurationError(error.message, code=NODE_ID_IN_USE) from error
            time.sleep(LEASE_LOOK_S)
        else:
            return


@dataclasses.dataclass(slots=True)
class StoreMeters:
    """Counters about the coordinator, seen from this node."""

    seconds: Histogram = dataclasses.field(default_factory=lambda: Histogram(SECONDS))
    """Seconds of each request to the coordinator, answered or not."""
    failures: int = 0
    """Requests to the coordinator that failed."""
    error: str | None = None
    """Why the last renewal of the lease failed; None if it succeeded."""
    clock: ClockMeter = dataclasses.field(default_factory=ClockMeter)
    """How far the wall clock of the store's host is from ours, if known."""


class CoordinatorActor(NodeActor):
    """Owns the node's coordinator object and closes it; renews the lease of ``node`` every third of ``lease_ms``."""

    tick_ms: ClassVar[int] = 50

    def __init__(
        self,
        *,
        coordinator: Coordinator,
        node: str,
        holder: str,
        lease_ms: int,
        report: Callable[[ActorFailed], None],
        meters: StoreMeters | None = None,
        ending: threading.Event | None = None,
    ) -> None:
        """Once ``ending`` is set, a store that fails once is not used again: waiting calls are refused at once."""
        super().__init__(report=report)
        self._coordinator = coordinator
        self._node = node
        self._log = logger.bind(node=node)
        self._holder = holder
        self._lease_ms = lease_ms
        self._marks: dict[str, DiskMark] = {}
        """Marks of markets whose disk holds more than was reported."""
        self._asked: list[DiskMarked] = []
        """Reports that an actor waits for."""
        self._asked_since_s = 0.0
        self._books: set[pykka.ActorRef[Any]] = set()
        self._taken: OpenOutcryError | None = None
        """Another process has the lease of this node: this actor no longer uses the store."""
        self._meters = meters or StoreMeters()
        self._ending = ending or threading.Event()
        self._away = False
        """Whether the last request to the store failed."""
        self._renew_at_s = 0.0
        self._error: Exception | None = None

    def on_receive(self, message: Any) -> Any:
        if time.monotonic() >= self._renew_at_s and self._taken is None:
            self._renew()  # before any call: a process that was stopped may have lost its lease
        if isinstance(message, CoordinatorCall):
            self._books.add(message.reply_to)
            self._call(message)
        elif isinstance(message, DiskMarked):
            self._take_mark(message)
        elif isinstance(message, StoreStatus):
            return None if self._error is None else str(self._error)
        elif isinstance(message, StoreQuery):
            with self._measured():
                return message.run(self._coordinator)
        else:
            ensure(message is TICK, f"CoordinatorActor does not understand {type(message).__name__}")
        if self._asked and (self.idle or time.monotonic() - self._asked_since_s >= MARKS_LATE_S):
            self._write_marks()
        return None

    def _take_mark(self, message: DiskMarked) -> None:
        self._marks[message.market] = message.mark
        if message.what is not None:
            if not self._asked:
                self._asked_since_s = time.monotonic()
            self._asked.append(message)

    def _write_marks(self) -> None:
        """Report the changed disk marks of all markets at once."""
        asked, self._asked = self._asked, []
        error: Exception | None = self._taken
        if error is None:
            try:
                with self._measured():
                    self._coordinator.mark(self._node, self._marks)
                self._marks.clear()
            except Exception as failure:
                error = failure
        for each in asked:
            tell(each.reply_to, CoordinatorAnswer(each.what, None, error))

    def _call(self, call: CoordinatorCall) -> None:
        if self._taken is not None:
            tell(call.reply_to, CoordinatorAnswer(call.what, None, self._taken))
            return
        try:
            with self._measured():
                answer = call.run(self._coordinator)
        except OpenOutcryError as error:
            tell(call.reply_to, CoordinatorAnswer(call.what, None, error))
        except Exception as error:
            # A bug of ours or of the store's library. The caller must learn of it, and retries.
            self._log.exception("coordinator_call_broken", what=type(call.what).__name__)
            tell(call.reply_to, CoordinatorAnswer(call.what, None, error))
        else:
            tell(call.reply_to, CoordinatorAnswer(call.what, answer, None))

    def _compare_clocks(self) -> None:
        """Note the clock of the store's host, if it is known."""
        told = self._coordinator.told_time
        if told is not None:
            now_ns = uptime_ns() - (time.monotonic_ns() - told.at_ns)
            self._meters.clock.measured(
                told.theirs_ns, round_trip_ns=told.round_trip_ns, now_ns=now_ns, coarse_ns=1_000_000_000
            )

    def _renew(self) -> None:
        self._renew_at_s = time.monotonic() + self._lease_ms / 3000
        try:
            with self._measured():
                self._coordinator.renew(self._node, holder=self._holder, ttl_ms=self._lease_ms)
            self._compare_clocks()
        except Exception as error:
            if self._error is None:
                self._log.error("coordinator_unusable", error=error)
            self._error = error
            self._meters.error = str(error)
            if isinstance(error, Unavailable) and error.code == NODE_ID_IN_USE:
                self._log.critical("node_id_in_use", error=error)
                self._taken = error
                for book in self._books:
                    tell(book, NodeIdTaken(error))
        else:
            if self._error is not None:
                self._log.info("coordinator_usable")
            self._error = self._meters.error = None
            if self._marks:
                self._write_marks()

    @contextlib.contextmanager
    def _measured(self) -> Iterator[None]:
        if self._away and self._ending.is_set():
            raise Unavailable("the node is closing, and its coordinator does not answer", code=UNAVAILABLE_CODE)
        began_s = time.perf_counter()
        try:
            yield
        except Exception:
            self._away = True
            self._meters.failures += 1
            raise
        else:
            self._away = False
        finally:
            self._meters.seconds.observe(time.perf_counter() - began_s)

    def on_stop(self) -> None:
        try:
            if self._marks and self._taken is None:
                with self._measured():
                    self._coordinator.mark(self._node, self._marks)
            with self._measured():
                self._coordinator.release(self._node)
        except OpenOutcryError as error:
            self._log.warning("lease_not_released", error=error)
        self._coordinator.close()
