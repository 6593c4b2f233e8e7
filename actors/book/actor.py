"""BookActor: owns one market's replica and order book at one node; the only thread that touches their state.

It is the shell of two pure cores: it turns messages into calls of :class:`~.replica.Replica`, carries out the effects,
applies committed records to :class:`~.orderbook.OrderBook`, and answers the callers whose requests they contain.

Messages: Submitted, Query (ask), Watch, Unwatch, ProposeRules, HandOver (ask), ForceLeader, Retire (from the API);
Received, PeerUp, PeerDown, PeerGone (from links); Persisted, LogRead, LogNotRead, SnapshotStored, SnapshotKept,
SnapshotNotKept, LogPutAside, JournalFailed (from its JournalActor); SnapshotTaken, SnapshotFailed (from the
SnapshotActor); CoordinatorAnswer, NodeIdTaken (from the CoordinatorActor).

Batches form without a timer: what arrives while one record is being written becomes the next record.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from pathlib import Path
from typing import Any, ClassVar, Final, assert_never

import pykka

from ...transport.coordinator import DiskMark, MarketRecord
from ...transport.errors import (
    Closed,
    OpenOutcryError,
    ProtocolError,
    StorageError,
    Unavailable,
    copied,
    ensure,
    present,
)
from ...transport.files import refusal
from ...transport.identity import Member
from ...transport.log import PROGRESS_S, get_logger
from ..kit.backoff import Backoff
from ..kit.node_actor import QUIET, TICK, ActorFailed, NodeActor, stop_and_join, tell
from ..leadership.messages import CoordinatorAnswer, CoordinatorCall, DiskMarked, NodeIdTaken
from ..peers.clocks import ALONE, BOUND_MS, Clocks
from ..peers.messages import PeerDown, PeerGone, PeerUp
from .commands import CLOCK, CONFIGURE, DUPLICATE, REJECTED, REJECTED_CODE, SET_TIME, Command, Event, checked_commands
from .core import Core, CoreEffect, sends_first
from .disk import DiskState
from .feed import Feed, Unwatch, Watch
from .imaging import Imaging
from .messages import (
    SUBMITTED,
    BeginLogAt,
    CutLog,
    ForceLeader,
    HandOver,
    IsLeaseExpired,
    JournalFailed,
    LogNotRead,
    LogPutAside,
    LogRead,
    Persist,
    Persisted,
    ProposeRules,
    PutLogAside,
    Query,
    ReadLog,
    Received,
    Retire,
    SetTime,
    SnapshotFailed,
    SnapshotKept,
    SnapshotNotKept,
    SnapshotStored,
    SnapshotTaken,
    TakeSnapshot,
    TimeSet,
)
from .meters import MarketMeters
from .orderbook import OrderBook
from .record import Origin, Record, Tail
from .replica import (
    ApplyRecords,
    CreateRecord,
    CutJournal,
    Effect,
    KeepDisk,
    KeepFetched,
    LeadershipBegun,
    LeadershipLost,
    OfferSnapshot,
    PersistRecords,
    PutAside,
    ReadJournal,
    ReadMarks,
    ReadRecord,
    RepairBegun,
    RepairEnded,
    ReportMark,
    Role,
    Send,
    Stop,
    SwapRecord,
    Troubled,
)
from .requests import BATCH_MAX, FailRequests, Settled
from .rules import MarketRules
from .status import MarketStatus
from .storage import Storage
from .submission import Outcome, Request, Submissions
from .timekeeper import Timekeeper
from .transfer import TakeImage
from .wire import (
    MARKET_CODEC,
    Append,
    Chunk,
)
from .writer import JournalActor, JournalWriter

logger = get_logger(__name__)

RESIGNED_S: Final = 2.0
"""Seconds that a leader accepts no orders after a request to hand over; another request extends them."""
READ_RETRY_S: Final = 0.1
"""Seconds before a read of the log that lacked descriptors is retried; doubled with each further failure."""
READ_RETRY_S_MAX: Final = 5.0
"""Most seconds before such a read is retried."""
LINGER_S: Final = 0.0005
"""Seconds that the leader waits for a next record to carry the commit index before it sends it alone."""
REQUEST_BITS: Final = 62
"""Random bits of the number of a start's first request; later numbers count on from it, within 63 bits."""


class BookActor(NodeActor):
    """One market at one node: leads it or follows its leader."""

    tick_ms: ClassVar[int] = 100

    def __init__(
        self,
        *,
        market: str,
        node: str,
        rules: MarketRules | None,
        submissions: Submissions,
        folder: Path,
        coordinator: pykka.ActorRef[Any],
        store: str,
        take_snapshot: Callable[[TakeSnapshot], bool],
        min_in_sync: int,
        snapshot_every: int,
        observer: bool,
        report: Callable[[ActorFailed], None],
        meters: MarketMeters | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
        clock_bound_ms: int = BOUND_MS,
        clocks: Callable[[], Clocks] = lambda: ALONE,
        member_of: Callable[[str], Member | None] | None = None,
    ) -> None:
        """Open the journal in ``folder`` and recover the book as far as it is known to be committed.

        ``store`` is the id of the coordinator's store: a disk state for another store does not count.

        ``submissions``: the requests of this node's callers. ``take_snapshot`` sends to the SnapshotActor.

        ``rules`` are proposed as the log's first command if this node is the first to lead; None = take the log's.
        ``snapshot_every``: commands between snapshots; older log is pruned.

        ``observer``: read only, outside the in-sync set. A damaged journal is put aside, and the replica is repaired
        from a peer before it can lead.

        ``clocks``: this machine's clock among those of others; ``clock_bound_ms``: how far the log's time may be off.

        ``member_of`` returns the certificate's contents for a node id: for which accounts that node may send commands.
        None: nodes have no certificates, and may send commands for every account.

        Raises:
            StorageError: the journal cannot be opened.
        """
        super().__init__(report=report)
        self._market = market
        self._node = node
        self._own_rules = rules
        self.meters = meters or MarketMeters()
        self._log = logger.bind(market=market, node=node)
        self._submissions = submissions
        self._coordinator = coordinator
        self.timekeeper = Timekeeper(
            market, clock_ns=clock_ns, bound_ns=clock_bound_ms * 1_000_000, clocks=clocks, log=self._log
        )
        self._member_of = member_of
        self.feed = Feed(market, self._log)
        self._read_backoff = Backoff(READ_RETRY_S, READ_RETRY_S_MAX)
        self._not_read: list[ReadLog] = []
        """Reads of the log for followers that failed and will be retried."""
        self._observer = observer
        self.storage = Storage(folder, market=market, node=node, store=store, clock_ns=clock_ns, log=self._log)
        self._marked: DiskMark | None = None
        """The last disk mark that was passed on for a report."""
        journal, snapshots, self.book, self.replica, kept = self.storage.open(
            min_in_sync=min_in_sync, observer=observer
        )
        self.recovered = self.replica.applied
        self.meters.snapshot = snapshots.last()
        self._writer = JournalWriter(journal, snapshots, self.meters)
        self._imaging = Imaging(
            reply_to=self.actor_ref,
            tell_snapshotter=take_snapshot,
            writer=self._writer,
            every=snapshot_every,
            last=kept,
            meters=self.meters,
            log=self._log,
        )
        self._journal = JournalActor.start(writer=self._writer, book=self.actor_ref, report=report)
        self._links: dict[str, PeerUp] = {}
        self.core: Core[Request, OrderBook] = Core(
            self.replica,
            first_number=secrets.randbits(REQUEST_BITS),
            restore=OrderBook.restore,
            sequence_of=lambda book: book.sequence,
            denied=self._denied,
        )
        self._requests = self.core.requests
        self._writing = False
        self._answered: list[Request] = []
        """Answered requests whose callers have not been notified yet."""
        self._said_ns = 0
        self._asking_lease = False
        self._store_silent = False
        self._resigned_until_s = 0.0
        self._commit_unannounced = False
        """Leader: the commit index is not announced to followers yet; a record that follows soon carries it."""
        self._commit_unannounced_since_s = 0.0
        self._announce_soon = False
        """Announce it at once: callers at followers wait for it."""
        self._forcing: ForceLeader | None = None
        self.aside: str | None = None
        """The folder with the log that was put aside because leadership was forced past it."""
        self.failure: OpenOutcryError | None = None
        self._broken: Exception | None = None
        self.counters = {"commands": 0, "records": 0, "events": 0, "protocol_errors": 0, "swaps": 0}

    # -- life ---------------------------------------------------------------------------------------------------

    def on_start(self) -> None:
        self._note_clocks()
        self._run(self.replica.start())

    def on_stop(self) -> None:
        self._report_disk()
        self._release()
        self._end_forcing(self._end())
        self._run(self._requests.fail_all(self._end()))
        self.feed.end(self._end())
        self._submissions.close(self._end())
        stop_and_join(self._journal, timeout_s=10)

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
        answer = None
        if message is SUBMITTED:
            self._gather()
        elif isinstance(message, Received):
            self._receive_frame(message)
        elif isinstance(message, Persisted):
            self._run(self._persisted(message.generation, message.sequence))
        elif isinstance(message, Query):
            answer = message.read(self)
        elif message is TICK:
            self._tick()
        elif message is QUIET:
            pass
        else:
            answer = self._dispatch_control(message)
        try:
            if (self._requests.waiting or self._submissions.any) and not self._writing:
                self._propose_waiting()
            if self._answered:
                self._release()
            if self._commit_unannounced:
                self._tell_commit()
        except Exception as error:
            # An exception in an ask() only fails the ask; keep it so that the actor fails on its next tick.
            self._broken = error
            raise
        return answer

    def _release(self) -> None:
        """Release the answers to callers, once the next record is on its way; earlier, they would delay it."""
        answered, self._answered = self._answered, []
        self._submissions.release(answered)

    def _tell_commit(self) -> None:
        """Leader: announce the commit index to the followers if no record will soon. Not only when idle."""
        late_s = time.monotonic() - self._commit_unannounced_since_s
        if late_s >= LINGER_S or (self._announce_soon and self.idle):
            self._commit_unannounced = self._announce_soon = False
            self._run(self.replica.announce_commit())
        else:
            self.linger(LINGER_S - late_s)

    def _dispatch_control(self, message: Any) -> Any:
        now_ns = time.monotonic_ns()
        core, replica = self.core, self.replica
        match message:
            case PeerUp():
                self._links[message.node] = message
                self._run(core.on_peer_up(message.node))
            case PeerDown():
                self._links.pop(message.node, None)
                self._run(core.on_peer_down(message.node, now_ns))
            case PeerGone():
                self._run(replica.on_peer_gone(message.node, now_ns))
            case LogRead():
                self._read_backoff.succeeded()
                self._run(replica.on_log_read(message, now_ns))
            case LogNotRead():
                self._read_again_later(message)
            case SnapshotKept():
                self._install()
            case SnapshotTaken():
                self._use_snapshot(message)
            case SnapshotNotKept():
                self._imaging.note_failure(message.error, core.transfer.on_not_kept(now_ns))
                self._run(replica.on_snapshot_not_kept())
            case SnapshotFailed():
                self._imaging.on_failed(message)
            case SnapshotStored():
                if message.error is not None:
                    self._imaging.on_not_stored(message.error)
                else:
                    self._imaging.succeeded(keep=True)
            case LogPutAside():
                self._begin_again(message.folder)
            case ForceLeader():
                self._force(message)
            case CoordinatorAnswer():
                self._take_coordinator_answer(message, now_ns)
            case JournalFailed() | NodeIdTaken():
                self._run(replica.stop(message.error))
            case HandOver():
                return self._hand_over(message)
            case Retire():
                replica.retired = True
            case ProposeRules():
                self._own_rules = self._own_rules or message.rules
            case SetTime():
                return self._set_time(message.reason)
            case Watch():
                if self.failure is not None:
                    raise copied(self.failure)
                return self.feed.watch(message, self.book)
            case Unwatch():
                self.feed.unwatch(message)
            case _:
                raise TypeError(f"BookActor does not understand {type(message).__name__}")
        return None

    def _hand_over(self, message: HandOver) -> bool:
        """Hand leadership over, or (``give_up``) keep it; return whether there is nothing left to hand over."""
        replica = self.replica
        if message.give_up:
            replica.resigned = False
            return True
        self._resigned_until_s = time.monotonic() + RESIGNED_S
        if message.to is not None and message.to not in replica.successors():
            return True
        self._run(replica.resign(message.to))
        return replica.role is not Role.LEADING or not replica.heirs()

    def _tick(self) -> None:
        now_ns = time.monotonic_ns()
        try:
            self._writer.seal()
        except StorageError as error:
            self._run(self.replica.stop(error))
        self._take_submissions()
        if self.replica.resigned and time.monotonic() > self._resigned_until_s:
            self.replica.resigned = False  # nobody asks for the hand-over any more: a leader accepts orders
        self._warn_of_late_requests(now_ns)
        self._note_clocks()
        self._run(self.core.on_tick(now_ns))
        self._report_disk()
        self._watch_leader()
        self._say_progress(now_ns)
        self.timekeeper.say(self._last_ns, leads=self._leads, sequence=self.book.sequence)
        self._try_again()
        expiry_ns = self.book.next_expiry_ns()
        if (
            expiry_ns is not None
            and self._leads
            and not self._requests.waiting
            and expiry_ns <= self.timekeeper.next_ns(self._last_ns)
        ):
            self._requests.add_own((CLOCK, "", ""))

    def _note_clocks(self) -> None:
        clocks = self.timekeeper.clocks()
        self.replica.on_clocks(off=clocks.off, right=clocks.right, compared=clocks.compared)

    def _say_progress(self, now_ns: int) -> None:
        """Log progress now and then while the replica catches up."""
        replica, fetched = self.replica, self.core.transfer.fetched
        behind = replica.known_committed - replica.applied
        if replica.role is not Role.FOLLOWING or (behind <= BATCH_MAX and fetched is None):
            self._said_ns = now_ns
        elif now_ns - self._said_ns >= PROGRESS_S * 1e9:
            self._said_ns = now_ns
            state = {"fetched": len(fetched.data), "bytes": fetched.size} if fetched is not None else {}
            self._log.info("catching_up", sequence=replica.applied, of=replica.known_committed, **state)

    @property
    def _last_ns(self) -> int:
        """The time of the log's last record."""
        return self.replica.pending[-1].timestamp_ns if self.replica.pending else self.book.timestamp_ns

    def _set_time(self, reason: str) -> TimeSet:
        """Leader: an operator declares this machine's clock right, and the log's time wrong."""
        if not self._leads:
            leader = self.replica.leader
            raise Unavailable(
                f"market {self._market} is led by {leader or 'nobody'}, or too few replicas are in sync: set its time "
                "at the node that leads it",
                code="not_leader",
            )
        before_ns = self._last_ns
        after_ns = self.timekeeper.correct(before_ns)
        ((*_, text),) = checked_commands(((SET_TIME, "", "", reason),), internal=True)
        self._propose(((SET_TIME, "", "", text),), (), at_ns=after_ns)
        sequence = self.replica.tail.sequence
        self._log.critical("log_time_set", sequence=sequence, moved_s=round((after_ns - before_ns) / 1e9, 3), note=text)
        return TimeSet(sequence, before_ns, after_ns)

    def _warn_of_late_requests(self, now_ns: int) -> None:
        if late := self._requests.expired(now_ns):
            first = self._requests.outstanding[late[0]].commands[0]
            self._log.warning(
                "requests_expired", requests=len(late), leader=self.replica.leader, client_order_id=first[2]
            )

    def _watch_leader(self) -> None:
        """Follower without a link to its leader: take over if the leader's process or lease has ended."""
        replica = self.replica
        leader = replica.leader
        lost = leader is not None and leader != self._node and leader not in self._links
        if lost and replica.role is Role.FOLLOWING and self._node in replica.in_sync and not self._asking_lease:
            self._asking_lease = True
            gone = leader in replica.ended
            self._ask_coordinator(IsLeaseExpired(str(leader)), lambda store: gone or store.lapsed(leader))

    def _force(self, message: ForceLeader) -> None:
        refusal: OpenOutcryError | None = self.failure
        if refusal is None:
            refusal = self.force_refusal(message.record, message.reachable)
        if refusal is not None:
            _fail(message.future, refusal)
            return
        self._forcing = message
        self._run(self.replica.force(message.record))

    def force_refusal(self, record: MarketRecord | None, reachable: frozenset[str]) -> OpenOutcryError | None:
        """Return why this replica may not lead by force in place of ``record``, or None."""
        refusal = self.replica.force_refusal(record, reachable | self._links.keys())
        if refusal is None and self.replica.tail.sequence == 0 and self._own_rules is None:
            return Unavailable(
                f"market {self._market}: this node holds nothing of it, and was given no rules to open it with",
                code="nothing_here",
            )
        return refusal

    def _end_forcing(self, error: OpenOutcryError) -> None:
        if self._forcing is not None:
            _fail(self._forcing.future, error)

    # -- requests -----------------------------------------------------------------------------------------------

    @property
    def _yields(self) -> bool:
        """Whether this replica leads but cannot commit, and lets another lead."""
        replica = self.replica
        return replica.role is Role.LEADING and replica.record is not None and replica.record.yielding

    @property
    def hindrance(self) -> OpenOutcryError | None:
        """Why this replica cannot be used until a person acts, or None."""
        replica = self.replica
        if replica.role is Role.STOPPED:
            return self.failure or Unavailable(f"market {self._market} has stopped")
        if replica.trouble is None or replica.role is Role.LEADING or replica.matched:
            return None
        return self.storage.placed(replica.trouble)

    @property
    def _leads(self) -> bool:
        return self.replica.may_propose

    def _gather(self) -> None:
        """Accept the submitted requests, unless it is better to wait for earlier answers first."""
        if self._requests.wants(self._submissions.waiting):
            self._take_submissions()

    def _take_submissions(self) -> None:
        requests = self._submissions.take()
        failure = self.hindrance
        if failure is not None:
            self._give_up(requests, failure)
            return
        self._run(self._requests.take(requests))

    def _propose_waiting(self) -> None:
        """Put the waiting commands into one record."""
        self._gather()
        if (record := self._requests.next_record()) is not None:
            self._propose(*record)

    def _propose(self, commands: tuple[Command, ...], origins: tuple[Origin, ...], *, at_ns: int | None = None) -> None:
        timestamp_ns = at_ns
        if timestamp_ns is None:
            timestamp_ns = self.timekeeper.stamp(self._last_ns)
        self.meters.batch.observe(len(commands))
        self._writing = True
        self._commit_unannounced = self._announce_soon = False
        self._run(self.replica.propose(commands, origins, timestamp_ns=timestamp_ns, now_ns=time.monotonic_ns()))

    def _give_up(self, requests: Sequence[Request], error: OpenOutcryError) -> None:
        for request in requests:
            request.fail(error)
        self._submissions.release(requests)

    # -- links --------------------------------------------------------------------------------------------------

    def _receive_frame(self, received: Received) -> None:
        try:
            effects = self.core.on_message(received.sender, received.message, time.monotonic_ns())
            if isinstance(received.message, Append) and not received.message.join:
                self.timekeeper.seen(received.sender, effects)
            self._run(effects)
        except MemoryError as error:
            if self.core.transfer.fetched is not None or not isinstance(received.message, Chunk):
                raise
            missing = refusal(error, "no book can be made of the leader's state")
            self._imaging.note_failure(missing, self.core.transfer.on_not_kept(time.monotonic_ns()))
        except ProtocolError as error:
            self.counters["protocol_errors"] += 1
            if (link := self._links.get(received.sender)) is not None:
                link.link.reset(f"market {self._market}: {error.message}")

    def _denied(self, sender: str, commands: tuple[Command, ...]) -> OpenOutcryError | None:
        """Return why ``sender`` may not ask for ``commands``, or None."""
        if self._member_of is None:
            return None
        member = self._member_of(sender)
        if member is None:
            # It was forgotten, and will say hello again soon: do not deny it for that.
            return Unavailable(f"market {self._market}: {sender} is not known now; nothing was executed, retry")
        return member.denied([command[1] for command in commands])

    def _send(self, nodes: Iterable[str], message: Any) -> None:
        frame = MARKET_CODEC.encode(message)
        for node in nodes:
            if (link := self._links.get(node)) is not None:
                link.link.send(frame)

    def _take_coordinator_answer(self, answer: CoordinatorAnswer, now_ns: int) -> None:
        led, members = self.replica.role is Role.LEADING, set(self.replica.in_sync)
        yielded = self._yields
        self._take_answer(answer, now_ns)
        silent, self._store_silent = self._store_silent, answer.error is not None
        if answer.error is not None:
            self._log.log(logging.DEBUG if silent else logging.WARNING, "coordinator_call_failed", error=answer.error)
        elif led and self.replica.role is Role.LEADING:
            now = set(self.replica.in_sync)
            for peer in sorted(members - now):
                self._log.warning("replica_left", peer=peer, in_sync=self.replica.in_sync)
            if self._yields and not yielded:
                self._log.warning("leader_yields", in_sync=self.replica.in_sync, present=self.replica.present)
            for peer in sorted(now - members):
                self._log.info("replica_in_sync", peer=peer, in_sync=self.replica.in_sync)

    def _take_answer(self, answer: CoordinatorAnswer, now_ns: int) -> None:
        if isinstance(answer.what, IsLeaseExpired):
            self._asking_lease = False
            lapsed = answer.record is True and answer.what.leader not in self._links
            # A replica that may not take over yet asks repeatedly: do not log that.
            if lapsed and (effects := self.replica.on_leader_lapsed(answer.what.leader)):
                self._log.warning("leader_lapsed", peer=answer.what.leader, epoch=self.replica.epoch)
                self._run(effects)
        elif answer.error is not None:
            if isinstance(answer.what, SwapRecord) and answer.what.force:
                self._end_forcing(
                    Unavailable(
                        f"market {self._market}: the coordinator gave no answer ({answer.error}): whether this node "
                        "leads is unknown; see its status",
                        code="outcome_unknown",
                    )
                )
            self._run(self.replica.on_coordinator_unavailable(answer.what))
        elif isinstance(answer.what, SwapRecord):
            if answer.what.force and answer.record is None:
                self._end_forcing(
                    Unavailable(f"market {self._market}: the record has changed meanwhile: look again", code="changing")
                )
                self._forcing = None
            self._run(self.core.on_swapped(answer.what, answer.record, now_ns))
        elif isinstance(answer.what, ReadMarks):
            self._run(self.replica.on_marks(answer.record))
        elif isinstance(answer.what, ReportMark):
            self._marked = answer.what.mark
            self._run(self.replica.on_marked(answer.what.mark))
        else:
            lost = self._forcing is not None and self.replica.role is not Role.CLAIMING
            if lost and answer.record is not None and answer.record.leader != self._node:
                self._forcing = None  # the forced swap, whose answer was lost, has not happened
            claim = answer.what.claim if isinstance(answer.what, ReadRecord) else None
            self._run(self.core.on_record(answer.record, now_ns, claim))

    # -- effects ------------------------------------------------------------------------------------------------

    def _run(self, effects: Sequence[CoreEffect[Request]]) -> None:
        todo = list(effects)
        for effect in todo:  # further effects may be added meanwhile
            match effect:
                case Send():
                    self._send(effect.nodes, effect.message)
                case PersistRecords():
                    self._persist(effect, todo)
                case ApplyRecords():
                    self._apply(effect.records)
                case FailRequests():
                    self._give_up(effect.requests, effect.error)
                case ReadRecord() | ReadMarks() | ReportMark() | CreateRecord() | SwapRecord():
                    self._call_store(effect)
                case KeepDisk():
                    self._keep_disk(effect.state)
                case Troubled():
                    self._tell_trouble(effect.error)
                case LeadershipBegun():
                    self._begin_to_lead()
                case LeadershipLost():
                    level = logging.INFO if self.replica.resigned else logging.WARNING  # handed over, or lost
                    self._log.log(level, "not_leading", epoch=self.replica.epoch)
                    todo += self.core.on_leadership_lost()
                case ReadJournal() | CutJournal() | PutAside() | KeepFetched():
                    self._hand_to_journal(effect)
                case OfferSnapshot():
                    todo += self.core.transfer.offer(effect.node, effect.after, time.monotonic_ns())
                case TakeImage():
                    self._imaging.take(self.book, self._tail_of_book(), keep=False)
                case RepairBegun() | RepairEnded():
                    self._mark_repair(effect.why if isinstance(effect, RepairBegun) else None)
                case Stop():
                    self._stop_replica(effect.error)
                case _:
                    assert_never(effect)

    def _hand(self, message: Any) -> None:
        """Send a message to the JournalActor; only it may use the log until that is done."""
        self._writer.handed += 1
        tell(self._journal, message)

    def _persist(self, effect: PersistRecords, todo: list[CoreEffect[Request]]) -> None:
        """Append records to the log and add the resulting effects to ``todo``, or let the JournalActor append."""
        at_once = self.core.writes_itself(effect, idle=self.idle, last=effect is todo[-1]) and self._writer.at_hand
        if not at_once:
            self._hand(Persist(effect.generation, effect.records, self.replica.committed))
            return
        if self._answered:
            self._release()
        try:
            self._writer.append(effect.records, self.replica.committed)
        except StorageError as error:
            todo += self.replica.stop(error)
            return
        acks, others = sends_first(self._persisted(effect.generation, effect.records[-1].last_sequence))
        for ack in acks:
            self._send(ack.nodes, ack.message)
        todo += others

    def _persisted(self, generation: int, sequence: int) -> list[Effect]:
        """The log is durable up to ``sequence``."""
        self._writing = False
        self.storage.note_logged()
        return self.replica.on_durable(generation, sequence, time.monotonic_ns())

    def _hand_to_journal(self, effect: ReadJournal | CutJournal | PutAside | KeepFetched) -> None:
        match effect:
            case ReadJournal():
                self._hand(ReadLog(effect.node, effect.after, effect.expected, effect.token))
            case CutJournal():
                self._hand(CutLog(effect.sequence))
            case PutAside():
                self._log.critical("log_outlived", reason=effect.reason)
                self._imaging.book_leaves()
                self._hand(PutLogAside())
            case KeepFetched():
                fetched = present(self.core.transfer.fetched, "a state is kept before it was fetched")
                self._imaging.book_leaves()
                self._hand(BeginLogAt(effect.tail, bytes(fetched.data)))
            case _:
                assert_never(effect)

    def _call_store(self, effect: ReadRecord | ReadMarks | ReportMark | CreateRecord | SwapRecord) -> None:
        market, node = self._market, self._node
        match effect:
            case ReadRecord():
                self._ask_coordinator(effect, lambda store: store.read(market))
            case ReadMarks():
                self._ask_coordinator(effect, lambda store: store.marks(market))
            case ReportMark():
                tell(self._coordinator, DiskMarked(self.actor_ref, market, effect.mark, effect))
            case CreateRecord():
                if self._own_rules is not None and not self._observer:
                    self._ask_coordinator(effect, lambda store: store.create(market, node, (node,)))
            case SwapRecord():
                self.counters["swaps"] += 1
                self._ask_coordinator(
                    effect,
                    lambda store: store.swap(
                        effect.expected,
                        epoch=effect.epoch,
                        leader=effect.leader,
                        in_sync=effect.in_sync,
                        force=effect.force,
                        yielding=effect.yielding,
                    ),
                )
            case _:
                assert_never(effect)

    def _mark_repair(self, why: str | None) -> None:
        """The repair of this replica begins because of ``why``; None: it is over."""
        if why is not None:
            self._log.critical("disk_behind", reason=why, epoch=self.replica.epoch, folder=self.storage.folder)
            try:
                self.storage.mark_repairing(why)
            except OSError as error:  # without the mark, a restart halfway would take a partial log for a whole one
                refused = f"{self.storage.folder} cannot be marked: {error}; it stops"
                self._run(self.replica.stop(StorageError(refused)))
        else:
            self._log.warning("repaired", sequence=self.book.sequence, damage=self.storage.damage)
            self.storage.unmark()

    def _begin_to_lead(self) -> None:
        self._log.info("leading", epoch=self.replica.epoch, in_sync=self.replica.in_sync)
        self._writing = False
        self._propose(self._opening(), ())
        if self._forcing is not None:
            with contextlib.suppress(InvalidStateError):  # its caller already knows that the outcome is unknown
                self._forcing.future.set_result(self.replica.tail.sequence)
            self._forcing = None
        self._run(self.core.on_leadership_begun())

    def _keep_disk(self, state: DiskState) -> None:
        try:
            self.storage.keep(state)
        except StorageError as error:
            self._run(self.replica.stop(error))

    def _report_disk(self) -> None:
        """Let the CoordinatorActor report the disk mark with the lease, if it has changed."""
        mark = self.replica.mark
        if mark is not None and mark != self._marked:
            self._marked = mark
            tell(self._coordinator, DiskMarked(self.actor_ref, self._market, mark))

    def _tell_trouble(self, error: OpenOutcryError | None) -> None:
        if error is None:
            self._log.info("trouble_over")
        else:
            self._log.critical("trouble", error=self.storage.placed(error), code=error.code, folder=self.storage.folder)

    def _opening(self) -> tuple[Command, ...]:
        """Return the first commands of this leader: the entries it inherited commit with them."""
        opening: list[Command] = []
        if self.replica.tail.sequence == 0 and self._own_rules is not None:
            opening.append((CONFIGURE, "", "", self._own_rules.to_tuple()))
        if self._forcing is not None:
            opening.append(self._forcing.note)
        return tuple(opening) or ((CLOCK, "", ""),)

    def _ask_coordinator(self, what: Effect | IsLeaseExpired, run: Callable[[Any], Any]) -> None:
        tell(self._coordinator, CoordinatorCall(self.actor_ref, run, what))

    def _stop_replica(self, stopped: OpenOutcryError) -> None:
        error = self.storage.placed(stopped)
        self._log.critical("replica_stopped", error=error, sequence=self.book.sequence, epoch=self.replica.epoch)
        self.failure = error
        self._end_forcing(error)
        self._run(self.core.on_stopped(error))
        self.feed.end(error)

    def _apply(self, records: tuple[Record, ...]) -> None:
        """Apply committed records, check the leader's hash if given, answer requests, notify watchers."""
        book = self.book
        expected = self.replica.expected_hash
        all_events: list[Event] = []
        settled: Settled[Request] = Settled()
        earlier: dict[int, tuple[Event, ...]] = {}
        rejected: list[Event] = []
        for record in records:
            events = book.apply(record.first_sequence, record.timestamp_ns, record.commands)
            all_events += events
            for event in [e for e in events if e[0] == DUPLICATE or e[0] == REJECTED]:
                if event[0] == DUPLICATE:
                    earlier[event[2]] = tuple(book.answer_of(event[2]))
                else:
                    rejected.append(event)
            self.counters["commands"] += len(record.commands)
            if record.commands[0][0] == SET_TIME:
                self.timekeeper.forget()
            if expected is not None and expected[0] == record.last_sequence:
                state_hash = book.state_hash()
                if state_hash != expected[1]:
                    error = StorageError(
                        f"market {self._market}: at sequence {expected[0]} the state hash is {state_hash}, "
                        f"the leader's, {self.replica.leader}'s, is {expected[1]}: the two have diverged. Delete "
                        "nothing: stop both nodes and compare their data directories with `openoutcry verify DIR` and "
                        f"`openoutcry log DIR {self._market} --events`: the one whose log, executed again, has another "
                        "hash than it told has computed wrongly",
                        code="diverged",
                    )
                    self._run(self.replica.stop(error))
                    return
            self._requests.settle(record, settled)
        self._announce_soon = self._announce_soon or settled.others
        if not self._commit_unannounced and self.replica.role is Role.LEADING:
            self._commit_unannounced = True
            self._commit_unannounced_since_s = time.monotonic()
        self.counters["records"] += len(records)
        self.counters["events"] += len(all_events)
        if rejected:
            self.meters.rejections.update([event[REJECTED_CODE] for event in rejected])
            for _, sequence, account, named, code in rejected if self._log.isEnabledFor(logging.DEBUG) else ():
                self._log.debug(
                    "command_rejected", sequence=sequence, account=account, client_order_id=named, code=code
                )
        state_hash = book.state_hash()
        self._run(self.replica.on_applied(book.sequence, state_hash))
        if settled.answered:
            outcome = Outcome(all_events, earlier, book.sequence, state_hash, book.rules)
            for request in settled.answered.values():
                request.answer(outcome)
            self._answered += settled.answered.values()
        if settled.strangers:
            self._log.critical("answer_of_another", requests=len(settled.strangers), sequence=book.sequence)
        self._run(self._requests.answered(settled))
        self._keep_snapshot()
        last = records[-1].timestamp_ns
        self.feed.publish(
            book, first=records[0].first_sequence, timestamp_ns=last, state_hash=state_hash, events=all_events
        )

    def _keep_snapshot(self, *, only_again: bool = False) -> None:
        """Now and then: write a snapshot, so that recovery is short and the log can be pruned."""
        if self.replica.role is not Role.STOPPED:
            self._imaging.keep_if_due(self.book, self._tail_of_book(), only_again=only_again)

    def _tail_of_book(self) -> Tail:
        tail = self.replica.base
        ensure(tail.sequence == self.book.sequence, "a snapshot of another place in the log than it says")
        return tail

    def _read_again_later(self, message: LogNotRead) -> None:
        if not self._read_backoff.failures:
            self._log.warning("log_not_read", peer=message.read.node, error=message.error)
        self._read_backoff.failed(time.monotonic())
        self._not_read.append(message.read)

    def _try_again(self) -> None:
        """Retry steps that failed because a resource ran out, if they are due."""
        self._keep_snapshot(only_again=True)
        try:
            self.storage.keep_again(time.monotonic())
        except StorageError as error:
            self._run(self.replica.stop(error))
        if self._not_read and self._read_backoff.is_due(time.monotonic()):
            reads, self._not_read = self._not_read, []
            for read in reads:
                self._hand(read)

    def _use_snapshot(self, taken: SnapshotTaken) -> None:
        """A snapshot was taken: keep it or offer it, unless the book was replaced meanwhile."""
        if (keep := self._imaging.on_taken(taken)) is not None:
            self._hand(keep)
        elif taken.scratch is None and self._imaging.is_current(taken):
            self._run(self.core.transfer.on_image(taken.tail, taken.data, time.monotonic_ns()))

    def _install(self) -> None:
        """The fetched state is durable: continue from it."""
        fetched, book = self.core.transfer.installed()
        self._imaging.error = None
        self._log.info("state_taken_over", sequence=fetched.tail.sequence, peer=fetched.sender)
        self._put_in(book)
        self._run(self.core.on_installed(fetched.sender, fetched.tail))

    def _begin_again(self, aside: str) -> None:
        """The log was put aside: start empty, and receive all of the leader's log."""
        self._log.critical("log_put_aside", sequence=self.book.sequence, aside=aside)
        self.aside = aside
        self._put_in(OrderBook())
        try:
            self.storage.marks_again()
        except StorageError as error:
            self._run(self.replica.stop(error))
        self._run(self.core.on_put_aside())

    def _put_in(self, book: OrderBook) -> None:
        """Continue from ``book``; watchers must fetch the book again."""
        self.book = book
        self.timekeeper.forget()
        self._imaging.on_another_book(book.sequence)
        self.feed.end(None)

    # -- queries ------------------------------------------------------------------------------------------------

    def status(self) -> MarketStatus:
        """Return the status of this replica for operators."""
        replica, hindrance = self.replica, self.hindrance
        return MarketStatus(
            market=self._market,
            role=replica.role.value,
            ready=self.ready,
            epoch=replica.epoch,
            leader=replica.leader,
            in_sync=tuple(replica.in_sync),
            min_in_sync=replica.min_in_sync,
            present=replica.present,
            resigned=replica.resigned,
            yields=self._yields,
            time_off_s=round(self.timekeeper.off_ns(self._last_ns) / 1e9, 3),
            linked=replica.leader in self._links,
            matched=replica.matched,
            known=replica.known_committed,
            subscribers=len(self.feed),
            outstanding=len(self._requests.outstanding),
            appended=replica.tail.sequence,
            durable=replica.durable,
            committed=replica.committed,
            applied=replica.applied,
            state_hash=self.book.state_hash(),
            followers=replica.followers(time.monotonic_ns()),
            open_orders=len(self.book),
            trades=self.book.trade_count,
            waiting=self._requests.waiting_commands,
            recovered=self.recovered,
            observer=self._observer,
            repairing=self.storage.damage,
            put_aside=self.aside,
            trouble=str(self.storage.placed(replica.trouble)) if replica.trouble else None,
            error=str(hindrance) if hindrance else None,
            snapshot_error=self._imaging.error,
            counters=dict(self.counters),
        )

    @property
    def ready(self) -> bool:
        """Whether commands can be sent from here and the market has rules."""
        replica = self.replica
        reachable = replica.may_propose or (replica.reachable_leader is not None and replica.matched)
        return bool(reachable and self.book.configured)


def _fail(future: Future[Any], error: OpenOutcryError) -> None:
    with contextlib.suppress(InvalidStateError):  # its caller already knows that the outcome is unknown
        future.set_exception(copied(error))
