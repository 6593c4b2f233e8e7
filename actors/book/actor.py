"""BookActor: owns one market's replica and order book at one node; nothing else touches their state.

It turns messages into calls of the pure :class:`~.core.Core`, and its :class:`~.shell.Shell` carries out the effects.
While it is idle the inbox's reader may do so in its turn, see :mod:`..kit.turns`.

Messages: Submitted, Query (ask), Watch (ask), Unwatch, ProposeRules, HandOver (ask), SetTime (ask), CopyBook,
ForceLeader, Retire (from the API); Received, PeerUp, PeerDown, PeerGone (from links); Persisted, LogRead, LogNotRead,
SnapshotStored, SnapshotKept, SnapshotNotKept, LogPutAside, JournalFailed (from its JournalActor); SnapshotTaken,
SnapshotFailed (from the SnapshotActor); CoordinatorAnswer, NodeIdTaken (from the CoordinatorActor); CopyOn (its own).

Batches form without a timer: what arrives while one record is being written becomes the next record.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar, Final

from ...transport.errors import Closed, OpenOutcryError, ProtocolError, StorageError, Unavailable, copied
from ...transport.files import refusal
from ...transport.log import get_logger
from ..kit.node_actor import QUIET, TICK, ActorFailed, NodeActor, stop_and_join
from ..leadership.messages import CoordinatorAnswer, NodeIdTaken
from ..peers.messages import PeerDown, PeerGone, PeerUp
from .commands import CLOCK, SET_TIME, checked_commands
from .feed import Unwatch, Watch
from .forcing import refuse
from .messages import (
    COPY_ON,
    SUBMITTED,
    CopyBook,
    ForceLeader,
    HandOver,
    IsLeaseExpired,
    JournalFailed,
    LogNotRead,
    LogPutAside,
    LogRead,
    Persisted,
    ProposeRules,
    Query,
    Received,
    Retire,
    SetTime,
    SnapshotFailed,
    SnapshotKept,
    SnapshotNotKept,
    SnapshotStored,
    SnapshotTaken,
    TimeSet,
)
from .replica import Role
from .shell import Setup, Shell
from .wire import Append, Chunk

logger = get_logger(__name__)

RESIGNED_S: Final = 2.0
"""Seconds that a leader accepts no orders after a request to hand over; another request extends them."""


class BookActor(NodeActor):
    """One market at one node: leads it or follows its leader."""

    tick_ms: ClassVar[int] = 100

    def __init__(self, setup: Setup, *, report: Callable[[ActorFailed], None]) -> None:
        """Open the replica; see :class:`~.shell.Shell`.

        Raises:
            StorageError: the journal cannot be opened.
        """
        super().__init__(report=report)
        self._market = setup.market
        self._log = logger.bind(market=setup.market, node=setup.node)
        self.shell = Shell(setup, actor=self.actor_ref, report=report, idle=lambda: self.idle, linger=self.linger)
        self.core = self.shell.core
        self.replica = self.shell.replica
        self._resigned_until_s = 0.0
        self._broken: Exception | None = None

    # -- life ---------------------------------------------------------------------------------------------------

    def on_start(self) -> None:
        self.shell.note_clocks()
        self.shell.run(self.replica.start())

    def on_stop(self) -> None:
        try:
            error = self._end()
            self.shell.end(error)
            if self.failed_by is not None:  # its state is suspect: another should lead
                self.shell.run(self.replica.stop(error))
        finally:
            stop_and_join(self.shell.log_work.journal, timeout_s=10)

    def _end(self) -> OpenOutcryError:
        """Why this replica no longer answers."""
        if self.failed_by is None:
            return Closed("the node was closed before the command was answered; its outcome is unknown")
        return StorageError(
            f"market {self._market}: this replica has failed ({self.failed_by!r}); the command's outcome is unknown: "
            "restart the node and retry with the same client order id",
            code="replica_failed",
        )

    def on_receive(self, message: Any) -> Any:
        if self._broken is not None:
            raise self._broken
        answer = self._take(message)
        try:
            self.shell.proceed()
        except Exception as error:
            # An exception in an ask() only fails the ask; keep it so that the actor fails on its next tick.
            self._broken = error
            raise
        return answer

    # -- messages -----------------------------------------------------------------------------------------------

    def _take(self, message: Any) -> Any:
        """Take a message in: first those that come with every order."""
        shell = self.shell
        if message is SUBMITTED:
            shell.gather()
        elif isinstance(message, Received):
            self._receive_frame(message)
        elif isinstance(message, Persisted):
            shell.run(shell.on_persisted(message.generation, message.sequence))
        elif isinstance(message, Query):
            return message.read(shell)
        elif message is TICK:
            self._tick()
        elif message is COPY_ON:
            shell.copying.step(shell.book)
        elif message is not QUIET:
            return self._take_other(message)
        return None

    def _take_other(self, message: Any) -> Any:
        now_ns = time.monotonic_ns()
        shell, core, replica = self.shell, self.core, self.replica
        match message:
            case PeerUp():
                shell.frames.links[message.node] = message
                shell.run(core.on_peer_up(message.node))
            case PeerDown():
                shell.frames.links.pop(message.node, None)
                shell.run(core.on_peer_down(message.node, now_ns))
            case PeerGone():
                shell.run(replica.on_peer_gone(message.node, now_ns))
            case LogRead():
                shell.log_work.on_read()
                shell.run(replica.on_log_read(message, now_ns))
            case LogNotRead():
                shell.log_work.on_not_read(message)
            case SnapshotKept():
                shell.install()
            case SnapshotTaken():
                shell.use_snapshot(message)
            case SnapshotNotKept():
                shell.imaging.note_failure(message.error, core.transfer.on_not_kept(now_ns))
                shell.run(replica.on_snapshot_not_kept())
            case SnapshotFailed():
                shell.imaging.on_failed(message)
            case SnapshotStored():
                if message.error is not None:
                    shell.imaging.on_not_stored(message.error)
                else:
                    shell.imaging.succeeded(keep=True)
            case LogPutAside():
                shell.begin_again(message.folder)
            case ForceLeader():
                self._force(message)
            case CopyBook():
                shell.copy_book(message)
            case CoordinatorAnswer():
                self._take_answer(message, now_ns)
            case JournalFailed() | NodeIdTaken():
                shell.run(replica.stop(message.error))
            case HandOver():
                return self._hand_over(message)
            case Retire():
                replica.retired = True
            case ProposeRules():
                shell.rules = shell.rules or message.rules
            case SetTime():
                return self._set_time(message.reason)
            case Watch():
                if shell.failure is not None:
                    raise copied(shell.failure)
                return shell.feed.watch(message, shell.book)
            case Unwatch():
                shell.feed.unwatch(message)
            case _:
                raise TypeError(f"BookActor does not understand {type(message).__name__}")
        return None

    def _receive_frame(self, received: Received) -> None:
        core, shell = self.core, self.shell
        try:
            effects = core.on_message(received.sender, received.message, time.monotonic_ns())
            if isinstance(received.message, Append) and not received.message.join:
                shell.timekeeper.seen(received.sender, effects)
            shell.run(effects)
        except MemoryError as error:
            if core.transfer.fetched is not None or not isinstance(received.message, Chunk):
                raise
            missing = refusal(error, "no book can be made of the leader's state")
            shell.imaging.note_failure(missing, core.transfer.on_not_kept(time.monotonic_ns()))
        except ProtocolError as error:
            shell.frames.refuse(received.sender, error.message)

    def _take_answer(self, answer: CoordinatorAnswer, now_ns: int) -> None:
        shell, replica, call = self.shell, self.replica, answer.what
        shell.calls.on_answer(answer)
        if isinstance(call, IsLeaseExpired):
            # A replica that may not take over yet asks repeatedly: do not log that.
            if answer.record is True and (effects := self.core.on_lease_over(call.leader)):
                self._log.warning("leader_lapsed", peer=call.leader, epoch=replica.epoch)
                shell.run(effects)
            return
        shell.forcing.on_answer(answer, claiming=replica.role is Role.CLAIMING)
        if answer.error is not None:
            shell.run(replica.on_coordinator_unavailable(call))
        else:
            shell.run(self.core.on_answer(call, answer.record, now_ns))
        shell.says.members()

    def _hand_over(self, message: HandOver) -> bool:
        """Hand leadership over, or (``give_up``) keep it; return whether there is nothing left to hand over."""
        replica = self.replica
        if message.give_up:
            replica.resigned = False
            return True
        self._resigned_until_s = time.monotonic() + RESIGNED_S
        if message.to is not None and message.to not in replica.successors():
            return True
        self.shell.run(replica.resign(message.to))
        return replica.role is not Role.LEADING or not replica.heirs()

    def _force(self, message: ForceLeader) -> None:
        refused: OpenOutcryError | None = self.shell.failure
        if refused is None:
            refused = self.shell.force_refusal(message.record, message.reachable)
        if refused is not None:
            refuse(message, refused)
            return
        self.shell.forcing.begin(message)
        self.shell.run(self.replica.force(message.record))

    def _set_time(self, reason: str) -> TimeSet:
        """Leader: an operator declares this machine's clock right, and the log's time wrong."""
        shell, replica = self.shell, self.replica
        if not replica.may_propose:
            raise Unavailable(
                f"market {self._market} is led by {replica.leader or 'nobody'}, or too few replicas are in sync: set "
                "its time at the node that leads it",
                code="not_leader",
            )
        before_ns = shell.last_ns
        after_ns = shell.timekeeper.correct(before_ns)
        ((*_, text),) = checked_commands(((SET_TIME, "", "", reason),), internal=True)
        shell.propose(((SET_TIME, "", "", text),), (), at_ns=after_ns)
        sequence = replica.tail.sequence
        self._log.critical("log_time_set", sequence=sequence, moved_s=round((after_ns - before_ns) / 1e9, 3), note=text)
        return TimeSet(sequence, before_ns, after_ns)

    # -- time ---------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        now_ns = time.monotonic_ns()
        shell, core, replica = self.shell, self.core, self.replica
        with shell.stop_if_refused():
            shell.log_work.writer.seal()
        shell.take_submissions()
        if replica.resigned and time.monotonic() > self._resigned_until_s:
            replica.resigned = False  # nobody asks for the hand-over any more: a leader accepts orders
        shell.says.late(core.requests, now_ns)
        shell.note_clocks()
        shell.run(core.on_tick(now_ns))
        shell.calls.report(replica.mark)
        if (lost := replica.lost_leader) is not None:
            shell.calls.ask_for_lease(lost, ended=lost in replica.ended)
        shell.says.progress(core.transfer.fetched, now_ns)
        shell.timekeeper.say(shell.last_ns, leads=replica.may_propose, sequence=shell.book.sequence)
        shell.try_again()
        expiry_ns = shell.book.next_expiry_ns()
        if (
            expiry_ns is not None
            and replica.may_propose
            and not core.requests.waiting
            and expiry_ns <= shell.timekeeper.next_ns(shell.last_ns)
        ):
            core.requests.add_own((CLOCK, "", ""))
