"""A whole exchange in one thread, from one seed: the pure replicas and books; network, disks, coordinator simulated.

Every choice (what happens next, what a crash leaves on a disk, whether a coordinator call that failed had been carried
out) is drawn from one ``random.Random(seed)``, so a seed is a schedule, and a failure can be replayed. Each seed draws
its own mix of faults first: some schedules are all crashes, some all cut links, some nearly quiet.

==============  =====================================================================================================
what            how it can go wrong here
==============  =====================================================================================================
link            cut at any moment; each side notices in its own time; what was under way is lost or, up to any point,
                delivered late, even after the link is up again (a socket's buffers outlive it); what came last comes
                once more; one direction stalls; a node has none for a while, and still reaches the coordinator
node            killed, stopped or slow for a while; closed in order (it resigns first)
clock           of one node at a time: wrong by days, either way, since its start or by a jump
disk            fails under a leader whose node lives on; slow; loses what was not synced, keeps any prefix of it;
                stops halfway from the log to a snapshot;
                wiped: the node returns under a new id; damaged or emptied: it returns as it was, without its log;
                replaced by a copy of itself from any time before, of this life or an earlier one
coordinator     slow, unreachable for one node or all; a call that failed was carried out, was not, or will be later;
                replaced by a copy of itself from any time before, until an operator puts the newer store back, or
                rebuilds it from the disks (in each third seed)
operator        sets the log's time when a leader without any other clock has put it wrong;
                forces a node to lead while no member of the in-sync set lives; some come back after all
lease           lapses at any moment, also of a leader that is well
client          submits at any node, also one that follows, is cut off or about to end; sends any command again later
snapshot        offered, fetched in small pieces, interrupted by all of the above, taken up again
==============  =====================================================================================================

Checked at every step: :meth:`World.check`, and at every applied record: :meth:`World.note_applied`. At the end all
faults are healed: then every node must be in sync within a bounded number of steps, and a last command be executed.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from openoutcry.actors.book import replica as protocol
from openoutcry.actors.book import requests
from openoutcry.actors.book.commands import CANCEL_ALL, CLOCK, CONFIGURE, DUPLICATE, SET_TIME, SUBMIT
from openoutcry.actors.book.core import Core, sends_first
from openoutcry.actors.book.disk import DiskState
from openoutcry.actors.book.logtime import LogTime
from openoutcry.actors.book.messages import LogRead
from openoutcry.actors.book.orderbook import OrderBook
from openoutcry.actors.book.record import EMPTY, Record, Tail
from openoutcry.actors.book.replica import (
    COORDINATOR_BEHIND,
    ApplyRecords,
    CreateRecord,
    CutJournal,
    Following,
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
    Replica,
    ReportMark,
    Role,
    Send,
    Stop,
    SwapRecord,
    Troubled,
)
from openoutcry.actors.book.requests import NOT_LEADER, FailRequests, Settled
from openoutcry.actors.book.rules import MarketRules
from openoutcry.actors.book.transfer import TakeImage
from openoutcry.actors.book.wire import Append
from openoutcry.actors.peers.clocks import Clocks, Offset, judge
from openoutcry.transport.coordinator import DiskMark, MarketRecord, successor
from openoutcry.transport.errors import StorageError

MARKET = "SIM"
WINDOW = 256
FLOOR_EACH = 3
"""Requests of each node, once all faults are healed, that have to be answered: no schedule passes by doing nothing."""
STALL_MS = 1000
SECOND_NS = 1_000_000_000
BOUND_NS = SECOND_NS
DAY_NS = 86_400 * SECOND_NS
EPOCH_NS = 20_000 * DAY_NS
"""The time when a world begins."""
RULES = MarketRules(dedupe_window=WINDOW)

FOREVER_NS = 10**18
"""A deadline that no schedule reaches: who waits so long has to be answered unless the node dies."""

FAULTY_STEPS = 0.25
"""In this part of the steps a fault may happen."""
FAULT_SCALE = 2.5
"""How much likelier faults are than _FAULTS says: clients and snapshots have more steps between them."""

_FAULTS = {
    "crash": 0.03,
    "wipe": 0.02,
    "damage": 0.02,
    "close": 0.01,
    "slow": 0.02,
    "cut": 0.02,
    "stall": 0.02,
    "isolate": 0.005,
    "unreachable": 0.02,
    "outage": 0.005,
    "lapse": 0.03,
    "force": 0.02,
    "copy": 0.05,
    "restore": 0.03,
    "jump": 0.01,
}
"""How likely each fault is in a step, for each node (or link) it can strike; a seed multiplies each by 0 to 4."""
_OLD_STORES = {"copy_store": 0.02, "old_store": 0.03, "newer_store": 0.02}
"""The same for the coordinator's store, in each third seed, and once in a step: copied, an old copy put back, ended."""
_UNAVAILABLE = object()


@dataclasses.dataclass(eq=False, slots=True)
class Asked:
    """A request of a client, as its node's :class:`Requests` knows it."""

    commands: tuple[Any, ...]
    deadline_ns: int
    first_sequence: int = 0
    sent_to: str | None = None
    sent_epoch: int = 0
    sent_ever: bool = False
    done: bool = False


class Forced(NamedTuple):
    """What a leader by force began with: no other log of an earlier epoch counts any more."""

    epoch: int
    base: int
    """Up to there its log is what was acknowledged."""
    held: frozenset[bytes]
    """The chains of what it held beyond."""


class Copy(NamedTuple):
    """A copy of a disk, made at some moment."""

    disk: tuple[Record, ...]
    snapshot: tuple[Tail, bytes]
    base: Tail
    committed_on_disk: int
    state: DiskState
    marked: bool

    @property
    def tail(self) -> Tail:
        return self.disk[-1].tail if self.disk else max(self.base, self.snapshot[0])


@functools.lru_cache(1024)
def _judged(offsets: tuple[tuple[str, int], ...], ours_ns: int) -> Clocks:
    """Judge clocks, each known to be ``offsets`` ahead, once: they are the same for thousands of steps."""
    return judge({name: Offset(ahead_ns, 0) for name, ahead_ns in offsets}, BOUND_NS, ours_ns)


class Store(NamedTuple):
    """What the coordinator holds, at some moment."""

    record: MarketRecord
    marks: dict[str, DiskMark]


class Node:
    """One node: its disk survives a crash, the rest does not."""

    book_class: type[OrderBook] = OrderBook

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.disk: list[Record] = []
        self.chains: dict[int, bytes] = {}
        """Of each record in ``disk``: where it ends, and its chain."""
        self.snapshot: tuple[Tail, bytes] = (EMPTY, OrderBook().snapshot())
        """The last one on the disk; the log follows ``base``."""
        self.base = EMPTY
        self.observer = name in world.observers
        self.marked = False
        """On the disk: its log was lost or put aside, and has not been made good yet."""
        self.lost = False
        """Its log was lost, and it has not heard of the coordinator since whether it is a member."""
        self.fetched: tuple[Tail, bytes] | None = None
        self.wall_off_ns = world.chance.randrange(-SECOND_NS // 4, SECOND_NS // 4)
        self.committed_on_disk = 0
        self.state = DiskState()
        """On the disk: what it says of itself."""
        self.copies: list[Copy] = []
        self.alive = False
        self.start()

    # -- life ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.settle()
        self.state = self.state.begin()
        applied, pending = self.snapshot[0], []
        self.book = self.book_class.restore(self.snapshot[1])
        for record in self.disk:
            if record.last_sequence <= self.committed_on_disk:
                self.book.apply(record.first_sequence, record.timestamp_ns, record.commands)
                applied = record.tail
            else:
                pending.append(record)
        if applied.sequence:
            self.world.note_state(self, applied)
        self.world.incarnations += 1000
        self.replica = self.world.replica_class(
            market=MARKET,
            node=self.name,
            applied=applied,
            pending=pending,
            incarnation=self.world.incarnations,
            min_in_sync=self.world.min_in_sync,
            absent_ms_max=500,
            snapshot_behind=self.world.snapshot_behind,
            lag_ms_max=2000,
            stall_ms_max=STALL_MS,
            observer=self.observer,
            repairing=self.marked,
            disk=self.state,
        )
        self.core = self.world.core_class(
            self.replica,
            first_number=self.world.chance.randrange(1, 2**40),
            restore=self.book_class.restore,
            sequence_of=lambda book: book.sequence,
            chunk_size=self.world.chunk_size,
        )
        self.submitted: list[Asked] = []
        """What clients have submitted, and the node has not taken up yet."""
        self.writing = False
        self.image: tuple[Tail, bytes] | None = None
        """An image of the book that is being made into a snapshot."""
        self.journal: deque[Any] = deque()
        self.reads: deque[LogRead] = deque()
        """What was read for followers and is not heard of yet: a leader may write on by itself meanwhile."""
        self.calls: deque[Any] = deque()
        self.answers: deque[tuple[Any, Any]] = deque()
        self.links: set[str] = set()
        self.alive = True
        self.closing = False
        self.broken = False
        """Its disk has failed; the node lives on, and its lease."""
        self.hears_clocks = True
        self.pace = 1.0
        self.reaches_store = True
        self.clock_off_ns = self.world.chance.randrange(10**9)
        self.log_time = self.world.log_time_class(BOUND_NS)
        self.steady = False
        """Since it was started it has stamped a record, by a clock that was right."""
        self.note_clocks()
        self.run(self.replica.start())

    @property
    def tail(self) -> Tail:
        """Where the log on the disk ends."""
        return self.disk[-1].tail if self.disk else self.base

    def crash(self) -> None:
        """Die: of what was being written, any prefix may be on the disk, and a cut may have happened or not."""
        world, chance = self.world, self.world.chance
        for task in list(self.journal)[: chance.randrange(len(self.journal) + 1)]:
            if isinstance(task, PersistRecords):
                survived = chance.randrange(len(task.records) + 1)
                self.write(task.records[:survived])
                if survived < len(task.records):
                    break
            elif isinstance(task, CutJournal):
                self.cut_disk(task.sequence)
            elif isinstance(task, KeepFetched):
                self.keep_fetched()
                if chance.random() < 0.5:
                    self.cut_disk(chance.randrange(self.base.sequence, self.snapshot[0].sequence))
                    break
                self.settle()
            elif isinstance(task, PutAside):
                self.begin_anew()
        if self.calls and isinstance(self.calls[0], SwapRecord) and chance.random() < 0.5:
            world.late.append(self.calls[0])
        self.alive = False
        world.requests.difference_update(self.submitted, self.core.requests.outstanding.values())
        world.hang_up(self.name)
        if chance.random() < world.rates["copy"]:
            self.copy()

    @property
    def now_ns(self) -> int:
        return self.world.now_ns + self.clock_off_ns

    # -- the shell of the replica -------------------------------------------------------------------------------

    def run(self, effects: Iterable[Any]) -> None:
        world, core = self.world, self.core
        todo = list(effects)
        for effect in todo:
            match effect:
                case Send():
                    for node in effect.nodes:
                        world.send(self.name, node, effect.message)
                case PersistRecords():
                    self.persist(effect, todo)
                case CutJournal() | PutAside() | ReadJournal() | KeepFetched():
                    if isinstance(effect, (PutAside, KeepFetched)):
                        self.image = None  # the book will be another
                    if isinstance(effect, KeepFetched) and (fetched := core.transfer.fetched) is not None:
                        self.fetched = fetched.tail, bytes(fetched.data)
                    self.journal.append(effect)
                case OfferSnapshot():
                    todo += core.transfer.offer(effect.node, effect.after, self.now_ns)
                case TakeImage():
                    self.image = self.image or (self.replica.base, self.book.snapshot())
                case KeepDisk():
                    self.state = effect.state
                case Troubled():
                    world.troubles += effect.error is not None
                    if effect.error is not None and effect.error.code == COORDINATOR_BEHIND:
                        world.said.add(self.name)
                case ReadRecord() | CreateRecord() | SwapRecord() | ReadMarks() | ReportMark():
                    if not (self.observer and isinstance(effect, CreateRecord)):
                        self.calls.append(effect)
                case RepairBegun() | RepairEnded():
                    self.marked = isinstance(effect, RepairBegun)
                case ApplyRecords():
                    self.apply(effect.records)
                case FailRequests():
                    for request in effect.requests:
                        world.note_failed(request, effect.error.code)
                case LeadershipBegun():
                    epoch = self.replica.epoch
                    twice = epoch in world.leaders and world.newer is None  # an old store gives epochs again
                    assert not twice, f"{self.name} leads in {epoch}, as {world.leaders[epoch]} has"
                    world.leaders[epoch] = self.name
                    opening = (CLOCK, "", "") if self.replica.tail.sequence else (CONFIGURE, "", "", RULES.to_tuple())
                    self.propose((opening,))
                    todo += core.on_leadership_begun()
                case LeadershipLost():
                    todo += core.on_leadership_lost()
                case Stop():
                    told = effect.error.code == COORDINATOR_BEHIND and world.old_stores
                    assert self.broken or told, f"{self.name} stopped: {effect.error}"
                    todo += core.on_stopped(effect.error)
                case _:
                    raise AssertionError(f"nothing carries out {effect}")

    def persist(self, effect: PersistRecords, todo: list[Any]) -> None:
        """Write at once, where the real shell would, or leave it to the disk's thread."""
        chance = self.world.chance
        idle = chance.random() < 0.5
        at_once = self.core.writes_itself(effect, idle=idle, last=effect is todo[-1])
        if not at_once or self.journal or self.world.sync_slow or chance.random() < 0.2:
            self.journal.append(effect)
            return
        acks, others = sends_first(self.written(effect))
        for ack in acks:
            for node in ack.nodes:
                self.world.send(self.name, node, ack.message)
        todo += others

    def written(self, effect: PersistRecords) -> Iterable[Any]:
        """The records of ``effect`` are on the disk."""
        self.write(effect.records)
        self.writing = False
        sequence = effect.records[-1].last_sequence
        self.committed_on_disk = max(self.committed_on_disk, min(self.replica.committed, sequence))
        return self.replica.on_durable(effect.generation, sequence)

    def apply(self, records: tuple[Record, ...]) -> None:
        settled: Settled[Any] = Settled()
        for record in records:
            events = self.book.apply(record.first_sequence, record.timestamp_ns, record.commands)
            if record.commands[0][0] == SET_TIME:
                self.log_time.forget()
            self.world.note_applied(self, record, events)
            expected = self.replica.expected_hash
            if expected is not None and expected[0] == record.last_sequence:
                assert self.book.state_hash() == expected[1], f"{self.name} diverged at {record.last_sequence}"
            self.core.requests.settle(record, settled)
        self.run(self.replica.on_applied(self.book.sequence, self.book.state_hash()))
        for request in settled.answered.values():
            self.world.note_answered(request, records)
        assert not settled.strangers, f"{self.name} found another's commands under its numbers"
        self.run(self.core.requests.answered(settled))

    def propose(self, commands: tuple[Any, ...], origins: tuple[Any, ...] = ()) -> None:
        last = self.replica.pending[-1].timestamp_ns if self.replica.pending else self.book.timestamp_ns
        stamp = self.log_time.stamp(last, self.wall_ns, self.world.now_ns, self.clocks())
        self.world.note_stamp(self, last, stamp)
        self.writing = True
        effects = self.replica.propose(commands, origins, timestamp_ns=stamp, now_ns=self.now_ns)
        if self.world.left is not None and self.name not in self.world.knowing:
            self.world.astray.add(self.replica.tail.chain)
        self.run(effects)

    def work_requests(self) -> None:
        """Take up what was submitted, and make the next record, as the real shell does after each message."""
        mine = self.core.requests
        if self.submitted and mine.wants(sum([len(request.commands) for request in self.submitted])):
            taken, self.submitted = self.submitted, []
            self.run(mine.take(taken))
        if not self.writing and (record := mine.next_record()) is not None:
            self.propose(*record)

    def finish_image(self) -> None:
        assert self.image is not None
        (tail, data), self.image = self.image, None
        self.run(self.core.transfer.on_image(tail, data, self.now_ns))

    @property
    def wall_ns(self) -> int:
        return EPOCH_NS + self.world.now_ns + self.wall_off_ns

    def clocks(self) -> Clocks:
        """Return this node's clock among those of the nodes that it is linked to."""
        nodes = self.world.nodes
        linked = [name for name in sorted(self.links) if name in nodes and nodes[name].alive and self.hears_clocks]
        offsets = tuple([(name, nodes[name].wall_off_ns - self.wall_off_ns) for name in linked])
        return _judged(offsets, EPOCH_NS + self.wall_off_ns)

    def note_clocks(self) -> None:
        clocks = self.clocks()
        self.replica.on_clocks(off=clocks.off, right=clocks.right, compared=clocks.compared)

    def set_time(self) -> None:
        """An operator sets the log's time to this node's clock."""
        self.log_time.forget()
        record = (((SET_TIME, "", "", "set"),), ())
        self.world.tainted = False
        self.world.stamped = self.log_time, self.world.now_ns
        self.writing = True
        self.run(self.replica.propose(*record, timestamp_ns=self.wall_ns, now_ns=self.now_ns))

    def deliver(self, sender: str, message: Any) -> None:
        effects = self.core.on_message(sender, message, self.now_ns)
        streamed = isinstance(message, Append) and not message.join
        if streamed and effects and isinstance(persist := effects[0], PersistRecords):
            stamp = persist.records[-1].timestamp_ns
            self.log_time.seen(sender, stamp, self.wall_ns, self.world.now_ns, self.clocks())
        self.run(effects)

    # -- the disk -----------------------------------------------------------------------------------------------

    def holds(self, sequence: int, chain: bytes) -> bool:
        """Whether the log up to ``sequence`` is on the disk, as records or in the snapshot."""
        return self.snapshot[0].sequence >= sequence or self.chains.get(sequence) == chain

    def write(self, records: tuple[Record, ...]) -> None:
        self.disk += records
        self.chains.update({record.last_sequence: record.chain for record in records})

    def cut_disk(self, sequence: int) -> None:
        self.world.note_cut(self, [record.chain for record in self.disk if record.last_sequence > sequence])
        self.disk = [record for record in self.disk if record.last_sequence <= sequence]
        self.chains = {record.last_sequence: record.chain for record in self.disk}

    def keep_fetched(self) -> None:
        """Make the fetched state durable; the log is still what it was, until :meth:`settle`."""
        assert self.fetched is not None
        tail = self.fetched[0]
        self.world.note_cut(self, self.chains.values(), tail.sequence if tail.chain not in self.world.astray else 0)
        self.snapshot = self.fetched

    def settle(self) -> None:
        """Begin the log anew with the snapshot if it does not reach that far."""
        tail = self.snapshot[0]
        if tail.sequence > max(self.chains, default=self.base.sequence):
            self.disk.clear()
            self.chains.clear()
            self.base = tail
            self.committed_on_disk = tail.sequence
        assert tail in (self.base, *[record.tail for record in self.disk]), "the log does not fit the snapshot"

    def lose_log(self, *, noticed: bool) -> None:
        """Nothing is left on the disk; ``noticed``: it was damaged, put aside, and the replica marked."""
        self.begin_anew()
        self.marked, self.lost = noticed, True
        if not noticed:
            self.state = DiskState()

    def copy(self) -> None:
        """Make a copy of the disk as it is now; a few of all that were made are kept."""
        self.copies.append(self.take_copy())
        if len(self.copies) > 4:
            del self.copies[self.world.chance.randrange(4)]

    def take_copy(self) -> Copy:
        marked = self.marked or self.lost
        return Copy(tuple(self.disk), self.snapshot, self.base, self.committed_on_disk, self.state, marked)

    def restore(self, made: Copy) -> None:
        """Put a copy in the place of the disk."""
        self.disk = list(made.disk)
        self.chains = {record.last_sequence: record.chain for record in made.disk}
        self.snapshot, self.base, self.committed_on_disk = made.snapshot, made.base, made.committed_on_disk
        self.state, self.marked = made.state, made.marked
        self.lost = True

    def begin_anew(self) -> None:
        """The log is put aside, or lost."""
        self.base, self.snapshot, self.committed_on_disk = EMPTY, (EMPTY, OrderBook().snapshot()), 0
        self.disk.clear()
        self.chains.clear()

    def work_journal(self) -> None:
        """Carry out the next task of the disk; what comes in two steps can be interrupted between them."""
        if self.reads and (not self.journal or self.world.chance.random() < 0.8):
            self.run(self.replica.on_log_read(self.reads.popleft(), self.now_ns))
            return
        if isinstance(self.journal[0], KeepFetched) and self.snapshot is not self.fetched:
            if self.world.faulty and self.world.chance.random() < 0.2:  # no room, or no descriptor, for it
                self.journal.popleft()
                self.core.transfer.on_not_kept(self.now_ns)
                self.run(self.replica.on_snapshot_not_kept())
            else:
                self.keep_fetched()
            return
        task = self.journal.popleft()
        if isinstance(task, PersistRecords):
            self.run(self.written(task))
        elif isinstance(task, CutJournal):
            self.cut_disk(task.sequence)
        elif isinstance(task, KeepFetched):
            self.settle()
            fetched, self.book = self.core.transfer.installed()
            self.world.note_state(self, fetched.tail)
            self.world.transfers += 1
            self.run(self.core.on_installed(fetched))
        elif isinstance(task, PutAside):
            self.begin_anew()
            self.book = self.book_class.restore(self.snapshot[1])
            self.world.put_aside += 1
            self.run(self.core.on_put_aside())
        else:
            self.reads.append(self.read_log(task))

    def read_log(self, task: ReadJournal) -> LogRead:
        base, chance = self.base, self.world.chance
        chain = base.chain if task.after == base.sequence else self.chains.get(task.after)
        bodies: list[bytes] = []
        tails: list[tuple[int, bytes]] = []
        if task.after >= base.sequence and task.expected not in (None, chain):
            ends = [(base.sequence, base.chain), *self.chains.items()]
            tails = [end for end in ends if end[0] <= task.after][-chance.randrange(1, 4) :]
        elif chain is not None:
            bodies = [r.body for r in self.disk if r.first_sequence > task.after][: chance.randrange(1, 6)]
        return LogRead(task.node, task.after, task.token, chain, tuple(bodies), tuple(tails), base.sequence)

    # -- the coordinator ----------------------------------------------------------------------------------------

    def call_store(self) -> None:
        """Carry out the next call to the coordinator: its answer is under way, or lost, or it is carried out late."""
        world = self.world
        call = self.calls.popleft()
        fate = world.chance.random() if world.faulty else 1.0
        answer: Any = _UNAVAILABLE
        if self.reaches_store and not world.outage and fate >= 0.03:
            answer = world.carry_out(self.name, call)
            if fate < 0.06:
                answer = _UNAVAILABLE
        elif isinstance(call, SwapRecord) and fate < 0.02:
            world.late.append(call)
        self.answers.append((call, answer))

    def hear_store(self) -> None:
        world = self.world
        call, answer = self.answers.popleft()
        if answer is _UNAVAILABLE:
            self.run(self.replica.on_coordinator_unavailable(call))
        else:
            self.run(self.core.on_answer(call, answer, self.now_ns))
            old = world.put_back
            if old is not None and isinstance(call, ReadRecord) and answer.epoch > old.record.epoch:
                world.looked.add(self.name)
            if isinstance(call, (ReadRecord, CreateRecord)):
                self.lost = self.lost and self.replica.following is Following.UNCHECKED


class World:
    """All nodes, what is between them, and what has been promised to users."""

    def __init__(
        self,
        seed: int,
        *,
        nodes: int | None = None,
        replica_class: type[Replica] = Replica,
        log_time_class: type[LogTime] = LogTime,
        node_class: type[Node] = Node,
        core_class: type[Core[Any, OrderBook]] = Core,
        more: str | None = None,
        direct: bool | None = None,
        old_store: bool | None = None,
    ) -> None:
        """``more``: faults, joined by "+", that are to be frequent whatever the seed draws.

        ``direct``: clients put their commands into a leader's records themselves, up to eight records at a time: more
        of the steps are the protocol's. Else they submit requests at any node. None: as the seed draws.
        """
        self.seed = seed
        self.chance = chance = random.Random(seed)
        self.replica_class = replica_class
        self.log_time_class = log_time_class
        self.tainted = False
        """The log's time is wrong: somebody stamped it who had no other clock to compare with."""
        self.stamped: tuple[LogTime | None, int] = (None, 0)
        """Who has stamped a record last, and when."""
        self.node_class = node_class
        self.core_class = core_class
        count = chance.randrange(2, 6) if nodes is None else nodes
        self.observers: set[str] = set()
        if count > 2 and chance.random() < 0.3:
            self.observers.add(f"n{chance.randrange(count)}")
        self.min_in_sync = min(count - len(self.observers), chance.choice((1, 1, 2)))
        self.snapshot_behind = chance.choice((3, 20, 10**9, 10**9))
        self.in_flight_max = chance.choice((8, 65_536))
        self.batch_max = chance.choice((3, 3, 40))
        self.report_rate = chance.choice((0, 0.02, 0.2))
        self.many = chance.choice((1, 1, 3, 128))
        """Commands that are worth a record though others are under way: with few, several records are."""
        self.chunk_size = chance.choice((64, 400, 4000))
        self.sync_slow = chance.random() < 0.3
        """No shell writes by itself: each leaves it to its disk's thread."""
        self.rates = {fault: rate * chance.choice((0, 0.3, 1, 1, 4)) for fault, rate in _FAULTS.items()}
        for fault in more.split("+") if more else ():
            self.rates[fault] = 5 * _FAULTS[fault]
        drawn = chance.random() < 0.3
        self.direct = drawn if direct is None else direct
        scale = (1 if self.direct else FAULT_SCALE) / FAULTY_STEPS
        self.rates = {fault: scale * rate for fault, rate in self.rates.items()}
        self.store_chance = random.Random(f"store {seed}")  # of its own: seeds without this fault stay what they were
        drawn = self.store_chance.random() < 1 / 3
        self.loses_store = drawn if old_store is None else old_store
        many = scale * self.store_chance.choice((0.3, 1, 4)) if self.loses_store else 0
        self.rates |= {fault: many * rate for fault, rate in _OLD_STORES.items()}
        self.now_ns = 1_000_000_000
        self.incarnations = 0
        self.faulty = True
        self.outage = False
        self.store: dict[str, MarketRecord] = {}
        self.marks: dict[str, DiskMark] = {}
        """What nodes have reported of their disks."""
        self.store_copies: list[Store] = []
        self.newer: Store | None = None
        """The store that an old copy of it stands in for."""
        self.put_back: Store | None = None
        """That copy, as it was."""
        self.old_stores = self.rebuilt = 0
        """How often an old copy of the store came back, and how often the store was rebuilt from the disks then."""
        self.left: str | None = None
        """A member of the copy's in-sync set that had left before it came back, and had not learned of that."""
        self.knowing: set[str] = set()
        """Who has seen a newer record than that copy."""
        self.looked: set[str] = set()
        """Who has read the record since the first epoch began under that copy."""
        self.said: set[str] = set()
        """Who has said that the store is older than what it has seen."""
        self.begun = 0
        """How many epochs have begun by that copy."""
        self.astray: set[bytes] = set()
        """The chains of what others have led by that copy, before one of those told them: a limit, not a fault."""
        self.held: set[str] = set()
        """Who is not started."""
        self.troubles = self.restored = self.taken_back = 0
        """How often a replica called for a person; how many old disks came back, and how many of nodes being added."""
        self.late: list[SwapRecord] = []
        """Swaps that their nodes have given up, and that the coordinator may still carry out."""
        self.log: dict[int, bytes] = {}
        self.hashes: dict[int, str] = {}
        self.acknowledged = 0
        self.tried: list[tuple[Any, ...]] = []
        """Every command that a client has sent."""
        self.floors: dict[tuple[str, str], int] = {}
        """What had been acknowledged when a command was sent for the first time."""
        self.executed: dict[tuple[str, str], list[int]] = {}
        self.forced: list[Forced] = []
        self.lost: set[bytes] = set()
        """The chains of what was acknowledged, and is no more."""
        self.put_aside = 0
        self.transfers = 0
        """How many states have been fetched and installed."""
        self.requests: set[Asked] = set()
        """What clients wait for."""
        self.answers = 0
        self.leaders: dict[int, str] = {}
        """Who has begun to lead in each epoch: nobody twice."""
        self.wires: dict[tuple[str, str], deque[Any]] = {}
        self.stalled: list[tuple[str, str]] = []
        self.isolated: set[str] = set()
        """Who has no link to any other node."""
        self.ghosts: dict[tuple[str, str], deque[Any]] = {}
        """What was under way on links that are no more, or had just come, and will still be delivered."""
        self.heard: dict[tuple[str, str], deque[Any]] = {}
        """The last messages that each link has delivered."""
        self.connected: set[frozenset[str]] = set()
        self.rising: list[tuple[str, str]] = []
        self.falling: list[tuple[str, str]] = []
        self.wiped: set[str] = set()
        self.nodes: dict[str, Node] = {}
        self.named = 0
        for number in range(count):
            self.add_node(f"n{number}")

    def add_node(self, name: str) -> None:
        self.named += 1
        self.nodes[name] = self.node_class(self, name)

    # -- promises -----------------------------------------------------------------------------------------------

    def is_lost(self, tail: Tail) -> bool:
        """Whether a log that ends so was given up by a leadership by force."""
        return any([tail.epoch < f.epoch and tail.sequence > f.base and tail.chain not in f.held for f in self.forced])

    def note_state(self, node: Node, tail: Tail) -> None:
        """Equal sequence number, equal log and equal state, at every node, however it came by it."""
        if self.is_lost(tail) or tail.chain in self.astray:
            return
        sequence, chain = tail.sequence, tail.chain
        known = self.log.setdefault(sequence, chain)
        assert known == chain, f"{node.name}: another log at {sequence}"
        found = node.book.state_hash()
        expected = self.hashes.setdefault(sequence, found)
        assert expected == found, f"{node.name}: another state at {sequence}"

    def note_cut(self, node: Node, chains: Iterable[bytes], kept: int = 0) -> None:
        """What was acknowledged, and lost to a leadership by force, is put aside; nothing else takes it off a disk."""
        chains = set(chains)
        assert self.lost.isdisjoint(chains), f"{node.name} has cut what was acknowledged"
        if self.newer is not None and (self.left is None or node.name in self.knowing):
            cut = [at for at, chain in self.log.items() if kept < at <= self.acknowledged and chain in chains]
            assert not cut, f"{node.name} has cut what was acknowledged at {cut}"

    def note_applied(self, node: Node, record: Record, events: list[Any]) -> None:
        """``node`` may answer whoever waits for what is in ``record``: from now on it is acknowledged.

        It was executed once; at a sequence number after all that had been acknowledged when it was sent; and it is on
        as many disks as were promised.
        """
        last = record.last_sequence
        if record.chain in self.astray:
            assert node.name not in self.knowing, f"{node.name} knows more, and follows who leads by the old store"
            return
        self.note_state(node, record.tail)
        if last <= self.acknowledged or self.is_lost(record.tail):
            return
        self.acknowledged = last
        holders = [name for name, other in self.nodes.items() if other.holds(last, record.chain) and not other.observer]
        lost = len(self.wiped) + sum([other.lost or other.marked for other in self.nodes.values()])
        assert len(holders) + lost >= self.min_in_sync, f"{last} was acknowledged, but only {holders} have it"
        firsts = {event[1]: event[2] for event in events if event[0] == DUPLICATE}
        for sequence, command in enumerate(record.commands, record.first_sequence):
            key = command[1], command[2]
            if not key[1]:
                continue
            if sequence in firsts:
                assert self.executed[key][-1] == firsts[sequence], f"{key} at {sequence} was answered for another"
                continue
            earlier = self.executed.setdefault(key, [])
            assert not earlier or sequence - earlier[-1] >= WINDOW, f"{key} was executed twice"
            assert earlier or sequence > self.floors[key], f"{key} went before what was acknowledged"
            earlier.append(sequence)

    def wrong(self, name: str) -> bool:
        """Whether a node's clock is not what it should be."""
        return abs(self.nodes[name].wall_off_ns) > BOUND_NS

    def note_stamp(self, node: Node, last_ns: int, stamp_ns: int) -> None:
        """A leader stamps a record: with the time, if it has any means to know it.

        It has if its own clock is right, or most of those that it can ask are, or the log has gone on under its eyes.
        """
        true_ns = EPOCH_NS + self.now_ns
        off_ns = stamp_ns - true_ns
        assert stamp_ns >= last_ns, f"{node.name} turns the log's time back"
        stamped, self.stamped = self.stamped, (node.log_time, self.now_ns)
        stands = stamped[0] is node.log_time and stamped[1] < self.now_ns and stamp_ns == last_ns
        assert not stands, f"{node.name} lets the log's time stand still"
        if abs(off_ns) <= 3 * BOUND_NS:
            self.tainted, node.steady = False, node.steady or not self.wrong(node.name)
            return
        asked = [node.name, *[name for name in node.links if name in self.nodes and self.nodes[name].alive]]
        wrong = sum([self.wrong(name) for name in asked])
        tainted = self.tainted or last_ns - true_ns > 3 * BOUND_NS  # this log is, though one that was cut was not
        excused = tainted or (2 * wrong >= len(asked) and not node.steady)
        assert excused, f"{node.name} stamps a record {off_ns / SECOND_NS} s off"
        outvoted = 2 * wrong + 1 >= len(asked)  # the log votes, too, and wins a tie
        assert off_ns > 0 or outvoted or stamp_ns == last_ns, f"{node.name} leaves the log's time behind"
        self.tainted = True

    def check(self) -> None:
        """What has been acknowledged is on the disk of every member of the in-sync set, at every moment."""
        record = self.store.get(MARKET)
        if record is None or not self.acknowledged:
            return
        chain = self.log[self.acknowledged]
        in_sync = record.in_sync
        if self.left is not None and self.newer is not None:
            in_sync = tuple([name for name in self.newer.record.in_sync if name in self.knowing])
        for name in in_sync:
            node = self.nodes.get(name)
            assert name not in self.observers, f"{name} only observes, but is in sync"
            assert node is None or node.lost or node.marked or node.holds(self.acknowledged, chain), (
                f"{self.acknowledged} was acknowledged, but {name}, in sync, does not hold it"
            )

    # -- the coordinator ----------------------------------------------------------------------------------------

    def carry_out(self, name: str, call: Any) -> Any:
        """Do what ``call`` asks for in the store, and return its answer."""
        if isinstance(call, ReadMarks):
            return dict(self.marks)
        if isinstance(call, ReportMark):
            self.marks[name] = call.mark
            return None
        if isinstance(call, ReadRecord):
            return self.store.get(MARKET)
        if isinstance(call, CreateRecord):
            return self.store.setdefault(MARKET, MarketRecord(MARKET, 1, 1, name, (name,)))
        if self.store[MARKET] != call.expected:
            return None
        if any([(self.marks[node].life if node in self.marks else "") != life for node, life in call.lives]):
            return None
        record = successor(
            call.expected,
            epoch=call.epoch,
            leader=call.leader,
            in_sync=call.in_sync,
            force=call.force,
            yielding=call.yielding,
        )
        self.store[MARKET] = record
        if self.left is not None and record.epoch > call.expected.epoch:
            self.begun += 1
            if self.begun > 1:
                self.knowing &= self.looked
        if call.force:
            self.give_up(self.nodes[name], record.epoch)
        return record

    def give_up(self, node: Node, epoch: int) -> None:
        """``node`` leads by force: of what was acknowledged only what it holds still is."""
        base = node.replica.base.sequence
        held = frozenset([chain for sequence, chain in node.chains.items() if sequence > base])
        kept = [sequence for sequence, chain in self.log.items() if node.holds(sequence, chain)]
        last = max(kept, default=0)
        assert last >= base, f"{node.name} has applied what was never acknowledged"
        self.forced.append(Forced(epoch, base, held))
        self.store_copies.clear()  # what was forced past then would count again
        self.lost.update([chain for sequence, chain in self.log.items() if sequence > last])
        self.log = {sequence: chain for sequence, chain in self.log.items() if sequence <= last}
        self.hashes = {sequence: found for sequence, found in self.hashes.items() if sequence <= last}
        self.acknowledged = min(self.acknowledged, last)
        self.floors = {key: min(floor, last) for key, floor in self.floors.items()}
        executed = {key: [at for at in places if at <= last] for key, places in self.executed.items()}
        self.executed = {key: places for key, places in executed.items() if places}

    # -- links --------------------------------------------------------------------------------------------------

    def send(self, sender: str, receiver: str, message: Any) -> None:
        """Put ``message`` on the wire if ``sender`` has reason to believe that there is one; it may lead nowhere."""
        pair = sender, receiver
        if receiver in self.nodes[sender].links and frozenset(pair) in self.connected and pair not in self.falling:
            self.wires.setdefault(pair, deque()).append(message)

    def cut(self, a: str, b: str) -> None:
        """End a link; what was under way is lost from some point on, and up to it delivered at any later time."""
        self.connected.discard(frozenset((a, b)))
        for pair in ((a, b), (b, a)):
            wire = list(self.wires.pop(pair, ()))
            self.resume(pair)
            kept = wire[: self.chance.randrange(len(wire) + 1)]
            again = self.heard.pop(pair, ())
            if self.chance.random() < 0.5:
                kept = [*again, *kept]
            if kept and self.chance.random() < 0.5:
                self.ghosts.setdefault(pair, deque()).extend(kept)
            if pair in self.rising:
                self.rising.remove(pair)
            elif pair[1] in self.nodes[pair[0]].links and pair not in self.falling:
                self.falling.append(pair)

    def hang_up(self, name: str) -> None:
        """``name`` is dead: nothing reaches it any more, and the others will notice."""
        for other in self.nodes:
            if frozenset((name, other)) in self.connected:
                self.cut(name, other)
            self.ghosts.pop((other, name), None)
            if (name, other) in self.falling:
                self.falling.remove((name, other))
        self.nodes[name].links.clear()

    def connect(self, a: str, b: str) -> None:
        """Bring a link up; each side learns of it when its turn comes, maybe after the other's first messages."""
        self.connected.add(frozenset((a, b)))
        self.rising += [(a, b), (b, a)]

    def rise(self, one: str, other: str) -> None:
        self.rising.remove((one, other))
        node = self.nodes[one]
        node.links.add(other)
        node.run(node.core.on_peer_up(other))

    def fall(self, one: str, other: str) -> None:
        self.falling.remove((one, other))
        node = self.nodes[one]
        node.links.discard(other)
        node.run(node.core.on_peer_down(other, node.now_ns))
        if not self.nodes[other].alive and self.chance.random() < 0.5:
            node.run(node.replica.on_peer_gone(other, node.now_ns))

    def deliver(self, pair: tuple[str, str], wires: dict[tuple[str, str], deque[Any]]) -> None:
        message = wires[pair].popleft()
        if wires is self.wires:
            self.heard.setdefault(pair, deque(maxlen=4)).append(message)
        self.nodes[pair[1]].deliver(pair[0], message)
        if not wires[pair]:
            del wires[pair]

    # -- steps --------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Let one thing happen."""
        actions: list[tuple[Any, ...]] = [(self.tick,)]
        weights = [1.0]

        def may(weight: float, *action: Any) -> None:
            if weight > 0:
                weights.append(weight)
                actions.append(action)

        nodes = self.nodes
        for pair in self.wires:
            if pair not in self.stalled:
                may(4.0 * nodes[pair[1]].pace, self.deliver, pair, self.wires)
        for pair in self.ghosts:
            may(1.0 * nodes[pair[1]].pace, self.deliver, pair, self.ghosts)
        for pair in self.rising:
            may(4.0 * nodes[pair[0]].pace, self.rise, *pair)
        for pair in self.falling:
            may(2.0 * nodes[pair[0]].pace, self.fall, *pair)
        if self.late:
            may(0.3, self.do_late)
        names = list(nodes)
        for at, name in enumerate(names):
            node = nodes[name]
            if not node.alive:
                may(0.0 if name in self.held else 0.4 if self.faulty else 5.0, node.start)
                continue
            pace = node.pace
            if node.replica.role is Role.STOPPED and not node.broken and self.newer is None:
                may(1.0, node.crash)  # told that the store was old: an operator starts it again once it is not
            if node.journal or node.reads:
                may(3.0 * pace, node.work_journal)
            if node.calls:
                may(2.0 * pace, node.call_store)
            if node.answers:
                may(2.0 * pace, node.hear_store)
            if self.faulty and self.direct:
                if node.replica.may_propose and len(node.replica.pending) < 8:
                    may(1.5 * pace, self.trade, node)
            elif self.faulty and len(self.requests) < 16:
                may((1.0 if node.replica.leads else 0.4) * pace, self.trade, node)
            if node.submitted or (node.core.requests.waiting and not node.writing):
                may(4.0 * pace, node.work_requests)
            if node.image is not None:
                may(1.0 * pace, node.finish_image)
            if node.closing:
                may(0.5 * pace, self.close, node)
            if self.must_force_again(node):
                may(0.3 * pace, self.force, node)
            if self.leader_is_gone(node):
                may(0.3 * pace, self.lapse, node)
            for other in names[at + 1 :]:
                pair = name, other
                if not nodes[other].alive or frozenset(pair) in self.connected:
                    continue
                if self.isolated.isdisjoint(pair) and pair not in self.falling and pair[::-1] not in self.falling:
                    may(1.0 * pace * nodes[other].pace, self.connect, *pair)
        for pair in self.stalled if self.faulty else ():
            may(0.1, self.resume, pair)
        if self.faulty and self.chance.random() < FAULTY_STEPS:
            self.offer_faults(may)
        action, *arguments = self.chance.choices(actions, weights)[0]
        action(*arguments)
        for node in self.nodes.values():
            if node.alive and node.pace and self.chance.random() < 0.5:
                node.run(node.replica.announce_commit())
        self.check()

    def offer_faults(self, may: Callable[..., None]) -> None:
        """Add the faults to what may happen: not in each step, for that costs time, but so much the likelier."""
        rates, nodes = self.rates, self.nodes
        alive = [name for name, node in nodes.items() if node.alive]
        losable = self.losable()
        swaps = [call for node in nodes.values() for call in node.calls if isinstance(call, SwapRecord)]
        added = {name for swap in [*swaps, *self.late] for name in {*swap.in_sync} - {*swap.expected.in_sync}}
        for at, name in enumerate(alive):
            node = nodes[name]
            for pair in [(name, other) for other in alive[at + 1 :] if frozenset((name, other)) in self.connected]:
                may(rates["cut"], self.cut, *pair)
                may(rates["stall"], self.stall, pair)
                may(rates["stall"], self.stall, pair[::-1])
            if rates["force"] and not self.newer and self.may_force(node):
                may(rates["force"], self.force, node)
            may(rates["crash"], node.crash)
            may(rates["close"], self.close, node)
            may(rates["slow"], self.change_pace, node)
            may(rates["unreachable"], self.change_reach, node)
            may(rates["jump"] * (3 if self.wrong(name) else 1), self.jump, node)
            may(rates["isolate"] * (10 if name in self.isolated else 1), self.change_isolation, name)
            if node.replica.leader is not None:
                may(rates["lapse"] * node.pace, self.lapse, node)
            may(rates["copy"], node.copy)
            if node.copies and not self.newer:
                may(rates["restore"] * (20 if name in added else 1), self.restore, name)
            if name in losable and not self.newer:
                may(rates["wipe"], self.wipe, name)
                may(rates["damage"], self.damage, name)
        may(rates["outage"] * (10 if self.outage else 1), self.change_outage)
        if not self.loses_store or self.store.get(MARKET) is None:
            return
        may(rates["copy_store"], self.copy_store)
        may(rates["newer_store"] if self.newer else 0, self.end_old_store)
        may(rates["old_store"] if self.store_copies and not self.newer else 0, self.restore_store)

    def tick(self) -> None:
        self.now_ns += self.chance.choice((1, 10, 100, 400)) * 1_000_000
        for node in self.nodes.values():
            if node.alive and self.chance.random() < node.pace:
                node.note_clocks()
                node.run(node.core.on_tick(node.now_ns))
                mark = node.replica.mark
                if mark is not None and mark != self.marks.get(node.name) and self.chance.random() < self.report_rate:
                    node.calls.append(ReportMark(mark))

    def trade(self, node: Node) -> None:
        """Clients bring commands to ``node``: new ones, and old ones whose answer they may or may not have had."""
        chance = self.chance
        commands: list[tuple[Any, ...]] = []
        for _ in range(chance.randrange(1, 2 + chance.randrange(self.batch_max))):
            if self.tried and chance.random() < 0.25:
                commands.append(self.tried[-1 - chance.randrange(min(len(self.tried), 30))])
                continue
            account, client_order_id = chance.choice("ab"), f"c{len(self.tried)}"
            if chance.random() < 0.1:
                command: tuple[Any, ...] = (CANCEL_ALL, account, client_order_id)
            else:
                side, price = chance.randrange(2), chance.randrange(95, 106)
                command = (SUBMIT, account, client_order_id, side, 0, price, chance.randrange(1, 5), 0, 0, 1)
            self.tried.append(command)
            self.floors[account, client_order_id] = self.acknowledged
            commands.append(command)
        if self.direct and self.faulty:
            node.propose(tuple(commands))
            return
        timeout_ns = chance.choice((500 * 10**6, 3 * 10**9, FOREVER_NS, FOREVER_NS))
        request = Asked(tuple(commands), node.now_ns + timeout_ns)
        self.requests.add(request)
        node.submitted.append(request)

    def note_answered(self, request: Asked, records: tuple[Record, ...]) -> None:
        """A client gets its answer: once, and of its own commands, where the log has them."""
        assert not request.done, "a request was answered twice"
        request.done = True
        self.requests.discard(request)
        self.answers += 1
        first = request.first_sequence
        (record,) = [each for each in records if each.first_sequence <= first <= each.last_sequence]
        at = first - record.first_sequence
        found = record.commands[at : at + len(request.commands)]
        assert found == request.commands, f"asked for {request.commands}, answered for {found}"

    def note_failed(self, request: Asked, code: str) -> None:
        """A client gets an error: a refusal, or that the outcome is unknown. Where another leads it is routed again."""
        assert not request.done, "a request failed that was answered"
        assert code != NOT_LEADER, "a client was told that it had asked the wrong node"
        request.done = True
        self.requests.discard(request)

    def leader_is_gone(self, node: Node) -> bool:
        """Whether the real shell of ``node`` would find the lease of its leader lapsed."""
        leader = node.replica.lost_leader
        return leader is not None and (leader not in self.nodes or not self.nodes[leader].alive)

    # -- faults -------------------------------------------------------------------------------------------------

    def lapse(self, node: Node) -> None:
        assert node.replica.leader is not None
        node.run(node.replica.on_leader_lapsed(node.replica.leader))

    def close(self, node: Node) -> None:
        """The node is being closed: it resigns, and after a while, in whatever state, ends."""
        if node.closing and self.chance.random() < 0.2:
            node.crash()
            return
        node.closing = True
        node.run(node.replica.resign())

    def stall(self, pair: tuple[str, str]) -> None:
        if pair not in self.stalled:
            self.stalled.append(pair)

    def resume(self, pair: tuple[str, str]) -> None:
        if pair in self.stalled:
            self.stalled.remove(pair)

    def change_isolation(self, name: str) -> None:
        if name in self.isolated:
            self.isolated.remove(name)
            return
        self.isolated.add(name)
        for pair in sorted([tuple(sorted(pair)) for pair in self.connected if name in pair]):
            self.cut(*pair)

    def jump(self, node: Node) -> None:
        """The clock of a node jumps; no two are wrong at a time."""
        if any([self.wrong(name) for name in self.nodes]):
            node.wall_off_ns = self.chance.randrange(-SECOND_NS // 4, SECOND_NS // 4)
        else:
            node.wall_off_ns = self.chance.choice((-1, 1)) * self.chance.randrange(2 * SECOND_NS, 5 * DAY_NS)

    def change_pace(self, node: Node) -> None:
        node.pace = self.chance.choice((0.0, 0.05, 0.3, 1.0, 1.0, 1.0))

    def change_reach(self, node: Node) -> None:
        node.reaches_store = self.chance.random() < 0.5

    def change_outage(self) -> None:
        self.outage = not self.outage

    def do_late(self) -> None:
        swap = self.late.pop(self.chance.randrange(len(self.late)))
        if swap.force and (swap.leader not in self.nodes or self.nodes[swap.leader].journal):
            return  # what would be lost is not known here; that it is not carried out is as likely
        self.carry_out(swap.leader, swap)

    def may_force(self, node: Node) -> bool:
        """Whether an operator may make ``node`` lead: nobody in sync lives. (Its log is none that was given up.)"""
        record = self.store.get(MARKET)
        alive = [name for name, other in self.nodes.items() if other.alive]
        return (
            record is not None
            and node.replica.force_refusal(record, alive) is None
            and not node.journal
            and node.replica.tail.sequence > 0
            and node.replica.tail.epoch >= record.forced
        )

    def must_force_again(self, node: Node) -> bool:
        """Whether a replica under repair died before it learned that it leads by force: no log tells that it was so."""
        record = self.store.get(MARKET)
        alone = record is not None and record.forced == record.epoch and record.in_sync == (node.name,)
        return alone and node.marked and node.replica.force_refusal(record, ()) is None and not node.journal

    def force(self, node: Node) -> None:
        node.run(node.replica.force(self.store[MARKET]))

    def losable(self) -> set[str]:
        """Whose disk can be lost and no promise broken: where two are required, one of the in-sync set."""
        record = self.store.get(MARKET)
        if record is None or self.min_in_sync < 2 or not self.acknowledged:
            return set()
        if record.forced and len(record.in_sync) < self.min_in_sync:  # a forced leader's log is the only copy at first
            return set()
        counted = set(record.in_sync)
        lost = set(self.wiped)
        for name, node in self.nodes.items():
            counted.update(*[call.in_sync for call in node.calls if isinstance(call, SwapRecord)])
            if node.lost or node.marked:
                lost.add(name)
        counted.update(*[swap.in_sync for swap in self.late])
        lost &= counted
        return set() if len(lost) > 1 else lost or set(self.nodes)

    def is_whole(self, node: Node) -> bool:
        """Whether all that was acknowledged can be had from ``node``, and it knows that it may lead."""
        chain = self.log.get(self.acknowledged, b"")
        return not node.lost and not node.marked and node.holds(self.acknowledged, chain)

    def restore(self, name: str) -> None:
        """The disk of a node is replaced by a copy of it.

        Only where nothing has to be lost by that: it lacks nothing, or it can be told that it does (it is not of the
        last life, or ends before what was reported), and every in-sync set that there is, or may be, has another.
        """
        node, record = self.nodes[name], self.store.get(MARKET)
        made = self.chance.choice(node.copies)
        mark, tail = self.marks.get(name), made.tail
        if record is None or not self.acknowledged:
            return
        told = mark is not None and (
            mark.life not in (made.state.life, *made.state.begun)
            or (mark.epoch >= record.forced and (mark.epoch, mark.sequence) > (tail.epoch, tail.sequence))
        )
        swaps = [call for other in self.nodes.values() for call in other.calls if isinstance(call, SwapRecord)]
        sets = [record.in_sync, *[swap.in_sync for swap in [*swaps, *self.late]]]
        safe = [any(m != name and m in self.nodes and self.is_whole(self.nodes[m]) for m in each) for each in sets]
        if self.lost_disks() - {name} or not told or not all(safe):
            return
        if self.min_in_sync > 1 and name in record.in_sync and name not in self.losable():
            return
        node.crash()
        node.restore(made)
        self.restored += 1

    def lost_disks(self) -> set[str]:
        """Whose disk is not what was promised: wiped, damaged, or an old copy, and not made good yet."""
        return self.wiped | {name for name, node in self.nodes.items() if node.lost or node.marked}

    def copy_store(self) -> None:
        """Make a copy of the coordinator's store as it is now; a few of all that were made are kept."""
        self.store_copies.append(Store(self.store[MARKET], dict(self.marks)))
        if len(self.store_copies) > 4:
            del self.store_copies[self.chance.randrange(4)]

    def restore_store(self) -> None:
        """An old copy of the coordinator's store takes its place, under running nodes.

        No disk is older than it should be at the same time, and no member of the copy's in-sync set has left since.
        """
        old = self.chance.choice(self.store_copies)
        now = Store(self.store[MARKET], dict(self.marks))
        kept = {name for name in old.record.in_sync if name in self.nodes}
        if old.record == now.record or not self.acknowledged or not kept.issubset(now.record.in_sync):
            return
        if any([node.lost or node.marked for node in self.nodes.values()]):
            return
        self.exchange_store(old)
        self.newer, self.put_back = now, old

    def exchange_store(self, store: Store) -> None:
        """Put another store in the place of this one; calls that had come so far are lost with their connections."""
        self.store[MARKET], self.marks = store.record, dict(store.marks)
        self.late.clear()
        self.old_stores += 1

    def end_old_store(self) -> None:
        """An operator ends it: the newer store comes back, or is rebuilt where a node has begun anything by the old."""
        newer, put_back = self.newer, self.put_back
        assert newer is not None
        assert put_back is not None
        self.newer = self.put_back = None
        begun = {name: mark.life for name, mark in self.marks.items()}
        if self.store[MARKET] == put_back.record and begun == {n: m.life for n, m in put_back.marks.items()}:
            self.exchange_store(newer)
            return
        self.rebuild_store()

    def rebuild_store(self) -> None:
        """`openoutcry coordinator rebuild`: all nodes are stopped; the log that reaches furthest goes on, by force."""
        for node in self.nodes.values():
            if node.alive:
                node.crash()
        members = [node for node in self.nodes.values() if not node.observer and node.tail.sequence]
        fit = [node for node in members if not node.lost and not node.marked]
        fit = [node for node in fit if not self.is_astray(node)]  # of two logs a person takes the right one
        chosen = max(fit, key=lambda node: (node.tail.epoch, node.tail.sequence))
        assert self.is_whole(chosen), f"the store is rebuilt from {chosen.name}, which lacks what was acknowledged"
        epoch = max([node.tail.epoch for node in self.nodes.values()]) + 1
        self.exchange_store(Store(MarketRecord(MARKET, epoch, epoch, chosen.name, (chosen.name,), epoch), {}))
        for node in self.nodes.values():
            node.state = DiskState(epochs=node.state.epochs)  # the rest belongs to the store that is gone
            node.copies = [made._replace(state=DiskState(epochs=made.state.epochs)) for made in node.copies]
        self.give_up(chosen, epoch)
        self.leaders.clear()
        self.rebuilt += 1

    def damage(self, name: str) -> None:
        """The log of a node is lost; it comes back, and knows that of itself or by the coordinator's record."""
        node = self.nodes[name]
        node.crash()
        node.lose_log(noticed=name not in self.store[MARKET].in_sync or self.chance.random() < 0.5)

    def wipe(self, name: str) -> None:
        """The disk of a node is lost; the node comes back under a new id."""
        self.nodes[name].crash()
        for pair in [pair for pair in self.ghosts if name in pair]:
            del self.ghosts[pair]
        for pair in [pair for pair in self.falling if name in pair]:
            self.fall(*pair)
        del self.nodes[name]
        self.wiped.add(name)
        again = f"n{self.named}"
        if name in self.observers:
            self.observers.add(again)
        self.add_node(again)

    # -- a whole run --------------------------------------------------------------------------------------------

    def run(self, steps: int) -> None:
        """Live through ``steps`` faulty steps, then heal everything and require that all nodes converge."""
        in_flight_max, many = protocol.IN_FLIGHT_MAX, requests.MANY
        protocol.IN_FLIGHT_MAX, requests.MANY = self.in_flight_max, self.many  # type: ignore[misc]
        try:
            for _ in range(steps):
                self.step()
            self.heal()
            self.converge()
            self.answer_everybody()
            self.set_time_if_wrong()
            self.mislead_the_leader()
            self.mislead_a_follower()
            self.restart_the_leader_misled()
            self.isolate_the_leader()
            self.stop_the_leader()
            self.restore_who_is_added()
            if self.loses_store and not self.lead_by_an_old_store():
                return
            self.answer_everybody()
        finally:
            protocol.IN_FLIGHT_MAX, requests.MANY = in_flight_max, many  # type: ignore[misc]
        for node in self.nodes.values():
            node.book.check()
            assert node.book.sequence >= self.acknowledged, f"{node.name} lost acknowledged commands"

    def answer_everybody(self) -> None:
        """Healed, every node has its clients' commands executed: the floor of what each schedule has to acknowledge."""
        acknowledged, answers = self.acknowledged, self.answers
        for node in [node for node in self.nodes.values() for _ in range(FLOOR_EACH)]:
            self.trade(node)
        for request in self.requests:
            request.deadline_ns += FOREVER_NS
        self.converge()
        floor = FLOOR_EACH * len(self.nodes)
        assert self.answers >= answers + floor, f"{self.answers - answers} answers of {floor} at least"
        assert self.acknowledged > acknowledged, "healed, but nothing is executed any more"

    def leader(self) -> Node:
        return self.nodes[self.store[MARKET].leader]

    def set_time_if_wrong(self) -> None:
        """What no clock could tell an operator can; all replicas follow."""
        leader = self.leader()
        off_ns = leader.book.timestamp_ns - EPOCH_NS - self.now_ns
        if self.tainted and off_ns > 3 * BOUND_NS:
            leader.set_time()
            self.converge()
            self.trade(leader)
            self.converge()
        assert not self.tainted, "the clocks are right, and the log's time is not"

    def mislead_the_leader(self) -> None:
        """The leader's clock jumps: another leads if it can, the log's time does not follow, and so it stays."""
        members = sorted(set(self.nodes) - self.observers)
        if len(self.nodes) < 3 or len(members) < 2:
            return
        former = self.leader()
        former.wall_off_ns = self.chance.choice((-3, 3)) * DAY_NS
        for _ in range(20_000):
            self.step()
            if not former.replica.leads and self.leader().replica.may_propose:
                break
        else:
            raise AssertionError(f"stuck: {former.name} leads on, though its clock is off, and others' are not")
        self.converge()
        now_leads, epoch = self.store[MARKET].leader, self.store[MARKET].epoch
        for _ in range(300):
            self.step()
        assert (self.store[MARKET].leader, self.store[MARKET].epoch) == (now_leads, epoch), "leadership goes around"
        self.trade(self.leader())
        self.converge()
        former.wall_off_ns = 0

    def mislead_a_follower(self) -> None:
        """A follower with a wrong clock finds the leader's lease lapsed: it leaves it to another, for a while."""
        record = self.store[MARKET]
        followers = [name for name in record.in_sync if name != record.leader]
        if len(followers) < 2:
            return
        wrong = self.nodes[self.chance.choice(followers)]
        wrong.wall_off_ns = self.chance.choice((-3, 3)) * DAY_NS
        for _ in range(20_000):
            if wrong.replica.clock_off and wrong.clocks().right.intersection(followers):
                break
            self.step()
        else:
            raise AssertionError(f"stuck: {wrong.name} does not know that its clock is off")
        self.lapse(wrong)
        for _ in range(300):
            self.step()
        assert self.store[MARKET].leader != wrong.name, "it takes over with a wrong clock"
        wrong.wall_off_ns = 0
        self.converge()

    def restart_the_leader_misled(self) -> None:
        """The leader starts again with a clock that is ahead: it waits for other clocks before it stamps the log."""
        if len(self.nodes) < 3 or len(set(self.nodes) - self.observers) < 2:
            return
        former = self.leader()
        former.crash()
        former.wall_off_ns = 3 * DAY_NS
        self.change_isolation(former.name)
        former.start()
        until_ns = self.now_ns + SECOND_NS
        while self.now_ns < until_ns:
            self.step()
        self.change_isolation(former.name)
        assert not self.tainted, f"{former.name} stamps the log before it has asked for the time"
        self.converge()
        self.trade(self.leader())
        self.converge()
        assert not self.tainted, f"{former.name} stamps the log before it has asked for the time"
        former.wall_off_ns = 0

    def isolate_the_leader(self) -> None:
        """Cut the leader off from the other nodes, not from the coordinator: another leads if it can commit, else none.

        One that took over without the means to would change nothing but who is in the way.
        """
        members = sorted(set(self.nodes) - self.observers)
        record = self.store[MARKET]
        if self.min_in_sync < 2 or len(members) < 3 or self.falling or self.rising:
            return
        others = [name for name in members if name != record.leader]
        for name in members:
            self.change_isolation(name)
        for _ in range(600):
            self.step()
        found = self.store[MARKET]
        assert (found.leader, found.epoch) == (record.leader, record.epoch), "took over, and could not commit either"
        assert found.yielding, f"{record.leader} leads, cannot commit, and does not say so"
        for name in others:
            self.change_isolation(name)
        for _ in range(20_000):
            self.step()
            leader = self.nodes[self.store[MARKET].leader]
            if (
                leader.name in others
                and leader.replica.may_propose
                and leader.replica.committed == leader.book.sequence
            ):
                break
        else:
            raise AssertionError(f"stuck: {record.leader} cannot commit, and none of {others} leads")
        last = self.acknowledged
        self.trade(leader)
        for request in self.requests:
            request.deadline_ns += FOREVER_NS
        for _ in range(20_000):
            if self.acknowledged > last:
                break
            self.step()
        else:
            raise AssertionError(f"stuck: {leader.name} has taken over, and does not commit")
        self.heal()
        self.converge()

    def stop_the_leader(self) -> None:
        """The disk fails of who leads, or is about to; its node lives, and so does its lease: another has to lead.

        The replica that may lead then has no link to the stopped one, or has just started and waits for other clocks.
        """
        record, chance = self.store[MARKET], self.chance
        others = [name for name in record.in_sync if name != record.leader]
        if len(others) < self.min_in_sync:
            return
        stopped = self.leader()
        started, other = self.nodes[chance.choice(others)], self.nodes[chance.choice(others)]
        self.trade(stopped)
        if chance.random() < 0.5:
            started.crash()
            started.start()
            started.hears_clocks = False
            for _ in range(200):
                if self.converged():
                    break
                self.step()
        elif chance.random() < 0.5:
            self.lapse(other)
            while other.replica.role is Role.FOLLOWING and (other.calls or other.answers):
                self.step()
            if other.replica.role is Role.CLAIMING:
                stopped = other
        cut_off = chance.random() < 0.5
        if cut_off:
            self.change_isolation(stopped.name)
        stopped.broken = True
        stopped.run(stopped.replica.stop(StorageError("the disk failed")))
        for _ in range(chance.randrange(100)):
            self.step()
        if cut_off:
            self.change_isolation(stopped.name)
        started.hears_clocks = True
        for _ in range(20_000):
            self.step()
            leader = self.leader()
            if leader is not stopped and leader.replica.may_propose:
                break
        else:
            left = set(self.store[MARKET].in_sync) - {stopped.name}
            enough = len(left) >= self.min_in_sync  # else the restarted replica came back in sync too late
            assert not enough, f"stuck: {stopped.name} has stopped, its node lives, and none of {left} leads"
        stopped.crash()
        stopped.start()
        self.converge()

    def restore_who_is_added(self) -> None:
        """The disk of a node goes back to a copy while the coordinator has not yet carried out the node's addition."""
        leader, record = self.leader(), self.store[MARKET]
        others = [name for name in record.in_sync if name != leader.name]
        if not others or len(others) < self.min_in_sync:
            return
        added = self.nodes[self.chance.choice(others)]

        def until(is_so: Callable[[], bool]) -> bool:
            for _ in range(20_000):
                if is_so() or not leader.replica.leads:
                    break
                self.step()
            return is_so()

        def adding() -> list[SwapRecord]:
            calls = [call for call in leader.calls if isinstance(call, SwapRecord)]
            return [call for call in calls if added.name in {*call.in_sync} - {*call.expected.in_sync}]

        self.change_isolation(added.name)
        removed = until(lambda: added.name not in self.store[MARKET].in_sync)
        made, acknowledged = added.take_copy(), self.acknowledged
        self.trade(leader)
        removed = removed and until(lambda: self.acknowledged > acknowledged)
        self.change_isolation(added.name)
        if removed and until(lambda: bool(adding())):
            (swap,) = adding()
            leader.calls.remove(swap)
            added.crash()
            added.restore(made)
            added.start()
            until(lambda: added.replica.following is not Following.UNCHECKED)
            leader.calls.append(swap)
            self.taken_back += 1
        for request in self.requests:
            request.deadline_ns += FOREVER_NS
        self.converge()

    def lead_by_an_old_store(self) -> bool:
        """An old copy of the store comes back that counts a member which has left since, and does not know that.

        Return False where nobody has looked at the store in time to know (the third limit below): the guarantees
        promise nothing then, and the schedule ends.

        This is where the guarantees name limits, and here is all of them:

        - Until it is linked to a node that has seen a newer record, the member, or one that has not seen any either,
          may lead by the copy. What it answers meanwhile (``astray``) is given up in the end.
        - Who has not seen a newer record may follow it, and cut what it does not know to be committed.
        - Who looks at the store only when a second epoch has begun there counts as one that has not seen a newer one.

        All others (``knowing``) say that the store is old, follow nobody who leads by it, make him stop, and cut
        nothing that was acknowledged; so it is all there when a person goes on with one of their logs.
        """
        record, chance = self.store[MARKET], self.chance
        if len(record.in_sync) <= self.min_in_sync:
            return True
        old, acknowledged = Store(record, dict(self.marks)), self.acknowledged
        left = self.nodes[chance.choice(record.in_sync)]
        self.held = {left.name}
        left.crash()
        self.until(lambda: left.name not in self.store[MARKET].in_sync and self.leader().replica.may_propose)
        self.trade(self.leader())
        self.until(lambda: self.acknowledged > acknowledged)
        began = chance.choice(("first", "first", "among them", "told"))
        heirs = [name for name in self.store[MARKET].in_sync if name != self.leader().name]
        heir = self.nodes[chance.choice(heirs)] if heirs and began == "told" else None
        if heir is not None:
            self.until(lambda: heir.replica.committed == self.acknowledged, 500)
        if began != "among them":
            self.held = set(self.nodes)
            for name in sorted(set(self.nodes) - {left.name, heir.name if heir is not None else ""}):
                self.nodes[name].crash()
        self.newer, self.put_back = Store(self.store[MARKET], dict(self.marks)), old
        self.exchange_store(old)
        self.left = left.name
        self.knowing = {name for name, node in self.nodes.items() if node.state.version > record.version}
        self.said.clear()
        self.looked.clear()
        self.begun = 0
        self.held.discard(left.name)
        if heir is not None:
            self.take_over_when_told(left, heir)
        elif began == "first" and self.until(lambda: left.alive and left.replica.may_propose, 1500):
            self.trade(left)
            self.until(lambda: not self.requests, 1500)
        self.held = {heir.name} if heir is not None and not heir.alive else set()
        for _ in range(chance.randrange(300)):
            self.step()
        said = self.until(lambda: not self.knowing or self.all_say_so())
        if not self.knowing:
            self.left = None
            return False
        if not said:
            raise AssertionError(f"stuck: {left.name}, which had left, leads, or {sorted(self.knowing)} do not say so")
        self.held.clear()
        self.end_old_store()
        self.left = None
        self.knowing.clear()
        for request in self.requests:
            request.deadline_ns += FOREVER_NS
        self.converge()
        astray = [node.name for node in self.nodes.values() if self.is_astray(node)]
        assert not astray, f"what was led by the old store is still in the logs of {astray}"
        return True

    def is_astray(self, node: Node) -> bool:
        """Whether its log holds what was led by an old copy of the store."""
        return not self.astray.isdisjoint({*node.chains.values(), node.base.chain, node.snapshot[0].chain})

    def take_over_when_told(self, left: Node, heir: Node) -> None:
        """``heir`` leads by the old store, and holds all; it tells ``left`` that it lacks some of that, and is lost."""

        def is_told() -> bool:
            joined = left.alive and left.replica.joined and left.replica.leader == heir.name
            return joined and left.name in heir.replica.followers(0) and (heir.name, left.name) not in self.wires

        self.until(lambda: heir.replica.leads or left.replica.leads, 1000)
        if not heir.replica.leads or not self.until(is_told, 1000) or left.tail.sequence >= heir.replica.committed:
            return
        heir.crash()
        self.held.add(heir.name)
        self.until(lambda: left.replica.leads, 1000)
        assert not left.replica.leads, f"{left.name} leads, though it lacks what {heir.name} told it was committed"

    def all_say_so(self) -> bool:
        """Whether all who know more than the old store have said that it is old, and nobody leads by it any more."""
        leads = [name for name, node in self.nodes.items() if node.alive and node.replica.leads]
        return self.knowing.issubset(self.said) and self.knowing.issuperset(leads)

    def until(self, is_so: Callable[[], bool], steps: int = 20_000) -> bool:
        """Go on until it is so, for at most so many steps; return whether it is."""
        for _ in range(steps):
            if is_so():
                return True
            self.step()
        return is_so()

    def heal(self) -> None:
        """End every fault."""
        self.faulty = self.outage = False
        if self.newer is not None:
            self.end_old_store()
        self.stalled.clear()
        self.isolated.clear()
        for node in self.nodes.values():
            node.pace = 1.0
            node.reaches_store = True
            if self.wrong(node.name):
                node.wall_off_ns = 0

    def converge(self) -> None:
        """Go on until all nodes are in sync; a schedule that does not get there is a failure."""
        for _ in range(300 + 500 * len(self.nodes)):
            for _ in range(10):
                self.step()
            if self.converged():
                return
        states = [
            (n.name, n.alive, n.replica.role, n.replica.epoch, n.replica.tail.sequence) for n in self.nodes.values()
        ]
        raise AssertionError(f"stuck: {self.store.get(MARKET)}, {states}, {len(self.requests)} requests unanswered")

    def converged(self) -> bool:
        nodes = list(self.nodes.values())
        if self.requests or not all([node.alive and not node.closing and not node.marked for node in nodes]):
            return False
        record = self.store.get(MARKET)
        if record is None or set(record.in_sync) != set(self.nodes) - self.observers:
            return False
        if record.yielding or not self.nodes[record.leader].replica.may_propose:
            return False
        tails = {(n.replica.tail.chain, n.replica.committed, n.book.sequence) for n in nodes}
        return len(tails) == 1 and nodes[0].replica.tail.sequence == nodes[0].book.sequence
