"""Shell: carries out what the pure cores of one market decide, and keeps what that takes.

It applies committed records to :class:`~.orderbook.OrderBook`, has them written and sent, answers the callers whose
requests they contain, and passes calls on to the coordinator. It decides nothing, and has no thread: its BookActor
calls it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import InvalidStateError
from pathlib import Path
from typing import Any, Final, assert_never

import pykka

from ...transport.coordinator import MarketRecord
from ...transport.errors import OpenOutcryError, StorageError, Unavailable, copied, ensure
from ...transport.identity import Member
from ...transport.log import get_logger
from ..kit.node_actor import ActorFailed, tell
from ..peers.clocks import ALONE, BOUND_MS, Clocks
from .applying import apply_records
from .calls import CoordinatorCalls
from .commands import CLOCK, CONFIGURE, REJECTED_CODE, Command
from .copying import Copying
from .core import Core, CoreEffect, sends_first
from .feed import Feed
from .forcing import Forcing
from .frames import Frames
from .imaging import Imaging
from .logwork import LogWork
from .marketlog import MarketLog
from .messages import COPY_ON, CopyBook, SnapshotTaken, TakeSnapshot
from .meters import MarketMeters
from .orderbook import BookImage, OrderBook
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
from .requests import FailRequests
from .rules import MarketRules
from .storage import Storage
from .submission import Outcome, Request, Submissions
from .timekeeper import Timekeeper
from .transfer import TakeImage
from .writer import JournalActor, JournalWriter

logger = get_logger(__name__)

LINGER_S: Final = 0.0005
"""Seconds that the leader waits for a next record to carry the commit index before it sends it alone."""
REQUEST_BITS: Final = 62
"""Random bits of the number of a start's first request; later numbers count on from it, within 63 bits."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What one market's replica at one node is made from."""

    market: str
    node: str
    folder: Path
    """Of its journal and snapshots."""
    rules: MarketRules | None
    """Proposed as the log's first command if this node is the first to lead; None: take the log's."""
    submissions: Submissions
    """The requests of this node's callers."""
    coordinator: pykka.ActorRef[Any]
    """The CoordinatorActor."""
    store: str
    """The id of the coordinator's store: a disk state for another store does not count."""
    take_snapshot: Callable[[TakeSnapshot], bool]
    """Sends to the SnapshotActor."""
    min_in_sync: int
    snapshot_every: int
    """Commands between snapshots; older log is pruned."""
    observer: bool
    """Read only, outside the in-sync set."""
    meters: MarketMeters = dataclasses.field(default_factory=MarketMeters)
    clock_ns: Callable[[], int] = time.time_ns
    clock_bound_ms: int = BOUND_MS
    """How far the log's time may be off."""
    clocks: Callable[[], Clocks] = lambda: ALONE
    """This machine's clock among those of others."""
    member_of: Callable[[str], Member | None] | None = None
    """Returns the certificate's contents for a node id: for which accounts that node may send commands.

    None: nodes have no certificates, and may send commands for every account.
    """


class Shell:
    """What surrounds the cores of one market. Owned by the BookActor."""

    def __init__(
        self,
        setup: Setup,
        *,
        actor: pykka.ActorRef[Any],
        report: Callable[[ActorFailed], None],
        idle: Callable[[], bool],
        linger: Callable[[float], None],
    ) -> None:
        """Open the journal and recover the book as far as it is known to be committed.

        A damaged journal is put aside, and the replica is repaired from a peer before it can lead. ``idle``: whether
        no message waits for the actor; ``linger``: see :meth:`NodeActor.linger`.

        Raises:
            StorageError: the journal cannot be opened.
        """
        market, node = setup.market, setup.node
        self._market = market
        self._idle = idle
        self._linger = linger
        self.rules = setup.rules
        self.submissions = setup.submissions
        self.meters = meters = setup.meters
        self._log = log = logger.bind(market=market, node=node)
        self.timekeeper = Timekeeper(
            market,
            clock_ns=setup.clock_ns,
            bound_ns=setup.clock_bound_ms * 1_000_000,
            clocks=setup.clocks,
            log=log,
        )
        self.frames = Frames(market, setup.member_of)
        self.calls = CoordinatorCalls(market=market, node=node, coordinator=setup.coordinator, reply_to=actor, log=log)
        self.feed = Feed(market, log)
        self.forcing = Forcing(market, node)
        self.storage = Storage(
            setup.folder, market=market, node=node, store=setup.store, clock_ns=setup.clock_ns, log=log
        )
        journal, snapshots, self.book, self.replica, kept = self.storage.open(
            min_in_sync=setup.min_in_sync, observer=setup.observer
        )
        self.recovered = self.replica.applied
        meters.snapshot = snapshots.last()
        writer = JournalWriter(journal, snapshots, meters)
        self.copying = Copying(lambda: tell(actor, COPY_ON))
        self.imaging = Imaging(
            reply_to=actor,
            tell_snapshotter=setup.take_snapshot,
            want=lambda done: self.copying.want(self.book, done),
            tail=self._tail_of_book,
            writer=writer,
            every=setup.snapshot_every,
            last=kept,
            meters=meters,
            log=log,
        )
        self.log_work = LogWork(
            writer=writer,
            journal=JournalActor.start(writer=writer, book=actor, report=report),
            imaging=self.imaging,
            log=log,
        )
        self.says = MarketLog(log, self.replica)
        self.core: Core[Request, OrderBook] = Core(
            self.replica,
            first_number=secrets.randbits(REQUEST_BITS),
            restore=OrderBook.restore,
            sequence_of=lambda book: book.sequence,
            denied=self.frames.denied,
        )
        self._writing = False
        """Leader: a record is on its way to the disk."""
        self._answered: list[Request] = []
        """Answered requests whose callers have not been notified yet."""
        self._commit_unannounced = False
        """Leader: the commit index is not announced to followers yet; a record that follows soon carries it."""
        self._unannounced_since_s = 0.0
        self._announce_soon = False
        """Announce it at once: callers at followers wait for it."""
        self.aside: str | None = None
        """The folder with the log that was put aside because leadership was forced past it."""
        self.failure: OpenOutcryError | None = None
        """Why the replica has stopped."""
        self._counters = {"commands": 0, "records": 0, "events": 0}

    # -- requests -----------------------------------------------------------------------------------------------

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
    def ready(self) -> bool:
        """Whether commands can be sent from here and the market has rules."""
        replica = self.replica
        reachable = replica.may_propose or (replica.reachable_leader is not None and replica.matched)
        return bool(reachable and self.book.configured)

    def force_refusal(self, record: MarketRecord | None, reachable: frozenset[str]) -> OpenOutcryError | None:
        """Return why this replica may not lead by force in place of ``record``, or None."""
        refusal = self.replica.force_refusal(record, reachable | self.frames.links.keys())
        if refusal is None and self.replica.tail.sequence == 0 and self.rules is None:
            return Unavailable(
                f"market {self._market}: this node holds nothing of it, and was given no rules to open it with",
                code="nothing_here",
            )
        return refusal

    def gather(self) -> None:
        """Accept the submitted requests, unless it is better to wait for earlier answers first."""
        if self.core.requests.wants(self.submissions.waiting):
            self.take_submissions()

    def take_submissions(self) -> None:
        requests = self.submissions.take()
        failure = self.hindrance
        if failure is not None:
            self._give_up(requests, failure)
            return
        self.run(self.core.requests.take(requests))

    def _propose_waiting(self) -> None:
        """Put the waiting commands into one record."""
        self.gather()
        if (record := self.core.requests.next_record()) is not None:
            self.propose(*record)

    def propose(self, commands: tuple[Command, ...], origins: tuple[Origin, ...], *, at_ns: int | None = None) -> None:
        timestamp_ns = at_ns
        if timestamp_ns is None:
            timestamp_ns = self.timekeeper.stamp(self.last_ns)
        self.meters.batch.observe(len(commands))
        self._writing = True
        self._commit_unannounced = self._announce_soon = False
        self.run(self.replica.propose(commands, origins, timestamp_ns=timestamp_ns, now_ns=time.monotonic_ns()))

    def _give_up(self, requests: Sequence[Request], error: OpenOutcryError) -> None:
        for request in requests:
            request.fail(error)
        self.submissions.release(requests)

    def proceed(self) -> None:
        """After each message: make the next record of what waits, then release answers, then announce the commit."""
        if (self.core.requests.waiting or self.submissions.any) and not self._writing:
            self._propose_waiting()
        if self._answered:
            self._release()
        if self._commit_unannounced:
            self._tell_commit()

    def end(self, error: OpenOutcryError) -> None:
        """The actor ends: report the disk, and fail with ``error`` what waits."""
        self.calls.report(self.replica.mark)
        self._release()
        self.forcing.fail(error)
        self.copying.end(error)
        self.run(self.core.requests.fail_all(error))
        self.feed.end(error)
        self.submissions.close(error)

    def _release(self) -> None:
        """Release the answers to callers, once the next record is on its way; earlier, they would delay it."""
        answered, self._answered = self._answered, []
        self.submissions.release(answered)

    def _tell_commit(self) -> None:
        """Leader: announce the commit index to the followers if no record will soon. Not only when idle."""
        late_s = time.monotonic() - self._unannounced_since_s
        if late_s >= LINGER_S or (self._announce_soon and self._idle()):
            self._commit_unannounced = self._announce_soon = False
            self.run(self.replica.announce_commit())
        else:
            self._linger(LINGER_S - late_s)

    # -- effects ------------------------------------------------------------------------------------------------

    def run(self, effects: Sequence[CoreEffect[Request]]) -> None:
        todo = list(effects)
        for effect in todo:  # further effects may be added meanwhile
            match effect:
                case Send():
                    self.frames.send(effect.nodes, effect.message)
                case PersistRecords():
                    self._persist(effect, todo)
                case ApplyRecords():
                    self._apply(effect.records)
                case FailRequests():
                    self._give_up(effect.requests, effect.error)
                case ReadRecord() | ReadMarks() | ReportMark() | CreateRecord() | SwapRecord():
                    may_create = self.rules is not None and not self.replica.observer
                    self.calls.carry_out(effect, may_create=may_create)
                case KeepDisk():
                    with self.stop_if_refused():
                        self.storage.keep(effect.state)
                case Troubled():
                    self._tell_trouble(effect.error)
                case LeadershipBegun():
                    self._begin_to_lead()
                case LeadershipLost():
                    level = logging.INFO if self.replica.resigned else logging.WARNING  # handed over, or lost
                    self._log.log(level, "not_leading", epoch=self.replica.epoch)
                    todo += self.core.on_leadership_lost()
                case ReadJournal() | CutJournal() | PutAside() | KeepFetched():
                    self.log_work.carry_out(effect, self.core.transfer.fetched)
                case OfferSnapshot():
                    todo += self.core.transfer.offer(effect.node, effect.after, time.monotonic_ns())
                case TakeImage():
                    self.imaging.take(keep=False)
                case RepairBegun() | RepairEnded():
                    self._mark_repair(effect.why if isinstance(effect, RepairBegun) else None)
                case Stop():
                    self._stop_replica(effect.error)
                case _:
                    assert_never(effect)

    def _persist(self, effect: PersistRecords, todo: list[CoreEffect[Request]]) -> None:
        """Append records to the log and add the resulting effects to ``todo``, or let the JournalActor append."""
        writer, committed = self.log_work.writer, self.replica.committed
        at_once = self.core.writes_itself(effect, idle=self._idle(), last=effect is todo[-1]) and writer.at_hand
        if not at_once:
            self.log_work.persist(effect, committed)
            return
        if self._answered:
            self._release()
        try:
            writer.append(effect.records, committed)
        except StorageError as error:
            todo += self.replica.stop(error)
            return
        acks, others = sends_first(self.on_persisted(effect.generation, effect.records[-1].last_sequence))
        for ack in acks:
            self.frames.send(ack.nodes, ack.message)
        todo += others

    def on_persisted(self, generation: int, sequence: int) -> list[Effect]:
        """The log is durable up to ``sequence``."""
        self._writing = False
        self.storage.note_logged()
        return self.replica.on_durable(generation, sequence)

    def _apply(self, records: tuple[Record, ...]) -> None:
        """Apply committed records, answer the requests that they contain, notify watchers."""
        book = self.book
        try:
            done = apply_records(book, records, replica=self.replica, requests=self.core.requests)
        except StorageError as error:
            self.run(self.replica.stop(error))
            return
        settled = done.settled
        if done.time_set:
            self.timekeeper.forget()
        self._announce_soon = self._announce_soon or settled.others
        if not self._commit_unannounced and self.replica.role is Role.LEADING:
            self._commit_unannounced = True
            self._unannounced_since_s = time.monotonic()
        self._counters["commands"] += done.commands
        self._counters["records"] += len(records)
        self._counters["events"] += len(done.events)
        if done.rejected:
            self.meters.rejections.update([event[REJECTED_CODE] for event in done.rejected])
            self.says.rejected(done.rejected)
        state_hash = book.state_hash()
        self.run(self.replica.on_applied(book.sequence, state_hash))
        if settled.answered:
            outcome = Outcome(done.events, done.earlier, book.sequence, state_hash, book.rules)
            for request in settled.answered.values():
                request.answer(outcome)
            self._answered += settled.answered.values()
        if settled.strangers:
            self._log.critical("answer_of_another", requests=len(settled.strangers), sequence=book.sequence)
        self.run(self.core.requests.answered(settled))
        self._keep_snapshot()
        first, last_ns = records[0].first_sequence, records[-1].timestamp_ns
        self.feed.publish(book, first=first, timestamp_ns=last_ns, state_hash=state_hash, events=done.events)

    def _mark_repair(self, why: str | None) -> None:
        """The repair of this replica begins because of ``why``; None: it is over."""
        if why is not None:
            self._log.critical("disk_behind", reason=why, epoch=self.replica.epoch, folder=self.storage.folder)
            try:
                self.storage.mark_repairing(why)
            except OSError as error:  # without the mark, a restart halfway would take a partial log for a whole one
                refused = f"{self.storage.folder} cannot be marked: {error}; it stops"
                self.run(self.replica.stop(StorageError(refused)))
        else:
            self._log.warning("repaired", sequence=self.book.sequence, damage=self.storage.damage)
            self.storage.unmark()

    def _begin_to_lead(self) -> None:
        self._log.info("leading", epoch=self.replica.epoch, in_sync=self.replica.in_sync)
        self._writing = False
        self.propose(self._opening(), ())
        self.forcing.succeeded(self.replica.tail.sequence)
        self.says.members()
        self.run(self.core.on_leadership_begun())

    def _opening(self) -> tuple[Command, ...]:
        """Return the first commands of this leader: the entries it inherited commit with them."""
        opening = self.forcing.note
        if self.replica.tail.sequence == 0 and self.rules is not None:
            opening = ((CONFIGURE, "", "", self.rules.to_tuple()), *opening)
        return opening or ((CLOCK, "", ""),)

    @contextlib.contextmanager
    def stop_if_refused(self) -> Iterator[None]:
        """Stop the replica if the disk refuses what the block writes."""
        try:
            yield
        except StorageError as error:
            self.run(self.replica.stop(error))

    def _tell_trouble(self, error: OpenOutcryError | None) -> None:
        if error is None:
            self._log.info("trouble_over")
        else:
            self._log.critical("trouble", error=self.storage.placed(error), code=error.code, folder=self.storage.folder)

    def _stop_replica(self, stopped: OpenOutcryError) -> None:
        error = self.storage.placed(stopped)
        self._log.critical("replica_stopped", error=error, sequence=self.book.sequence, epoch=self.replica.epoch)
        self.failure = error
        self.forcing.fail(error)
        self.run(self.core.on_stopped(error))
        self.feed.end(error)

    # -- states and time ----------------------------------------------------------------------------------------

    @property
    def last_ns(self) -> int:
        """The time of the log's last record."""
        return self.replica.pending[-1].timestamp_ns if self.replica.pending else self.book.timestamp_ns

    def note_clocks(self) -> None:
        clocks = self.timekeeper.clocks()
        self.replica.on_clocks(off=clocks.off, right=clocks.right, compared=clocks.compared)

    def _keep_snapshot(self, *, only_again: bool = False) -> None:
        """Now and then: write a snapshot, so that recovery is short and the log can be pruned."""
        if self.replica.role is not Role.STOPPED:
            self.imaging.keep_if_due(self.book.sequence, only_again=only_again)

    def _tail_of_book(self) -> Tail:
        tail = self.replica.base
        ensure(tail.sequence == self.book.sequence, "a snapshot of another place in the log than it says")
        return tail

    def copy_book(self, wanted: CopyBook) -> None:
        """Let a reader have a copy of the whole book."""

        def done(made: BookImage | OpenOutcryError) -> None:
            with contextlib.suppress(InvalidStateError):  # it waits no longer
                if isinstance(made, BookImage):
                    wanted.future.set_result(made)
                else:
                    wanted.future.set_exception(copied(made))

        self.copying.want(self.book, done)

    def use_snapshot(self, taken: SnapshotTaken) -> None:
        """A snapshot was taken: keep it or offer it, unless the book was replaced meanwhile."""
        if (keep := self.imaging.on_taken(taken)) is not None:
            self.log_work.keep(keep)
        elif taken.scratch is None and self.imaging.is_current(taken):
            self.run(self.core.transfer.on_image(taken.tail, taken.data, time.monotonic_ns()))

    def install(self) -> None:
        """The fetched state is durable: continue from it."""
        fetched, book = self.core.transfer.installed()
        self.imaging.error = None
        self._log.info("state_taken_over", sequence=fetched.tail.sequence, peer=fetched.sender)
        self._put_in(book)
        self.run(self.core.on_installed(fetched))

    def begin_again(self, aside: str) -> None:
        """The log was put aside: start empty, and receive all of the leader's log."""
        self._log.critical("log_put_aside", sequence=self.book.sequence, aside=aside)
        self.aside = aside
        self._put_in(OrderBook())
        with self.stop_if_refused():
            self.storage.marks_again()
        self.run(self.core.on_put_aside())

    def _put_in(self, book: OrderBook) -> None:
        """Continue from ``book``; watchers must fetch the book again."""
        self.book = book
        self.copying.on_another_book(book)
        self.timekeeper.forget()
        self.imaging.on_another_book(book.sequence)
        self.feed.end(None)

    def try_again(self) -> None:
        """Retry steps that failed because a resource ran out, if they are due."""
        self._keep_snapshot(only_again=True)
        with self.stop_if_refused():
            self.storage.keep_again(time.monotonic())
        self.log_work.read_again(time.monotonic())

    @property
    def counters(self) -> dict[str, int]:
        """What has been done since the start."""
        return {**self._counters, "protocol_errors": self.frames.refused, "swaps": self.calls.swaps}
