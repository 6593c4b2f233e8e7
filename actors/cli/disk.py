"""A stopped node's disk: is it sound, and what is in its log."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from ...transport.errors import InvalidRequest
from ...transport.numerals import time_text
from ..tools import inspection
from .common import GivenPath, print_json
from .live import progress
from .numbers import WholeRange
from .output import Failure, say

_FOLDER: Final = GivenPath(exists=True, file_okay=False)


@click.command()
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.option("--json", "as_json_text", is_flag=True, help="Print JSON.")
def verify(folder: Path, as_json_text: bool) -> None:
    """Check the disk of a stopped node without changing it.

    DIR is a node's data directory, or the folder of one market in it. The command checks the checksums, the hash chain
    and the snapshots, and executes the log to see that it leads to one consistent state. The exit code is 0 if all is
    sound, and 1 if something is damaged: the output then says where, and what to do.
    """
    with inspection.held(folder):
        folders, aside = inspection.market_folders(folder)
        reports = []
        for market, path in folders.items():
            with progress(f"reading {market}") as on_progress:
                reports.append(inspection.verify_market(market, path, on_progress))
    damaged = [report.market for report in reports if not report.sound]
    if as_json_text:
        print_json({"sound": not damaged, "markets": reports, "put_aside": [str(path) for path in aside]})
    else:
        for report in reports:
            say(*_report_lines(report))
        for path in aside:
            say(f"{path}: was put aside, and is not checked")
    if damaged:
        raise Failure(f"damaged: {', '.join(damaged)}", "damaged")


def _report_lines(report: inspection.MarketReport) -> list[str]:
    log = f"{report.records} with {report.commands} commands"
    values = {
        "records": f"{log}, after sequence {report.begins_after}" if report.begins_after else log,
        "last sequence": report.sequence,
        "epoch": report.epoch,
        "chain": report.chain[:16],
        "state hash": report.state_hash or "unknown",
        "committed": _committed(report),
        "torn tail": f"{report.torn_bytes} bytes" + (", cut at the next start" if report.torn_bytes else ""),
        "snapshots": ", ".join([f"at {sequence}" for sequence in report.snapshots]) or "none",
        "open orders": report.open_orders if report.open_orders is not None else "unknown",
    }
    if report.repairing:
        values["repairing"] = f"from a peer, as the node will go on to: {report.repairing}"
    lines = [f"{report.market}: {'sound' if report.sound else 'DAMAGED'}"]
    for damage in report.damage:
        lines += [f"  damage         {damage}", f"  what to do     {damage.advice}"]
    return [*lines, *[f"  {name:<13}  {value}" for name, value in values.items()]]


def _committed(report: inspection.MarketReport) -> str:
    if report.committed >= report.sequence:
        return str(report.committed)
    return f"{report.committed} or more: this mark lags on disk, and what was answered is never cut"


@click.command()
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.argument("market")
@click.option("--from", "first", type=WholeRange(1), default=1, help="The first sequence number.")
@click.option("--to", "last", type=WholeRange(1), help="The last sequence number.")
@click.option(
    "--events", "with_events", is_flag=True, help="Execute the log, and print below each command what it did."
)
@click.option("--json", "as_json_text", is_flag=True, help="Print a line of JSON for each command.")
def log(*, folder: Path, market: str, first: int, last: int | None, with_events: bool, as_json_text: bool) -> None:
    """Print a market's log from the disk of a stopped node.

    DIR is the node's data directory. A line has a command's sequence number, epoch and time (by the leader's clock, in
    UTC), the request and its account. The last lines may be commands that were never answered; when the node comes
    back, they may be removed. Answered commands are never removed. The committed mark that `verify` shows is written
    with the next command, so it lags.
    """
    with inspection.held(folder):
        folders, _ = inspection.market_folders(folder)
        if market not in folders:
            raise InvalidRequest(
                f"{folder} has no market {market}; it has: {', '.join(folders)}", code="unknown_market"
            )
        for logged in inspection.read_log(folders[market], first=first, last=last, with_events=with_events):
            if as_json_text:
                print_json(inspection.command_fields(logged))
                continue
            when = time_text(logged.timestamp_ns)
            say(f"{logged.sequence:>8}  {logged.epoch:>3}  {when}  {inspection.command_words(logged)}")
            for event in inspection.events_of(logged):
                say(f"{'':>47}{inspection.event_words(event)}")
