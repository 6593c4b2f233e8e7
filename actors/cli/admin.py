"""An operator's commands to a running node."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from ...transport.errors import OpenOutcryError, Unavailable
from ...transport.identity import date_of
from ..book.commands import REASON_LENGTH_MAX
from ..tools.config import parse_rules
from .common import at_node, connect, print_json
from .output import say
from .show import names_of, table


@click.command()
@click.argument("market")
@click.option("--to", metavar="NODE", help="Who is to lead, by name or id.  [default: any that is in sync]")
@at_node
def transfer(
    *,
    market: str,
    to: str | None,
    node_name: str | None,
    data_dir: Path | None,
    timeout: float,
    as_json_text: bool,
) -> None:
    """Hand the leadership of MARKET over to another node; the asked node must lead it. Commands in flight follow."""
    with connect(node_name, data_dir, timeout) as client:
        found = client.status()
        own, names, already = found["node_id"], names_of(found), False
        if to in (own, names[own]) and market in found["markets"]:
            leader = found["markets"][market].get("leader")
            already = leader == own
            if not already:
                named = f"{names.get(leader, leader)}: ask that node" if leader else "nobody that is known"
                raise Unavailable(f"market {market} is led by {named}", code="not_leader")
        else:
            leader = client.transfer(market, to)
    if as_json_text:
        print_json({"market": market, "leader": leader}, done=True)
        return
    say(f"{market} is led by {leader or 'another node'}{' already' if already else ''}", done=True)


@click.group()
def market() -> None:
    """Create a market, or list all markets."""


@market.command()
@click.argument("name")
@click.option("--tick", required=True, help="What one price step is, as in 0.01.")
@click.option("--lot", default="1", show_default=True, help="What one quantity step is.")
@click.option("--rule", "pairs", multiple=True, metavar="KEY=VALUE", help="Any other rule. Repeatable.")
@at_node
def create(
    *,
    name: str,
    tick: str,
    lot: str,
    pairs: tuple[str, ...],
    node_name: str | None,
    data_dir: Path | None,
    timeout: float,
    as_json_text: bool,
) -> None:
    """Create a market at the asked node, and on every node that joins all markets. Repeating it changes nothing."""
    rules = parse_rules([f"tick_size={tick}", f"lot_size={lot}", *pairs])
    with connect(node_name, data_dir, timeout) as client:
        client.create_market(name, rules)
        holders: list[str] = []
        joining: list[str] = []
        with contextlib.suppress(OpenOutcryError):  # it is created, even if the answer is incomplete
            found = client.status()
            names, in_sync = names_of(found), found["markets"][name].get("in_sync", ())
            holders = [names.get(at, at) for at in in_sync]
            joining = [names[at] for at, peer in found["peers"].items() if peer["joins_all"] and at not in in_sync]
    if as_json_text:
        print_json({"market": name, "rules": rules, "in_sync": holders, "joining": joining}, done=True)
        return
    held = f"{holders[0]} alone" if len(holders) == 1 else ", ".join(holders) or "nobody that is known"
    by_itself = f"{', '.join(joining)} will join it, as every market; " if joining else ""
    say(
        f"{name} takes orders, in ticks of {rules.tick_size} and lots of {rules.lot_size}",
        f"held by {held} so far; {by_itself}other nodes join it with --join {name}, or all markets with --join-all",
        done=True,
    )


@market.command("list")
@at_node
def list_markets(*, node_name: str | None, data_dir: Path | None, timeout: float, as_json_text: bool) -> None:
    """List every market of the exchange, and whether the asked node has joined it, or waits until it is opened."""
    with connect(node_name, data_dir, timeout) as client:
        found = client.markets()
    if as_json_text:
        print_json(found)
        return
    if not found:
        say("no markets yet; `openoutcry market create NAME --tick 0.01` makes one")
        return
    rows = [("MARKET", "JOINED", "TICK", "LOT")]
    for each in found:
        rules = each["rules"] or {"tick_size": "-", "lot_size": "-"}
        joined = "yes" if each["joined"] else "no"
        if not each["opened"]:
            joined = "waiting: no node has opened it"
        rows.append((each["market"], joined, rules["tick_size"], rules["lot_size"]))
    say(*table(rows))


@click.group()
def clock() -> None:
    """Compare a node's clock with others', or set a market's time to it."""


@clock.command("show")
@at_node
def show_clock(*, node_name: str | None, data_dir: Path | None, timeout: float, as_json_text: bool) -> None:
    """Show how far other clocks, and the times of its markets, are ahead of the asked node's clock."""
    with connect(node_name, data_dir, timeout) as client:
        found = client.status()
    names, clocks = names_of(found), found["clock"]
    markets = {name: each["time_off_s"] for name, each in found["markets"].items() if "time_off_s" in each}
    if as_json_text:
        print_json({**clocks, "markets_ahead_s": markets})
        return
    say(f"this machine's clock is {'off' if clocks['off'] else 'not known to be off'}")
    rows = [("CLOCK", "AHEAD BY")]
    rows += [(names.get(at, at), f"{each:+.3f} s") for at, each in clocks["offsets_s"].items()]
    rows += [(f"market {name}", f"{each:+.3f} s" if each else "within the bound") for name, each in markets.items()]
    say("\n".join(table(rows)))


@clock.command("reset")
@click.argument("market")
@click.option(
    "--reason", required=True, help=f"Who does it and why, for the log; up to {REASON_LENGTH_MAX} characters."
)
@at_node
def reset_clock(
    *, market: str, reason: str, node_name: str | None, data_dir: Path | None, timeout: float, as_json_text: bool
) -> None:
    """Set the time of MARKET to that of this machine's clock, at the node that leads it.

    Use it if a wrong clock has moved a market's time into the future or the past; see `openoutcry clock show`. It is a
    command in the log, the same for every replica. It changes no order: a good-till-date order keeps its date, and
    expires at once if the new time is past that date.
    """
    with connect(node_name, data_dir, timeout) as client:
        found = client.set_time(market, reason=reason)
    if as_json_text:
        print_json({"market": market, **found}, done=True)
        return
    before, after = (date_of(datetime.fromtimestamp(int(found[key]) / 1e9, UTC)) for key in ("before_ns", "after_ns"))
    say(f"the time of {market} was {before} and is {after}, since sequence {found['sequence']}", done=True)


@click.command("force-leader")
@click.argument("market")
@click.option(
    "--reason", required=True, help=f"Who does it and why, for the log; up to {REASON_LENGTH_MAX} characters."
)
@click.option("--yes", is_flag=True, help="Do not ask; what may be lost is printed all the same.")
@at_node
def force_leader(
    *,
    market: str,
    reason: str,
    yes: bool,
    node_name: str | None,
    data_dir: Path | None,
    timeout: float,
    as_json_text: bool,
) -> None:
    """Make a node lead MARKET after all in-sync replicas are lost. Commands that only they held are lost.

    While one in-sync replica is left, it takes over by itself; use this command only if none is. Choose the remaining
    node with the highest sequence in `openoutcry status`, and make sure that no node of the in-sync set runs anywhere.
    The log keeps a note. If a former in-sync replica comes back, it keeps its log under another name, and joins as new.
    """
    with connect(node_name, data_dir, timeout) as client:
        plan = client.force_plan(market)
        say(*_plan_lines(plan), err=as_json_text)
        if not yes:
            click.confirm("Force this node to lead?", abort=True, err=True)
        sequence = client.force_leader(market, reason=reason, plan=plan)
    if as_json_text:
        print_json({**plan, "note": sequence}, done=True)
        return
    say(
        f"{market} is led by {plan['node']} in epoch {plan['epoch'] + 1}; noted in the log at sequence {sequence}",
        done=True,
    )


def _plan_lines(plan: dict[str, Any]) -> list[str]:
    """Return what forcing a leader would lose, as far as known."""
    sequence, known = plan["sequence"], plan["known_committed"]
    lost = f"everything that was answered after sequence {sequence}; nobody left knows how much"
    if known > sequence:
        lost = f"{known - sequence} commands or more: {lost}"
    return [
        f"{plan['market']}: the last leader was {plan['leader']}, in epoch {plan['epoch']}",
        f"  in sync, and taken for lost: {', '.join(plan['in_sync'])}",
        f"  this node, {plan['node']}, goes on from sequence {sequence}, of epoch {plan['sequence_epoch']}",
        f"  LOST: {lost}",
    ]
