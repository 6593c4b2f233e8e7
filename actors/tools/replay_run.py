"""The processes of a replay: sends recorded flow to real nodes and reads their final states. Prints nothing.

:mod:`.replay` defines a flow, and when a book's answers equal the recorded ones.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from ...transport.errors import OpenOutcryError, Unavailable
from ...transport.rendezvous import Rendezvous
from ..book.commands import TRADE
from ..book.rules import MarketRules
from ..market.views import OrderResult, OrderResults
from ..node import ExchangeNode, spare_gc
from ..testkit.processes import NodeProcess, report
from .replay import FlowCommands, differences, read_flow

REPLAY_MARKET: Final = "REPLAY"
_WITHIN_S: Final = 60.0
"""Seconds that a node may take for one step."""
_IN_FLIGHT_MAX: Final = 16
"""Most unanswered batches in flight."""
_DIFFERENCES_SHOWN: Final = 10


class ReplayNodes:
    """Node processes of one exchange, in sync from the start, with their shared files in a temporary folder."""

    def __init__(self, nodes: int) -> None:
        self._progress: Callable[[int], object] = lambda _: None
        rules = MarketRules(tick_size="1", lot_size="1")
        with ExitStack() as undo:
            home = undo.enter_context(tempfile.TemporaryDirectory(prefix="openoutcry-", ignore_cleanup_errors=True))
            rendezvous = undo.enter_context(Rendezvous("tcp://127.0.0.1:0"))
            self._nodes: list[NodeProcess] = []
            for name in [f"node-{at}" for at in range(nodes)]:
                options = {
                    "markets": {REPLAY_MARKET: rules},
                    "directory": rendezvous.address,
                    "data_dir": Path(home) / name,
                    "coordinator": Path(home) / "coordinator.sqlite",
                    "timeout": _WITHIN_S,
                }
                made = NodeProcess(name, options, prepare=spare_gc, on_report=self._tell, patient=True, wait=False)
                undo.callback(made.close)
                self._nodes.append(made)
            for node in self._nodes:
                _in_words(node.name, node.wait_started)
            self._roles: list[str] = [self._ask(at, _in_sync, nodes) for at in range(nodes)]
            self._undo = undo.pop_all()

    def __enter__(self) -> ReplayNodes:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._undo.close()

    def role(self, wanted: str) -> int:
        """Return the first node of a role."""
        return self._roles.index(wanted)

    def feed(self, at: int, file: Path, batch: int, on_progress: Callable[[int], object]) -> dict[str, Any]:
        """Submit the flow in ``file`` at a node; return the results."""
        self._progress = on_progress
        found: dict[str, Any] = self._ask(at, _feed, file, batch)
        return found

    def end(self, at: int, sequence: int) -> tuple[str, str, list[tuple[str, int, int, int]]]:
        """Return a node's name, its state hash at ``sequence``, and its orders by the book's ids: rows of the flow."""
        found: tuple[str, str, list[tuple[str, int, int, int]]] = self._ask(at, _end_state, sequence)
        return found

    def _tell(self, more: int) -> None:
        self._progress(more)

    def _ask(self, at: int, function: Callable[..., Any], *args: Any) -> Any:
        node = self._nodes[at]
        return _in_words(node.name, lambda: node.run(function, *args))


def _in_words(name: str, call: Callable[[], Any]) -> Any:
    """Return the result of a call to a node's process; errors name the node."""
    try:
        return call()
    except OpenOutcryError as error:
        raise OpenOutcryError(f"{name}: {error.message}", code=error.code) from error
    except AssertionError as error:  # so the test kit says that the process has ended, or hangs
        raise Unavailable(str(error), code="node_died") from error


def _in_sync(node: ExchangeNode, nodes: int) -> str:
    """Wait until all nodes are in sync, and return this one's role."""
    node.wait_ready(_WITHIN_S)
    node.wait_in_sync(REPLAY_MARKET, nodes, _WITHIN_S)
    role: str = node.status().markets[REPLAY_MARKET].role
    return role


def _feed(node: ExchangeNode, file: Path, batch: int) -> dict[str, Any]:
    """Send the flow in order, several batches in flight; return the results."""
    rows = read_flow(file)
    first_sequence = node.sequence(REPLAY_MARKET) + 1
    flow = FlowCommands(first_sequence=first_sequence)
    commands = [flow.command(row) for row in rows]
    results: list[OrderResult] = []
    in_flight: deque[Callable[[], OrderResults]] = deque()

    def collect() -> None:
        answers = in_flight.popleft()()
        results.extend(answers)
        report(len(answers))

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
    node.wait_sequence(REPLAY_MARKET, sequence, _WITHIN_S)
    found, state_hash = node.position(REPLAY_MARKET)
    if found != sequence:
        raise Unavailable(f"it is at sequence {found}, beyond the replay's last, {sequence}", code="replay_disturbed")
    orders = [
        ("A" if order.side == "sell" else "B", int(order.price), order.order_id, int(order.open_quantity))
        for order in node.all_orders(REPLAY_MARKET)
    ]
    return node.name, state_hash, orders
