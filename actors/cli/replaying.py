"""Sends recorded order flow to node processes of its own."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import click

from ..tools.replay import BookRow, final_book_hash, read_flow
from ..tools.replay_run import ReplayNodes
from .common import GivenPath, print_json
from .live import progress
from .numbers import WholeRange
from .output import Failure, say


@click.command()
@click.argument("file", type=GivenPath(exists=True, dir_okay=False))
@click.option("--nodes", type=WholeRange(1, 16), default=2, show_default=True, help="How many node processes.")
@click.option("--batch", type=WholeRange(1, 4096), default=256, show_default=True, help="Commands a request.")
@click.option(
    "--via",
    type=click.Choice(["leader", "follower"]),
    default="leader",
    show_default=True,
    help="Which node the commands are submitted at.",
)
@click.option("--json", "as_json_text", is_flag=True, help="Print the report as JSON.")
def replay(file: Path, nodes: int, batch: int, via: str, as_json_text: bool) -> None:
    """Send recorded order flow through real node processes, and compare their trades with the recorded ones.

    FILE is CSV, plain or .gz, with the columns seq,ts_ns,cmd,order_id,side,price_ticks,qty,expect. The exit code is 0
    if every fill is as expected and all nodes end with the same book.
    """
    if via == "follower" and nodes < 2:
        raise click.UsageError("one node alone has no follower: use --nodes 2 or more")
    rows_in_file = len(read_flow(file))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with ReplayNodes(nodes) as exchange:
        feeder = exchange.role("leading" if via == "leader" else "following")
        with progress("replaying") as on_progress:
            fed = exchange.feed(feeder, file, batch, lambda more: on_progress(more, rows_in_file))
        ends = [exchange.end(at, fed["sequence"]) for at in range(nodes)]
    flow_ids: dict[int, str] = fed.pop("flow_ids")
    found = []
    for name, state_hash, resting in ends:
        rows: list[BookRow] = [(side, ticks, flow_ids.get(at, f"?{at}"), lots) for side, ticks, at, lots in resting]
        hashes = {"state_hash": state_hash, "book_hash": final_book_hash(rows)}
        found.append({"node": name, **hashes, "open_orders": len(rows)})
    equal = len({(end["state_hash"], end["book_hash"]) for end in found}) == 1
    report = {"file": str(file), "via": via, **fed, "nodes": found, "equal": equal}
    if as_json_text:
        print_json(report)
    else:
        _show_replay(report)
    if fed["differences"] or not equal:
        raise Failure("the replay does not end as it should", "replay_differs")


def _show_replay(report: dict[str, Any]) -> None:
    rate = f"{report['commands_per_s']:,} commands/s, submitted at the {report['via']}"
    say(f"{report['commands']:,} commands in {report['seconds']:.2f} s: {rate}")
    say(f"{report['fills']:,} fills, {report['differences']:,} differences from the recording")
    for line in report["first_differences"]:
        say(f"  {line}")
    for end in report["nodes"]:
        state = f"{end['open_orders']:,} orders, state {end['state_hash']}"
        say(f"{end['node']}: book {end['book_hash'][:16]}, {state}")
    say("equal on all nodes" if report["equal"] else "the nodes DIFFER")
