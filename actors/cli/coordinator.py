"""Rebuilds the coordinator's store."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

import click

from ..leadership.coordination import open_coordinator
from ..tools import inspection, rebuild
from .common import GivenPath, print_json
from .output import say
from .show import table

_FOLDER: Final = GivenPath(exists=True, file_okay=False)


@click.group()
def coordinator() -> None:
    """The store that says who leads each market, and who is in sync."""


@coordinator.command("rebuild")
@click.argument("folders", metavar="DIR...", type=_FOLDER, nargs=-1, required=True)
@click.option("--coordinator", "address", required=True, help="The new store: a path, or etcd://HOST:PORT,…/PREFIX.")
@click.option("--yes", is_flag=True, help="Do not ask; what is to be written is printed all the same.")
@click.option("--json", "as_json_text", is_flag=True, help="Print JSON.")
def rebuild_store(*, folders: tuple[Path, ...], address: str, yes: bool, as_json_text: bool) -> None:
    """Rebuild the records of a lost store from the disks of stopped nodes.

    DIR are the nodes' data directories; give as many as you have. If one of them was in sync, no answered command is
    lost. Each market continues from the log that reaches furthest. A node whose log holds more puts it aside when it
    joins. Stop all nodes first, also those whose disks you do not give.
    """
    with contextlib.ExitStack() as stack:
        for folder in folders:
            stack.enter_context(inspection.held(folder))
        plans = rebuild.plan(folders, lambda market: say(f"reading {market}", err=True))
        if not as_json_text:
            say(*_plan_lines(plans))
        if not yes:
            click.confirm(f"Write these records to {address}?", abort=True, err=True)
        store = open_coordinator(address)
        try:
            records = rebuild.carry_out(store, plans)
        finally:
            store.close()
    if as_json_text:
        print_json(records, done=True)
        return
    say(f"{len(records)} records were written; start the nodes that are to lead first", done=True)


def _plan_lines(plans: list[rebuild.Rebuilt]) -> list[str]:
    rows = [("MARKET", "NODE", "SEQUENCE", "EPOCH", "")]
    for each in plans:
        for holder in (each.leader, *each.others):
            role = f"leads, in epoch {each.epoch}" if holder is each.leader else holder.unfit or "joins"
            rows.append((each.market, holder.node, str(holder.sequence), str(holder.epoch), role))
    return table(rows)
