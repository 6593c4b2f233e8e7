"""The ``openoutcry`` command: words and options in, calls of the library out, lines or JSON to read. Decides nothing else.

Exit codes: 0 done; 1 refused, unavailable or failed, with one line on stderr that ends in the error's code; 2 usage.
"""

from __future__ import annotations

import gc
import itertools
import json
import multiprocessing
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Final

import click

from ..transport.errors import OpenOutcryError, Unavailable
from ..transport.rendezvous import Rendezvous
from .book.commands import TRADE
from .book.rules import MarketRules
from .node import ExchangeNode
from .replay import BookRow, FlowCommands, differences, final_book_hash, read_flow
from .views import OrderResult

REPLAY_MARKET: Final = "REPLAY"
_REPLAY_S: Final = 60.0
_REPLAY_WINDOW: Final = 16
_DIFFERENCES_SHOWN: Final = 10


class _Failure(click.ClickException):
    """An error of the library as one line on stderr, and exit code 1."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(f"{' '.join(message.split())} ({code})")

    def show(self, file: Any = None) -> None:
        """Print the line."""
        click.echo(self.message, file=file or sys.stderr)


class _Group(click.Group):
    """Commands whose expected errors are told, not thrown."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except OpenOutcryError as error:
            raise _Failure(error.message, error.code) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _Failure(str(error), "os_error") from error


@click.group(cls=_Group)
@click.version_option(package_name="openoutcry")
def main() -> None:
    """A peer-to-peer exchange: every node holds the same order book, to the byte."""


# -- replay --------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--nodes", type=click.IntRange(1, 16), default=2, show_default=True, help="How many node processes.")
@click.option("--batch", type=click.IntRange(1, 4096), default=256, show_default=True, help="Commands a request.")
@click.option(
    "--via",
    type=click.Choice(["leader", "follower"]),
    default="leader",
    show_default=True,
    help="Which node the commands are submitted at.",
)
@click.option("--json", "as_text", flag_value=False, default=True, help="Print the report as JSON.")
def replay(file: Path, nodes: int, batch: int, via: str, as_text: bool) -> None:
    """Feed recorded order flow through real node processes, and compare what they trade with what the venue did.

    FILE is CSV, plain or .gz, with the columns seq,ts_ns,cmd,order_id,side,price_ticks,qty,expect. The exit code is 0
    if every fill is as expected and all nodes end with the same book.
    """
    if via == "follower" and nodes < 2:
        raise click.UsageError("one node alone has no follower: use --nodes 2 or more")
    with _ReplayNodes(nodes) as exchange:
        feeder = exchange.role("leading" if via == "leader" else "following")
        with click.progressbar(length=_count_rows(file), label="replaying", file=sys.stderr) as bar:
            fed = exchange.ask(feeder, ("feed", file, batch), on_progress=bar.update)
        ends = [exchange.ask(at, ("end", fed["sequence"])) for at in range(nodes)]
    flow_ids: dict[int, str] = fed.pop("flow_ids")
    found = []
    for name, state_hash, orders in ends:
        rows: list[BookRow] = [(side, price, flow_ids.get(order, f"?{order}"), lots) for side, price, order, lots in orders]
        found.append({"node": name, "state_hash": state_hash, "book_hash": final_book_hash(rows), "open_orders": len(rows)})
    equal = len({(end["state_hash"], end["book_hash"]) for end in found}) == 1
    report = {"file": str(file), "via": via, **fed, "nodes": found, "equal": equal}
    if as_text:
        _show_replay(report)
    else:
        click.echo(json.dumps(report))
    if fed["differences"] or not equal:
        raise _Failure("the replay does not end as it should", "replay_differs")


def _count_rows(file: Path) -> int:
    return len(read_flow(file))


def _show_replay(report: dict[str, Any]) -> None:
    rate = f"{report['commands_per_s']:,} commands/s"
    click.echo(f"{report['commands']:,} commands in {report['seconds']:.2f} s: {rate}, submitted at the {report['via']}")
    click.echo(f"{report['fills']:,} fills, {report['differences']:,} differences from the venue")
    for line in report["first_differences"]:
        click.echo(f"  {line}")
    for end in report["nodes"]:
        click.echo(f"{end['node']}: book {end['book_hash'][:16]}, {end['open_orders']:,} orders, state {end['state_hash']}")
    click.echo("equal on all nodes" if report["equal"] else "the nodes DIFFER")


class _ReplayNodes:
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

    def __enter__(self) -> _ReplayNodes:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._undo.close()

    def role(self, wanted: str) -> int:
        """Return the first node of a role."""
        return self._roles.index(wanted)

    def ask(self, at: int, request: tuple[Any, ...], on_progress: Callable[[int], object] | None = None) -> Any:
        """Return a node's answer, or raise what it failed with."""
        self._pipes[at].send(request)
        return self._answer(at, on_progress)

    def _answer(self, at: int, on_progress: Callable[[int], object] | None) -> Any:
        pipe = self._pipes[at]
        try:
            while pipe.poll(2 * _REPLAY_S):
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
            timeout=_REPLAY_S,
        ) as node:
            node.wait_ready(_REPLAY_S)
            node.wait_in_sync(REPLAY_MARKET, nodes, _REPLAY_S)
            _spare_gc()
            pipe.send(("done", node.status()["markets"][REPLAY_MARKET]["role"]))
            while True:
                kind, *values = pipe.recv()
                pipe.send(("done", _feed(node, pipe, *values) if kind == "feed" else _end_state(node, *values)))
    except EOFError:
        return
    except OpenOutcryError as error:
        pipe.send(("failed", error.code, error.message))


def _feed(node: ExchangeNode, pipe: Connection, file: Path, batch: int) -> dict[str, Any]:
    """Send the flow in order, several batches in flight; return what came of it."""
    rows = read_flow(file)
    first_sequence = node.sequence(REPLAY_MARKET) + 1
    flow = FlowCommands(first_sequence=first_sequence)
    commands = [flow.command(row) for row in rows]
    results: list[OrderResult] = []
    in_flight: deque[Callable[[], list[OrderResult]]] = deque()

    def collect() -> None:
        answers = in_flight.popleft()()
        results.extend(answers)
        pipe.send(("progress", len(answers)))

    started_s = time.perf_counter()
    for at in range(0, len(commands), batch):
        in_flight.append(node.submit_many_async(REPLAY_MARKET, commands[at : at + batch]))
        if len(in_flight) == _REPLAY_WINDOW:
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
    node.wait_sequence(REPLAY_MARKET, sequence, _REPLAY_S)
    found, state_hash = node.position(REPLAY_MARKET)
    if found != sequence:
        raise Unavailable(f"it is at sequence {found}, beyond the replay's last, {sequence}", code="replay_disturbed")
    orders = [
        ("A" if order.side == "sell" else "B", int(order.price), order.order_id, int(order.open_quantity))
        for order in node.all_orders(REPLAY_MARKET)
    ]
    return node.name, state_hash, orders


def _spare_gc() -> None:
    """Keep the garbage collector from walking all resting orders again and again: this process is ours alone."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
