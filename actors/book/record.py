"""The unit of a market's log: one batch of commands under one epoch and one leader timestamp, hash-chained. Pure.

A record's *body* is ``msgpack((epoch, first_sequence, timestamp_ns, commands, origins))``: encoded once by the leader,
sent, stored and hashed as those bytes. Its *chain* is BLAKE2b-256 of the body keyed with the previous chain, so equal
chains mean equal logs up to there. ``origins`` says which requests the commands belong to: ``(node id, request id,
number of commands)`` in order, so that each node that applies the record can answer its own callers.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final, NamedTuple

import msgpack

from ...transport import codec
from ...transport.errors import ProtocolError, ensure
from .commands import SET_TIME, Command, checked_commands

CHAIN_START: Final = bytes(32)
"""The chain before the first record."""
COMMANDS_MAX: Final = 1024
"""Most commands of one record, and of one request; larger ones are refused."""
RECORD_SIZE_MAX: Final = 1024 * 1024
"""Largest body of a record, in bytes."""

Origin = tuple[str, int, int]
"""``(node id, request id, number of commands)``."""


class Tail(NamedTuple):
    """Where a log ends: the last record's epoch, its last sequence number and its chain."""

    epoch: int
    sequence: int
    chain: bytes


EMPTY: Final = Tail(0, 0, CHAIN_START)
"""The tail of a log without records."""


class Record(NamedTuple):
    """One record of the log. Commands have the sequence numbers ``first_sequence`` to ``last_sequence``."""

    epoch: int
    first_sequence: int
    timestamp_ns: int
    commands: tuple[Command, ...]
    origins: tuple[Origin, ...]
    body: bytes
    chain: bytes

    @property
    def last_sequence(self) -> int:
        return self.first_sequence + len(self.commands) - 1

    @property
    def tail(self) -> Tail:
        """The tail of a log that ends with this record."""
        return Tail(self.epoch, self.last_sequence, self.chain)

    @classmethod
    def make(
        cls,
        after: Tail,
        *,
        epoch: int,
        timestamp_ns: int,
        commands: tuple[Command, ...],
        origins: tuple[Origin, ...],
    ) -> Record:
        """Return the record that follows the log's tail ``after``; its commands have passed the border.

        Raises:
            ProtocolError: the commands do not fit into one record.
        """
        ensure(commands, "a record without a command")
        first_sequence = after.sequence + 1
        body = codec.pack((epoch, first_sequence, timestamp_ns, commands, origins))
        if len(body) > RECORD_SIZE_MAX:
            raise ProtocolError(f"a record of {len(body)} bytes exceeds {RECORD_SIZE_MAX}", code="frame_too_large")
        return cls(epoch, first_sequence, timestamp_ns, commands, origins, body, chain_of(after.chain, body))

    @classmethod
    def parse(cls, after: Tail, body: bytes) -> Record:
        """Return the record in ``body``, checked, as the successor of ``after``.

        Raises:
            ProtocolError: not a well-formed record, or not one that can follow ``after``.
        """
        values = codec.unpack(body, size_max=RECORD_SIZE_MAX)
        if type(values) is not tuple or len(values) != 5:
            raise ProtocolError("record: expected an array of 5 items")
        epoch, first_sequence, timestamp_ns, commands, origins = values
        _EPOCH(epoch, "record: epoch")
        _SEQUENCE(first_sequence, "record: first sequence")
        _TIMESTAMP(timestamp_ns, "record: timestamp")
        checked_commands(commands, internal=True)
        _ORIGINS(origins, "record: origins")
        if not 1 <= len(commands) <= COMMANDS_MAX or sum([count for _, _, count in origins]) > len(commands):
            raise ProtocolError("record: the number of commands is out of range")
        if len(commands) > 1 and any([command[0] == SET_TIME for command in commands]):
            raise ProtocolError("record: the log's time is set among other commands")
        if first_sequence != after.sequence + 1 or epoch < after.epoch:
            raise ProtocolError(
                f"record {first_sequence} of epoch {epoch} cannot follow {after.sequence} of epoch {after.epoch}",
                code="log_gap",
            )
        return cls(epoch, first_sequence, timestamp_ns, commands, origins, body, chain_of(after.chain, body))

    @staticmethod
    def span_of(body: bytes) -> tuple[int, int]:
        """Return epoch and last sequence number of a record without parsing, or checking, its commands.

        Raises:
            ProtocolError: it does not begin as a record does.
        """
        unpacker = msgpack.Unpacker(use_list=False)
        unpacker.feed(body[:64])
        try:
            unpacker.read_array_header()
            epoch = _EPOCH(unpacker.unpack(), "record: epoch")
            first_sequence = _SEQUENCE(unpacker.unpack(), "record: first sequence")
            unpacker.skip()
            return epoch, first_sequence + unpacker.read_array_header() - 1
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise ProtocolError(f"record: not a record ({error or type(error).__name__})") from error


def chain_of(previous: bytes, body: bytes) -> bytes:
    """Return the chain value after a record of ``body`` that follows the chain value ``previous``."""
    return blake2b(body, key=previous, digest_size=32).digest()


_EPOCH: Final = codec.Int(1)
_SEQUENCE: Final = codec.Int(1)
_TIMESTAMP: Final = codec.Int()
_ORIGINS: Final = codec.Array(
    codec.Tuple((codec.Str(80, 1), codec.Int(), codec.Int(1, COMMANDS_MAX))), length_max=COMMANDS_MAX
)
