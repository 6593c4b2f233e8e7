"""Messages between the replicas of a market, checked at decode. Pure: values only."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Final

from ...transport import codec
from ...transport.errors import ProtocolError
from .commands import Command, checked_commands
from .disk import EPOCHS_MAX
from .record import CHAIN_START, COMMANDS_MAX, RECORD_SIZE_MAX

CHUNK_SIZE: Final = 1024 * 1024
"""Most bytes of a snapshot in one frame."""
IN_SYNC_MAX: Final = 16
"""Most members of a market's in-sync set: each answer waits for all of them. Further replicas follow outside it."""
TAILS_MAX: Final = 1024
"""Most ends of records that one :class:`Rewind` names."""
SNAPSHOT_SIZE_MAX: Final = 16 * 1024 * 1024 * 1024
"""Largest snapshot, in bytes, that a follower accepts."""
MarketName = Annotated[str, codec.Str(codec.NAME_LENGTH_MAX, 1)]
Epoch = Annotated[int, codec.Int(0)]
Sequence = Annotated[int, codec.Int(0)]
Chain = Annotated[bytes, codec.Bytes(len(CHAIN_START), len(CHAIN_START))]
Request = Annotated[int, codec.Int(1)]


def _commands(value: Any, _name: str) -> tuple[Command, ...]:
    commands = checked_commands(value)
    if not commands:
        raise ProtocolError("commands: a request without any")
    return commands


_REQUESTS: Final = codec.Array(codec.Tuple((codec.Int(1), _commands)), COMMANDS_MAX)


def _requests(value: Any, name: str) -> tuple[tuple[int, tuple[Command, ...]], ...]:
    requests = _REQUESTS(value, name)
    if not 1 <= sum([len(commands) for _, commands in requests]) <= COMMANDS_MAX:
        raise ProtocolError(f"{name}: expected 1 to {COMMANDS_MAX} commands in all")
    return requests


@dataclasses.dataclass(frozen=True, slots=True)
class Lead:
    """Leader to all: I lead ``market`` in ``epoch``, and these hold every committed entry. Join, if you have not."""

    market: MarketName
    epoch: Epoch
    in_sync: Annotated[tuple[str, ...], codec.Array(codec.Str(80, 1), IN_SYNC_MAX)]
    committed: Sequence
    """The log is committed up to here: a member that holds less has an older copy of its disk."""


@dataclasses.dataclass(frozen=True, slots=True)
class Objection:
    """A replica to a leader whose claim contradicts what this replica knows.

    It names the newest market record seen at the coordinator, and the last entry committed here. One of them does not
    fit the leader's claim, so a disk or the coordinator's store is an older copy.
    """

    market: MarketName
    epoch: Epoch
    """Epoch of the leader that is followed."""
    seen_version: Sequence
    seen_epoch: Epoch
    seen_leader: Annotated[str, codec.Str(codec.NAME_LENGTH_MAX)]
    forked: Annotated[bool, codec.Bool()]
    """The coordinator's store goes on from an older copy of it, whatever it holds by now."""
    tail_epoch: Epoch
    tail_sequence: Sequence
    tail_chain: Chain


@dataclasses.dataclass(frozen=True, slots=True)
class Join:
    """Follower to leader: my log ends here; send me what follows, or tell me where to cut.

    ``join`` numbers the follower's attempts; its acks carry the same number, so that acks of an earlier life do not
    count.
    """

    market: MarketName
    epoch: Epoch
    join: Annotated[int, codec.Int(1)]
    tail_epoch: Epoch
    tail_sequence: Sequence
    tail_chain: Chain
    durable: Sequence
    observer: Annotated[bool, codec.Bool()]
    """An observer: it never joins the in-sync set, and nobody waits for it."""
    life: Annotated[str, codec.Str(64)]
    """The life of my disk that the coordinator has; empty: none. I am added only as long as it has that one."""


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
        codec.Array(codec.Tuple((codec.Int(0), codec.Bytes(len(CHAIN_START), len(CHAIN_START)))), TAILS_MAX),
    ]


@dataclasses.dataclass(frozen=True, slots=True)
class Resign:
    """Leader to a follower: I stop leading after ``epoch``; take over if you are in sync.

    Follower to its leader: this replica has stopped; do not wait for it. Where a BookActor has failed, its node says so
    for it.
    """

    market: MarketName
    epoch: Epoch


@dataclasses.dataclass(frozen=True, slots=True)
class Append:
    """Leader to follower: the records that follow ``previous``, and how far the log is committed.

    ``bodies`` may be empty: then only the commit index moves. ``state_hash`` is the leader's book at
    ``state_sequence``; a follower that reaches that sequence with another hash has diverged, and stops. ``join`` is the
    join that it answers; 0 in frames to all followers.
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
class StateOffer:
    """Leader to follower: your tail is too far back for my log; fetch my state at ``sequence``, ``size`` bytes."""

    market: MarketName
    epoch: Epoch
    sequence: Sequence
    size: Annotated[int, codec.Int(1, SNAPSHOT_SIZE_MAX)]
    tail_epoch: Epoch
    chain: Chain
    epochs: Annotated[
        tuple[tuple[int, int, bytes], ...],
        codec.Array(
            codec.Tuple((codec.Int(1), codec.Int(1), codec.Bytes(len(CHAIN_START), len(CHAIN_START)))), EPOCHS_MAX
        ),
    ]
    """The last epochs in my log, oldest first: their numbers, their first sequences, the chains of their first records.

    A follower compares its own log with them, since mine may not reach back to where its log ends.
    """


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
    """Any node to the leader: order these for me: ``(request, commands)`` each, at most ``COMMANDS_MAX`` commands in
    all.

    The answer is the log itself: a record names its origins.
    """

    market: MarketName
    epoch: Epoch
    requests: Annotated[tuple[tuple[int, tuple[Command, ...]], ...], _requests]


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """Leader to origin: the request was not put into the log, and why; nothing of it was executed."""

    market: MarketName
    request: Request
    code: Annotated[str, codec.Str(64, 1)]
    reason: Annotated[str, codec.Str(500)]


MarketMessage = (
    Lead | Join | Objection | Rewind | Append | StateOffer | Fetch | Chunk | Ack | Forward | Refused | Resign
)
MARKET_KINDS: Final[dict[int, type]] = {
    2: Lead,
    3: Join,
    4: Rewind,
    5: Append,
    6: Ack,
    7: Forward,
    8: Refused,
    9: Resign,
    10: StateOffer,
    11: Fetch,
    12: Chunk,
    15: Objection,
}
"""By the number of their kind on the wire."""
MARKET_CODEC: Final[codec.Codec[Any]] = codec.Codec(MARKET_KINDS)
