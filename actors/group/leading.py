"""Leading: moves the leadership of a node's markets on request: hand-over, balance, force, market time.

Otherwise the replicas and the coordinator decide who leads; nothing here is on the path of an order.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Any, Final, cast

import pykka

from ...transport.coordinator import Coordinator, MarketRecord
from ...transport.errors import InvalidRequest, OpenOutcryError, RequestTimeout, Unavailable, copied
from ...transport.log import get_logger
from ..book.commands import NOTE, NOTE_SIZE_MAX, REASON_LENGTH_MAX, checked_commands, is_utf8
from ..book.messages import ForceLeader, HandOver, SetTime, TimeSet
from ..book.record import COMMANDS_MAX, Tail
from ..kit.node_actor import tell
from ..leadership.balance import Move
from ..leadership.messages import StoreQuery
from ..market import queries
from ..market.border import checked_node, checked_timeout
from ..market.handle import Host, Market
from ..market.views import ForcePlan

if TYPE_CHECKING:
    from ..book.actor import BookActor
    from ..book.shell import Shell

logger = get_logger(__name__)

HAND_OVER_S: Final = 3.0
"""Seconds that a closing node waits for others to take over its markets."""
BALANCE_S: Final = 0.5
"""Seconds that a market waits for its next leader in a balancing move; then it stays."""
BALANCE_LAG_MAX: Final = 2 * COMMANDS_MAX
"""Most commands that a follower's disk may lag to get a market by a balancing move."""


class Leading:
    """Moves the leadership of one node's markets."""

    def __init__(self, host: Host, coordinator: pykka.ActorRef[Any], id_of: Callable[[str], str]) -> None:
        """``coordinator``: the CoordinatorActor; ``id_of`` returns the id of a linked node by its name or id."""
        self._host = host
        self._coordinator = coordinator
        self._id_of = id_of

    def transfer(self, market: Market, to: str | None, timeout: float) -> None:
        """Give the leadership of a market to another node; see :meth:`~..node.ExchangeNode.transfer`."""
        ref = market.ref
        to = None if to is None else checked_node(to)
        checked_timeout(timeout)
        leader = market.read(queries.leader)
        if leader != self._host.node_id:
            raise Unavailable(f"market {market.name} is led by {leader}, not by this node", code="not_leader")
        to = None if to is None else self._id_of(to)
        if to == self._host.node_id:
            return
        try:
            self._give(market, to, timeout)
        except BaseException:
            tell(ref, HandOver(to, give_up=True))  # after any that still runs: the market accepts orders again
            raise

    def _give(self, market: Market, to: str | None, timeout: float) -> None:
        deadline, ref = time.monotonic() + timeout, market.ref
        while market.read(queries.leader) == self._host.node_id:
            nobody, late = self._host.ask(ref, HandOver(to), timeout), time.monotonic() > deadline
            if nobody or late:
                if market.read(queries.leader) != self._host.node_id:
                    return
                # It keeps leading meanwhile: followers of a new leader are in sync again at once.
                self._host.ask(ref, HandOver(to, give_up=True), timeout)
            if late:
                raise Unavailable(
                    f"market {market.name}: nobody took over; are other nodes in sync? This node leads on",
                    code="not_transferred",
                )
            time.sleep(0.02 if nobody else 0.005)

    def even_out(self, market: Market, move: Move) -> None:
        """Hand one market over, if it is healthy and the next leader keeps up: then it pauses for milliseconds."""

        def trouble(shell: Shell) -> str | None:
            replica = shell.replica
            if not replica.may_propose:
                return "too few replicas are in sync, or it is not led by this node"
            if move.target not in replica.successors():
                return f"{move.target} is not ready to take it"
            behind = replica.durable - cast("int", replica.followers(time.monotonic_ns())[move.target]["durable"])
            return f"{move.target} is {behind} commands behind" if behind > BALANCE_LAG_MAX else None

        if (reason := market.read(trouble)) is not None:
            raise Unavailable(reason, code="not_transferred")
        self.transfer(market, move.target, BALANCE_S)

    def hand_over(self, books: Iterable[pykka.ActorRef[BookActor]], hurry: threading.Event) -> None:
        """Hand over the markets that this node leads, one after the other: each pauses only for its own hand-over."""
        deadline_s = time.monotonic() + HAND_OVER_S
        waiting = deque(books)
        while waiting and time.monotonic() < deadline_s and not hurry.is_set():
            book = waiting.popleft()
            turn_s = min(deadline_s, time.monotonic() + BALANCE_S)
            with contextlib.suppress(pykka.ActorDeadError, pykka.Timeout):
                while not book.ask(HandOver(), timeout=HAND_OVER_S):
                    if time.monotonic() > turn_s or hurry.is_set():
                        waiting.append(book)  # the next leader may need longer: other markets first
                        break
                    time.sleep(0.005)

    def force_plan(self, market: Market) -> ForcePlan:
        """Return the plan of :meth:`force_leader`; see :meth:`~..node.ExchangeNode.force_plan`."""
        return self._force_plan(market)[0]

    def _force_plan(self, market: Market) -> tuple[ForcePlan, MarketRecord, frozenset[str]]:
        _ = market.ref  # a market that is not open is refused before the coordinator is asked
        with_leases = StoreQuery(lambda store: _with_leases(store, market.name))
        record, alive = self._host.ask(self._coordinator, with_leases, self._host.timeout_s)

        def read(shell: Shell) -> tuple[OpenOutcryError | None, Tail, int]:
            refusal = shell.failure or shell.force_refusal(record, alive)
            return refusal, shell.replica.tail, shell.replica.known_committed

        refusal, tail, committed = market.read(read)
        if refusal is not None:
            raise copied(refusal)
        plan = ForcePlan(
            market.name,
            self._host.node_id,
            tail.sequence,
            tail.epoch,
            committed,
            record.version,
            record.epoch,
            record.leader,
            record.in_sync,
        )
        return plan, record, alive

    def force_leader(self, market: Market, reason: str, plan: ForcePlan | None, timeout: float | None) -> int:
        """Lead a market whose in-sync set is lost; see :meth:`~..node.ExchangeNode.force_leader`."""
        checked_reason(reason)
        deadline_s = self._host.deadline_s(timeout)
        found, record, alive = self._force_plan(market)
        if plan is not None and plan != found:
            raise Unavailable(f"market {market.name}: it is not as it was shown: look again", code="changing")
        text = _force_note(found, reason)
        (note,) = checked_commands(((NOTE, "", "", text),), internal=True)
        logger.critical("leader_forced", node=self._host.node_id, market=market.name, note=text)
        future: Future[int] = Future()
        if not tell(market.ref, ForceLeader(record, alive, note, future)):
            raise self._host.gone(market.name)
        try:
            return future.result(max(0.0, deadline_s - time.monotonic()))
        except FutureTimeoutError:
            raise RequestTimeout(f"market {market.name}: the outcome is unknown; see the status of this node") from None

    def set_time(self, market: Market, reason: str, timeout: float | None) -> TimeSet:
        """Set the time of a market to that of this machine's clock; see :meth:`~..node.ExchangeNode.set_time`."""
        reason = checked_reason(reason)
        deadline_s = self._host.deadline_s(timeout)
        timeout = self._host.timeout_s if timeout is None else timeout
        found = cast("TimeSet", self._host.ask(market.ref, SetTime(reason), timeout))
        market.wait_sequence(found.sequence, timeout=max(0.0, deadline_s - time.monotonic()))
        return found


def checked_reason(value: str) -> str:
    """Return ``value`` if it can be an operator's reason in a log."""
    if type(value) is not str or not 1 <= len(value) <= REASON_LENGTH_MAX or not is_utf8(value):
        raise InvalidRequest(f"the reason is a string of 1 to {REASON_LENGTH_MAX} characters", code="invalid_reason")
    return value


def _force_note(plan: ForcePlan, reason: str) -> str:
    """Return the log's note about forced leadership; it names as many of the in-sync set as fit."""
    epoch = max(plan.epoch, plan.version) + 1
    for named in range(len(plan.in_sync), -1, -1):
        left_out = len(plan.in_sync) - named
        members = [*plan.in_sync[:named], *([f"{left_out} more"] if left_out else [])]
        text = (
            f"leadership was forced: {plan.node} leads in epoch {epoch} from sequence {plan.sequence} "
            f"(epoch {plan.sequence_epoch}), in place of {plan.leader} and without the in-sync set of epoch "
            f"{plan.epoch}: {', '.join(members)}; what they answered after {plan.sequence} is lost; reason: {reason}"
        )
        if len(text.encode()) <= NOTE_SIZE_MAX:
            break
    return text


def _with_leases(store: Coordinator, market: str) -> tuple[MarketRecord | None, frozenset[str]]:
    """Return a market's record, and the members of its in-sync set that hold a lease."""
    record = store.read(market)
    members = record.in_sync if record is not None else ()
    return record, frozenset([member for member in members if not store.lapsed(member)])
