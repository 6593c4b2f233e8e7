"""The processes of a replay: real nodes that recorded flow is fed to and that are asked where they end. Prints nothing.

What a flow is, and when a book answers as the venue did, is in :mod:`.replay`.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Final

from ...transport.errors import OpenOutcryError, Unavailable
from ...transport.rendezvous import Rendezvous
from ..book.commands import TRADE
from ..book.rules import MarketRules
from ..market.views import OrderResult, OrderResults
from ..node import ExchangeNode, spare_gc
from .replay import FlowCommands, differences, read_flow

REPLAY_MARKET: Final = "REPLAY"
_WITHIN_S: Final = 60.0
"""How long a node may take for one step, in seconds."""
_IN_FLIGHT_MAX: Final = 16
"""Most batches that are sent and not answered."""
_DIFFERENCES_SHOWN: Final = 10


class ReplayNodes:
    """Node processes of one exchange, in sync when made, with all that they share in a temporary folder."""

    def __init__(self, nodes: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes: list[SpawnProcess] = []
        with ExitStack() as undo:
            home = undo.enter_context(tempfile.TemporaryDirectory(prefix="openoutcry-", ignore_cleanup_errors=True))
            rendezvous = undo.enter_context(Rendezvous("tcp://127.0.0.1:0"))
            undo.callback(self._stop)
            for at in range(nodes):
                ours, theirs = spawn.Pipe()
                arguments = (f"node-{at}", Path(home), rendezvous.address, nodes, theirs)
                process = spawn.Process(target=_run_replay_node, args=arguments, daemon=True)
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
            self._roles: list[str] = [self._answer(at, None) for at in range(nodes)]
            self._undo = undo.pop_all()

    def __enter__(self) -> ReplayNodes:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._undo.close()

    def role(self, wanted: str) -> int:
        """Return the first node of a role."""
        return self._roles.index(wanted)

    def ask(self, at: int, request: tuple[Any, ...], on_progress: Callable[[int], object] | None = None) -> Any:
        """Return a node's answer, or raise what it failed with."""
        with contextlib.suppress(OSError):  # a process that is gone is found by its answer
            self._pipes[at].send(request)
        return self._answer(at, on_progress)

    def _answer(self, at: int, on_progress: Callable[[int], object] | None) -> Any:
        pipe = self._pipes[at]
        try:
            while pipe.poll(2 * _WITHIN_S):
                kind, *values = pipe.recv()
                if kind == "progress" and on_progress is not None:
                    on_progress(values[0])
                elif kind == "failed":
                    raise OpenOutcryError(f"node-{at}: {values[1]}", code=values[0])
                elif kind == "done":
                    return values[0]
        except (EOFError, OSError):
            raise Unavailable(f"the process of node-{at} has ended", code="node_died") from None
        raise Unavailable(f"the process of node-{at} does not answer", code="node_silent")

    def _stop(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(30)
            if process.is_alive():
                process.kill()
                process.join()


def _run_replay_node(name: str, home: Path, directory: str, nodes: int, pipe: Connection) -> None:
    """Be one node, in a process of its own: answer the parent's requests until it closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    rules = MarketRules(tick_size="1", lot_size="1")
    try:
        with ExchangeNode(
            name,
            markets={REPLAY_MARKET: rules},
            directory=directory,
            data_dir=home / name,
            coordinator=home / "coordinator.sqlite",
            timeout=_WITHIN_S,
        ) as node:
            node.wait_ready(_WITHIN_S)
            node.wait_in_sync(REPLAY_MARKET, nodes, _WITHIN_S)
            spare_gc()
            pipe.send(("done", node.status()["markets"][REPLAY_MARKET]["role"]))
            while True:
                kind, *values = pipe.recv()
                pipe.send(("done", _feed(node, pipe, *values) if kind == "feed" else _end_state(node, *values)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except OpenOutcryError as error:
        with contextlib.suppress(OSError):
            pipe.send(("failed", error.code, error.message))


def _feed(node: ExchangeNode, pipe: Connection, file: Path, batch: int) -> dict[str, Any]:
    """Send the flow in order, several batches in flight; return what came of it."""
    rows = read_flow(file)
    first_sequence = node.sequence(REPLAY_MARKET) + 1
    flow = FlowCommands(first_sequence=first_sequence)
    commands = [flow.command(row) for row in rows]
    results: list[OrderResult] = []
    in_flight: deque[Callable[[], OrderResults]] = deque()

    def collect() -> None:
        answers = in_flight.popleft()()
        results.extend(answers)
        pipe.send(("progress", len(answers)))

    started_s = time.perf_counter()
    for at in range(0, len(commands), batch):
        in_flight.append(node.submit_many_async(REPLAY_MARKET, commands[at : at + batch]))
        if len(in_flight) == _IN_FLIGHT_MAX:
            collect()
    while in_flight:
        collect()
    seconds = time.perf_counter() - started_s
    events = list(itertools.chain.from_iterable([result.raw_events for result in results]))
    differ = list(differences(rows, events, first_sequence=first_sequence, flow_ids=flow.flow_ids))
    return {
        "commands": len(rows),
        "seconds": round(seconds, 4),
        "commands_per_s": round(len(rows) / seconds) if rows else 0,
        "fills": len([event for event in events if event[0] == TRADE]),
        "differences": len(differ),
        "first_differences": [str(each) for each in differ[:_DIFFERENCES_SHOWN]],
        "sequence": results[-1].sequence if results else first_sequence - 1,
        "flow_ids": flow.flow_ids,
    }


def _end_state(node: ExchangeNode, sequence: int) -> tuple[str, str, list[tuple[str, int, int, int]]]:
    """Return the node's name, its state hash at ``sequence``, and its orders as the flow's rows, by the book's ids."""
    node.wait_sequence(REPLAY_MARKET, sequence, _WITHIN_S)
    found, state_hash = node.position(REPLAY_MARKET)
    if found != sequence:
        raise Unavailable(f"it is at sequence {found}, beyond the replay's last, {sequence}", code="replay_disturbed")
    orders = [
        ("A" if order.side == "sell" else "B", int(order.price), order.order_id, int(order.open_quantity))
        for order in node.all_orders(REPLAY_MARKET)
    ]
    return node.name, state_hash, orders
