"""One market's replica for its shell: protocol, requests and state transfer behind one set of inputs. Pure.

The shell (``actor.py``; in the simulation, its nodes) calls one method per input, in any order, and carries out the
returned effects in order. The docstring of an effect says which call must follow it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, assert_never

from ...transport.errors import OpenOutcryError
from .commands import Command
from .replica import (
    CreateRecord,
    Effect,
    PersistRecords,
    ReadMarks,
    ReadRecord,
    Replica,
    ReportMark,
    Send,
    StoreCall,
    SwapRecord,
)
from .requests import FailRequests, R, Requests
from .transfer import B, Fetched, StateTransfer, TakeImage
from .wire import (
    CHUNK_SIZE,
    Ack,
    Append,
    Chunk,
    Fetch,
    Forward,
    Join,
    Lead,
    MarketMessage,
    Objection,
    Refused,
    Resign,
    Rewind,
    StateOffer,
)

CoreEffect = Effect | FailRequests[R] | TakeImage


class Core(Generic[R, B]):
    """The three pure cores of a market at one node, and the inputs that concern several of them."""

    def __init__(
        self,
        replica: Replica,
        *,
        first_number: int,
        restore: Callable[[bytes], B],
        sequence_of: Callable[[B], int],
        denied: Callable[[str, tuple[Command, ...]], OpenOutcryError | None] = lambda _sender, _commands: None,
        chunk_size: int = CHUNK_SIZE,
    ) -> None:
        """See :class:`Requests` for ``first_number`` and ``denied``, :class:`StateTransfer` for the rest."""
        self.replica = replica
        self.requests: Requests[R] = Requests(replica, first_number=first_number, denied=denied)
        self.transfer: StateTransfer[B] = StateTransfer(
            replica, restore=restore, sequence_of=sequence_of, chunk_size=chunk_size
        )

    # -- links ----------------------------------------------------------------------------------------------------

    def on_message(self, sender: str, message: MarketMessage, now_ns: int) -> Sequence[CoreEffect[R]]:
        """A frame from another node was received.

        Raises:
            ProtocolError: it breaks the protocol; end the link to ``sender``.
        """
        replica = self.replica
        match message:
            case Append():
                waited = replica.reachable_leader is None
                effects: Sequence[CoreEffect[R]] = replica.on_append(sender, message)
                if waited and replica.reachable_leader is not None:  # requests may have waited for it too
                    effects = [*effects, *self.requests.route_again()]
                return effects
            case Ack():
                return replica.on_ack(sender, message, now_ns)
            case Forward():
                return self.requests.on_forward(sender, message)
            case Refused():
                return self.requests.on_refused(sender, message)
            case Join():
                return replica.on_join(sender, message, now_ns)
            case Lead():
                return [*replica.on_lead(sender, message), *self.requests.route_again()]
            case Rewind():
                return replica.on_rewind(sender, message)
            case Objection():
                return replica.on_objection(sender, message)
            case Resign():
                return replica.on_resign(sender, message)
            case StateOffer():
                return self.transfer.on_offer(sender, message, now_ns)
            case Fetch():
                return self.transfer.on_fetch(sender, message, now_ns)
            case Chunk():
                return self.transfer.on_chunk(sender, message, now_ns)
            case _:
                assert_never(message)

    def on_peer_up(self, node: str) -> Sequence[CoreEffect[R]]:
        """A link to ``node`` came up."""
        return [*self.replica.on_peer_up(node), *self.requests.route_again()]

    def on_peer_down(self, node: str, now_ns: int) -> Sequence[CoreEffect[R]]:
        """The link to ``node`` ended."""
        self.requests.on_link_down(node)
        return self.replica.on_peer_down(node, now_ns)

    # -- time and the coordinator ---------------------------------------------------------------------------------

    def on_tick(self, now_ns: int) -> Sequence[CoreEffect[R]]:
        """Time has passed; ``now_ns`` is monotonic. Requests whose deadlines are over fail."""
        self.transfer.on_tick(now_ns)
        effects: list[CoreEffect[R]] = [*self.replica.on_tick(now_ns)]
        effects += self.requests.expire(self.requests.expired(now_ns))
        effects += self.requests.route_again()
        return effects

    def on_answer(self, call: StoreCall, answer: Any, now_ns: int) -> Sequence[CoreEffect[R]]:
        """The coordinator answered ``call``: with the record or, to a swap that came too late, None; with all marks."""
        replica = self.replica
        match call:
            case ReadRecord():
                return [*replica.on_record(answer, now_ns, call.claim), *self.requests.route_again()]
            case CreateRecord():
                return [*replica.on_record(answer, now_ns), *self.requests.route_again()]
            case SwapRecord():
                return replica.on_swapped(call, answer, now_ns)
            case ReadMarks():
                return replica.on_marks(answer)
            case ReportMark():
                return replica.on_marked(call.mark)
            case _:
                assert_never(call)

    def on_lease_over(self, leader: str) -> Sequence[CoreEffect[R]]:
        """The lease of ``leader``, the lost leader, is over."""
        return self.replica.on_leader_lapsed(leader) if leader == self.replica.lost_leader else []

    # -- after effects --------------------------------------------------------------------------------------------

    def on_leadership_begun(self) -> Sequence[CoreEffect[R]]:
        """The first record of the epoch was proposed: requests can be ordered."""
        return self.requests.route_again()

    def on_leadership_lost(self) -> Sequence[CoreEffect[R]]:
        """Return waiting requests to their origins, and route own requests to the current leader."""
        return [*self.requests.refuse_waiting(), *self.requests.route_again(away_from=self.replica.node)]

    def on_stopped(self, error: OpenOutcryError) -> Sequence[CoreEffect[R]]:
        """The replica has stopped: fail all requests."""
        return [*self.requests.refuse_waiting(), *self.requests.fail_all(error)]

    def on_installed(self, fetched: Fetched[B]) -> Sequence[CoreEffect[R]]:
        """The book is the state that was fetched: it may contain requests that were sent to where it comes from."""
        self.transfer.on_another_book()
        kept = self.replica.on_snapshot_kept(fetched.tail, fetched.epochs)
        return [*kept, *self.requests.route_again(away_from=fetched.sender)]

    def on_put_aside(self) -> Sequence[CoreEffect[R]]:
        """The log was put aside, and the book is empty."""
        self.transfer.forget_fetched()
        self.transfer.on_another_book()
        return self.replica.on_put_aside()

    def writes_itself(self, effect: PersistRecords, *, idle: bool, last: bool) -> bool:
        """Whether the shell should append ``effect`` to the log itself rather than hand it to another thread.

        Only if there is nothing else to do until it is durable: no record to propose, and, at a follower, no record to
        write together with it (``idle``: no message waits). And only if that commits nothing ahead of entries still to
        be applied (``last``: no effect follows): the book and the log must never differ in what is committed.
        """
        replica = self.replica
        alone = len(replica.pending) == len(effect.records)
        in_turn = last or replica.known_committed == replica.committed
        return alone and in_turn and (idle or replica.leads)


def sends_first(effects: Iterable[Effect]) -> tuple[list[Send], list[Effect]]:
    """Split the effects of an own append: the acks, which need not wait for the book, and the others."""
    sends: list[Send] = []
    others: list[Effect] = []
    for effect in effects:
        if isinstance(effect, Send):
            sends.append(effect)
        else:
            others.append(effect)
    return sends, others
