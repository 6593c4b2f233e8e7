"""The coordinator: the small linearizable store of each market's ``(epoch, leader, in-sync set)``.

Owns the record, the rules of its changes and the protocol that every store implements (:mod:`.sqlite`: all nodes on one
machine; etcd: many machines). Never decides who should lead, never keeps time, and is never on the path of an order.

The same store keeps leases, which say when a leader may be considered dead. Safety does not depend on them: if a leader
is deposed too early, its next swap is refused and its followers stop acknowledging.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, Protocol

from .errors import Unavailable, ensure

KEY_LENGTH_MAX: Final = 255
"""Most characters of the name of a market or a node."""

NODE_ID_IN_USE: Final = "node_id_in_use"
"""Code of the error of a process whose node id another process uses: one data directory is a copy of the other."""

MARKS_MAX: Final = 100
"""Most disk marks that a store writes in one transaction: etcd takes 128 operations in its default settings."""

UNAVAILABLE_CODE: Final = "coordinator_unavailable"
"""Code of the :class:`~openoutcry.transport.errors.Unavailable` that stores raise."""


@dataclasses.dataclass(frozen=True, slots=True)
class MarketRecord:
    """What the coordinator holds of one market; a value, checked when it is made."""

    market: str
    """The market's name, e.g. ``BTC-USD``."""
    version: int
    """1 when created; it grows with every swap of this market, by one unless that is below the epoch."""
    epoch: int
    """The fencing token: 1 when created; grows whenever the leader changes or starts again."""
    leader: str
    """Name of the node that orders commands in this epoch; always in sync."""
    in_sync: tuple[str, ...]
    """Names of the nodes that hold every committed command: sorted, distinct, never empty."""
    forced: int = 0
    """The last epoch that was begun by force, 0: none. Commands of older epochs may be missing from the log."""
    yielding: bool = False
    """The leader cannot commit: a member of the in-sync set that has lost it, and is linked to enough, may lead."""

    def __post_init__(self) -> None:
        for name in (self.market, *self.in_sync):
            ensure(0 < len(name) <= KEY_LENGTH_MAX, f"a name has 1 to {KEY_LENGTH_MAX} characters, not {len(name)}")
        ensure(self.version >= 1, f"version {self.version} is below 1")
        ensure(self.epoch >= 1, f"epoch {self.epoch} is below 1")
        ensure(0 <= self.forced <= self.epoch, f"forced in epoch {self.forced}, after the present one, {self.epoch}")
        ensure(self.in_sync == tuple(sorted(set(self.in_sync))), f"in_sync {self.in_sync} is not sorted and distinct")
        ensure(self.leader in self.in_sync, f"leader {self.leader} is not in sync: {self.in_sync}")


@dataclasses.dataclass(frozen=True, slots=True)
class DiskMark:
    """What a node's disk held of one market at its last report; it reveals an old copy of the disk.

    A disk that comes back with less is not the one that was reported, whatever its node id says.
    """

    number: int
    """How many times the replica on this disk has started and reported it."""
    life: str
    """Random, of the last of these starts: a copy from before it does not hold it."""
    epoch: int
    """Epoch of the last committed entry that the disk held, 0: none."""
    sequence: int
    """Sequence number of that entry."""

    def __post_init__(self) -> None:
        ensure(self.number >= 1, f"life number {self.number} is below 1")
        ensure(0 < len(self.life) <= KEY_LENGTH_MAX, f"a life has 1 to {KEY_LENGTH_MAX} characters")
        ensure(self.epoch >= 0, f"epoch {self.epoch} is below 0")
        ensure(self.sequence >= 0, f"sequence {self.sequence} is below 0")


class Seen(NamedTuple):
    """What a node remembers of the newest record that it has seen of a market: it reveals an old copy of the store."""

    version: int = 0
    epoch: int = 0
    leader: str = ""

    def leads_to(self, later: Seen) -> bool:
        """Whether ``later`` can be of the same record, or of one that came after it in the same store.

        An epoch is never below the version that began it (:func:`next_epoch`): one that is newer than ours, but not
        above our version, began where our version already was of an older epoch. So numbers that go on from an older
        copy of the store do not pass for newer ones.
        """
        if later.epoch == self.epoch:
            return later.version >= self.version and later.leader == self.leader
        return later.epoch > max(self.epoch, self.version) and later.version > self.version


NEVER: Final = Seen()
"""No record was seen: any may follow."""


def seen_of(record: MarketRecord | None) -> Seen:
    """Return what to remember of ``record``; None: the store has none."""
    return Seen(record.version, record.epoch, record.leader) if record is not None else NEVER


class ToldTime(NamedTuple):
    """What the clock of a store's host said: whole seconds since the Unix epoch, in nanoseconds."""

    theirs_ns: int
    round_trip_ns: int
    at_ns: int
    """When the answer came, on the monotonic clock."""


class Coordinator(Protocol):
    """A linearizable store of market records: an operation takes effect at one moment between its call and its return.

    Many processes share one store. One coordinator object is used by one thread at a time (any thread; a store checks
    it). An operation blocks for a few seconds at most.

    Every operation raises:

    - ``Unavailable`` (code ``coordinator_unavailable``): the store cannot be reached, or others kept it locked for too
      long. **The outcome of a create or swap that raised is unknown**: read before deciding what it was.
    - ``StorageError``: what the store holds cannot be trusted.
    - ``Closed``: after :meth:`close`.
    """

    @property
    def coordinator_id(self) -> str:
        """A uuid made when the store was created. Nodes that share a market must find the same one."""

    def read(self, market: str) -> MarketRecord | None:
        """Return the record of ``market``, None if it was never created."""

    def read_all(self) -> tuple[MarketRecord, ...]:
        """Return all records at one moment, sorted by market."""

    def create(self, market: str, leader: str, in_sync: Iterable[str]) -> MarketRecord:
        """Create ``market`` at epoch 1, version 1, unless it is there; return the record that is there afterwards.

        If several nodes race, exactly one wins: the returned record names it as ``leader``.
        """

    def swap(
        self,
        expected: MarketRecord,
        *,
        epoch: int,
        leader: str,
        in_sync: Iterable[str],
        force: bool = False,
        yielding: bool = False,
        lives: Mapping[str, str] | None = None,
    ) -> MarketRecord | None:
        """Replace ``expected``, if the store holds exactly that, by its :func:`successor`; return the new record.

        None, and nothing is changed, if the store holds anything else (another version, other content, no record), or
        if the disk of a node in ``lives`` has reported another life for this market than that (empty: any at all).
        """

    def renew(self, node: str, *, holder: str, ttl_ms: int) -> None:
        """Keep the lease of ``node`` for another ``ttl_ms``; it belongs to this object, and to one ``holder``.

        ``holder`` names the data directory (no blanks): only one process at a time has it, so the next one with the
        same holder takes the lease over at once. Any other waits until the lease has expired.

        Raises:
            Unavailable: code ``node_id_in_use``: another process holds the lease and seems to be alive.
        """

    def release(self, node: str) -> None:
        """Release the lease of ``node``, if this object holds it: it counts as expired at once."""

    def mark(self, node: str, marks: Mapping[str, DiskMark]) -> None:
        """Replace the disk marks of ``node``, per market. Only the holder of its lease may do so.

        Raises:
            Unavailable: code ``node_id_in_use``: this object does not hold the lease of ``node``; nothing was written,
                or (more than ``MARKS_MAX`` markets) not all.
        """

    def marks(self, market: str) -> dict[str, DiskMark]:
        """Return the disk marks of every node in ``market``, by node."""

    def lapsed(self, node: str) -> bool:
        """Return whether ``node`` holds no lease: it never did, released it, or let it expire.

        A store that can see that the holder's process is gone says so at once.

        The lease may be renewed before the caller acts, so the caller must act by a swap.
        """

    @property
    def told_time(self) -> ToldTime | None:
        """The last reading of the clock of the store's host; None if that is this machine, or unknown."""

    def close(self) -> None:
        """Give up the connection; the store stays. Idempotent."""


def in_use(node: str, holder: str) -> Unavailable:
    """Return the error of a process that wants the lease of ``node``, which the process ``holder`` has."""
    return Unavailable(
        f"another process runs under the node id {node} ({holder}): one data directory is a copy of the other. Stop "
        "one of them; to add a node, start it with an empty data directory",
        code=NODE_ID_IN_USE,
    )


class OneThread:
    """Context manager that lets only one thread at a time use a coordinator."""

    def __init__(self) -> None:
        self._in_use = threading.Lock()

    def __enter__(self) -> None:
        acquired = self._in_use.acquire(blocking=False)
        ensure(acquired, "a coordinator is used by one thread at a time")

    def __exit__(self, *_: object) -> None:
        self._in_use.release()


def first_record(market: str, leader: str, in_sync: Iterable[str]) -> MarketRecord:
    """Return the record with which ``market`` is created."""
    return MarketRecord(market, 1, 1, leader, tuple(sorted(set(in_sync))))


def next_epoch(record: MarketRecord) -> int:
    """Return the epoch of a leader that replaces ``record``: the version that this makes."""
    return max(record.epoch, record.version) + 1


def successor(
    expected: MarketRecord,
    *,
    epoch: int,
    leader: str,
    in_sync: Iterable[str],
    force: bool = False,
    yielding: bool = False,
) -> MarketRecord:
    """Return the record that may follow ``expected``, by the rules of a swap, the same for every store.

    1. The epoch never falls, and grows when the leader changes. (It may grow for the same leader: one that restarted
       fences off what it sent before.)
    2. A new leader comes from the in-sync set: nobody else is known to hold every committed command.
    3. The leader is in the new in-sync set, which is therefore never empty.
    4. The version grows by one, or to the epoch, if that is more.

    ``force`` is for a person who knows that the whole in-sync set is lost: any node may then lead, in a new epoch and
    at first alone in sync. Commands that it does not hold are lost; :attr:`MarketRecord.forced` keeps a trace of it.
    """
    in_sync = tuple(sorted(set(in_sync)))
    forced = epoch if force else expected.forced
    version = max(expected.version + 1, epoch)
    record = MarketRecord(expected.market, version, epoch, leader, in_sync, forced, yielding)
    ensure(epoch >= expected.epoch, f"{expected.market}: epoch {epoch} is older than {expected.epoch}")
    ensure(
        leader == expected.leader or epoch > expected.epoch,
        f"{expected.market}: leader {leader} replaces {expected.leader} in the same epoch {epoch}",
    )
    if force:
        ensure(epoch > expected.epoch, f"{expected.market}: leader {leader} is forced without a new epoch")
        ensure(in_sync == (leader,), f"{expected.market}: a leader that is forced begins alone, not with {in_sync}")
    else:
        ensure(
            leader in expected.in_sync, f"{expected.market}: new leader {leader} was not in sync: {expected.in_sync}"
        )
    return record
