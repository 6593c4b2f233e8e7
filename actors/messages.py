"""Every message between nodes (typed, checked at decode) and between the actors of one node. Values only.

Between nodes a message is a frame of :data:`CODEC`. Life of a link: each side dials the other's inbox and sends
:class:`Hello` again and again; the link is up when each has echoed the other's session. See :mod:`.peer`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

from ..transport import codec
from ..transport.errors import ConfigurationError, OpenOutcryError, ProtocolError, StorageError
from ..transport.identity import CERTIFICATE_SIZE_MAX
from ..transport.sockets import checked_address
from .book.commands import NAME_LENGTH_MAX, Command, checked_commands
from .book.record import CHAIN_START, COMMANDS_MAX, RECORD_SIZE_MAX
from .schema import MESSAGE_SIZE_MAX

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

    from pykka import ActorRef

    from ..transport.coordinator import DiskMark, MarketRecord
    from .book.record import Tail
    from .book.rules import MarketRules
    from .peer import Link

CHUNK_SIZE: Final = 1024 * 1024
"""Bytes of a snapshot that travel in one frame."""
IN_SYNC_MAX: Final = 16
"""Most members of a market's in-sync set: each answer waits for all of them. Further replicas follow outside it."""
TAILS_MAX: Final = 1024
"""Most ends of records that one :class:`Rewind` names."""
SNAPSHOT_SIZE_MAX: Final = 16 * 1024 * 1024 * 1024
"""Largest snapshot, in bytes, that a follower accepts."""


def checked_node_name(name: str) -> str:
    """Return ``name`` if a node may have it: it names a folder, and stands in lines of logs.

    Raises:
        ConfigurationError: it is too long, not printable, or no part of a path.
    """
    sound = isinstance(name, str) and 1 <= len(name) <= NAME_LENGTH_MAX and name.isprintable()
    if not sound or "/" in name or name in (".", ".."):
        raise ConfigurationError(
            f"a node's name has 1 to {NAME_LENGTH_MAX} printable characters, none of them '/', and is not . or ..; "
            f"not {name!r:.80}"
        )
    return name


NodeId = Annotated[str, codec.Str(80, 1)]
MarketName = Annotated[str, codec.Str(64, 1)]
Epoch = Annotated[int, codec.Int(0)]
Sequence = Annotated[int, codec.Int(0)]
Chain = Annotated[bytes, codec.Bytes(len(CHAIN_START), len(CHAIN_START))]
Request = Annotated[int, codec.Int(1)]


_ADDRESS: Final = codec.Str(255, 1)


def _address(value: Any, name: str) -> str:
    try:
        return checked_address(_ADDRESS(value, name))
    except ConfigurationError as error:
        raise ProtocolError(f"{name}: {error.message}") from None


def _commands(value: Any, _name: str) -> tuple[Command, ...]:
    commands = checked_commands(value)
    if not commands:
        raise ProtocolError("commands: a request without any")
    return commands


_REQUESTS: Final = codec.Array(codec.Record((codec.Int(1), _commands)), COMMANDS_MAX)


def _requests(value: Any, name: str) -> tuple[tuple[int, tuple[Command, ...]], ...]:
    requests = _REQUESTS(value, name)
    if not 1 <= sum([len(commands) for _, commands in requests]) <= COMMANDS_MAX:
        raise ProtocolError(f"{name}: expected 1 to {COMMANDS_MAX} commands in all")
    return requests


NO_COORDINATOR: Final = "-"
"""What a node without markets and without a coordinator says instead of a coordinator's id."""


def may_link(one: str, other: str) -> bool:
    """Return whether nodes with these coordinators may have a link: they share theirs, or not both have one."""
    return one == other or NO_COORDINATOR in (one, other)


# -- between nodes --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Hello:
    """Who sends on this link. Repeated as the link's heartbeat.

    ``session`` numbers the sender's life of the link; ``echo`` is the receiver's session as the sender last heard it, 0
    before. ``coordinator`` is the id of the sender's coordinator: nodes that do not share it must not share a market.
    It is :data:`NO_COORDINATOR` for a node that has no markets and is there for its actors only.
    """

    node: NodeId
    name: Annotated[str, codec.Str(64, 1)]
    address: Annotated[str, _address]
    coordinator: Annotated[str, codec.Str(80, 1)]
    session: Annotated[int, codec.Int(1)]
    echo: Annotated[int, codec.Int(0)]


@dataclasses.dataclass(frozen=True, slots=True)
class Credentials:
    """The certificate (DER) of who sends on this link, ahead of its first hello. Between nodes with identities only."""

    certificate: Annotated[bytes, codec.Bytes(CERTIFICATE_SIZE_MAX, 1)]


@dataclasses.dataclass(frozen=True, slots=True)
class Lead:
    """Leader to all: I lead ``market`` in ``epoch``, and these hold every committed entry. Who is not joined, join."""

    market: MarketName
    epoch: Epoch
    in_sync: Annotated[tuple[str, ...], codec.Array(codec.Str(80, 1), IN_SYNC_MAX)]


@dataclasses.dataclass(frozen=True, slots=True)
class Join:
    """Follower to leader: my log ends here; send me what follows, or tell me where to cut.

    ``join`` numbers the follower's attempts; its acks carry the same number, so that none of an earlier life counts.
    """

    market: MarketName
    epoch: Epoch
    join: Annotated[int, codec.Int(1)]
    tail_epoch: Epoch
    tail_sequence: Sequence
    tail_chain: Chain
    durable: Sequence
    observer: Annotated[bool, codec.Bool()]
    """It reads only: never to be in sync, never to be waited for."""


@dataclasses.dataclass(frozen=True, slots=True)
class Rewind:
    """Leader to follower: the tail you joined at is not in my log; cut to what we share, and join again.

    ``tails`` are ends of my records up to there, in order, each with its chain: keep up to the last that you have too;
    if it is none of them, at most up to ``sequence``.
    """

    market: MarketName
    epoch: Epoch
    join: Annotated[int, codec.Int(1)]
    sequence: Sequence
    tails: Annotated[
        tuple[tuple[int, bytes], ...],
        codec.Array(codec.Record((codec.Int(0), codec.Bytes(len(CHAIN_START), len(CHAIN_START)))), TAILS_MAX),
    ]


@dataclasses.dataclass(frozen=True, slots=True)
class Resign:
    """Leader to a follower: I lead no longer after ``epoch``; take over if you are in sync.

    Follower to its leader: this replica has stopped; do not wait for it.
    """

    market: MarketName
    epoch: Epoch


@dataclasses.dataclass(frozen=True, slots=True)
class Append:
    """Leader to follower: the records that follow ``previous``, and how far the log is committed.

    ``bodies`` may be empty: then only the commit index moves. ``state_hash`` is the leader's book at
    ``state_sequence``; a follower that reaches that sequence with another hash has diverged, and stops. ``join`` is the
    join that it answers; 0 in what goes to all followers.
    """

    market: MarketName
    epoch: Epoch
    previous_sequence: Sequence
    previous_chain: Chain
    bodies: Annotated[tuple[bytes, ...], codec.Array(codec.Bytes(RECORD_SIZE_MAX, 1), 65_536)]
    committed: Sequence
    state_sequence: Sequence
    state_hash: Annotated[str, codec.Str(64)]
    join: Annotated[int, codec.Int(0)]


@dataclasses.dataclass(frozen=True, slots=True)
class Offer:
    """Leader to follower: your tail is too far back for my log; fetch my state at ``sequence``, ``size`` bytes."""

    market: MarketName
    epoch: Epoch
    sequence: Sequence
    size: Annotated[int, codec.Int(1, SNAPSHOT_SIZE_MAX)]
    tail_epoch: Epoch
    chain: Chain


@dataclasses.dataclass(frozen=True, slots=True)
class Fetch:
    """Follower to leader: the state at ``sequence`` from byte ``offset`` on. It asks piece by piece, at its pace."""

    market: MarketName
    epoch: Epoch
    sequence: Sequence
    offset: Annotated[int, codec.Int(0, SNAPSHOT_SIZE_MAX)]


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """Leader to follower: the answer to :class:`Fetch`."""

    market: MarketName
    epoch: Epoch
    sequence: Sequence
    offset: Annotated[int, codec.Int(0, SNAPSHOT_SIZE_MAX)]
    data: Annotated[bytes, codec.Bytes(CHUNK_SIZE, 1)]


@dataclasses.dataclass(frozen=True, slots=True)
class Ack:
    """Follower to leader: durable here up to ``durable``, applied up to ``applied``."""

    market: MarketName
    epoch: Epoch
    join: Annotated[int, codec.Int(1)]
    durable: Sequence
    applied: Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class Forward:
    """Any node to the leader: order these for me: ``(request, commands)`` each, of ``COMMANDS_MAX`` commands in all.

    The answer is the log itself: a record names its origins.
    """

    market: MarketName
    requests: Annotated[tuple[tuple[int, tuple[Command, ...]], ...], _requests]


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """Leader to origin: the request was not put into the log, and why; nothing of it was executed."""

    market: MarketName
    request: Request
    code: Annotated[str, codec.Str(64, 1)]
    reason: Annotated[str, codec.Str(500)]


TELL, ASK, REPLY, FIND, FOUND, WATCH, GONE, CREDIT = range(1, 9)
"""Kinds of a parcel's items: see :mod:`.remote`."""

_ID: Final = codec.Int(1)
_KEY: Final = codec.Str(80)
_BODY: Final = codec.Bytes(MESSAGE_SIZE_MAX)
_ACCEPTED: Final = codec.Array(codec.Record((codec.Str(80, 1), codec.Str(12, 12))), 1024)
_ITEM_CHECKS: Final = {
    TELL: codec.Record((codec.Int(), _ID, _KEY, _BODY)),
    ASK: codec.Record((codec.Int(), _ID, _KEY, _BODY, _ID)),
    REPLY: codec.Record((codec.Int(), _ID, codec.Str(64), _KEY, _BODY)),
    FIND: codec.Record((codec.Int(), _ID, codec.Str(64, 1))),
    FOUND: codec.Record((codec.Int(), _ID, _ID, codec.Str(64, 1), _ACCEPTED)),
    WATCH: codec.Record((codec.Int(), _ID)),
    GONE: codec.Record((codec.Int(), _ID, codec.Str(20, 1), codec.Str(500))),
    CREDIT: codec.Record((codec.Int(), _ID, _ID)),
}


def _items(value: Any, name: str) -> tuple[tuple[Any, ...], ...]:
    if type(value) is not tuple or not value:
        raise ProtocolError(f"{name}: expected items")
    for item in value:
        check = _ITEM_CHECKS.get(item[0]) if type(item) is tuple and item and type(item[0]) is int else None
        if check is None:
            raise ProtocolError(f"{name}: expected an item of a known kind")
        check(item, name)
    return value


@dataclasses.dataclass(frozen=True, slots=True)
class Parcel:
    """Node to node: what actors have for actors, in order, in the sender's life ``session`` of the link."""

    session: Annotated[int, codec.Int(1)]
    items: Annotated[tuple[tuple[Any, ...], ...], _items]


MarketMessage = Lead | Join | Rewind | Append | Offer | Fetch | Chunk | Ack | Forward | Refused | Resign
Message = Hello | Credentials | Parcel | MarketMessage

_KINDS: Final = (
    Hello,
    Lead,
    Join,
    Rewind,
    Append,
    Ack,
    Forward,
    Refused,
    Resign,
    Offer,
    Fetch,
    Chunk,
    Parcel,
    Credentials,
)
CODEC: Final[codec.Codec[Any]] = codec.Codec(dict(enumerate(_KINDS, 1)))


# -- between the actors of one node ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Heard:
    """The inbox's reader to a BookActor: a market message from ``sender``, as the connection's hello has named it.

    The link need not be up, or be up still: see its session, join and request numbers for what is stale.
    """

    sender: str
    message: MarketMessage


@dataclasses.dataclass(frozen=True, slots=True)
class HelloHeard:
    """The inbox's reader to a PeerActor: its peer said hello over pipe ``pipe_id``."""

    hello: Hello
    pipe_id: int


@dataclasses.dataclass(frozen=True, slots=True)
class PipeRemoved:
    """nng to a PeerActor: the pipe that the peer sends over is gone."""

    pipe_id: int


@dataclasses.dataclass(frozen=True, slots=True)
class OutletConnected:
    """nng to a PeerActor: the pipe of session ``session``, over which it sends, has come up."""

    session: int


@dataclasses.dataclass(frozen=True, slots=True)
class OutletBroken:
    """nng to a PeerActor: the pipe of session ``session``, over which it sends, is gone."""

    session: int


@dataclasses.dataclass(frozen=True, slots=True)
class SendFrame:
    """Any actor to a PeerActor: send this frame if the link is still the one of ``session``; else drop it."""

    session: int
    frame: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class SendNext:
    """A node's remote actors to a PeerActor: send what ``take`` returns, if the link is still that of ``session``."""

    session: int
    take: Callable[[], bytes | None]


@dataclasses.dataclass(frozen=True, slots=True)
class ResetLink:
    """Any actor to a PeerActor: the peer broke the protocol in this life of the link; end it, and begin anew."""

    session: int
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class PeerUp:
    """PeerActor to every BookActor: the link to ``node`` is up; ``link`` sends over it."""

    node: str
    name: str
    link: Link


@dataclasses.dataclass(frozen=True, slots=True)
class PeerDown:
    """PeerActor to every BookActor: the link to ``node`` has ended."""

    node: str


@dataclasses.dataclass(frozen=True, slots=True)
class PeerGone:
    """PeerActor to every BookActor, after PeerDown: nobody listens where ``node`` did, so its process has ended."""

    node: str


@dataclasses.dataclass(frozen=True, slots=True)
class PeerFound:
    """DiscoveryActor to the node: another node is announced at ``address``."""

    node: str
    name: str
    address: str


@dataclasses.dataclass(frozen=True, slots=True)
class PeerLost:
    """DiscoveryActor to the node: the announcement of ``node`` has gone."""

    node: str


@dataclasses.dataclass(frozen=True, slots=True)
class Submitted:
    """The API to a BookActor: requests wait in its :class:`~.submission.Submissions`. Told once for many."""


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
    """BookActor to its JournalActor: remove what follows ``sequence``."""

    sequence: int


@dataclasses.dataclass(frozen=True, slots=True)
class PutLogAside:
    """BookActor to its JournalActor: keep the log and its snapshots under another name, and begin anew."""


@dataclasses.dataclass(frozen=True, slots=True)
class LogPutAside:
    """JournalActor to its BookActor: the log is empty; what was in it is in ``folder``."""

    folder: str


@dataclasses.dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """BookActor to the SnapshotActor: make bytes of ``image``, the state at ``tail``, in the file ``scratch``.

    None: in memory. ``number`` says which book of its actor it is; it comes back with the answer.
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
    """SnapshotActor to a BookActor: the disk cannot be trusted any more; answers :class:`TakeSnapshot`."""

    number: int
    keep: bool
    error: StorageError


@dataclasses.dataclass(frozen=True, slots=True)
class KeepSnapshot:
    """BookActor to its JournalActor: keep the state at ``tail``, which ``scratch`` holds in ``size`` bytes.

    The log is pruned up to the snapshot before it.
    """

    tail: Tail
    scratch: Path
    size: int


@dataclasses.dataclass(frozen=True, slots=True)
class BeginLogAt:
    """BookActor to its JournalActor: keep ``book``, the leader's state at ``tail``; the log begins anew after it."""

    tail: Tail
    book: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class SnapshotKept:
    """JournalActor to its BookActor: the log has begun anew with the snapshot at ``tail``, durably."""

    tail: Tail


@dataclasses.dataclass(frozen=True, slots=True)
class ReadLog:
    """BookActor to its JournalActor: read what follows ``after`` for the follower ``node``.

    With ``expected``, and another chain at ``after`` than that: read instead where the records up to there end.
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
    """JournalActor to its BookActor: the disk cannot be trusted any more."""

    error: StorageError


@dataclasses.dataclass(frozen=True, slots=True)
class CoordinatorCall:
    """BookActor to the CoordinatorActor: call ``run(coordinator)``; CoordinatorAnswer brings ``what`` back."""

    reply_to: ActorRef[Any]
    run: Callable[[Any], Any]
    what: Any


@dataclasses.dataclass(frozen=True, slots=True)
class CoordinatorAnswer:
    """CoordinatorActor to BookActor: what the store said; ``error`` if it could not be reached."""

    what: Any
    record: Any
    error: Exception | None


@dataclasses.dataclass(frozen=True, slots=True)
class DiskMarked:
    """BookActor to the CoordinatorActor: this node's disk holds so much of ``market``; report it with the lease.

    With ``what`` at once, with others that start: CoordinatorAnswer then brings ``what`` back to ``reply_to``.
    """

    reply_to: ActorRef[Any]
    market: str
    mark: DiskMark
    what: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class NodeIdTaken:
    """CoordinatorActor to the BookActors: another process has the lease of this node, so these replicas stop."""

    error: OpenOutcryError


@dataclasses.dataclass(frozen=True, slots=True)
class StoreQuery:
    """The API or the MarketsActor to the CoordinatorActor (ask): answers, or raises, what ``run(coordinator)`` does.

    It only reads.
    """

    run: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, slots=True)
class StoreStatus:
    """The API to the CoordinatorActor (ask): answers what is wrong with the store, None if nothing."""


@dataclasses.dataclass(frozen=True, slots=True)
class LookSoon:
    """The node to its MarketsActor: the records of the markets may have changed."""


@dataclasses.dataclass(frozen=True, slots=True)
class ProposeRules:
    """The API to a BookActor: open the market with these rules if nobody has, and none were given before."""

    rules: MarketRules


@dataclasses.dataclass(frozen=True, slots=True)
class LeaseLapsed:
    """What a BookActor asks the coordinator about the leader it has lost: has the lease of ``leader`` lapsed?"""

    leader: str


@dataclasses.dataclass(frozen=True, slots=True)
class HandOver:
    """The node to a BookActor (ask), again and again: give leadership to ``to`` (None: any member that has everything).

    Answers whether nothing is left to hand over: not leading, or nobody to take it. With ``give_up`` it leads on.
    """

    to: str | None = None
    give_up: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Retire:
    """The node to a BookActor: it ends, its links first. That is no reason to take others out of the in-sync set."""


@dataclasses.dataclass(frozen=True, slots=True)
class ForceLeader:
    """The node to a BookActor: lead by force, in place of ``record``, and begin with ``note`` in the log.

    ``reachable``: nodes that are known to live. ``future`` gets the note's sequence number once this replica leads.
    """

    record: MarketRecord
    reachable: frozenset[str]
    note: Command
    future: Future[Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Query:
    """The API to a BookActor (ask): run ``read(actor)`` on its thread and answer the result; it must change nothing."""

    read: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, slots=True)
class ActorFailed:
    """Any actor to the node: ``who`` has failed by ``error`` and is gone."""

    who: str
    error: BaseException
