"""Shows what a running node knows: a book, trades, orders, its status."""

from __future__ import annotations

import contextlib
import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from ...transport.errors import Unavailable
from ...transport.plain import plain
from ..book.status import MarketStatus
from ..control.wire import ITEMS_MAX
from ..market.condition import READY, condition
from . import live
from .common import at_node, connect, print_json, watching
from .numbers import WholeRange
from .output import say


@contextlib.contextmanager
def _until_signal(watch: bool) -> Iterator[threading.Event]:
    """If ``watch``, a signal sets the event; otherwise it ends the process, as in any other command."""
    with watching() if watch else contextlib.nullcontext(threading.Event()) as ended:
        yield ended


@click.command()
@click.argument("market")
@click.option("--depth", type=WholeRange(1, ITEMS_MAX), default=10, show_default=True, help="Levels a side.")
@click.option("--watch", is_flag=True, help="Keep running: show the book again whenever it changes.")
@at_node
def book(
    *,
    market: str,
    depth: int,
    watch: bool,
    node_name: str | None,
    data_dir: Path | None,
    timeout: float,
    as_json_text: bool,
) -> None:
    """Show a market's book as the node's own replica has it."""
    known: int | None = None
    with _until_signal(watch) as ended, connect(node_name, data_dir, timeout, ended) as client:

        def view() -> list[str] | None:
            nonlocal known
            found = client.book(market, depth=depth, known=known)
            if found is None:
                return None
            if found["sequence"] == 0 and not watch:
                raise Unavailable(
                    f"market {market} is not ready: nothing is known of it yet; `openoutcry status` says why",
                    code="not_ready",
                )
            known = found["sequence"]
            return [json.dumps(found)] if as_json_text else book_lines(found)

        if watch:
            live.watch(view, ended, in_place=not as_json_text)
        else:
            say(*(view() or ()))


def book_lines(found: dict[str, Any]) -> list[str]:
    """Return the lines of a book: asks above bids, the best prices in the middle."""
    if found["sequence"] == 0:
        return [f"{found['market']}: not ready: nothing is known of it yet"]
    levels = [*found["bids"], *found["asks"]]
    at_price = max([5, *(len(level["price"]) for level in levels)])
    at_size = max([8, *(len(level["quantity"]) for level in levels)])
    lines = [f"{found['market']} at sequence {found['sequence']}, state {found['state_hash']}"]
    lines.append(f"{'orders':>6}  {'bid':>{at_size}}  {'price':>{at_price}}  {'ask':<{at_size}}  orders")
    for level in reversed(found["asks"]):
        price, size = f"{level['price']:>{at_price}}", f"{level['quantity']:<{at_size}}"
        lines.append(f"{'':6}  {'':{at_size}}  {price}  {size}  {level['orders']}")
    for level in found["bids"]:
        lines.append(f"{level['orders']:>6}  {level['quantity']:>{at_size}}  {level['price']:>{at_price}}")
    last = found["last_trade"]
    lines.append(f"last trade: {last['quantity']} at {last['price']}" if last else "no trade yet")
    return lines


@click.command()
@click.argument("market")
@click.option("--limit", type=WholeRange(1, ITEMS_MAX), default=20, show_default=True, help="How many.")
@click.option("--watch", is_flag=True, help="Keep running: print each trade from now on, in order, without gaps.")
@at_node
def trades(
    *,
    market: str,
    limit: int,
    watch: bool,
    node_name: str | None,
    data_dir: Path | None,
    timeout: float,
    as_json_text: bool,
) -> None:
    """List the last trades, newest first; with --watch those to come, as they happen."""
    with _until_signal(watch) as ended, connect(node_name, data_dir, timeout, ended) as client:
        if not watch:
            last = client.trades(market, limit=limit)
            if as_json_text:
                print_json(last)
            else:
                say(*([trade_line(trade) for trade in last] or [f"no trades in {market} yet"]))
            return
        sequence, _ = client.events(market, None)
        while not ended.is_set():
            sequence, events = client.events(market, sequence)
            for event in events:
                if event["kind"] == "trade":
                    say(json.dumps(event) if as_json_text else trade_line(event))
            ended.wait(live.WATCH_S)


def trade_line(trade: dict[str, Any]) -> str:
    """Return the line of a trade."""
    verb = "bought" if trade["side"] == "buy" else "sold"
    parties = f"{trade['taker_account']} {verb}, {trade['maker_account']} made"
    when = trade["timestamp"]
    return f"{when}  {trade['sequence']:>8}  #{trade['trade_id']}  {trade['quantity']} at {trade['price']}, {parties}"


@click.command()
@click.argument("market")
@click.option("--account", help="Whose orders.  [default: the node's name]")
@click.option("--limit", type=WholeRange(1, ITEMS_MAX), default=100, show_default=True, help="How many at most.")
@at_node
def orders(
    *,
    market: str,
    account: str | None,
    limit: int,
    node_name: str | None,
    data_dir: Path | None,
    timeout: float,
    as_json_text: bool,
) -> None:
    """List an account's open orders, oldest first."""
    with connect(node_name, data_dir, timeout) as client:
        found = client.orders(market, account=account, limit=limit)
        whose = client.name if account is None else account
    if as_json_text:
        print_json(found)
        return
    if not found:
        say(f"no open orders of {whose} in {market}")
    for order in found:
        sizes = f"{order['open_quantity']} of {order['quantity']}"
        say(f"{order['order_id']:>8}  {order['side']:<4}  {sizes} at {order['price']}")


@click.command()
@click.option("--watch", is_flag=True, help="Keep running: show the status again twice a second.")
@at_node
def status(*, watch: bool, node_name: str | None, data_dir: Path | None, timeout: float, as_json_text: bool) -> None:
    """Show the state of a node, its links and its markets."""
    with _until_signal(watch) as ended, connect(node_name, data_dir, timeout, ended) as client:

        def view() -> list[str]:
            found = client.status()
            return [json.dumps(found)] if as_json_text else status_lines(found)

        if watch:
            live.watch(view, ended, in_place=not as_json_text)
        else:
            say(*view())


def status_lines(found: dict[str, Any]) -> list[str]:
    """Return the lines of a node's status: the node and its peers, a row for each market, a row for each replica."""
    own, peers, markets = found["node_id"], found["peers"], found["markets"]
    names = names_of(found)
    lines = [f"node {found['name']} ({own}) at {found['address']}"]
    if identity := found["identity"]:
        lines.append(f"acts for {', '.join(identity['accounts'])}; its certificate ends {identity['ends']}")
    lines += [f"peer {peer['name']} ({at}): {_link_words(peer)}" for at, peer in peers.items()]
    if found["clock"]["off"]:
        ahead = ", ".join([f"{names.get(at, at)} {each:+.3f} s" for at, each in found["clock"]["offsets_s"].items()])
        lines.append(f"clock: off: others are ahead by {ahead}; set this machine's clock")
    if found["coordinator_error"]:
        lines.append(f"coordinator: {found['coordinator_error']}")
    lines += [f"failure: {failure}" for failure in found["failures"]]
    rows = [("MARKET", "ROLE", "READY", "EPOCH", "LEADER", "IN SYNC", "SEQUENCE", "ORDERS", "TRADES", "STATE")]
    replicas = [("MARKET", "REPLICA", "IN SYNC", "APPLIED", "DURABLE", "LAG")]
    troubles = []
    for name, market in [(name, MarketStatus.from_dict({"market": name, **each})) for name, each in markets.items()]:
        state, why = condition(market, own)
        if state != READY:
            troubles.append(f"{name}: {state.replace('_', ' ')}: {why}")
        if market.time_off_s:
            troubles.append(f"{name}: its time is off by {market.time_off_s:+.3f} s: see `openoutcry clock show`")
        if not market.answered:
            rows.append((name, market.role.replace("_", " "), "no", *["-"] * 7))
            continue
        leader = names.get(market.leader or "", market.leader) or "-"
        in_sync = ",".join([names.get(at, at) for at in market.in_sync]) or "-"
        role, ready = "observing" if market.observer else market.role, "yes" if market.ready else "no"
        counts = [str(count) for count in (market.applied, market.open_orders, market.trades)]
        rows.append((name, role, ready, str(market.epoch), leader, in_sync, *counts, market.state_hash))
        # Only a leader knows about other replicas.
        for at, replica in {own: {"applied": market.applied, "durable": market.durable}, **market.followers}.items():
            member = "leader" if at == market.leader else "yes" if at in market.in_sync else "no"
            lag = max(0, market.appended - replica["durable"])
            counts = [str(count) for count in (replica["applied"], replica["durable"], lag)]
            replicas.append((name, names.get(at, at), member, *counts))
    if markets:
        lines += ["", *table(rows), "", *table(replicas)]
    else:
        lines.append("no markets: this node has joined none")
    return [*lines, *troubles]


def names_of(found: dict[str, Any]) -> dict[str, str]:
    """Return how to show each node of a status, by id: its name, or its id if two nodes have the same name."""
    names = {found["node_id"]: found["name"], **{at: peer["name"] for at, peer in found["peers"].items()}}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    return {at: at if name in twice else name for at, name in names.items()}


def _link_words(peer: dict[str, Any]) -> str:
    if peer["other_coordinator"]:
        return "uses another coordinator: it belongs to another exchange"
    return "up" if peer["up"] else "down"


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the lines of a table: columns as wide as their longest cell, numbers aligned to the right."""
    columns = [
        [cell.rjust(width) if numeric else cell.ljust(width) for cell in column]
        for column in zip(*[[plain(cell) for cell in row] for row in rows], strict=True)
        for width in (max([len(cell) for cell in column]),)
        for numeric in (all([cell.isdecimal() or cell == "-" for cell in column[1:]]),)
    ]
    return ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
