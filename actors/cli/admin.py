"""What an operator asks of a node that runs."""

from __future__ import annotations

from pathlib import Path

import click

from ..config import parse_rules
from .common import at_node, connect, print_json
from .show import table


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
    """Give the leadership of MARKET, which the asked node leads, to another node; commands in flight follow."""
    with connect(node_name, data_dir, timeout) as client:
        leader = client.transfer(market, to)
    if as_json_text:
        print_json({"market": market, "leader": leader})
        return
    click.echo(f"{market} is led by {leader or 'another node'}")


@click.group()
def market() -> None:
    """Create a market, or list what there is."""


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
    """Create a market at the asked node, and on every node that joins all. Done again, it changes nothing."""
    rules = parse_rules([f"tick_size={tick}", f"lot_size={lot}", *pairs])
    with connect(node_name, data_dir, timeout) as client:
        client.create_market(name, rules)
    if as_json_text:
        print_json({"market": name, "rules": rules})
        return
    click.echo(f"{name} takes orders, in ticks of {rules.tick_size} and lots of {rules.lot_size}")


@market.command("list")
@at_node
def list_markets(*, node_name: str | None, data_dir: Path | None, timeout: float, as_json_text: bool) -> None:
    """List every market of the exchange, and whether the asked node has joined it."""
    with connect(node_name, data_dir, timeout) as client:
        found = client.markets()
    if as_json_text:
        print_json(found)
        return
    rows = [("MARKET", "JOINED", "TICK", "LOT")]
    for each in found:
        rules = each["rules"] or {"tick_size": "-", "lot_size": "-"}
        rows.append((each["market"], "yes" if each["joined"] else "no", rules["tick_size"], rules["lot_size"]))
    click.echo("\n".join(table(rows)))
