"""The replication protocol of one market at one node. Pure: messages, durable marks and time in, effects out.

Primary-backup with a reconfigurable in-sync set and an external coordinator: PacificA (Lin, Yang, Zhang, Zhou,
MSR-TR-2008-25), the scheme of Kafka's in-sync replicas. The rules it rests on:

- An entry is committed when it is durable on every member of the in-sync set; only committed entries are applied.
- Only a compare-and-swap on the coordinator changes ``(epoch, leader, in-sync set)``. While a swap that
  adds a member runs, the leader already needs that member's ack; a swap that removes one takes effect only on success.
- A leader that cannot commit for some seconds says so in the coordinator's record; a member of the in-sync set that has
  lost the leader, and is linked to enough others, takes over by a swap as if it were dead.
- When no member of the in-sync set is left, a person may make another replica lead: by force. An older log may hold
  acknowledged entries that the new leader lacks: it is put aside, never cut.
- A disk may come back as an older copy of itself. Each start is a *life* with a random name, on the disk and at the
  coordinator before the replica leads, follows or acknowledges; members report there how far they are committed. A
  member whose disk is not of the last life, or ends before what was reported, is repaired like a damaged one.
- A swap that adds a member takes effect only if the disk is still of the life whose log had caught up.
- A new epoch is the version that begins it. So a record that goes on from an older copy of the coordinator's store does
  not pass for newer with a replica that has seen more, unless yet another epoch has begun there since.
- If a follower holds committed entries that its leader's log lacks, the leader's disk or the coordinator's store is an
  older copy. The follower objects, and the leader steps back.
- Every message carries its epoch. A replica refuses older epochs, and believes a newer one, or another leader, only
  from the coordinator's record, which it reads at once when a message claims so.

The shell (``shell.py``) calls one method per input, in any order, and carries out the returned effects in order.

=================  =================================================================================
role               meaning
=================  =================================================================================
FOLLOWING          receives the leader's log, or waits for one: see the next table
CLAIMING           the coordinator names this node as leader; a swap to the next epoch is running
LEADING            orders commands
STOPPED            an invariant broke or the disk failed; it only asks others to lead in its place
=================  =================================================================================

What a replica receives (:class:`Following`). A replica that claims keeps its state until it leads, or gives the claim
up: its requests still go to the leader that it follows.

=========  ========================================================  =================================================
state      meaning                                                   what leads out of it
=========  ========================================================  =================================================
UNCHECKED  its disk has not been compared with what the coordinator  to APART: the disk fits, and this life is
           knows of it: it takes no part                             reported; or its repair begins; or a leadership
                                                                     by force
APART      no join is under way: the leader is not known, or not     to JOINING: the leader is linked, now or at a
           linked, or this replica has to join again, or leads       tick, and a Join is sent
JOINING    a Join is sent; no Append has answered it yet             to ALIGNED: an Append answers it, and fits;
                                                                     again JOINING: nothing answers in time
ALIGNED    the leader's log is received from our tail on             to MISFIT: an Append does not fit
MISFIT     aligned, but the last Append did not fit: the records     to ALIGNED: an Append fits;
           between may be on their way                               to JOINING: none does in time
REPLACING  the disk puts the log aside, or begins it at a fetched    to APART: it is done, or the disk refused; if it
           state: nothing is received, and nothing is claimed        is done, at once to JOINING
=========  ========================================================  =================================================

JOINING, ALIGNED and MISFIT also lead to JOINING when a Rewind cuts the log, when the leader repeats that it leads and
our log is not matched, or when the state that it offers is declined; to APART when the link or the leader is lost; and
to REPLACING when a state was fetched or the log must be put aside. A late answer to the last join does the same in
APART. While a state is fetched, ``_fetching`` says up to where: a log that ends before that does not count as
``matched``, and if no more of the state comes in time, the replica joins again.

A replica believes only the coordinator's record (:class:`Doubt`): whether the record is being read because somebody
claims something else, and whether somebody has claimed so again since, so that the answer may be too old.
"""

from __future__ import annotations

import dataclasses
import enum
from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from ...transport.coordinator import NODE_ID_IN_USE, DiskMark, MarketRecord, Seen, next_epoch, seen_of
from ...transport.errors import OpenOutcryError, ProtocolError, StorageError, Unavailable, ensure, present
from .commands import Command
from .disk import EPOCHS_MAX, Begun, DiskState, begun_at
from .messages import LogRead
from .record import EMPTY, Origin, Record, Tail
from .wire import IN_SYNC_MAX, Ack, Append, Join, Lead, MarketMessage, Objection, Resign, Rewind

IN_FLIGHT_MAX: Final = 65_536
"""Most unacknowledged commands of a follower; beyond, the leader stops streaming and lets it read at its own pace."""
SNAPSHOT_BEHIND: Final = 50_000
STALL_MS_MAX: Final = 2000
"""Milliseconds that a leader may lack the replicas it needs to commit; then one that has them may lead.

Longer than a link takes to come back after a short break, so that leadership stays where it is.
"""
CLOCK_TRY_NS: Final = 2_000_000_000
"""Nanoseconds that a leader whose clock is off accepts no commands, so that another can take over."""
CLOCK_AGAIN_NS: Final = 20_000_000_000
"""Nanoseconds between two such tries."""
CLOCK_PATIENCE_NS: Final = 2_000_000_000
"""Nanoseconds that a member whose clock is off lets others replace a lost leader first."""
CLOCK_START_NS: Final = 3_000_000_000
"""Nanoseconds after its start that a member waits to compare its clock before it claims; then it trusts its own."""
SEEN_MAX: Final = 256
"""Most names of former members to remember; beyond, only linked ones."""
COORDINATOR_BEHIND: Final = "coordinator_behind"
"""Code of the error for a store that is older than a record seen before."""
_ASK_NS: Final = 300_000_000
"""Interval at which a follower without a leader's log asks the coordinator, and the leader it names."""
_REJOIN_NS: Final = 1_000_000_000
"""Time that a joined follower waits for an append that fits its tail before it joins again."""
_AUDIT_NS: Final = 10_000_000_000
"""Interval at which a leader, or a joined follower, reads the coordinator's record."""
_YIELD_LOOK_NS: Final = 500_000_000
"""Interval at which a yielding leader checks whether another leads."""


class Role(enum.Enum):
    """What this replica does; see the table in the module's docstring."""

    FOLLOWING = "following"
    CLAIMING = "claiming"
    LEADING = "leading"
    STOPPED = "stopped"


class Following(enum.Enum):
    """What this replica receives; see the second table in the module's docstring."""

    UNCHECKED = "unchecked"
    APART = "apart"
    JOINING = "joining"
    ALIGNED = "aligned"
    MISFIT = "misfit"
    REPLACING = "replacing"


_FITTED: Final = (Following.ALIGNED, Following.MISFIT)
_JOINED: Final = (Following.JOINING, *_FITTED)


class Doubt(enum.Enum):
    """Whether the coordinator's record is being read because another node claims something else."""

    NONE = "none"
    READING = "reading"
    CLAIMED_AGAIN = "claimed again"
    """The answer may be older than the last claim: then the record is read once more, on a tick."""


# -- effects --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class PersistRecords:
    """Append to the journal and sync; then call ``on_durable(generation, last sequence)``."""

    generation: int
    records: tuple[Record, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class CutJournal:
    """Remove the records after ``sequence`` from the journal."""

    sequence: int


@dataclasses.dataclass(frozen=True, slots=True)
class PutAside:
    """Keep the log and its snapshots under another name, start empty; then call ``on_put_aside``."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class ReadJournal:
    """Read the records after ``after`` for ``node``; then call ``on_log_read``.

    If the chain there differs from ``expected``, read instead the ends of the records up to ``after``.
    """

    node: str
    after: int
    expected: bytes | None
    token: int


@dataclasses.dataclass(frozen=True, slots=True)
class OfferSnapshot:
    """Offer the state of the book to ``node``, whose log ends at ``after``: too far back."""

    node: str
    after: int


@dataclasses.dataclass(frozen=True, slots=True)
class KeepFetched:
    """Make the fetched snapshot durable, in place of the log up to ``tail``; then call ``on_snapshot_kept``."""

    tail: Tail


@dataclasses.dataclass(frozen=True, slots=True)
class ApplyRecords:
    """Apply to the book, in order, and answer the callers that wait; then call ``on_applied``."""

    records: tuple[Record, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Send:
    """Send ``message`` to each of ``nodes``."""

    nodes: tuple[str, ...]
    message: MarketMessage


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """A record that a peer claims to have seen at the coordinator. If it is missing, one of them is an old copy."""

    node: str
    seen: Seen
    forked: bool = False
    """The store goes on from an older copy: no record of it is right."""

    def fits(self, found: Seen) -> bool:
        """Whether the coordinator's record is at least as new."""
        return not self.forked and self.seen.leads_to(found)


@dataclasses.dataclass(frozen=True, slots=True)
class ReadRecord:
    """Read the market's record from the coordinator; then call ``on_record``, with ``claim``."""

    claim: Claim | None = None
    """The record must be at least as new as this earlier claim."""


@dataclasses.dataclass(frozen=True, slots=True)
class ReadMarks:
    """Read the disk marks of all nodes for this market from the coordinator; then call ``on_marks``."""


@dataclasses.dataclass(frozen=True, slots=True)
class ReportMark:
    """Report this node's disk to the coordinator; then call ``on_marked``."""

    mark: DiskMark


@dataclasses.dataclass(frozen=True, slots=True)
class KeepDisk:
    """Make the disk state durable, before any later effect."""

    state: DiskState


@dataclasses.dataclass(frozen=True, slots=True)
class Troubled:
    """The replica does not stop, but a person must act; None: the trouble is over."""

    error: OpenOutcryError | None


@dataclasses.dataclass(frozen=True, slots=True)
class CreateRecord:
    """Create the market's record with this node as leader; then call ``on_record`` with the stored record."""


@dataclasses.dataclass(frozen=True, slots=True)
class SwapRecord:
    """Compare-and-swap the market's record; then call ``on_swapped``."""

    expected: MarketRecord
    epoch: int
    leader: str
    in_sync: tuple[str, ...]
    force: bool = False
    yielding: bool = False
    lives: tuple[tuple[str, str], ...] = ()
    """The added members, and the lives of their disks that have caught up: refuse the swap if one has begun another."""


@dataclasses.dataclass(frozen=True, slots=True)
class RepairBegun:
    """The log of this replica, a member, was lost or is an older copy: mark that durably before it continues."""

    why: str = "its log was lost"


@dataclasses.dataclass(frozen=True, slots=True)
class RepairEnded:
    """The replica again holds all committed entries: remove the mark of the repair."""


@dataclasses.dataclass(frozen=True, slots=True)
class LeadershipBegun:
    """This replica leads from now on; the shell must propose the first record of the epoch."""


@dataclasses.dataclass(frozen=True, slots=True)
class LeadershipLost:
    """Another replica leads, or none: refuse the commands that wait here."""


@dataclasses.dataclass(frozen=True, slots=True)
class Stop:
    """The replica has stopped because of ``error``, until its node is restarted."""

    error: OpenOutcryError


StoreCall = ReadRecord | ReadMarks | ReportMark | CreateRecord | SwapRecord
"""A call to the coordinator."""
Effect = (
    PersistRecords
    | CutJournal
    | PutAside
    | ReadJournal
    | OfferSnapshot
    | KeepFetched
    | ApplyRecords
    | Send
    | ReadRecord
    | ReadMarks
    | ReportMark
    | KeepDisk
    | Troubled
    | CreateRecord
    | SwapRecord
    | RepairBegun
    | RepairEnded
    | LeadershipBegun
    | LeadershipLost
    | Stop
)


@dataclasses.dataclass(slots=True)
class _Follower:
    """What the leader knows about one replica that has joined."""

    token: int
    join: int
    observer: bool
    probe: Tail
    """The tail that the follower asked to join at."""
    life: str
    """Of its disk, as the coordinator should know it."""
    former: bool = False
    """The coordinator knows another life: add the follower only when it has joined again."""
    matched: bool = False
    """Its log is known to be a prefix of ours up to ``sent``."""
    streaming: bool = False
    """It has been sent everything: it gets new records as the leader makes them."""
    sent: int = 0
    acked: int = 0
    """Its log is durable up to here; counts only once ``matched``."""
    applied: int = 0
    """The sequence number of its book at its last ack."""
    commit_announced: int = -1
    behind_since_ns: int = 0


class Replica:
    """One market's replica at one node.

    Invariants: ``applied <= committed <= tail.sequence``; ``durable <= tail.sequence``; ``pending`` holds exactly the
    records after ``committed``; ``epoch`` never shrinks.
    """

    _marks: dict[str, DiskMark] | None = None
    _must_report = False
    _reports_repair = False
    _claimed: Claim | None = None
    """Follower: the newest record that a peer has seen, while the coordinator's is older."""
    trouble: OpenOutcryError | None = None
    """The trouble that a person must solve, although the replica has not stopped."""
    role = Role.FOLLOWING
    record: MarketRecord | None = None
    in_sync: tuple[str, ...] = ()
    leader: str | None = None
    present = 0
    """Leader: number of members of the in-sync set, itself included, that are neither dead nor too slow."""
    resigned = False
    """Leader: accepts no commands, and waits for another to take over."""
    retired = False
    """Its node is closing, and its links end first: the in-sync set stays as it is for the next leader."""
    clock_off = False
    """This machine's clock is off: another replica leads if it can."""
    _clock_right: frozenset[str] = frozenset()
    """The other nodes whose clocks are right."""
    _clock_compared = True
    """Whether this machine's clock has been compared with another; as long as nothing is said, it need not be."""
    _clock_confirmed = False
    """Whether the last clear verdict of other clocks on this one was that it is right."""
    _started_ns: int | None = None
    _clock_tried_ns = -CLOCK_AGAIN_NS
    """Leader: since when it tries to hand over because of its clock."""
    _clock_resigned = False
    _deferred: tuple[str, int] | None = None
    """Follower: the lost leader, and since when others could have replaced it."""
    _now_ns = 0
    state_hash = ""
    expected_hash: tuple[int, str] | None = None
    _generation = 0
    _left_leading = False
    """Stopped while it led, and nobody is known to lead since: the members have to hear of it."""
    _stalled_since_ns: int | None = None
    """Leader: since when it has too few members to commit."""
    _swap: SwapRecord | None = None
    _swap_lost = False
    _swap_refused = 0
    """Times in a row that the coordinator has refused the swap."""
    _force: SwapRecord | None = None
    _inherited = 0
    _lapsed: str | None = None
    _must_read = True
    """Read the record on the next tick."""
    _doubting = Doubt.NONE
    _tokens = 0
    _fitted_join = -1
    """The number of the last join that an Append has answered, and fitted."""
    _fitted_at_ns = 0
    _fetching = 0
    """Follower: the sequence number of the leader's state that is being fetched."""
    _asked_ns = 0

    def __init__(
        self,
        *,
        market: str,
        node: str,
        applied: Tail,
        pending: Iterable[Record] = (),
        incarnation: int,
        min_in_sync: int = 1,
        absent_ms_max: int = 3000,
        lag_ms_max: int = 5000,
        stall_ms_max: int = STALL_MS_MAX,
        snapshot_behind: int = SNAPSHOT_BEHIND,
        observer: bool = False,
        repairing: bool = False,
        damage: str = "",
        disk: DiskState | None = None,
    ) -> None:
        """Start from the disk: ``applied`` is known to be committed, ``pending`` follows it.

        ``incarnation``: a positive number larger than that of any earlier start (a clock will do).
        ``min_in_sync``: below it nothing commits and proposals are refused. ``absent_ms_max``: how long a new leader
        waits for an unlinked member; ``lag_ms_max``: how long a member may go without an ack;
        ``stall_ms_max``: how long a leader may have too few members to commit before it lets another lead;
        ``snapshot_behind``: a replica that joins more than this many commands behind gets a snapshot, not the log.
        ``observer``: read only; never in sync, never leads. ``repairing``: the log on this disk was damaged
        and put aside; the replica does not lead until it again holds all committed entries. ``damage``: what was put
        aside, or is missing. ``disk``: the disk state, with this start's life begun; None: do not compare it with the
        coordinator's marks.
        """
        self.market = market
        self.node = node
        self.min_in_sync = min_in_sync
        self._absent_ns_max = absent_ms_max * 1_000_000
        self._lag_ns_max = lag_ms_max * 1_000_000
        self._stall_ns_max = stall_ms_max * 1_000_000
        self._snapshot_behind = snapshot_behind
        self.observer = observer
        self.repairing = repairing
        self.damage = damage
        self.disk = disk or DiskState()
        if (self.disk.epochs[-1].epoch if self.disk.epochs else 0) != applied.epoch:
            self.disk = dataclasses.replace(self.disk, epochs=())  # some were not kept: what is before is not known
        self._keeps_disk = disk is not None
        self.following = Following.APART if disk is None or observer else Following.UNCHECKED
        self.ended: set[str] = set()
        """Members whose process has ended, as far as known: nobody waits for them."""
        self._base = applied
        self.pending = deque(pending)
        self.tail = self.pending[-1].tail if self.pending else applied
        self.epoch = max(self.tail.epoch, self.disk.epoch)
        self.durable = self.tail.sequence
        self.committed = applied.sequence
        self.applied = applied.sequence
        self._links: set[str] = set()
        self._followers: dict[str, _Follower] = {}
        self._reading: set[str] = set()
        """Nodes for which a read of the journal is running, for this or an earlier join: one read each."""
        self._offered_to: dict[str, int] = {}
        """Nodes that were offered our state, and the ends of their logs at that time."""
        self._missing_since_ns: dict[str, int] = {}
        self._stalled_with: set[str] = set()
        """Its links when it last yielded: with the same links it would fail again."""
        self._members_seen: set[str] = set()
        """Nodes that were in sync since the start: linked, they may be again."""
        self._join_number = incarnation
        self._known_committed = applied.sequence

    # -- the coordinator ----------------------------------------------------------------------------------------

    def start(self) -> list[Effect]:
        """Begin: find out whether this disk fits the coordinator's marks, and who leads."""
        return [ReadMarks()] if self.following is Following.UNCHECKED else [ReadRecord()]

    def on_record(self, record: MarketRecord | None, now_ns: int, claim: Claim | None = None) -> list[Effect]:
        """The coordinator answered a read, with the ``claim`` that it was to judge, or a create."""
        again = self._doubting is Doubt.CLAIMED_AGAIN
        self._doubting = Doubt.NONE
        if self.role is Role.STOPPED or (self._swap is not None and not self._swap_lost):
            return []  # the answer to the swap has a later record than this
        found = seen_of(record)
        if self.disk.forked or not self.disk.seen.leads_to(found) or found.epoch < self.epoch:
            return self._on_record_behind(found)
        claim = claim or self._claimed
        if claim is not None and not claim.fits(found):
            return self._on_claim_right(claim, found)
        self._claimed = None
        if record is None:
            return [CreateRecord()]
        effects = self._take(record)
        self._must_read = again  # this answer may be older than the second claim
        if self.following is Following.UNCHECKED:
            effects += self._check_disk(record)
            if self.following is Following.UNCHECKED:
                return effects
        if self.role is Role.LEADING and record.epoch > self.epoch and record.leader == self.node:
            return effects + self._stop(
                StorageError(
                    f"market {self.market}: another process leads it in epoch {record.epoch} under this node's id "
                    f"{self.node}: one data directory is a copy of the other. Stop one of them; compare both with "
                    "`openoutcry verify DIR` and `openoutcry log DIR MARKET`",
                    code=NODE_ID_IN_USE,
                )
            )
        if self.tail.sequence == 0 and self.node in record.in_sync and len(record.in_sync) > 1 and not self.repairing:
            effects += self._begin_repair("its log was lost")  # a member has a log: this disk must not count as whole
        if record.leader != self.node:
            return effects + self._on_leader_named(record, now_ns)
        if self.role is Role.FOLLOWING:
            return effects + self._on_named_leader(record, now_ns)
        if self._swap is not None and self._swap_lost:
            self._swap_lost = False
            if record.version == self._swap.expected.version:
                if self._swap_refused < 2:
                    return [self._swap]  # again: the second of two attempts fails; or an older store has refused it
                for name, life in self._swap.lives:  # a life that has ended does not return: it never takes effect
                    if (follower := self._followers.get(name)) is not None and follower.life == life:
                        follower.former = True
            self._swap = None
            self._learn(record.in_sync)
            return [*self._advance(), *self._reconsider(now_ns)]
        return []

    def _on_leader_named(self, record: MarketRecord, now_ns: int) -> list[Effect]:
        """The record names another as leader: follow it, or replace it if it is lost and this replica may."""
        effects = self._step_down() if self.role is not Role.FOLLOWING else []
        if record.epoch > self.epoch or self.leader != record.leader:
            self._follow(record.leader, record.epoch)
        self._learn(record.in_sync)
        lapsed, self._lapsed = self._lapsed, None
        member = self.node in record.in_sync and self._swap is None
        wanted = member and (lapsed == record.leader or self._may_succeed(record))
        if wanted and (self.following is Following.REPLACING or self._awaits_clocks(record, now_ns)):
            self._lapsed, self._must_read = lapsed, True  # later
        elif wanted:
            left = tuple([name for name in record.in_sync if name != record.leader])
            effects += self._claim(left if len(left) >= self.min_in_sync else record.in_sync)
        if self.role is Role.FOLLOWING and self.leader in self._links and not self.joined:
            effects += self._join()
        return effects + self._repaired()

    def _on_named_leader(self, record: MarketRecord, now_ns: int) -> list[Effect]:
        """The record names this replica as leader: it has started again, or has given up a claim."""
        effects = self._forced_after_all(record)
        if self.repairing:
            # Other members of the in-sync set hold what this disk lost: let one of them lead.
            others = tuple([member for member in record.in_sync if member != self.node])
            if not others:
                return effects + self._set_trouble(self._alone_with_old_disk())
            return [*effects, Send(others, Resign(self.market, record.epoch))]
        self._learn(record.in_sync)
        if self._awaits_clocks(record, now_ns):
            self._must_read = True
            return effects
        if self._leaves_it_to_others(self.node):
            self._must_read = True
            better = tuple(sorted(self._better_clocks(self.node)))
            return [*effects, Send(better, Resign(self.market, record.epoch))]
        return [*effects, *self._claim(record.in_sync)]

    def _learn(self, in_sync: tuple[str, ...]) -> None:
        """Take over the record's in-sync set.

        Drop removed members from ``ended``: a member that is added again is alive.
        """
        self.in_sync = in_sync
        self._members_seen.update(in_sync)
        if len(self._members_seen) > SEEN_MAX:
            self._members_seen &= {*in_sync, *self._links}
        self.ended.intersection_update(in_sync)

    def _take(self, record: MarketRecord) -> list[Effect]:
        if self.record is not None and record.forced > self.record.forced:
            # What a leader from before the force announced belongs to another log.
            self._known_committed = self.committed
            self.expected_hash = None
        self.record = record
        over = self.trouble is not None and self.trouble.code == COORDINATOR_BEHIND
        effects = self._set_trouble(None) if over else []
        if record.version > self.disk.version or record.epoch > self.disk.epoch:
            seen = seen_of(record)
            effects += self._keep_disk(
                dataclasses.replace(self.disk, version=seen.version, epoch=seen.epoch, leader=seen.leader)
            )
        return effects

    def _keep_disk(self, state: DiskState) -> list[Effect]:
        self.disk = state
        return [KeepDisk(state)] if self._keeps_disk else []

    def _set_trouble(self, error: OpenOutcryError | None) -> list[Effect]:
        if (self.trouble and self.trouble.message) == (error and error.message):
            return []
        self.trouble = error
        return [Troubled(error)]

    def _on_record_behind(self, found: Seen, known: str = "") -> list[Effect]:
        """The coordinator's record is older than one seen here, or goes on from an older one: its store is an older
        copy, or another exchange's.

        Notify all linked nodes: one may know only the older record, and lead from it. A leader continues with its
        in-sync set, as it can neither swap nor be deposed; a follower continues with its leader; nobody takes over.
        """
        self._must_read = True
        self._swap_refused = 0
        if self.following is Following.UNCHECKED:
            self._marks = None  # as old as the record: read them again with the next one
        if not known:
            epoch = max(self.epoch, self.disk.epoch)
            known = f"this node has seen version {self.disk.version}, epoch {epoch} of {self.disk.leader or 'nobody'}"
        effects = self._set_trouble(self._coordinator_behind(known, found))
        if found.version and not self.disk.forked and not found.leads_to(self.disk.seen):
            # Somebody leads by it: its numbers will pass ours, and must not count as newer then, after a restart too.
            effects += self._keep_disk(dataclasses.replace(self.disk, forked=True))
        return [*effects, *self._object(tuple(sorted(self._links)))]

    def _coordinator_behind(self, known: str, found: Seen) -> StorageError:
        return StorageError(
            f"market {self.market}: the coordinator's record is of version {found.version}, epoch {found.epoch} of "
            f"{found.leader or 'nobody'}, but {known}: its store is an older copy or goes on from one, was lost, or "
            "belongs to another exchange. Put the newer store back if no node has begun to lead since the older one "
            "came; else, or if it is lost, stop all nodes and run `openoutcry coordinator rebuild DIR... --coordinator "
            "NEW` with all their data directories",
            code=COORDINATOR_BEHIND,
        )

    def _on_claim_right(self, claim: Claim, found: Seen) -> list[Effect]:
        """A peer has seen a newer record than the coordinator now holds: to go on could lose committed entries.

        This replica has not seen that record, so it cannot know what it lacks. If it leads, it stops. Otherwise it
        continues with its leader, and does not take over while the record is this old.
        """
        version, epoch, leader = claim.seen
        seen = f"node {claim.node} has seen version {version}, epoch {epoch} of {leader or 'nobody'}"
        error = self._coordinator_behind(seen, found)
        if self.role is not Role.FOLLOWING:
            return self._stop(error)
        self._claimed = claim
        self._must_read = True
        return self._set_trouble(error)

    def _object(self, nodes: tuple[str, ...], base: Tail = EMPTY) -> list[Effect]:
        """Object to ``nodes``: what they do contradicts what is known here.

        Name the committed entries up to ``base`` only if their log lacks them. Otherwise a node that has begun to lead
        since then would take an objection to its former epoch for an objection to its log.
        """
        known = Objection(
            self.market, self.epoch, *self.disk.seen, self.disk.forked, base.epoch, base.sequence, base.chain
        )
        return [Send(nodes, known)] if nodes else []

    def on_objection(self, sender: str, message: Objection) -> list[Effect]:
        """A peer has seen a newer record than we have, or follows us and holds committed entries that our log lacks."""
        if self.role is Role.STOPPED or self.following is Following.UNCHECKED:
            return []
        seen = Seen(message.seen_version, message.seen_epoch, message.seen_leader)
        if message.forked or not seen.leads_to(self.disk.seen):
            return [ReadRecord(Claim(sender, seen, message.forked))] if self._keeps_disk else []
        forced = self.record.forced if self.record is not None else 0
        if self.role is not Role.LEADING or message.epoch != self.epoch or message.tail_epoch < forced:
            return []  # a log that was forced past is put aside
        if message.tail_sequence == 0:
            return []  # it says nothing about our log
        others = tuple([member for member in self.in_sync if member != self.node])
        why = (
            f"its disk is an older copy: {sender} holds entry {message.tail_sequence} of epoch {message.tail_epoch}, "
            "which was committed, and this log does not"
        )
        effects = [*self._begin_repair(why), *self._step_down(), Send(others, Resign(self.market, self.epoch))]
        self._must_read = True
        return effects

    # -- does this disk fit the coordinator's marks? ---------------------------------------------------------------

    def on_marks(self, marks: dict[str, DiskMark]) -> list[Effect]:
        """The coordinator answered a :class:`ReadMarks`.

        Read them before the record: a member then holds what they say.
        """
        self._marks = marks
        if self.following is not Following.UNCHECKED:
            own = marks.get(self.node)
            return self.on_marked(own) if own is not None else []
        return [ReadRecord()]

    def _check_disk(self, record: MarketRecord) -> list[Effect]:
        """Before this replica takes part: find out whether its disk is an older copy, and report this life."""
        if self._marks is None:
            return [ReadMarks()]
        own = self._marks.get(self.node)
        reported = 0 if own is None else own.number
        if reported < self.disk.number:
            known = f"this node has reported start {self.disk.number} of its disk, and the store knows {reported}"
            return self._on_record_behind(seen_of(record), known)
        # A non-member too: a swap that makes it a member, because of what it held, may be running.
        why = self._why_old(record, self._marks) if not self.repairing else None
        effects = self._begin_repair(why) if why is not None else []
        if self.repairing or not self.disk.begun:
            self.following = Following.APART  # one under repair reports its life, and counts, only when it is whole
            return effects
        return [*effects, ReportMark(self._mark_of_this_life())]

    def _why_old(self, record: MarketRecord, marks: dict[str, DiskMark]) -> str | None:
        """Return the evidence that the disk of this member is an older copy, None if there is none.

        Entries that were forced past since then do not count: the valid log does not hold them.
        """
        own, disk, tail = marks.get(self.node), self.disk, self.tail
        if own is not None and own.life not in (disk.life, *disk.begun) and tail.sequence:
            return f"its disk is an older copy: it is not of start {own.number}, the last that was reported"
        others = record.in_sync if self.node in record.in_sync else (self.node,)
        known = [(name, mark.epoch, mark.sequence) for name, mark in sorted(marks.items()) if name in others]
        for name, epoch, sequence in [*known, (self.node, disk.committed_epoch, disk.committed)]:
            if epoch >= record.forced and (epoch > tail.epoch or sequence > tail.sequence):
                if not tail.sequence:
                    return "its log was lost"
                return (
                    f"its disk is an older copy: it ends at {tail.sequence} in epoch {tail.epoch}, and {name} had "
                    f"reported {sequence} in epoch {epoch} as committed"
                )
        return None

    def _mark_of_this_life(self) -> DiskMark:
        own = (self._marks or {}).get(self.node)
        number = max(self.disk.number, 0 if own is None else own.number) + 1
        return DiskMark(number, self.disk.begun[-1], self._base.epoch, self._base.sequence)

    def on_marked(self, mark: DiskMark) -> list[Effect]:
        """The coordinator has the report of this life."""
        if not self.disk.begun or mark.life != self.disk.begun[-1]:
            return []
        effects = self._keep_disk(self.disk.reported(mark.number))
        self._marks = {**(self._marks or {}), self.node: mark}
        if self.repairing:
            effects += self._repaired()
        if self.following is Following.UNCHECKED:
            # Nobody is added on the word of an earlier life from now on. If that has just been done, check as a member.
            effects.append(ReadRecord())
        elif self.joined and self.leader in self._links:
            effects += self._join()  # in this life
        return effects

    @property
    def _reported_life(self) -> str:
        """The life of this disk that the coordinator has, as far as this replica knows; empty: none."""
        own = (self._marks or {}).get(self.node)
        return self.disk.life if not self.disk.begun else "" if own is None else own.life

    @property
    def mark(self) -> DiskMark | None:
        """The mark to report for this disk now; None while the disk does not count."""
        if not self.disk.life or self.disk.begun or self.repairing or self.observer:
            return None
        return DiskMark(self.disk.number, self.disk.life, self._base.epoch, self._base.sequence)

    def _begin_repair(self, why: str) -> list[Effect]:
        self.repairing = True
        self.damage = why
        return [RepairBegun(why)]

    def _alone_with_old_disk(self) -> StorageError:
        return StorageError(
            f"market {self.market}: this disk may lack what was answered ({self.damage}), and no other is in sync. "
            "Compare what all nodes hold with `openoutcry verify DIR` and `openoutcry log DIR "
            f"{self.market}`; put the newer disk of this node back if there is one, else run `openoutcry force-leader "
            f"{self.market}` at the node whose log reaches furthest: what only others hold is put aside then",
            code="old_disk",
        )

    def on_leader_lapsed(self, leader: str) -> list[Effect]:
        """The lease of ``leader`` has expired: if it still leads and this replica is in sync, take over by a swap.

        This is always safe: any member of the in-sync set may lead, the swap decides which one does, and the new epoch
        fences off the former leader, dead or alive.
        """
        if self.role is not Role.FOLLOWING or self.repairing or self.observer:
            return []
        if self.following in (Following.UNCHECKED, Following.REPLACING):
            return []
        if self._leaves_it_to_others(leader):
            return []
        self._lapsed = leader
        return [ReadRecord()]

    def on_clocks(self, *, off: bool, right: frozenset[str], compared: bool) -> None:
        """Whether this machine's clock is off, which other nodes' are right, and whether any could be compared.

        Call it before :meth:`start`, and again before each tick.
        """
        self.clock_off, self._clock_right = off, right
        self._clock_compared = compared and (bool(right) or not off)  # else it is one clock against another
        if self._clock_compared:
            self._clock_confirmed = not off

    def _awaits_clocks(self, record: MarketRecord, now_ns: int) -> bool:
        """Whether it is too early to claim: just started, and no clock has been compared, though others may be there.

        With a wrong clock this replica would stamp the log before it could know better.
        """
        if self._started_ns is None:
            self._started_ns = now_ns
        others = {*record.in_sync} - {self.node} - self.ended
        return bool(others) and not self._clock_compared and now_ns - self._started_ns < CLOCK_START_NS

    def _better_clocks(self, leader: str) -> set[str]:
        """Follower: the members that may replace ``leader`` with a clock that is, or may be, better than ours.

        Where one clock stands against another, ours may be the right one only if it was found right before.
        """
        better = self._clock_right or (() if self._clock_confirmed else self.in_sync)
        return set(better).intersection(self.in_sync, self._links) - {leader}

    def _leaves_it_to_others(self, leader: str) -> bool:
        """Whether the clock here is off, and a member with a better one has the first try to replace ``leader``."""
        if not self.clock_off or not self._better_clocks(leader):
            self._deferred = None
            return False
        before = self._deferred
        if before is None or before[0] != leader or self._now_ns - before[1] >= CLOCK_AGAIN_NS:
            self._deferred = before = leader, self._now_ns
        return self._now_ns - before[1] < CLOCK_PATIENCE_NS

    def _hand_over_for_clock(self, now_ns: int) -> list[Effect]:
        """Leader: its clock is off, but not a member's: accept no commands for a moment, so that one can lead."""
        right = [name for name in self.successors() if name in self._clock_right]
        if not self.clock_off or not right or self.retired:
            return self._end_clock_try()
        if now_ns - self._clock_tried_ns >= CLOCK_AGAIN_NS:
            self._clock_tried_ns = now_ns
        if now_ns - self._clock_tried_ns >= CLOCK_TRY_NS:
            return self._end_clock_try()
        self._clock_resigned = True
        return self.resign(right[0])

    def _end_clock_try(self) -> list[Effect]:
        if self._clock_resigned:
            self._clock_resigned = self.resigned = False
        return []

    def _may_succeed(self, record: MarketRecord) -> bool:
        """Follower: whether the leader lets another lead, and this replica is one that could commit in its place.

        A replica does not take over if it is linked to the leader, to too few others, or only to those with which it
        has failed itself: it would be in the same position, and leadership would move back and forth.
        """
        linked = self._members_seen & self._links
        fit = self.role is Role.FOLLOWING and not self.repairing and record.leader not in linked
        if record.yielding and fit and self._leaves_it_to_others(record.leader):
            return False
        return (
            record.yielding and fit and len(linked) + 1 >= self.min_in_sync and not linked.issubset(self._stalled_with)
        )

    def force_refusal(self, record: MarketRecord | None, reachable: Collection[str]) -> Unavailable | None:
        """Return why this replica may not be made to lead by :meth:`force`, or None.

        ``reachable``: the nodes known to live; a member of the in-sync set among them can lead without loss.
        """
        name = f"market {self.market}"
        if self.observer:
            return Unavailable(f"{name} is only observed here: start the node as a member, then force", code="observer")
        if self.role is Role.LEADING:
            return Unavailable(f"{name} is led by this node already", code="already_leading")
        if record is None:
            return Unavailable(f"{name} is not known to the coordinator: it was never opened", code="never_opened")
        behind = record.epoch < self.epoch or self.disk.forked or not self.disk.seen.leads_to(seen_of(record))
        known = self.following is not Following.UNCHECKED or self.repairing
        busy = self.role is not Role.FOLLOWING or self._swap is not None or self.following is Following.REPLACING
        if busy or behind or not known:
            return Unavailable(f"{name} is about to change its leader, or its log: look again", code="changing")
        if self.node in record.in_sync and not self.repairing:
            return Unavailable(f"{name}: this node is in sync, and takes over by itself", code="not_needed")
        there = sorted(set(record.in_sync).intersection(reachable) - {self.node})
        if there:
            return Unavailable(
                f"{name}: {', '.join(there)} of the in-sync set can be reached: nothing has to be lost. If what it "
                "held is lost, stop it first",
                code="in_sync_reachable",
            )
        return None

    def force(self, record: MarketRecord) -> list[Effect]:
        """Lead by force from what this replica holds; :meth:`force_refusal` for ``record`` is None.

        Acknowledged entries beyond it are lost, or put aside where they turn up.
        """
        ensure(self.force_refusal(record, ()) is None, "a leader is forced where that is refused")
        self.record = record
        if self.following is Following.UNCHECKED:
            self.following = Following.APART
        self.role = Role.CLAIMING
        effects = self._start_swap(next_epoch(record), (self.node,), force=True)
        self._force = self._swap
        return effects

    def _forced_after_all(self, record: MarketRecord) -> list[Effect]:
        """The record names this node as leader; a forced swap whose answer was lost counts too.

        By a person's decision, this replica's log is then the valid one.
        """
        swap, self._force = self._force, None
        if swap is None or (record.version, record.forced) != (swap.epoch, swap.epoch):
            return []
        return self._end_repair()

    def _end_repair(self) -> list[Effect]:
        if not self.repairing:
            return []
        self.repairing = False
        effects: list[Effect] = [RepairEnded()]
        if self.trouble is not None and self.trouble.code != COORDINATOR_BEHIND:
            effects += self._set_trouble(None)
        if self.disk.begun and not self.observer:  # by force: not reported yet
            effects.append(ReportMark(self._mark_of_this_life()))
        return effects

    def resign(self, to: str | None = None) -> list[Effect]:
        """Leader: accept no more commands, and once all is committed ask a member (``to``, or any) to take over.

        Call it until the role changes or ``heirs`` is empty; until then this replica leads without commands.
        """
        if self.role is not Role.LEADING:
            return []
        self.resigned = True
        able = [name for name in self.successors() if to in (None, name)]
        ready = [name for name in able if self._followers[name].acked == self.tail.sequence]
        if self.pending or not ready:
            return []
        return [Send((ready[0],), Resign(self.market, self.epoch))]

    def successors(self) -> list[str]:
        """Leader: the members of the in-sync set that could take over."""
        return [m for m in self.in_sync if (f := self._followers.get(m)) is not None and f.matched]

    def heirs(self) -> list[str]:
        """Leader: members of the in-sync set that could take over, now or once they have joined: all linked members."""
        return [member for member in self.in_sync if member in self._links]

    def on_resign(self, sender: str, message: Resign) -> list[Effect]:
        """Our leader wants to stop leading, or a replica that follows us has stopped."""
        if message.epoch != self.epoch:
            return []
        if self.role is Role.LEADING:
            self._followers.pop(sender, None)
            self._missing_since_ns[sender] = -self._absent_ns_max  # the next tick removes it
            return []
        return self.on_leader_lapsed(sender) if sender == self.leader else []

    def _claim(self, in_sync: tuple[str, ...]) -> list[Effect]:
        record = present(self.record, "a claim without the record that it replaces")
        if self.following is Following.REPLACING:  # the log is being replaced: ask again when that is done
            self._must_read = True
            return []
        self.role = Role.CLAIMING
        return self._start_swap(next_epoch(record), in_sync)

    def _give_up_claim(self) -> None:
        self.role = Role.FOLLOWING
        self._swap = None
        self._receive_no_more()  # while it was claiming, this replica followed nobody

    def on_swapped(self, swap: SwapRecord, record: MarketRecord | None, now_ns: int) -> list[Effect]:
        """The coordinator carried out our ``swap``, or (None) holds another record than expected."""
        if self.role is Role.STOPPED or swap is not self._swap:
            return []
        self._force = None
        if record is None:
            if self.role is Role.CLAIMING:
                self._give_up_claim()
            self._swap_lost = self._swap is not None
            self._swap_refused += 1
            return [ReadRecord()]
        self._swap = None
        effects = self._take(record)
        self._learn(record.in_sync)
        begun = False
        if self.role is Role.CLAIMING:
            effects += self._end_repair() if swap.force else []
            self.role = Role.LEADING
            self.resigned = self._clock_resigned = False
            self.epoch = record.epoch
            self.leader = self.node
            self._receive_no_more()
            effects += self._set_trouble(None)
            self._inherited = self.tail.sequence
            self._lapsed = None  # of an earlier leader, which may lead again
            self._stalled_since_ns = None
            self._followers.clear()
            self._offered_to.clear()
            yielded = swap.expected.leader if swap.expected.yielding else None
            long_ago_ns = now_ns - self._absent_ns_max
            self._missing_since_ns = {
                member: long_ago_ns if member in self.ended or member == yielded else now_ns
                for member in record.in_sync
                if member != self.node
            }
            begun = True
        if self.role is Role.LEADING:
            effects.append(Send(tuple(sorted(self._links)), self._lead()))
            effects += self._advance()
            effects += self._reconsider(now_ns)
        if begun:
            effects.append(LeadershipBegun())  # last: the shell's proposal must follow the entries applied above
        return effects

    def _lead(self) -> Lead:
        return Lead(self.market, self.epoch, self.in_sync, self.committed)

    def on_coordinator_unavailable(self, call: StoreCall) -> list[Effect]:
        """The coordinator did not answer ``call``: whether a swap happened is unknown until the record is read again.

        Until then, members that the swap would add or remove all stay required.
        """
        self._must_read = True
        self._doubting = Doubt.NONE
        if isinstance(call, (ReportMark, ReadMarks)):
            self._must_report = True
            self._reports_repair = False
        if call is self._swap:
            self._swap_lost = True
            if self.role is Role.CLAIMING:
                self._give_up_claim()
        return []

    def _start_swap(
        self, epoch: int, in_sync: tuple[str, ...], *, force: bool = False, yielding: bool = False
    ) -> list[Effect]:
        ensure(self._swap is None, "a swap begins while another is under way")
        record = present(self.record, "a swap without the record that it replaces")
        self._swap_lost, self._swap_refused = False, 0
        lives = self._lives([name for name in sorted(in_sync) if name not in record.in_sync and name != self.node])
        self._swap = SwapRecord(record, epoch, self.node, tuple(sorted(in_sync)), force, yielding, lives)
        return [self._swap]

    def _lives(self, added: Iterable[str]) -> tuple[tuple[str, str], ...]:
        """Leader: the lives in which the disks of new members have caught up."""
        return tuple([(name, self._followers[name].life) for name in added])

    # -- links and time -----------------------------------------------------------------------------------------

    def on_peer_up(self, node: str) -> list[Effect]:
        """A link to ``node`` came up."""
        self._links.add(node)
        self.ended.discard(node)
        self._stalled_with.discard(node)
        if node == self._lapsed:
            self._lapsed = None
        if self.role is Role.LEADING:
            return [Send((node,), self._lead())]
        if self.role is Role.FOLLOWING and node == self.leader:
            return self._join()
        return []

    def on_peer_down(self, node: str, now_ns: int) -> list[Effect]:
        """The link to ``node`` ended: a swap removes a dead follower; a dead leader's lease must expire first."""
        self._links.discard(node)
        self._followers.pop(node, None)
        self._offered_to.pop(node, None)
        if node == self.leader:
            self._receive_no_more()
        if self.role is Role.LEADING and self._may_be_member(node):
            self._missing_since_ns[node] = now_ns - self._absent_ns_max
            return self._reconsider(now_ns)
        return []

    def _may_be_member(self, node: str) -> bool:
        """Whether ``node`` is in sync, or will be when the running swap has succeeded."""
        return node in self.in_sync or (self._swap is not None and node in self._swap.in_sync)

    def on_peer_gone(self, node: str, now_ns: int) -> list[Effect]:
        """The process of ``node`` has ended, as far as this node can see: do not wait for its lease or its return."""
        if self._may_be_member(node):
            self.ended.add(node)
        return self.on_leader_lapsed(node) if node == self.leader else self.on_peer_down(node, now_ns)

    def on_tick(self, now_ns: int) -> list[Effect]:
        """Time has passed; ``now_ns`` is monotonic."""
        checked = self.following is not Following.UNCHECKED
        if self._must_report and checked and self.disk.begun:
            self._must_report = False
            # One under repair may be no member any more, and not report again: find out which life the coordinator has.
            again = ReadMarks() if self.repairing else ReportMark(self._mark_of_this_life())
            return [again, *self._on_tick(now_ns)]
        return self._on_tick(now_ns)

    def _on_tick(self, now_ns: int) -> list[Effect]:
        self._now_ns = now_ns
        if self._started_ns is None:
            self._started_ns = now_ns
        if self.role is Role.LEADING:
            if self._swap_lost:
                return [ReadRecord()]
            return [*self._audit(now_ns), *self._reconsider(now_ns), *self._hand_over_for_clock(now_ns)]
        if self.role is Role.STOPPED:
            return self._say_stopped(now_ns)
        if self.role is not Role.FOLLOWING:
            return []
        if self.joined and not self._must_read:
            if self.matched and self.following is Following.ALIGNED:
                self._fitted_at_ns = now_ns
            elif now_ns - self._fitted_at_ns > _REJOIN_NS:
                self._fitted_at_ns = now_ns
                return [ReadRecord(), *self._join()]  # it may not lead any more
            return self._audit(now_ns)
        if now_ns - self._asked_ns < _ASK_NS:
            return []
        self._asked_ns = now_ns
        return [ReadRecord(), *(self._join() if self.leader in self._links and not self.joined else [])]

    def _say_stopped(self, now_ns: int) -> list[Effect]:
        """Stopped leader: ask for a successor, again and again: its node lives, and so does its lease.

        One that was asked before may have been unable to lead, or the link was down; and the swap that was running may
        have made a member of any node.
        """
        if not self._left_leading or not self._links or now_ns - self._asked_ns < _ASK_NS:
            return []
        self._asked_ns = now_ns
        return [Send(tuple(sorted(self._links)), Resign(self.market, self.epoch))]

    def _audit(self, now_ns: int) -> list[Effect]:
        """Check now and then whether the coordinator's record is still the one we know.

        A takeover whose answer was lost may be carried out later: then nobody knows until somebody reads the record.
        """
        if now_ns - self._asked_ns < (_YIELD_LOOK_NS if self.yields else _AUDIT_NS):
            return []
        self._asked_ns = now_ns
        return [ReadRecord()]

    def _reconsider(self, now_ns: int) -> list[Effect]:
        """Leader: start a swap if a member is dead or too slow, or a follower has caught up."""
        if self._swap is not None or self.role is not Role.LEADING or self.retired:
            return []
        members = {self.node}
        for member in self.in_sync:
            follower = self._followers.get(member)
            if member == self.node:
                continue
            if follower is None:
                since = self._missing_since_ns.setdefault(member, now_ns)
                if now_ns - since < self._absent_ns_max:
                    members.add(member)
            else:
                if follower.matched and follower.acked >= self.tail.sequence:
                    follower.behind_since_ns = now_ns
                if now_ns - follower.behind_since_ns < self._lag_ns_max:
                    members.add(member)
        self.present = len(members)
        # A former leader may still commit entries it sent to the members of its epoch, including us: a new member must
        # hold all of them, committed here or not.
        needed = max(self.committed, self._inherited, 1)  # a member has a log: see on_record
        for name, follower in self._followers.items():
            caught_up = follower.streaming and follower.acked >= needed
            room = len(members) < IN_SYNC_MAX
            able = caught_up and room and not follower.observer and not follower.former
            if able and name not in self.in_sync:
                members.add(name)
        if len(members) < self.min_in_sync:
            # Nothing commits below the minimum, so removing a member gains nothing; but as long as it is a member, it
            # may take over if those that are left lose their disks.
            members.update(self.in_sync)
        yielding = self._is_stalled(now_ns)
        if members == set(self.in_sync) and self.record is not None and yielding == self.record.yielding:
            return []
        return self._start_swap(self.epoch, tuple(members), yielding=yielding)

    def _is_stalled(self, now_ns: int) -> bool:
        """Leader: whether it has had too few members to commit for so long that another should lead.

        It leads until one does, and takes the offer back if its members return first.
        """
        if self.present >= self.min_in_sync or len(self.in_sync) == 1:
            self._stalled_since_ns = None
            return False
        if self._stalled_since_ns is None:
            self._stalled_since_ns = now_ns
        stalled = now_ns - self._stalled_since_ns >= self._stall_ns_max
        if stalled:
            self._stalled_with = set(self._links)
        return stalled

    # -- leading ------------------------------------------------------------------------------------------------

    @property
    def may_propose(self) -> bool:
        """Whether this replica leads, wants to continue, and has enough live members to commit."""
        return self.role is Role.LEADING and not self.resigned and self.present >= self.min_in_sync

    @property
    def leads(self) -> bool:
        """Whether this replica leads, even if it accepts no commands now."""
        return self.role is Role.LEADING

    @property
    def yields(self) -> bool:
        """Whether this replica leads but cannot commit, and lets another lead."""
        return self.role is Role.LEADING and self.record is not None and self.record.yielding

    @property
    def lost_leader(self) -> str | None:
        """Follower in sync: the leader, if there is no link to it. Once its lease is over, it may be replaced."""
        lost = self.role is Role.FOLLOWING and self.leader not in (None, self.node) and self.leader not in self._links
        return self.leader if lost and self.node in self.in_sync else None

    @property
    def reachable_leader(self) -> str | None:
        """Follower: the leader, once it has answered our join: then it also has a link to us for its answers."""
        return self.leader if self.following in _FITTED and self.leader in self._links else None

    @property
    def joined(self) -> bool:
        """Whether the leader's log is being received from our tail on, or asked for."""
        return self.following in _JOINED

    @property
    def matched(self) -> bool:
        """Follower: whether we receive the leader's log from our tail on, since we joined."""
        return self.following in _FITTED and self._fetching <= self.tail.sequence

    def followers(self, now_ns: int) -> dict[str, dict[str, object]]:
        """Leader: how far each replica that follows is, as JSON would carry it.

        ``behind_s``: seconds since it last made progress; meaningful only if it lags.
        """
        return {
            name: {
                "durable": f.acked,
                "applied": f.applied,
                "streaming": f.streaming,
                "in_sync": name in self.in_sync,
                "behind_s": round(max(0, now_ns - f.behind_since_ns) / 1e9, 3),
            }
            for name, f in sorted(self._followers.items())
        }

    @property
    def known_committed(self) -> int:
        """The log is known to be committed up to here; ``committed`` follows as entries arrive."""
        return max(self._known_committed, self.committed)

    def propose(
        self, commands: tuple[Command, ...], origins: tuple[Origin, ...], *, timestamp_ns: int, now_ns: int
    ) -> list[Effect]:
        """Leader: append ``commands`` to the log as one record.

        Raises:
            ProtocolError: they do not fit into one record; nothing was done.
        """
        ensure(self.role is Role.LEADING, "a replica proposes that does not lead")
        record = Record.make(self.tail, epoch=self.epoch, timestamp_ns=timestamp_ns, commands=commands, origins=origins)
        previous = self.tail
        self.pending.append(record)
        self.tail = record.tail
        effects: list[Effect] = []
        streams = []
        for name, follower in self._followers.items():
            if not follower.streaming:
                continue
            if follower.acked >= previous.sequence:
                follower.behind_since_ns = now_ns
            if record.last_sequence - follower.acked > IN_FLIGHT_MAX:
                follower.streaming = False
                continue
            follower.sent = record.last_sequence
            follower.commit_announced = self.committed
            streams.append(name)
        if streams:
            effects.append(Send(tuple(streams), self._append(previous, (record.body,))))
        effects.append(PersistRecords(self._generation, (record,)))
        return effects

    def announce_commit(self) -> list[Effect]:
        """Leader: announce the commit index, unless a record did. Call it when there is nothing else to send."""
        if self.role is not Role.LEADING:
            return []
        news = tuple([n for n, f in self._followers.items() if f.streaming and f.commit_announced < self.committed])
        if not news:
            return []
        for name in news:
            self._followers[name].commit_announced = self.committed
        return [Send(news, self._append(self.tail, ()))]

    def _append(self, previous: Tail, bodies: tuple[bytes, ...], *, join: int = 0) -> Append:
        return Append(
            self.market,
            self.epoch,
            previous.sequence,
            previous.chain,
            bodies,
            self.committed,
            self.applied if self.state_hash else 0,
            self.state_hash,
            join,
        )

    def on_join(self, sender: str, message: Join, now_ns: int) -> list[Effect]:
        """Leader: a replica asks for our log from its tail on."""
        if self.role is Role.STOPPED:  # it may be named as leader by a swap whose success it did not learn of
            return [Send((sender,), Resign(self.market, message.epoch))]
        if self.role is not Role.LEADING or sender not in self._links:
            return []
        if message.epoch != self.epoch:
            return [Send((sender,), self._lead())]
        before = self._followers.get(sender)
        if before is not None and message.join < before.join:
            return []  # late, from an earlier life of the link
        # A member holds all committed entries. Notify one that says otherwise; once, since it then joins again.
        lacks = sender in self.in_sync and message.durable < self.committed
        old = [Send((sender,), self._lead())] if lacks and before is None else []
        self._tokens += 1
        probe = Tail(message.tail_epoch, message.tail_sequence, message.tail_chain)
        self._followers[sender] = _Follower(
            self._tokens,
            message.join,
            message.observer,
            probe,
            message.life,
            acked=min(message.durable, probe.sequence),
            behind_since_ns=now_ns,
        )
        if before is not None:  # joining repeatedly is not progress
            self._followers[sender].behind_since_ns = before.behind_since_ns
        # Entries beyond those we inherited are ours only if they are of our epoch.
        reach = self.tail.sequence if probe.epoch >= self.epoch else self._inherited
        if probe.sequence > reach:
            return [*old, Send((sender,), Rewind(self.market, self.epoch, message.join, reach, ()))]
        return [*old, *self._read(sender, self._followers[sender])]

    def _read(self, name: str, follower: _Follower) -> list[Effect]:
        """Ask the journal for the next records: after an unmatched follower's tail, if our log has it; else after those
        sent.

        Do nothing while an earlier read runs, whatever it reads: :meth:`on_log_read` asks again.
        """
        if name in self._reading:
            return []
        self._reading.add(name)
        if follower.matched:
            return [ReadJournal(name, follower.sent, None, follower.token)]
        return [ReadJournal(name, follower.probe.sequence, follower.probe.chain, follower.token)]

    def on_log_read(self, read: LogRead, now_ns: int) -> list[Effect]:
        """Leader: the journal answered a :class:`ReadJournal`."""
        node, after = read.node, read.after
        self._reading.discard(node)
        follower = self._followers.get(node)
        if self.role is not Role.LEADING or follower is None:
            return []
        if follower.token != read.token:  # it has joined again meanwhile
            return self._read(node, follower) if not follower.matched else []
        far = not follower.matched and self.committed - after > self._snapshot_behind
        # Offer a snapshot once; a follower that lags again after installing it catches up from the log.
        if after < read.base or (far and after <= self._offered_to.get(node, after)):
            self._offered_to[node] = after
            follower.matched = follower.streaming = False  # it gets no log until it joins again
            return [OfferSnapshot(node, after)]
        if not follower.matched:
            if read.chain != follower.probe.chain:
                back_to = max(read.tails[0][0] if read.tails else after, 1) - 1
                return [Send((node,), Rewind(self.market, self.epoch, follower.join, back_to, read.tails))]
            follower.matched = True
            follower.sent = after
        ensure(follower.sent == after, "a follower is sent two reads of the journal at a time")
        chain = present(read.chain, "the leader's own log has no boundary at what it has sent")
        if read.bodies:
            follower.sent = Record.span_of(read.bodies[-1])[1]
        follower.streaming = follower.sent == self.tail.sequence
        if follower.streaming:
            self._offered_to.pop(node, None)
        follower.commit_announced = self.committed
        send = Send((node,), self._append(Tail(0, after, chain), read.bodies, join=follower.join))
        # Send what became durable since the read: this frame has nothing to acknowledge, so nothing else would trigger
        # it.
        return [send, *self._feed(node, follower), *self._advance(), *self._reconsider(now_ns)]

    def _feed(self, name: str, follower: _Follower) -> list[Effect]:
        """Read on for a follower that catches up at its own pace: the next piece once it holds the last one."""
        behind = follower.matched and not follower.streaming
        if not behind or follower.acked < follower.sent or follower.sent >= self.durable:
            return []
        return self._read(name, follower)

    def on_ack(self, sender: str, message: Ack, now_ns: int) -> list[Effect]:
        """Leader: a follower has made more of the log durable."""
        follower = self._followers.get(sender)
        if self.role is not Role.LEADING or follower is None:
            return []
        if message.epoch != self.epoch or message.join != follower.join:
            return []
        # It may hold more than this join has sent, from an earlier join's stream; sending it again will show.
        known = follower.sent if follower.matched else follower.probe.sequence
        durable = min(message.durable, known)
        if durable > follower.acked:
            follower.behind_since_ns = now_ns
            follower.acked = durable
        follower.applied = message.applied
        effects = self._advance()
        effects += self._feed(sender, follower)
        if sender not in self.in_sync:
            effects += self._reconsider(now_ns)
        return effects

    def _advance(self) -> list[Effect]:
        """Leader: commit and apply the entries that every required replica holds."""
        if len(self.in_sync) < self.min_in_sync:
            return []
        required = self.in_sync if self._swap is None else (*self.in_sync, *self._swap.in_sync)
        reached = self.durable
        for member in required:
            if member != self.node:
                follower = self._followers.get(member)
                reached = min(reached, follower.acked if follower is not None and follower.matched else 0)
        return self._commit(reached)

    def _commit(self, sequence: int) -> list[Effect]:
        ready: list[Record] = []
        begun: list[Begun] = []
        epoch = self._base.epoch
        while self.pending and self.pending[0].last_sequence <= sequence:
            record = self.pending.popleft()
            ready.append(record)
            if record.epoch > epoch:
                epoch = record.epoch
                begun.append(Begun(epoch, record.first_sequence, record.chain))
        if not ready:
            return []
        self._base = base = ready[-1].tail
        self.committed = base.sequence
        effects: list[Effect] = []
        if begun or base.epoch > self.disk.committed_epoch:
            epochs = (*self.disk.epochs, *begun)[-EPOCHS_MAX:]
            state = dataclasses.replace(self.disk, epochs=epochs)
            if base.epoch > self.disk.committed_epoch:
                state = dataclasses.replace(state, committed_epoch=base.epoch, committed=base.sequence)
            effects = self._keep_disk(state)
        return [*effects, ApplyRecords(tuple(ready))]

    # -- following ----------------------------------------------------------------------------------------------

    def on_lead(self, sender: str, message: Lead) -> list[Effect]:
        """Another node claims to lead."""
        if self.role is Role.STOPPED and message.epoch > self.epoch:
            self._left_leading = False
        if self.role in (Role.STOPPED, Role.CLAIMING) or sender == self.node:
            return []  # the coordinator's answer decides on a claim
        if message.epoch < self.epoch:
            return self._object((sender,)) if self.record is not None else []  # it does not know that it was deposed
        if self.record is None or self.following is Following.UNCHECKED:
            # The coordinator was not asked since the start. Before that, this replica may have promised not to follow
            # anybody of this epoch any more, by following or claiming a later one of which it holds no entry.
            return []
        if message.epoch > self.epoch or sender != self.leader:
            return self._doubt()
        self._learn(message.in_sync)
        effects = self._join() if not self.matched else []
        if self.node in message.in_sync and message.committed > self.durable and not self.repairing:
            why = (
                f"its disk is an older copy: it ends at {self.durable}, and {sender} has committed {message.committed} "
                "with this node in sync"
            )
            return [*self._begin_repair(why), *effects]
        return [*effects, *self._repaired()]

    def _doubt(self) -> list[Effect]:
        """Another node claims something unknown here: believe only the coordinator. One request at a time."""
        if self._doubting is not Doubt.NONE:
            self._doubting, self._must_read = Doubt.CLAIMED_AGAIN, True
            return []
        self._doubting = Doubt.READING
        return [ReadRecord()]

    def _follow(self, leader: str, epoch: int) -> None:
        self.leader = leader
        self.ended.discard(leader)  # it has led since, so it is back
        self.epoch = max(self.epoch, epoch)
        self._receive_no_more()
        self.expected_hash = None

    def _receive_no_more(self) -> None:
        """The join is over; another follows when it can. A log that is being replaced goes on being replaced."""
        if self.joined:
            self.following = Following.APART

    def _step_down(self) -> list[Effect]:
        was_leading = self.role is Role.LEADING
        self.role = Role.FOLLOWING
        self.leader = None
        self._followers.clear()
        self._swap = None
        return [LeadershipLost()] if was_leading else []

    def _join(self) -> list[Effect]:
        leader = present(self.leader, "a join without a leader to send it to")
        if self.following is Following.REPLACING:
            return []
        self.following = Following.JOINING
        tail = self.tail
        self._fetching = 0
        self._join_number += 1
        number = self._join_number
        ends = tail.epoch, tail.sequence, tail.chain, self.durable
        join = Join(self.market, self.epoch, number, *ends, self.observer, self._reported_life)
        return [Send((leader,), join)]

    def on_rewind(self, sender: str, message: Rewind) -> list[Effect]:
        """Follower: our tail is not in the leader's log; cut the entries that it lacks, as far as it says, and ask
        again.

        Ignore an answer to an earlier join: the entries it would cut may have been matched and acknowledged since.
        """
        if self.role is not Role.FOLLOWING or sender != self.leader or message.epoch != self.epoch:
            return []
        if self.following is Following.REPLACING:
            return []
        if message.join != self._join_number:
            return []
        held = {record.last_sequence: record.chain for record in self.pending}
        held[self._base.sequence] = self._base.chain
        common = [sequence for sequence, chain in message.tails if held.get(sequence) == chain]
        keep = max(common, default=message.sequence)
        if self._from_before_force():
            return self._put_aside(f"the leader's log is another after {keep}")
        if keep < self.committed and self.repairing:
            return self._put_aside(f"the leader's log is another after {keep}")
        if keep < self.committed:
            self._receive_no_more()
            return [*self._set_trouble(self._diverged(sender, keep)), *self._object((sender,), self._base)]
        while self.pending and self.pending[-1].last_sequence > keep:
            self.pending.pop()
        self.tail = self.pending[-1].tail if self.pending else self._base
        self.durable = min(self.durable, self.tail.sequence)
        self._generation += 1
        return [CutJournal(self.tail.sequence), *self._join()]

    def _diverged(self, leader: str, keep: int) -> StorageError:
        return StorageError(
            f"market {self.market}: entry {self._base.sequence} of epoch {self._base.epoch} is committed here, and "
            f"{leader}, which leads, does not have it: their logs are one up to {keep} at most. One disk, or the "
            "coordinator's store, is an older copy: delete nothing. Compare both nodes' data directories with "
            f"`openoutcry verify DIR` and `openoutcry log DIR {self.market}`; to go on with this node's, stop the "
            f"other and run `openoutcry force-leader {self.market}` here; to go on with the other's, run it there "
            "while this node is stopped",
            code="diverged",
        )

    def _from_before_force(self) -> bool:
        """Whether this log ends before the last forced leadership: it may hold acknowledged entries that are lost."""
        return self.tail.sequence > 0 and self.record is not None and self.tail.epoch < self.record.forced

    def _put_aside(self, why: str) -> list[Effect]:
        self.following = Following.REPLACING
        tail = self.tail
        if self.repairing:
            found = "it is an older copy"
        elif self._from_before_force():
            found = "it ends before leadership was forced"
        else:
            found = "it may be another"
        return [PutAside(f"{found}: at {tail.sequence} in epoch {tail.epoch}, and {why}")]

    def on_put_aside(self) -> list[Effect]:
        """The log was put aside: join the market as new."""
        self.following = Following.APART
        self._begin_at(EMPTY)
        effects = self._keep_disk(dataclasses.replace(self.disk, epochs=()))
        self._known_committed = 0
        return [*effects, *(self._join() if self.leader is not None and self.role is Role.FOLLOWING else [])]

    def on_append(self, sender: str, message: Append) -> list[Effect]:
        """Follower: the leader sent the next records."""
        if self.role is not Role.FOLLOWING or message.epoch < self.epoch or self.following is Following.REPLACING:
            return []
        if message.epoch > self.epoch or sender != self.leader:
            return []  # its Lead must come first, and the coordinator must confirm it
        bodies = self._news_in(message)
        if bodies is None:
            # Sent before the leader knew about our Join: the records after our own tail are on their way.
            if self.following is Following.ALIGNED:
                self.following = Following.MISFIT
            return []
        trouble: list[Effect] = []
        # Any other may be of an earlier join's stream, and the leader may not know of this one.
        answers = message.join == self._join_number
        newly_fitted = answers and self._fitted_join != self._join_number
        if answers:
            if self.trouble is not None and self.trouble.code == "diverged":
                trouble = self._set_trouble(None)
            self._fitted_join = self._join_number
        if self.joined and self._fitted_join == self._join_number:
            self.following = Following.ALIGNED
        tail = self.tail
        records = []
        for body in bodies:
            record = Record.parse(tail, body)
            records.append(record)
            tail = record.tail
        if tail.epoch > self.epoch:
            raise ProtocolError(f"a record of epoch {tail.epoch} in the log of epoch {self.epoch}")
        self.pending.extend(records)
        self.tail = tail
        if message.state_sequence > self.applied:
            self.expected_hash = (message.state_sequence, message.state_hash)
        self._known_committed = max(self._known_committed, message.committed)
        effects = self._commit(min(self._known_committed, self.durable))
        if records:
            effects.insert(0, PersistRecords(self._generation, tuple(records)))
        elif message.bodies or newly_fitted:
            effects.insert(0, self._ack())
        return trouble + effects + self._repaired()

    def _news_in(self, message: Append) -> tuple[bytes, ...] | None:
        """Return the bodies after our tail, without those we already hold; None if the logs do not fit."""
        bodies = message.bodies
        previous, chain = message.previous_sequence, message.previous_chain
        if previous == self.tail.sequence:
            return bodies if chain == self.tail.chain else None
        if previous < self._base.sequence:
            # The leader's log holds all committed entries, so up to there it equals ours.
            spans = [Record.span_of(body)[1] for body in bodies]
            bodies = bodies[bisect_right(spans, self._base.sequence) :]
            held = list(self.pending)
            if spans and spans[-1] > self._base.sequence and self._base.sequence not in (previous, *spans):
                return None
        elif previous == self._base.sequence:
            if chain != self._base.chain:
                return None
            held = list(self.pending)
        else:
            after = [at for at, r in enumerate(self.pending, 1) if r.last_sequence == previous and r.chain == chain]
            if not after:
                return None
            held = list(self.pending)[after[0] :]
        if [record.body for record in held[: len(bodies)]] != list(bodies[: len(held)]):
            return None
        return bodies[len(held) :]

    def wants_snapshot(self, sender: str, epoch: int, tail: Tail) -> bool:
        """Follower: whether to accept the leader's offer of its state at ``tail``.

        Only if it is ahead of everything held here: an acknowledged entry must not leave the disk.
        """
        ours = self.role is Role.FOLLOWING and sender == self.leader and epoch == self.epoch
        replacing = self.following is Following.REPLACING
        return ours and not replacing and tail.sequence > self.tail.sequence and tail.epoch <= epoch

    def on_state_offered(self, sender: str, epochs: Sequence[Begun]) -> list[Effect]:
        """Follower: ``sender``, the leader, offers a state that this replica wants, of a log with these ``epochs``.

        Return what to do instead of fetching it, if what is committed here is not, or may not be, part of that log. In
        the same epoch, begun by the same record, two logs are one: they had one leader. Compare Kafka's leader epochs
        (KIP-101, KIP-279).
        """
        base = self._base
        if base.sequence == 0:
            return []
        here, there = begun_at(self.disk.epochs, base.sequence), begun_at(epochs, base.sequence)
        if here is not None and here == there:
            return []
        if here is None or there is None:
            return self._put_aside("the leader's log does not reach back to compare")
        others = [each.sequence for each in self.disk.epochs if each not in epochs]
        keep = min([*others, base.sequence]) - 1
        if self.repairing or self._from_before_force():
            return self._put_aside(f"the leader's log is another after {keep}")
        self._receive_no_more()
        return [*self._set_trouble(self._diverged(sender, keep)), *self._object((sender,), base)]

    def on_fetching(self, sequence: int, now_ns: int) -> None:
        """Follower: the leader's state at ``sequence`` is being fetched, or a piece of it was received.

        No log arrives meanwhile. Unless the next piece or a log arrives, it joins again after a while.
        """
        self._fetching = sequence
        self._fitted_at_ns = now_ns

    def on_snapshot_declined(self, sender: str, epoch: int) -> list[Effect]:
        """Follower: the leader offered a state that we have passed since we joined: join again from our tail."""
        ours = self.role is Role.FOLLOWING and sender == self.leader and epoch == self.epoch
        return self._join() if ours else []

    def on_snapshot_fetched(self, tail: Tail) -> list[Effect]:
        """Follower: the whole state of the leader at ``tail`` was received; call :meth:`on_snapshot_kept` once it is
        durable.

        Until then nothing is appended: the journal restarts with it.
        """
        if self._from_before_force():
            return self._put_aside("the leader's log does not reach back to compare")
        self.following = Following.REPLACING
        return [KeepFetched(tail)]

    def on_snapshot_kept(self, tail: Tail, epochs: tuple[Begun, ...]) -> list[Effect]:
        """Follower: the book is now the state at ``tail``, durably, and the log continues from there.

        ``epochs`` are those of the log that led to it.
        """
        ensure(tail.sequence > self.tail.sequence, "a snapshot is to replace a log that is newer")
        self.following = Following.APART
        self._begin_at(tail)
        effects = self._keep_disk(dataclasses.replace(self.disk, epochs=epochs))
        self._known_committed = max(self._known_committed, tail.sequence)
        return [*effects, *(self._join() if self.leader is not None and self.role is Role.FOLLOWING else [])]

    def on_snapshot_not_kept(self) -> list[Effect]:
        """Follower: the disk refused the fetched state: continue with the old one, and join again on a tick.

        The shell decides whether to fetch it again at once.
        """
        self.following = Following.APART
        self._fetching = 0
        return []

    def _begin_at(self, tail: Tail) -> None:
        self.pending.clear()
        self._base = self.tail = tail
        self.durable = self.committed = self.applied = tail.sequence
        self.expected_hash = None
        self.state_hash = ""
        self._generation += 1

    @property
    def base(self) -> Tail:
        """The tail of the applied part of the log."""
        return self._base

    # -- the disk and the book ----------------------------------------------------------------------------------

    def on_durable(self, generation: int, sequence: int) -> list[Effect]:
        """The journal is durable up to ``sequence``."""
        if generation != self._generation or self.role is Role.STOPPED:
            return []
        ensure(self.durable <= sequence <= self.tail.sequence, "the journal is ahead of the log")
        self.durable = sequence
        if self.role is Role.LEADING:
            effects = self._advance()
            for name, follower in self._followers.items():
                effects += self._feed(name, follower)
            return effects
        if self.role is Role.FOLLOWING and self.joined and self.leader is not None:
            return [self._ack(), *self._commit(min(self._known_committed, self.durable)), *self._repaired()]
        return []

    def _repaired(self) -> list[Effect]:
        """Follower: whether the repair is over: in sync again, and durable up to everything ever committed.

        Once the leader has committed an entry of its own epoch, that includes everything its predecessors acknowledged;
        what it commits after making us a member needs our ack.
        """
        caught_up = self._base.epoch == self.epoch and self.durable >= self._known_committed
        whole = self.matched and caught_up and (self.observer or self.node in self.in_sync)
        if whole and self.repairing and self.disk.begun and not self.observer:
            # Report first: after a crash, a disk whose last life was not reported would count as old again.
            if self._reports_repair:
                return []
            self._reports_repair = True
            return [ReportMark(self._mark_of_this_life())]
        return self._end_repair() if whole else []

    def _ack(self) -> Effect:
        leader = present(self.leader, "an ack without a leader to send it to")
        return Send((leader,), Ack(self.market, self.epoch, self._join_number, self.durable, self.applied))

    def on_applied(self, sequence: int, state_hash: str) -> list[Effect]:
        """The book has applied everything up to ``sequence``; ``state_hash`` may be empty if it was not computed."""
        ensure(sequence == self.committed, "the book and the log disagree on what is committed")
        self.applied = sequence
        self.state_hash = state_hash
        # While orders flow, the next ack reports it; the last one before a pause would leave the leader with an old
        # number.
        idle = (
            self.role is Role.FOLLOWING and self.leader is not None and self.durable == self.tail.sequence == sequence
        )
        return [self._ack()] if idle and self._fitted_join == self._join_number else []

    def stop(self, error: OpenOutcryError) -> list[Effect]:
        """The shell cannot go on (the disk failed, the book broke an invariant)."""
        return self._stop(error) if self.role is not Role.STOPPED else []

    def _stop(self, error: OpenOutcryError) -> list[Effect]:
        effects: list[Effect] = []
        if self.role is Role.LEADING:
            self._left_leading = True
            if successors := self.successors():
                effects.append(Send(tuple(successors), Resign(self.market, self.epoch)))
        elif self.role is Role.FOLLOWING and self.leader is not None:
            effects.append(Send((self.leader,), Resign(self.market, self.epoch)))
        self.role = Role.STOPPED
        self.leader = None
        self._receive_no_more()
        self._followers.clear()
        return [*effects, Stop(error)]
