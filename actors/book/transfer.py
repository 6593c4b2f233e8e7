"""The transfer of a market's state from its leader to a follower that is too far behind for the log. Pure.

=========  =====================================  =====================================================================
side       input                                  then
=========  =====================================  =====================================================================
leader     the replica offers its state           send ``StateOffer`` of an image that is recent enough, or take one
leader     an image was taken                     send ``StateOffer`` to everybody that waits for one
leader     ``Fetch``                              send ``Chunk``; an image that nobody fetches for a while is dropped
follower   ``StateOffer``                         fetch it if it is ahead of all that is held here, else join again
follower   ``Chunk``                              fetch the next; after the last, restore the book and keep it
follower   the log came instead, or another life  forget what was fetched
follower   the state could not be kept            forget it, and fetch none for a while
=========  =====================================  =====================================================================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from ...transport.errors import ProtocolError, ensure, present
from ..kit.backoff import Backoff
from .disk import Begun
from .record import Tail
from .replica import SNAPSHOT_BEHIND, Effect, Replica, Role, Send
from .wire import CHUNK_SIZE, Chunk, Fetch, StateOffer

OFFER_NS: Final = 10_000_000_000
"""Nanoseconds for which an unfetched image is held; then it is dropped."""

FETCH_RETRY_S: Final = 1.0
"""Seconds without fetching after a state could not be kept; doubled with each further failure."""
FETCH_RETRY_S_MAX: Final = 300.0
"""Most seconds without fetching."""

B = TypeVar("B")


@dataclasses.dataclass(frozen=True, slots=True)
class TakeImage:
    """Take an image of the current book, in memory, unless one is being taken; then call ``on_image``."""


@dataclasses.dataclass(slots=True)
class Fetched(Generic[B]):
    """The part of the leader's state received so far."""

    sender: str
    epoch: int
    tail: Tail
    size: int
    epochs: tuple[Begun, ...]
    """Those of the log that led to the state."""
    data: bytearray = dataclasses.field(default_factory=bytearray)
    book: B | None = None
    """The restored book, once all of it is there."""


TransferEffect = Effect | TakeImage


class StateTransfer(Generic[B]):
    """Both sides of the transfer, for one replica: as a leader it offers and serves, as a follower it fetches."""

    def __init__(
        self, replica: Replica, *, restore: Callable[[bytes], B], sequence_of: Callable[[B], int], chunk_size: int
    ) -> None:
        """``restore`` makes a book from a state's bytes or raises ProtocolError; ``sequence_of`` returns a book's
        sequence.

        ``chunk_size``: bytes of each piece that is served, at most :data:`~.wire.CHUNK_SIZE`.
        """
        ensure(0 < chunk_size <= CHUNK_SIZE, f"a chunk has 1 to {CHUNK_SIZE} bytes, not {chunk_size}")
        self._replica = replica
        self._restore = restore
        self._sequence_of = sequence_of
        self._chunk_size = chunk_size
        self._image: tuple[Tail, bytes] | None = None
        self._image_until_ns = 0
        self._offer_to: set[str] = set()
        """Leader: nodes that wait for an image that is being taken."""
        self.fetched: Fetched[B] | None = None
        """Follower: what is being fetched."""
        self._backoff = Backoff(FETCH_RETRY_S, FETCH_RETRY_S_MAX)

    # -- the leader's side ----------------------------------------------------------------------------------------

    def offer(self, node: str, after: int, now_ns: int) -> list[TransferEffect]:
        """Offer ``node``, whose log ends at ``after``, the current state or a recent one."""
        image = self._image
        recent = image is not None and image[0].sequence > after
        if recent and image is not None and self._replica.applied - image[0].sequence <= SNAPSHOT_BEHIND // 2:
            return self._send_offers([node], now_ns)
        self._offer_to.add(node)
        return [TakeImage()]

    def on_image(self, tail: Tail, data: bytes, now_ns: int) -> list[TransferEffect]:
        """An image of the book at ``tail`` was taken."""
        self._image = tail, data
        waiting, self._offer_to = sorted(self._offer_to), set()
        return self._send_offers(waiting, now_ns)

    def _send_offers(self, nodes: list[str], now_ns: int) -> list[TransferEffect]:
        replica = self._replica
        if self._image is None or not nodes or replica.role is not Role.LEADING:
            return []
        tail, data = self._image
        self._image_until_ns = now_ns + OFFER_NS
        epochs = tuple([each for each in replica.disk.epochs if each.sequence <= tail.sequence])
        offer = StateOffer(replica.market, replica.epoch, tail.sequence, len(data), tail.epoch, tail.chain, epochs)
        return [Send(tuple(nodes), offer)]

    def on_fetch(self, sender: str, message: Fetch, now_ns: int) -> list[TransferEffect]:
        """Serve a piece of the state that was offered.

        Raises:
            ProtocolError: there is nothing at that place.
        """
        image, replica = self._image, self._replica
        if image is None or image[0].sequence != message.sequence or replica.role is not Role.LEADING:
            return []  # offered too long ago: the follower joins again, and is offered another
        self._image_until_ns = now_ns + OFFER_NS
        data = image[1][message.offset : message.offset + self._chunk_size]
        if not data:
            raise ProtocolError(f"a snapshot of {len(image[1])} bytes has nothing at {message.offset}")
        return [Send((sender,), Chunk(replica.market, replica.epoch, message.sequence, message.offset, data))]

    # -- the follower's side --------------------------------------------------------------------------------------

    def on_offer(self, sender: str, message: StateOffer, now_ns: int) -> list[TransferEffect]:
        """The leader offers its state: fetch it, from where an earlier attempt at the same state stopped."""
        replica = self._replica
        tail = Tail(message.tail_epoch, message.sequence, message.chain)
        if not self._backoff.is_due(now_ns / 1e9):
            return []  # this replica joins again meanwhile, and is offered it again
        if not replica.wants_snapshot(sender, message.epoch, tail):
            return [*replica.on_snapshot_declined(sender, message.epoch)]
        epochs = tuple([Begun(*each) for each in message.epochs])
        if instead := replica.on_state_offered(sender, epochs):
            return [*instead]
        fetched = self.fetched
        if fetched is None or (fetched.sender, fetched.epoch, fetched.tail) != (sender, message.epoch, tail):
            fetched = self.fetched = Fetched(sender, message.epoch, tail, message.size, epochs)
        return self._fetch(fetched, now_ns)

    def _fetch(self, fetched: Fetched[B], now_ns: int) -> list[TransferEffect]:
        replica, sequence = self._replica, fetched.tail.sequence
        replica.on_fetching(sequence, now_ns)
        return [Send((fetched.sender,), Fetch(replica.market, fetched.epoch, sequence, len(fetched.data)))]

    def on_chunk(self, sender: str, message: Chunk, now_ns: int) -> list[TransferEffect]:
        """A piece of the state was received.

        Raises:
            ProtocolError: it exceeds the offer, or the whole is not a state, or has another sequence.
        """
        fetched, replica = self.fetched, self._replica
        if fetched is None or fetched.book is not None:
            return []
        if (sender, message.epoch, message.sequence) != (fetched.sender, fetched.epoch, fetched.tail.sequence):
            return []
        if message.offset != len(fetched.data):
            return []  # requested twice
        if message.offset + len(message.data) > fetched.size:
            raise ProtocolError(f"a chunk at {message.offset} goes beyond the {fetched.size} bytes that were offered")
        fetched.data += message.data
        if len(fetched.data) < fetched.size:
            return self._fetch(fetched, now_ns)
        if not replica.wants_snapshot(sender, message.epoch, fetched.tail):
            return [*replica.on_snapshot_declined(sender, message.epoch)]
        self.fetched = None  # an invalid state is fetched again from its beginning
        fetched.book = self._restore(bytes(fetched.data))
        if self._sequence_of(fetched.book) != fetched.tail.sequence:
            raise ProtocolError("the snapshot is not of the sequence that was offered")
        self.fetched = fetched
        replica.on_fetching(message.sequence, now_ns)
        return [*replica.on_snapshot_fetched(fetched.tail)]

    def installed(self) -> tuple[Fetched[B], B]:
        """The fetched state is durable: return it with its book, to continue from."""
        fetched, self.fetched = present(self.fetched, "a state is installed before it was fetched"), None
        self._backoff.succeeded()
        return fetched, present(fetched.book, "a state is installed before it was restored")

    def on_not_kept(self, now_ns: int) -> float:
        """The fetched state could not be kept because space or memory ran out: forget it, and fetch none for a while.

        Return for how many seconds.
        """
        self.fetched = None
        return self._backoff.failed(now_ns / 1e9)

    # -- both -------------------------------------------------------------------------------------------------------

    def on_tick(self, now_ns: int) -> None:
        """Forget the fetched state if the log arrived instead; drop an image that nobody fetches."""
        if self.fetched is not None and self._replica.matched:
            self.fetched = None
        if self._image is not None and now_ns > self._image_until_ns:
            self._image = None

    def on_another_book(self) -> None:
        """The book was replaced: images of the former one are useless."""
        self._image = None

    def forget_fetched(self) -> None:
        """The log was put aside: forget the fetched state."""
        self.fetched = None
