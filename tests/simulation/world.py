"""A whole exchange in one thread, from one seed: the pure replicas and books; network, disks, coordinator simulated.

Every choice (what happens next, what a crash leaves on a disk, whether a coordinator call that failed had been carried
out) is drawn from one ``random.Random(seed)``, so a seed is a schedule, and a failure can be replayed. Invariants are
checked at every applied record, convergence at the end with all faults healed.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from openoutcry.actors.book.commands import CANCEL_ALL, CLOCK, CONFIGURE, SUBMIT
from openoutcry.actors.book.orderbook import OrderBook
from openoutcry.actors.book.record import EMPTY, Record, Tail
from openoutcry.actors.book.replica import (
    ApplyRecords,
    CreateRecord,
    CutJournal,
    KeepFetched,
    LeadershipBegun,
    OfferSnapshot,
    PersistRecords,
    ReadJournal,
    ReadRecord,
    Replica,
    Role,
    Send,
    Stop,
    SwapRecord,
)
from openoutcry.actors.book.rules import MarketRules
from openoutcry.actors.messages import Ack, Append, Join, Lead, Rewind
from openoutcry.transport.coordinator import MarketRecord

MARKET = "SIM"
RULES = MarketRules(dedupe_window=64)


class State(NamedTuple):
    """A snapshot on its way from a leader to a follower."""

    epoch: int
    tail: Tail
    book: bytes


class Node:
    """One node: its disk survives a crash, the rest does not."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.disk: list[Record] = []
        self.snapshot: tuple[Tail, bytes] = (EMPTY, OrderBook().snapshot())
        """What the log on the disk follows."""
        self.fetched: tuple[Tail, bytes] | None = None
        self.committed_on_disk = 0
        self.alive = False
        self.start()

    def start(self) -> None:
        applied, pending = self.snapshot[0], []
        self.book = OrderBook.restore(self.snapshot[1])
        for record in self.disk:
            if record.last_sequence <= self.committed_on_disk:
                self.book.apply(record.first_sequence, record.timestamp_ns, record.commands)
                applied = record.tail
            else:
                pending.append(record)
        self.world.incarnations += 1000
        self.replica = self.world.replica_class(
            market=MARKET,
            node=self.name,
            applied=applied,
            pending=pending,
            incarnation=self.world.incarnations,
            absent_ms_max=500,
            snapshot_behind=self.world.snapshot_behind,
            lag_ms_max=2000,
        )
        self.journal: deque[Any] = deque()
        self.calls: deque[Any] = deque()
        self.links: set[str] = set()
        self.alive = True
        self.run(self.replica.start())

    def crash(self) -> None:
        """Die: of what was being written, any prefix may be on the disk, and a cut may have happened or not."""
        chance = self.world.chance
        for task in list(self.journal)[: chance.randrange(len(self.journal) + 1)]:
            if isinstance(task, PersistRecords):
                survived = chance.randrange(len(task.records) + 1)
                self.disk += task.records[:survived]
                if survived < len(task.records):
                    break
            elif isinstance(task, CutJournal):
                self.disk = [r for r in self.disk if r.last_sequence <= task.sequence]
            elif isinstance(task, KeepFetched):
                self.keep_fetched()
        self.alive = False
        for other in self.world.nodes:
            if frozenset((self.name, other)) in self.world.connected:
                self.world.cut(self.name, other)

    def run(self, effects: list[Any]) -> None:
        world = self.world
        for effect in effects:
            if isinstance(effect, Send):
                for node in effect.nodes:
                    if node in self.links:
                        world.wires[self.name, node].append(effect.message)
            elif isinstance(effect, (PersistRecords, CutJournal, ReadJournal, KeepFetched)):
                self.journal.append(effect)
            elif isinstance(effect, OfferSnapshot):
                if effect.node in self.links:
                    world.wires[self.name, effect.node].append(
                        State(self.replica.epoch, self.replica.base, self.book.snapshot())
                    )
            elif isinstance(effect, (ReadRecord, CreateRecord, SwapRecord)):
                self.calls.append(effect)
            elif isinstance(effect, ApplyRecords):
                self.apply(effect.records)
            elif isinstance(effect, LeadershipBegun):
                world.leaderships.append((self.replica.epoch, self.name))
                opening = (CLOCK, "", "") if self.replica.tail.sequence else (CONFIGURE, "", "", RULES.to_tuple())
                self.propose((opening,))
            elif isinstance(effect, Stop):
                raise AssertionError(f"{self.name} stopped: {effect.error}")

    def apply(self, records: tuple[Record, ...]) -> None:
        for record in records:
            self.book.apply(record.first_sequence, record.timestamp_ns, record.commands)
            self.world.note_applied(self, record)
            expected = self.replica.expected_hash
            if expected is not None and expected[0] == record.last_sequence:
                assert self.book.state_hash() == expected[1], f"{self.name} diverged at {record.last_sequence}"
        self.run(self.replica.on_applied(self.book.sequence, self.book.state_hash()))

    def propose(self, commands: tuple[Any, ...]) -> None:
        world = self.world
        last = self.replica.pending[-1].timestamp_ns if self.replica.pending else self.book.timestamp_ns
        stamp = max(world.now_ns, last)
        self.run(self.replica.propose(commands, (), timestamp_ns=stamp, now_ns=world.now_ns))

    def deliver(self, sender: str, message: Any) -> None:
        replica, now_ns = self.replica, self.world.now_ns
        handlers: dict[type, Callable[[], list[Any]]] = {
            Append: lambda: replica.on_append(sender, message),
            Ack: lambda: replica.on_ack(sender, message, now_ns),
            Join: lambda: replica.on_join(sender, message, now_ns),
            Lead: lambda: replica.on_lead(sender, message),
            Rewind: lambda: replica.on_rewind(sender, message),
            State: lambda: self.take_state(sender, message),
        }
        self.run(handlers[type(message)]())

    def take_state(self, sender: str, state: State) -> list[Any]:
        if not self.replica.wants_snapshot(sender, state.epoch, state.tail.sequence):
            return self.replica.on_snapshot_declined(sender, state.epoch)
        self.fetched = state.tail, state.book
        return self.replica.on_snapshot_fetched(state.tail)

    def keep_fetched(self) -> Tail:
        """The fetched state takes the place of the log: both at once, as the snapshot's file is what counts."""
        assert self.fetched is not None
        self.snapshot = self.fetched
        self.committed_on_disk = max(self.committed_on_disk, self.snapshot[0].sequence)
        self.disk.clear()
        return self.snapshot[0]

    def work_journal(self) -> None:
        """Carry out the next task of the disk."""
        task = self.journal.popleft()
        now_ns = self.world.now_ns
        if isinstance(task, PersistRecords):
            self.disk += task.records
            self.committed_on_disk = max(
                self.committed_on_disk, min(self.replica.committed, self.disk[-1].last_sequence)
            )
            sequence = task.records[-1].last_sequence
            self.run(self.replica.on_durable(task.generation, sequence, now_ns))
        elif isinstance(task, CutJournal):
            self.disk = [r for r in self.disk if r.last_sequence <= task.sequence]
        elif isinstance(task, KeepFetched):
            tail = self.keep_fetched()
            self.book = OrderBook.restore(self.snapshot[1])
            self.run(self.replica.on_snapshot_kept(tail))
        else:
            base = self.snapshot[0]
            chain = {base.sequence: base.chain, **{r.last_sequence: r.chain for r in self.disk}}.get(task.after)
            bodies = [r.body for r in self.disk if r.first_sequence > task.after][: self.world.chance.randrange(1, 6)]
            found = bodies if chain is not None else []
            self.run(self.replica.on_log_read(task.node, task.after, task.token, chain, found, base.sequence, now_ns))

    def work_coordinator(self) -> None:
        """Carry out the next call to the coordinator, or lose it, or carry it out and lose the answer."""
        call = self.calls.popleft()
        fate = self.world.chance.random() if self.world.faulty else 1.0
        store, now_ns = self.world.store, self.world.now_ns
        if fate < 0.05:
            self.run(self.replica.on_coordinator_unavailable(call))
            return
        if isinstance(call, ReadRecord):
            answer = store.get(MARKET)
        elif isinstance(call, CreateRecord):
            answer = store.setdefault(MARKET, MarketRecord(MARKET, 1, 1, self.name, (self.name,)))
        else:
            answer = None
            if store[MARKET] == call.expected:
                answer = MarketRecord(MARKET, call.expected.version + 1, call.epoch, call.leader, call.in_sync)
                store[MARKET] = answer
        if fate < 0.1:
            self.run(self.replica.on_coordinator_unavailable(call))
        elif isinstance(call, SwapRecord):
            self.run(self.replica.on_swapped(call, answer, now_ns))
        else:
            self.run(self.replica.on_record(answer, now_ns))


class World:
    """All nodes, what is between them, and what has been promised to users."""

    def __init__(
        self, seed: int, *, nodes: int = 3, takeovers: bool = True, replica_class: type[Replica] = Replica
    ) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.takeovers = takeovers
        self.snapshot_behind = self.chance.choice((3, 20, 10**9))
        self.replica_class = replica_class
        self.now_ns = 1_000_000_000
        self.incarnations = 0
        self.faulty = True
        self.store: dict[str, MarketRecord] = {}
        self.log: dict[int, bytes] = {}
        self.hashes: dict[int, str] = {}
        self.acknowledged = 0
        self.proposed = 0
        self.leaderships: list[tuple[int, str]] = []
        names = [f"n{number}" for number in range(nodes)]
        self.wires: dict[tuple[str, str], deque[Any]] = {(a, b): deque() for a in names for b in names if a != b}
        self.connected: set[frozenset[str]] = set()
        self.rising: list[tuple[str, str]] = []
        self.nodes: dict[str, Node] = {}
        for name in names:
            self.nodes[name] = Node(self, name)

    # -- promises -----------------------------------------------------------------------------------------------

    def note_applied(self, node: Node, record: Record) -> None:
        """Equal sequence number, equal log and equal state, at whoever applies, however often."""
        last = record.last_sequence
        assert self.log.setdefault(last, record.chain) == record.chain, f"{node.name}: another log at {last}"
        found = node.book.state_hash()
        assert self.hashes.setdefault(last, found) == found, f"{node.name}: another state at {last}"
        if node.replica.role is Role.LEADING:
            self.acknowledged = max(self.acknowledged, last)
            in_sync = self.store[MARKET].in_sync
            for name in in_sync:
                held = {r.last_sequence: r.chain for r in self.nodes[name].disk}
                whole = self.nodes[name].snapshot[0].sequence
                assert whole >= last or held.get(last) == record.chain, (
                    f"{last} was acknowledged, but in-sync {name} does not hold it"
                )

    # -- faults and steps ---------------------------------------------------------------------------------------

    def cut(self, a: str, b: str) -> None:
        self.connected.discard(frozenset((a, b)))
        for one, other in ((a, b), (b, a)):
            self.wires[one, other].clear()
            if (one, other) in self.rising:
                self.rising.remove((one, other))
            node = self.nodes[one]
            if other in node.links:
                node.links.discard(other)
                if node.alive:
                    node.run(node.replica.on_peer_down(other, self.now_ns))

    def connect(self, a: str, b: str) -> None:
        """Bring a link up; each side learns of it when its turn comes, maybe after the other's first messages."""
        self.connected.add(frozenset((a, b)))
        self.rising += [(a, b), (b, a)]

    def rise(self, one: str, other: str) -> None:
        self.rising.remove((one, other))
        node = self.nodes[one]
        node.links.add(other)
        node.run(node.replica.on_peer_up(other))

    def step(self) -> None:
        """Let one thing happen."""
        chance = self.chance
        possible: list[tuple[float, Callable[[], None]]] = [(1.0, self.tick)]
        for (sender, receiver), wire in self.wires.items():
            if wire and self.nodes[receiver].alive:
                possible.append((4.0, lambda s=sender, r=receiver, w=wire: self.nodes[r].deliver(s, w.popleft())))
        for one, other in self.rising:
            possible.append((4.0, lambda a=one, b=other: self.rise(a, b)))
        for name, node in self.nodes.items():
            if not node.alive:
                possible.append((0.4 if self.faulty else 5.0, node.start))
                continue
            if node.journal:
                possible.append((3.0, node.work_journal))
            if node.calls:
                possible.append((2.0, node.work_coordinator))
            if node.replica.may_propose and len(node.replica.pending) < 8 and self.faulty:
                possible.append((1.5, lambda n=node: self.trade(n)))
            for other in self.nodes:
                if name < other and self.nodes[other].alive:
                    if frozenset((name, other)) not in self.connected:
                        possible.append((1.0, lambda a=name, b=other: self.connect(a, b)))
                    elif self.faulty:
                        possible.append((0.02, lambda a=name, b=other: self.cut(a, b)))
            if self.faulty:
                possible.append((0.03, node.crash))
                if self.takeovers and node.replica.leader is not None:
                    possible.append((0.03, lambda n=node: n.run(n.replica.on_leader_lapsed(n.replica.leader))))
        weights, actions = zip(*possible, strict=True)
        chance.choices(actions, weights)[0]()
        for node in self.nodes.values():
            if node.alive and chance.random() < 0.5:
                node.run(node.replica.announce_commit())

    def tick(self) -> None:
        self.now_ns += self.chance.choice((1, 10, 100, 400)) * 1_000_000
        for node in self.nodes.values():
            if node.alive:
                node.run(node.replica.on_tick(self.now_ns))

    def trade(self, node: Node) -> None:
        chance = self.chance
        commands = []
        for _ in range(chance.randrange(1, 4)):
            self.proposed += 1
            account = chance.choice("ab")
            if chance.random() < 0.1:
                commands.append((CANCEL_ALL, account, f"c{self.proposed}"))
            else:
                side, price = chance.randrange(2), chance.randrange(95, 106)
                commands.append((SUBMIT, account, f"c{self.proposed}", side, 0, price, chance.randrange(1, 5), 0, 0, 1))
        node.propose(tuple(commands))

    def run(self, steps: int) -> None:
        """Live through ``steps`` faulty steps, then heal everything and require that all nodes converge."""
        for _ in range(steps):
            self.step()
        self.faulty = False
        for _ in range(200 + 400 * len(self.nodes)):
            for _ in range(10):
                self.step()
            if self.converged():
                break
        else:
            raise AssertionError(
                f"stuck: {[(n.name, n.replica.role, n.replica.tail.sequence) for n in self.nodes.values()]}"
            )
        for node in self.nodes.values():
            node.book.check()
            assert node.book.sequence >= self.acknowledged, f"{node.name} lost acknowledged commands"

    def converged(self) -> bool:
        nodes = list(self.nodes.values())
        if not all([node.alive for node in nodes]) or len(self.store[MARKET].in_sync) < len(nodes):
            return False
        tails = {(n.replica.tail.chain, n.replica.committed, n.book.sequence) for n in nodes}
        return len(tails) == 1 and nodes[0].replica.tail.sequence == nodes[0].book.sequence
