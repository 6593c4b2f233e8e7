"""An exchange of node processes that can be hurt, with clients in them that record every call and every answer.

Each node runs in a process of its own with a few clients in it, each a thread with an account of its own that asks
again, under the same client order id, until it is answered. What they call and are told goes to the test through a pipe
at once, so that nothing of it is lost with the process. What a dead node's clients had no answer to is asked for again
at its next start, or by :meth:`Exchange.finish` at any other node: in the end everything that was called is answered.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import multiprocessing
import os
import queue
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from history import Answer, Logged, Operation, Verdict, check, longest_gap_s, outcome_of
from openoutcry.actors import ExchangeNode
from openoutcry.actors.book.commands import CANCEL, SUBMIT, Command
from openoutcry.actors.book.journal import Journal
from openoutcry.actors.testing import eventually
from openoutcry.actors.testkit.proxy import Proxy
from openoutcry.transport.certificates import Authority, Identity
from openoutcry.transport.errors import OpenOutcryError, StorageError
from openoutcry.transport.rendezvous import Rendezvous
from processes import MARKET, RULES
from shims import Shims
from stores import Store

ROUNDS: Final = int(os.environ.get("OPENOUTCRY_FAULT_ROUNDS", "1"))
"""How often each fault is tried; 1 in CI, where some variants are left out; 20 or more in a soak."""
NAMES: Final = ("ann", "bob", "cat")
CLIENTS: Final = 2
BATCH_MAX: Final = 8
PAUSE_S: Final = 0.004
"""Between two calls of a client: a load that leaves most of a small machine free."""
CALL_TIMEOUT_S: Final = 15
LEASE_MS: Final = 1000
_processes = multiprocessing.get_context()


# -- in the child ------------------------------------------------------------------------------------------------------


class _Client:
    """One account: orders around one price, of which half trade, and some cancels."""

    def __init__(
        self, node: ExchangeNode, account: str, say: Callable[..., None], unanswered: list[Command], batch_max: int
    ) -> None:
        """``unanswered``: what to ask for first; ``batch_max``: most commands of a call after that, 0 = none."""
        self._node = node
        self._batch_max = batch_max
        self._account = account
        self._say = say
        self._again = unanswered
        self._life = time.monotonic_ns()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._trade, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(CALL_TIMEOUT_S + 5)

    def _trade(self) -> None:
        chance = random.Random(self._account)
        number = 0
        mine: list[int] = []
        if self._again:
            self._ask(self._again)
        while self._batch_max and not self._stopping.wait(PAUSE_S * chance.uniform(0.5, 1.5)):
            batch: list[Command] = []
            for _ in range(chance.randint(1, self._batch_max)):
                number += 1
                name = f"{self._life}.{number}"
                if mine and chance.random() < 0.2:
                    batch.append((CANCEL, self._account, name, mine.pop(chance.randrange(len(mine)))))
                else:
                    price = chance.randrange(9990, 10011)
                    batch.append(
                        (SUBMIT, self._account, name, chance.randrange(2), 0, price, chance.randrange(1, 9), 0, 0, 0)
                    )
            mine = (mine + self._ask(batch))[-50:]

    def _ask(self, batch: list[Command]) -> list[int]:
        """Ask until there is an answer; return the sequence numbers, which are the ids of the orders among them."""
        self._say("called", time.monotonic_ns(), batch)
        while not self._stopping.is_set():
            try:
                results = self._node.submit_many(MARKET, batch, timeout=CALL_TIMEOUT_S)
            except OpenOutcryError as error:
                self._say("refused", time.monotonic_ns(), error.code)
                self._stopping.wait(0.5 if isinstance(error, StorageError) else 0.02)
                continue
            now_ns = time.monotonic_ns()
            last = results[-1]
            answers = [
                (
                    command[1:3],
                    Answer(now_ns, r.sequence, outcome_of(r.raw_events), last.state_sequence, last.state_hash),
                )
                for command, r in zip(batch, results, strict=True)
            ]
            self._say("answered", now_ns, answers)
            return [r.sequence for r in results]
        return []


def _serve(name: str, folder: Path, directory: str, options: dict[str, Any], shims: dict[str, Any], pipe: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(
        filename=folder / f"{name}.log", level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    saying = threading.Lock()

    def say(*what: Any) -> None:
        with saying:
            pipe.send(what)

    hurt = Shims(**shims)
    clients: list[_Client] = []
    try:
        with ExchangeNode(
            name,
            markets={MARKET: RULES},
            data_dir=folder / name,
            directory=directory,
            **{"lease_ms": LEASE_MS, **options},
        ) as node:
            say("listening", node.listen_address)
            node.wait_ready(60)
            say("ready", node.node_id)
            while True:
                what, *arguments = pipe.recv()
                if what == "load":
                    work, batch_max = arguments
                    clients += [_Client(node, name, say, commands, batch_max) for name, commands in work.items()]
                elif what == "quiet":
                    for client in clients:
                        client.stop()
                    clients.clear()
                    say("answer", None)
                elif what == "hurt":
                    method, args = arguments
                    say("answer", getattr(hurt, method)(*args))
                elif what == "call":
                    method, args = arguments
                    try:
                        say("answer", getattr(node, method)(*args))
                    except OpenOutcryError as error:
                        say("raised", error.code, str(error))
                else:
                    break
    except OpenOutcryError as error:
        say("failed", error.code, str(error))


# -- in the test -------------------------------------------------------------------------------------------------------


class History:
    """What all clients called and were told, as it is reported; written by the threads that read the pipes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.operations: dict[tuple[str, str], Operation] = {}
        self.answers_ns: dict[str, list[int]] = {}
        """When each node's clients were given answers."""
        self.refusals: dict[str, list[str]] = {}

    def called(self, at_ns: int, commands: Sequence[Command]) -> None:
        with self._lock:
            for command in commands:
                self.operations.setdefault(command[1:3], Operation(command, at_ns))

    def answered(self, node: str, at_ns: int, answers: Sequence[tuple[tuple[str, str], Answer]]) -> None:
        with self._lock:
            self.answers_ns.setdefault(node, []).append(at_ns)
            for name, answer in answers:
                op = self.operations[name]
                op.answer = op.answer or answer

    def refused(self, node: str, code: str) -> None:
        with self._lock:
            self.refusals.setdefault(node, []).append(code)

    def unanswered(self) -> dict[str, list[Command]]:
        """Return the commands that have no answer, by account, in the order of their calls."""
        found: dict[str, list[Command]] = {}
        with self._lock:
            for op in self.operations.values():
                if op.answer is None:
                    found.setdefault(op.command[1], []).append(op.command)
        return found

    def times_ns(self, nodes: Sequence[str] | None = None) -> list[int]:
        with self._lock:
            return [at for name in nodes or list(self.answers_ns) for at in self.answers_ns.get(name, ())]


class StartFailed(Exception):
    """The node did not start, or stopped: ``code`` of the error, and its words."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Node:
    """One node's process, seen from the test."""

    def __init__(
        self, name: str, folder: Path, directory: str, history: History, options: dict[str, Any], shims: dict[str, Any]
    ) -> None:
        self.name = name
        self.folder = folder / name
        self._history = history
        self._pipe, theirs = _processes.Pipe()
        arguments = (name, folder, directory, options, shims, theirs)
        self._process = _processes.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._said: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._stopped_by_signal = False

    def _read(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                what, *values = self._pipe.recv()
                if what == "called":
                    self._history.called(*values)
                elif what == "answered":
                    self._history.answered(self.name, *values)
                elif what == "refused":
                    self._history.refused(self.name, values[1])
                else:
                    self._said.put((what, *values))
        self._said.put(("failed", "gone", f"the process of {self.name} is gone"))

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def expect(self, wanted: str, within_s: float = 90) -> Any:
        """Return what the process says next, which is ``wanted``.

        Raises:
            StartFailed: it ended instead.
        """
        what, *values = self._said.get(timeout=within_s)
        if what == "failed":
            raise StartFailed(*values)
        assert what == wanted, f"{self.name}: {what} {values} instead of {wanted}"
        return values[0]

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the node and return what it returned."""
        self._pipe.send(("call", method, args))
        return self.expect("answer")

    def hurt(self, method: str, *args: Any) -> None:
        """Call a method of the process's :class:`~shims.Shims`."""
        self._pipe.send(("hurt", method, args))
        self.expect("answer")

    def segments(self) -> list[Path]:
        """The files of its journal, oldest first."""
        return sorted((self.folder / "markets" / MARKET).glob("*.log"))

    def said_in_its_log(self) -> str:
        """What the process has logged, in all of its lives."""
        return self.folder.with_suffix(".log").read_text()

    @property
    def status(self) -> dict[str, Any]:
        """The node's status, as JSON carries it."""
        found: dict[str, Any] = self.call("status").to_dict()
        return found

    @property
    def market(self) -> dict[str, Any]:
        """The market's part of the node's status."""
        found: dict[str, Any] = self.status["markets"][MARKET]
        return found

    def load(self, work: dict[str, list[Command]], *, batch_max: int) -> None:
        """Start clients: for each account, what it has to ask for first; 0 = they go on with nothing else."""
        self._pipe.send(("load", work, batch_max))

    def quiet(self) -> None:
        """Stop the clients, each after the answer that it waits for."""
        self._pipe.send(("quiet",))
        self.expect("answer")

    def kill(self) -> None:
        """kill -9, and take in all that it had reported."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.wait_gone()

    def wait_gone(self, within_s: float = 60) -> None:
        self._process.join(within_s)
        assert not self.alive, f"{self.name} was meant to end"
        self._reader.join(30)

    def freeze(self) -> None:
        """SIGSTOP."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """Close the node in order; kill it if it does not end."""
        with contextlib.suppress(OSError):
            self._pipe.send(("stop",))
        self._process.join(40)
        if self.alive:
            self.kill()
        self._reader.join(30)
        self._pipe.close()


@dataclasses.dataclass(slots=True)
class Findings:
    """What a run came to, for the report."""

    operations: int
    gap_s: float
    """The longest time in which no client of the nodes that were watched had an answer."""
    lost: int
    doubled: int
    diverged: int
    steady_gap_s: float
    """The longest such time before the fault."""


class Exchange:
    """Three nodes, their clients, and what became of all that was asked."""

    def __init__(
        self,
        store: Store,
        *,
        proxied: bool = False,
        batch_max: int = BATCH_MAX,
        shims: dict[str, Any] | None = None,
        identities: bool = False,
        **options: Any,
    ) -> None:
        """``proxied``: every link goes through a ``Proxy`` before the node that is dialled.

        ``identities``: every node and the rendezvous have one, so that all links are TLS.
        ``batch_max``: most commands of one call; ``shims``: of all nodes; ``options``: of all nodes, too.
        """
        self.store = store
        self.folder = store.folder
        self.history = History()
        self.nodes: dict[str, Node] = {}
        self.proxies: dict[str, Proxy] = {name: Proxy() for name in NAMES} if proxied else {}
        self._options = {"coordinator": store.address, **options}
        self._batch_max = batch_max
        self._shims = shims or {}
        self._authority = Authority.create(store.folder / "authority") if identities else None
        if self._authority is None:
            self._rendezvous = Rendezvous("tcp://127.0.0.1:0")
        else:
            identity = Identity(self._authority.issue("rendezvous"))
            self._rendezvous = Rendezvous("tls+tcp://127.0.0.1:0", identity=identity)
        self._rendezvous.start()
        self._loaded = False
        self.hurt_ns = 0

    # -- life ---------------------------------------------------------------------------------------------------

    def start(self, *names: str, **shims: Any) -> None:
        """Start nodes, or start them again on their old folders, and wait until each can trade.

        ``shims``: arguments of :class:`~shims.Shims`, beside those that all nodes have.

        Raises:
            StartFailed: one cannot.
        """
        for name in names:
            options = dict(self._options)
            if name in self.proxies:
                self.proxies[name].target = None
                options["advertise"] = self.proxies[name].address
            self.nodes[name] = self._node(name, self.folder, options, shims)
        for name in names:
            address = self.nodes[name].expect("listening")
            if name in self.proxies:
                host, _, port = address.removeprefix("tcp://").rpartition(":")
                self.proxies[name].target = (host, int(port))
        for name in names:
            self.nodes[name].expect("ready")
        if self._loaded:
            for name in names:
                self._load(name)

    def start_copy(self, name: str, copy: Path) -> Node:
        """Start a second process of node ``name``, with ``copy`` for its data directory, and no clients."""
        folder = self.folder / f"beside-{name}"
        folder.mkdir()
        shutil.copytree(copy, folder / name)
        return self._node(name, folder, dict(self._options), {})

    def _node(self, name: str, folder: Path, options: dict[str, Any], shims: dict[str, Any]) -> Node:
        if self._authority is not None:
            options["identity"] = self.folder / f"{name}.pem"
            if not options["identity"].exists():
                self._authority.issue_file(options["identity"], name, accounts=[f"{each}-*" for each in NAMES])
        return Node(name, folder, self._rendezvous.address, self.history, options, {**self._shims, **shims})

    def begin(self) -> list[str]:
        """Start all nodes and clients, and let them trade for a while; return the leader's name and the followers'."""
        self.start(*NAMES)
        self.wait_in_sync()
        self._loaded = True
        for name in self.nodes:
            self._load(name)
        self.wait_answers(20)
        time.sleep(random.uniform(0.05, 0.3))  # a fault comes at another moment in every round
        leader = self.wait_leader(*NAMES)
        return [leader, *random.sample([name for name in NAMES if name != leader], 2)]

    def _load(self, name: str) -> None:
        work: dict[str, list[Command]] = {f"{name}-{number}": [] for number in range(CLIENTS)}
        for account, commands in self.history.unanswered().items():
            if account in work:
                work[account] = commands
        self.nodes[name].load(work, batch_max=self._batch_max)

    def mark(self) -> None:
        """The fault begins now, and a member of the coordinator dies: gaps in the answers are counted from here on."""
        self.hurt_ns = time.monotonic_ns()
        self.store.lose_a_member()

    def wait_deposed(self, name: str) -> None:
        """Wait until a former leader follows, in a later epoch."""
        market = eventually(
            lambda: (m := self.nodes[name].market)["role"] == "following" and m["ready"] and m, f"{name} follows"
        )
        assert market["epoch"] > 1
        assert not market["leader"].startswith(name)

    def wait_stopped(self, name: str, words: str) -> None:
        """Wait until a node says that its replica has stopped, and why."""
        market = eventually(lambda: (m := self.nodes[name].market)["role"] == "stopped" and m, f"{name} has stopped")
        assert words in market["error"], market

    def wait_answers(self, count: int, *names: str, within_s: float = 60) -> None:
        """Wait until the clients of each of ``names`` (default: all) have had ``count`` more answers."""
        goal = {name: len(self.history.times_ns([name])) + count for name in names or NAMES}
        eventually(
            lambda: all([len(self.history.times_ns([name])) >= enough for name, enough in goal.items()]),
            f"{count} answers more at each of {sorted(goal)}; refused: "
            f"{ {name: codes[-3:] for name, codes in self.history.refusals.items()} }",
            within=within_s,
        )

    def wait_leader(self, *of: str, within_s: float = 60) -> str:
        """Wait until one of ``of`` leads, and return its name."""
        return str(
            eventually(
                lambda: next((name for name in of if self.nodes[name].market["role"] == "leading"), None),
                f"one of {of} leads",
                within=within_s,
            )
        )

    def wait_in_sync(self, within_s: float = 60) -> None:
        """Wait until every node is in sync, as all of them know."""
        eventually(
            lambda: all([len(node.market["in_sync"]) == len(NAMES) for node in self.nodes.values()]),
            "all are in sync again",
            within=within_s,
        )

    def finish(self) -> Verdict:
        """Stop the clients, have everything answered, and check: the nodes agree, and the history is true."""
        for node in self.nodes.values():
            node.quiet()
        self._loaded = False
        self.wait_in_sync()
        anyone = self.nodes[random.choice(NAMES)]
        if left := self.history.unanswered():
            anyone.load(left, batch_max=0)
            eventually(lambda: not self.history.unanswered(), "everything that was called is answered")
            anyone.quiet()
        last = max([node.call("sequence", MARKET) for node in self.nodes.values()])
        for node in self.nodes.values():
            node.call("wait_sequence", MARKET, last)
        positions = {name: node.call("position", MARKET) for name, node in self.nodes.items()}
        failures = {name: node.status["failures"] for name, node in self.nodes.items()}
        for node in self.nodes.values():
            node.kill()
        assert len(set(positions.values())) == 1, f"the nodes disagree: {positions}"
        logs = {name: [record for record in self.logged(name) if record.first_sequence <= last] for name in self.nodes}
        assert logs["ann"] == logs["bob"] == logs["cat"], "the logs differ"
        assert logs["ann"][-1].first_sequence + len(logs["ann"][-1].commands) == last + 1, "the log is short"
        assert not any(failures.values()), f"an actor failed: {failures}"
        verdict = check(list(self.history.operations.values()), logs["ann"])
        assert verdict.faults == [], verdict.faults[:10]
        assert verdict.answered == verdict.operations, "every call had an answer"
        return verdict

    def findings(self, verdict: Verdict, watched: Sequence[str]) -> Findings:
        times = self.history.times_ns(watched)
        before = [at for at in times if at < self.hurt_ns]
        after = [at for at in times if at >= self.hurt_ns]
        return Findings(
            verdict.operations,
            longest_gap_s([*before[-1:], *after]),
            len(verdict.lost),
            len(verdict.doubled),
            0,
            longest_gap_s(before),
        )

    def logged(self, name: str) -> list[Logged]:
        """Return the log of a node that is not running."""
        journal = Journal(self.folder / name / "markets" / MARKET)
        try:
            return [Logged(r.first_sequence, r.timestamp_ns, r.commands) for r in journal.records()]
        finally:
            journal.close()

    def close(self) -> None:
        """End every process and thread. Idempotent."""
        for node in self.nodes.values():
            with contextlib.suppress(ProcessLookupError):
                node.thaw()
        ending = [threading.Thread(target=node.stop) for node in self.nodes.values() if node.alive]
        for thread in ending:
            thread.start()
        for thread in ending:
            thread.join()
        for proxy in self.proxies.values():
            proxy.close()
        self.proxies = {}
        self._rendezvous.close()


@contextlib.contextmanager
def exchange(store: Store, **options: Any) -> Iterator[Exchange]:
    """Start an exchange without nodes; end all of its processes at the end. Its files stay if the test has failed."""
    made = Exchange(store, **options)
    try:
        yield made
    finally:
        made.close()
    shutil.rmtree(store.folder, ignore_errors=True)  # journals are preallocated: a soak would fill the disk
