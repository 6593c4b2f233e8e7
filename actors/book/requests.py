"""Routes requests, and queues those to be ordered. Pure: requests, frames and answers in, effects out.

A request of this node's callers is *outstanding* until the log answers it or it fails. It goes to this replica's own
queue if the replica leads, else to the leader that it follows, else it waits for a leader. A request sent to a
former leader may already be in the log: it is resent, and the book answers the second attempt with the first result.

=======================  ============================================================================================
the replica              then a request
=======================  ============================================================================================
leads                    waits to be put into a record; refused if too many wait, or too few replicas are in sync
has resigned             waits for the next leader; a forwarded one is refused as ``not_leader``
follows a linked leader  is forwarded to it; sent again when it refuses as ``not_leader``, or another leads
has no leader            waits for one, or for its deadline
has stopped              fails
=======================  ============================================================================================
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, Generic, Protocol, TypeVar

from ...transport.errors import (
    AccessDenied,
    OpenOutcryError,
    Overloaded,
    RequestTimeout,
    Unavailable,
    present,
)
from .commands import Command
from .record import COMMANDS_MAX, Origin, Record
from .replica import Replica, Role, Send
from .wire import Forward, Refused

BATCH_MAX: Final = 512
"""Most commands the leader gathers into one record, unless one request has more.

Half of a record's limit: while one record is being replicated the next can be made.
"""
WAITING_MAX: Final = 65_536
"""Most commands that wait at the leader to be ordered; further requests are refused as overloaded."""
MANY: Final = 128
"""This many commands justify a record of their own: fewer wait for the answers to earlier ones.

This is Nagle's rule (RFC 896): no delay when idle, no timer, and single orders from many callers travel together.
"""
NOT_LEADER: Final = "not_leader"
"""Code of a refusal after which a request is routed again."""
_REASON_LENGTH_MAX: Final = 500
_REFUSALS: Final = {kind.default_code: kind for kind in (Overloaded, AccessDenied)}
"""Exception classes for a leader's refusals other than Unavailable, by code."""


class Asked(Protocol):
    """A request of a caller at this node, as its :class:`Requests` knows it."""

    commands: tuple[Command, ...]
    deadline_ns: int
    """On the monotonic clock."""
    first_sequence: int
    """The sequence number of the first command, once the log has it."""
    sent_to: str | None
    """The node that was asked to order it and may still do so."""
    sent_epoch: int
    """The epoch of that request: in a later one the same leader may not know it."""
    sent_ever: bool


R = TypeVar("R", bound=Asked)


@dataclasses.dataclass(frozen=True, slots=True)
class FailRequests(Generic[R]):
    """Answer ``requests`` with ``error``: they are no longer outstanding."""

    requests: tuple[R, ...]
    error: OpenOutcryError


RequestEffect = Send | FailRequests[Any]


@dataclasses.dataclass(slots=True)
class Settled(Generic[R]):
    """The requests that the records just applied answer."""

    answered: dict[int, R] = dataclasses.field(default_factory=dict)
    """By number; each has its ``first_sequence``."""
    strangers: list[int] = dataclasses.field(default_factory=list)
    """Numbers of this node under which the log has commands that it did not send: another process has its id."""
    others: bool = False
    """Whether the records answer callers at other nodes."""


class Requests(Generic[R]):
    """The requests of one market at one node.

    Invariants: ``waiting_commands`` is the number of commands in ``waiting``; a number in ``outstanding`` is used once.
    """

    def __init__(
        self,
        replica: Replica,
        *,
        first_number: int,
        denied: Callable[[str, tuple[Command, ...]], OpenOutcryError | None] = lambda _sender, _commands: None,
    ) -> None:
        """``first_number``: random, so that numbers do not repeat when an old disk is restored.

        ``denied(node, commands)`` says why ``node`` may not ask for ``commands``, or None.
        """
        self._replica = replica
        self._denied = denied
        self.last_number = first_number
        """The number of the last accepted request."""
        self.outstanding: dict[int, R] = {}
        """Requests of this node's callers, by their numbers."""
        self.waiting: deque[tuple[str, int, tuple[Command, ...]]] = deque()
        """Leader: requests that wait for a record: ``(origin, number, commands)``; its own have no origin."""
        self.waiting_commands = 0

    # -- from this node's callers -------------------------------------------------------------------------------

    def wants(self, submitted: int) -> bool:
        """Return whether to accept the ``submitted`` commands now, or wait for earlier answers first."""
        replica = self._replica
        under_way: Any = replica.pending if replica.may_propose else self.outstanding
        return not under_way or self.waiting_commands + submitted >= MANY

    def take(self, requests: list[R]) -> list[RequestEffect]:
        """Number requests of this node's callers and route them."""
        numbers = range(self.last_number + 1, self.last_number + 1 + len(requests))
        self.last_number += len(requests)
        self.outstanding.update(zip(numbers, requests, strict=True))
        return self._route(numbers)

    def _route(self, numbers: Iterable[int]) -> list[RequestEffect]:
        """Send requests to the current leader; without one they wait."""
        replica = self._replica
        if replica.role is Role.LEADING:
            return [] if replica.resigned else self._enqueue_own(numbers)
        leader = replica.reachable_leader
        return [] if leader is None else self._forward(leader, numbers)

    def _enqueue_own(self, numbers: Iterable[int]) -> list[RequestEffect]:
        node, outstanding, waiting = self._replica.node, self.outstanding, self.waiting
        refusal = self._refusal(0)
        effects: list[RequestEffect] = []
        for number in numbers:
            request = outstanding[number]
            count = len(request.commands)
            if refusal or self.waiting_commands + count > WAITING_MAX:
                error = present(refusal or self._refusal(count), "a request is refused for no reason")
                effects += self.fail([number], error)
                continue
            request.sent_to = node
            request.sent_epoch = self._replica.epoch
            request.sent_ever = True
            waiting.append((node, number, request.commands))
            self.waiting_commands += count
        return effects

    def _forward(self, leader: str, numbers: Iterable[int]) -> list[RequestEffect]:
        """Send requests to the leader: in one frame, or a few when there are many commands."""
        effects: list[RequestEffect] = []
        batch: list[tuple[int, tuple[Command, ...]]] = []
        commands = 0
        for number in numbers:
            request = self.outstanding[number]
            request.sent_to = leader
            request.sent_epoch = self._replica.epoch
            request.sent_ever = True
            if commands + len(request.commands) > COMMANDS_MAX:
                effects.append(Send((leader,), Forward(self._replica.market, self._replica.epoch, tuple(batch))))
                batch, commands = [], 0
            batch.append((number, request.commands))
            commands += len(request.commands)
        if batch:
            effects.append(Send((leader,), Forward(self._replica.market, self._replica.epoch, tuple(batch))))
        return effects

    def route_again(self, *, away_from: str | None = None) -> list[RequestEffect]:
        """Route each request that waits for a leader, or was sent to ``away_from``, or in an epoch that is over."""
        if not self.outstanding:
            return []
        replica = self._replica
        leader = replica.node if replica.role is Role.LEADING else replica.leader
        again = [
            number
            for number, request in self.outstanding.items()
            if request.sent_to in (None, away_from)
            or (leader is not None and (request.sent_to != leader or request.sent_epoch != replica.epoch))
        ]
        for number in again:
            self.outstanding[number].sent_to = None
        return self._route(again) if again else []

    def on_refused(self, sender: str, message: Refused) -> list[RequestEffect]:
        """The leader refused a request; if it no longer leads, the request is routed again later."""
        request = self.outstanding.get(message.request)
        if request is None or request.sent_to != sender:
            return []  # it was sent to another leader meanwhile
        if message.code == NOT_LEADER:
            request.sent_to = None
            return []
        kind = _REFUSALS.get(message.code, Unavailable)
        return self.fail([message.request], kind(message.reason, code=message.code))

    def on_link_down(self, node: str) -> None:
        """Requests sent to ``node`` may be lost: resend them to the next reachable leader."""
        for request in self.outstanding.values():
            if request.sent_to == node:
                request.sent_to = None

    def expired(self, now_ns: int) -> list[int]:
        """Return the numbers of the requests whose deadlines are over at ``now_ns``."""
        return [number for number, request in self.outstanding.items() if request.deadline_ns <= now_ns]

    def expire(self, numbers: Iterable[int]) -> list[RequestEffect]:
        """Fail requests whose deadlines are over."""
        effects: list[RequestEffect] = []
        for number in numbers:
            if self.outstanding[number].sent_ever:
                error: OpenOutcryError = RequestTimeout(
                    "no answer in time: the outcome is unknown; retry with the same client order id to learn it"
                )
            else:
                error = Unavailable(
                    f"market {self._replica.market}: its leader ({self._replica.leader or 'not known yet'}) could not "
                    "be reached in time; nothing was sent, retry later",
                    code="leader_unreachable",
                )
            effects += self.fail([number], error)
        return effects

    def fail(self, numbers: Iterable[int], error: OpenOutcryError) -> list[RequestEffect]:
        """Fail those of these requests that are outstanding with ``error``."""
        failed = tuple([r for number in numbers if (r := self.outstanding.pop(number, None)) is not None])
        return [FailRequests(failed, error)] if failed else []

    def fail_all(self, error: OpenOutcryError) -> list[RequestEffect]:
        """Fail every request with ``error``: this replica no longer answers."""
        return self.fail(list(self.outstanding), error)

    # -- from other nodes -----------------------------------------------------------------------------------------

    def on_forward(self, sender: str, message: Forward) -> list[RequestEffect]:
        """Another node asks to order these requests: queue or refuse them."""
        replica, market = self._replica, self._replica.market
        not_leading: OpenOutcryError | None = None
        if replica.role is not Role.LEADING or replica.resigned:
            not_leading = Unavailable(
                f"market {market} is not led by the node that was asked; nothing was executed, retry", code=NOT_LEADER
            )
        effects: list[RequestEffect] = []
        for number, commands in message.requests:
            if error := not_leading or self._refusal(len(commands)) or self._denied(sender, commands):
                reason = error.message[:_REASON_LENGTH_MAX]
                effects.append(Send((sender,), Refused(market, number, error.code, reason)))
            else:
                self._enqueue(sender, number, commands)
        return effects

    # -- the leader's queue ---------------------------------------------------------------------------------------

    def _refusal(self, commands: int) -> OpenOutcryError | None:
        """Leader: why it cannot accept commands now, or None."""
        replica = self._replica
        if not replica.may_propose:
            return Unavailable(
                f"market {replica.market}: {replica.present} in-sync replicas are there, {replica.min_in_sync} needed; "
                "nothing was executed, retry when more nodes are back",
                code="not_enough_in_sync",
            )
        if self.waiting_commands + commands > WAITING_MAX:
            return Overloaded(
                f"market {replica.market}: {WAITING_MAX} commands wait already; nothing was executed, slow down"
            )
        return None

    def _enqueue(self, origin: str, number: int, commands: tuple[Command, ...]) -> None:
        self.waiting.append((origin, number, commands))
        self.waiting_commands += len(commands)

    def add_own(self, command: Command) -> None:
        """Leader: order a command of its own, which nobody waits for."""
        self._enqueue("", 0, (command,))

    def next_record(self) -> tuple[tuple[Command, ...], tuple[Origin, ...]] | None:
        """Leader: take the next record's commands from the queue, up to :data:`BATCH_MAX`; None: not yet."""
        replica, waiting = self._replica, self.waiting
        if not waiting or not replica.may_propose or (replica.pending and self.waiting_commands < MANY):
            return None
        commands: list[Command] = []
        origins: list[Origin] = []
        while waiting and (not commands or len(commands) + len(waiting[0][2]) <= BATCH_MAX):
            origin, number, asked = waiting.popleft()
            commands += asked
            if number:
                origins.append((origin, number, len(asked)))
        self.waiting_commands -= len(commands)
        return tuple(commands), tuple(origins)

    def refuse_waiting(self) -> list[RequestEffect]:
        """Return the queued requests to their origins, which route them to the current leader."""
        replica = self._replica
        reason = f"market {replica.market} has a new leader; nothing was executed, retry"
        effects: list[RequestEffect] = []
        while self.waiting:
            origin, number, _ = self.waiting.popleft()
            if origin and origin != replica.node:
                effects.append(Send((origin,), Refused(replica.market, number, NOT_LEADER, reason)))
        self.waiting_commands = 0
        return effects

    # -- the log --------------------------------------------------------------------------------------------------

    def settle(self, record: Record, settled: Settled[R]) -> None:
        """Add the requests that the applied ``record`` answers to ``settled``; call :meth:`answered` for them
        afterwards.

        The commands are compared: a restored copy of this node's disk may have used the same number for others.
        """
        node, outstanding, answered = self._replica.node, self.outstanding, settled.answered
        first = sequence = record.first_sequence
        for origin, number, count in record.origins:
            if origin != node:
                settled.others = True
            elif (request := outstanding.get(number)) is not None and number not in answered:
                at = sequence - first
                if record.commands[at : at + count] == request.commands:
                    request.first_sequence = sequence
                    answered[number] = request
                else:
                    settled.strangers.append(number)
            sequence += count

    def answered(self, settled: Settled[R]) -> list[RequestEffect]:
        """Remove the answered requests; fail those under whose numbers the log has other commands."""
        for number in settled.answered:
            del self.outstanding[number]
        if not settled.strangers:
            return []
        replica = self._replica
        error = Unavailable(
            f"market {replica.market}: the log holds another command under the number of this request: a second "
            f"process runs under the node id {replica.node}, or did; stop the copy. The command's outcome is "
            "unknown: retry with the same client order id",
            code="answer_of_another",
        )
        return self.fail(settled.strangers, error)
