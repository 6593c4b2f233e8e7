"""Messages to a market's BookActor and its JournalActor, and to the SnapshotActor. Values only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

from pykka import ActorRef

from ...transport.coordinator import MarketRecord
from ...transport.errors import OpenOutcryError, StorageError
from .commands import Command
from .orderbook import BookImage
from .record import Tail
from .rules import MarketRules
from .wire import MarketMessage


@dataclasses.dataclass(frozen=True, slots=True)
class Received:
    """The inbox's reader to a BookActor: a market message from ``sender``, as named in the connection's hello.

    The link may not be up yet, or no longer: session, join and request numbers show what is stale.
    """

    sender: str
    message: MarketMessage


@dataclasses.dataclass(frozen=True, slots=True)
class Submitted:
    """The API to a BookActor: requests wait in its :class:`~.submission.Submissions`. Sent once for many."""


SUBMITTED: Final = Submitted()


@dataclasses.dataclass(frozen=True, slots=True)
class Persisted:
    """JournalActor to its BookActor: durable up to ``sequence``, in the log's ``generation`` (it grows by each cut)."""

    generation: int
    sequence: int


@dataclasses.dataclass(frozen=True, slots=True)
class Persist:
    """BookActor to its JournalActor: append these records and make them durable."""

    generation: int
    records: tuple[Any, ...]
    committed: int


@dataclasses.dataclass(frozen=True, slots=True)
class CutLog:
    """BookActor to its JournalActor: remove the records after ``sequence``."""

    sequence: int


@dataclasses.dataclass(frozen=True, slots=True)
class PutLogAside:
    """BookActor to its JournalActor: keep the log and its snapshots under another name, and start empty ones."""


@dataclasses.dataclass(frozen=True, slots=True)
class LogPutAside:
    """JournalActor to its BookActor: the log is empty; its former records are in ``folder``."""

    folder: str


class CopyOn:
    """A BookActor to itself: go on with the copy of the book that is being made."""


COPY_ON: Final = CopyOn()


@dataclasses.dataclass(frozen=True, slots=True)
class CopyBook:
    """The API to a BookActor: ``future`` gets a :class:`~.orderbook.BookImage`, of a moment from now on."""

    future: Future[BookImage]


@dataclasses.dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """BookActor to the SnapshotActor: make bytes of ``image``, the state at ``tail``, in the file ``scratch``.

    None: in memory. ``number`` identifies the actor's book, and comes back with the answer.
    """

    reply_to: ActorRef[Any]
    number: int
    tail: Tail
    image: Any
    scratch: Path | None


@dataclasses.dataclass(frozen=True, slots=True)
class SnapshotTaken:
    """SnapshotActor to a BookActor: answers :class:`TakeSnapshot`. A file holds the ``size`` bytes, or ``data``."""

    number: int
    tail: Tail
    scratch: Path | None
    size: int
    data: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class SnapshotFailed:
    """SnapshotActor to a BookActor: it could not be taken; answers :class:`TakeSnapshot`."""

    number: int
    keep: bool
    error: OpenOutcryError


@dataclasses.dataclass(frozen=True, slots=True)
class KeepSnapshot:
    """BookActor to its JournalActor: keep the state at ``tail``, which ``scratch`` holds in ``size`` bytes.

    The log is pruned up to the snapshot before it.
    """

    tail: Tail
    scratch: Path
    size: int


@dataclasses.dataclass(frozen=True, slots=True)
class SnapshotStored:
    """JournalActor to its BookActor: answers :class:`KeepSnapshot`; ``error`` says why it was not kept, or not pruned.

    The log is whole either way.
    """

    error: OpenOutcryError | None


@dataclasses.dataclass(frozen=True, slots=True)
class BeginLogAt:
    """BookActor to its JournalActor: keep ``book``, the leader's state at ``tail``; a new log begins after it."""

    tail: Tail
    book: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class SnapshotKept:
    """JournalActor to its BookActor: a new log has begun with the snapshot at ``tail``, durably."""

    tail: Tail


@dataclasses.dataclass(frozen=True, slots=True)
class SnapshotNotKept:
    """JournalActor to its BookActor: the fetched state could not be kept; the log is unchanged."""

    error: OpenOutcryError


@dataclasses.dataclass(frozen=True, slots=True)
class LogNotRead:
    """JournalActor to its BookActor: ``read`` failed because file descriptors or memory ran out."""

    read: ReadLog
    error: OpenOutcryError


@dataclasses.dataclass(frozen=True, slots=True)
class ReadLog:
    """BookActor to its JournalActor: read the records after ``after`` for the follower ``node``.

    If the chain at ``after`` differs from ``expected``, read instead the ends of the records up to there.
    """

    node: str
    after: int
    expected: bytes | None
    token: int


@dataclasses.dataclass(frozen=True, slots=True)
class LogRead:
    """JournalActor to its BookActor: answers :class:`ReadLog`; ``chain`` is None if no record ends at ``after``.

    ``bodies`` follow ``after``, unless the chain there is not the expected one: then ``tails`` are the last few ends of
    records up to there, in order, each with its chain. ``base`` is the sequence number after which the log begins.
    """

    node: str
    after: int
    token: int
    chain: bytes | None
    bodies: tuple[bytes, ...]
    tails: tuple[tuple[int, bytes], ...]
    base: int


@dataclasses.dataclass(frozen=True, slots=True)
class JournalFailed:
    """JournalActor to its BookActor: the disk can no longer be trusted."""

    error: StorageError


@dataclasses.dataclass(frozen=True, slots=True)
class ProposeRules:
    """The API to a BookActor: open the market with these rules if nobody has, and none were given before."""

    rules: MarketRules


@dataclasses.dataclass(frozen=True, slots=True)
class IsLeaseExpired:
    """A BookActor's question to the coordinator about a lost leader: has the lease of ``leader`` expired?"""

    leader: str


@dataclasses.dataclass(frozen=True, slots=True)
class HandOver:
    """The node to a BookActor (ask), repeatedly: give leadership to ``to`` (None: any member that has everything).

    Answers True if there is nothing to hand over: it does not lead, or nobody can take over. ``give_up``: keep leading.
    """

    to: str | None = None
    give_up: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Retire:
    """The node to a BookActor: the node ends, its links first. Do not remove others from the in-sync set for that."""


@dataclasses.dataclass(frozen=True, slots=True)
class ForceLeader:
    """The node to a BookActor: lead by force, in place of ``record``, and begin with ``note`` in the log.

    ``reachable``: nodes known to live. ``future`` gets the note's sequence number once this replica leads.
    """

    record: MarketRecord
    reachable: frozenset[str]
    note: Command
    future: Future[Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Query:
    """The API to a BookActor (ask): run ``read(actor)`` on its thread and answer the result; it must only read."""

    read: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, slots=True)
class SetTime:
    """The API to a BookActor (ask): set the log's time to that of this machine's clock, because of ``reason``.

    Answers the sequence number of the command that does so, and the log's time before and after; raises Unavailable.
    """

    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class TimeSet:
    """Answers :class:`SetTime`; times in nanoseconds since the Unix epoch."""

    sequence: int
    before_ns: int
    after_ns: int
