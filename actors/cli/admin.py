"""What an operator asks of a node that runs."""

from __future__ import annotations

from pathlib import Path

import click

from .common import at_node, connect, print_json


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
