"""The ``openoutcry`` command: words and options in, calls of the library out, lines or JSON to read. Decides nothing.

Exit codes: 0 done; 1 refused, unavailable or failed, with one line on stderr that ends in the error's code; 2 usage.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from ..transport.errors import ConfigurationError, InvalidRequest, OpenOutcryError, RequestTimeout, Unavailable
from ..transport.rendezvous import Rendezvous
from . import inspection
from .book.commands import OrderType, SelfTradePrevention, TimeInForce
from .config import DIRECTORY_DEFAULT, ENV_PREFIX, home_folder, load_config
from .control import ITEMS_MAX, ControlClient, ControlServer, read_control_file, running_nodes
from .node import ExchangeNode
from .replay import BookRow, final_book_hash, read_flow
from .replay_run import ReplayNodes, spare_gc
from .views import OrderRejected, OrderResult, as_json

logger = logging.getLogger(__name__)

_WATCH_S: Final = 0.1


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


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="openoutcry")
def main() -> None:
    """A peer-to-peer exchange: every node holds the same order book, to the byte."""


# -- processes that stay -------------------------------------------------------------------------------------------


@main.command()
@click.option("--listen", default=DIRECTORY_DEFAULT, show_default=True, help="Where nodes reach it; port 0 = any.")
@click.option("--advertise", help="Its address as nodes reach it, where that differs.")
@click.option("--peer", "peers", multiple=True, help="Address of another rendezvous, to tell nodes of. Repeatable.")
def directory(listen: str, advertise: str | None, peers: tuple[str, ...]) -> None:
    """Run a rendezvous alone: the place where nodes find each other. Ends on SIGTERM or SIGINT."""
    with _until_signalled() as ended, Rendezvous(listen, peers=peers, advertise=advertise) as rendezvous:
        click.echo(rendezvous.address)
        ended.wait()


@main.command()
@click.option("--config", "file", type=click.Path(path_type=Path), help="The TOML file.")
@click.option("--name", help="What people call the node; also the default account of its orders.  [default: node]")
@click.option("--market", "markets", multiple=True, metavar="NAME[:KEY=VALUE,…]", help="A market to open. Repeatable.")
@click.option("--join", multiple=True, metavar="NAME", help="A market to join that another node opens. Repeatable.")
@click.option("--directory", multiple=True, help=f"A rendezvous' address. Repeatable.  [default: {DIRECTORY_DEFAULT}]")
@click.option("--serve-directory", help="Be a rendezvous too, at this address.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="For its journals.  [default: HOME/nodes/NAME]")
@click.option("--coordinator", help="The SQLite file, or etcd://HOST:PORT,…/PREFIX, that all nodes share.")
@click.option("--listen", help="Where other nodes reach this one.  [default: tcp://127.0.0.1:0]")
@click.option("--advertise", help="The address to announce where it differs from --listen.")
@click.option("--ttl-ms", type=int, help="How long the directory remembers a silent node.  [default: 2000]")
@click.option("--min-in-sync", type=int, help="Replicas that hold a command before it is answered.  [default: 1]")
@click.option("--timeout", type=float, help="The default bound of a request, in seconds.  [default: 5]")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[default: info]")
def node(
    *, file: Path | None, markets: tuple[str, ...], join: tuple[str, ...], log_level: str | None, **flags: Any
) -> None:
    """Run a node until SIGTERM or SIGINT. It logs to stderr, and the other commands reach it by its data directory.

    Settings come from flags, OPENOUTCRY_* variables, a TOML file ($OPENOUTCRY_CONFIG, or openoutcry.toml in
    $OPENOUTCRY_HOME) and defaults, in that order.
    """
    logging.basicConfig(
        level=(log_level or "info").upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
    )
    config = load_config(
        file=file, environment=os.environ, flags=flags, market_flags=[*markets, *(f"{name}:join=true" for name in join)]
    )
    if not config.markets:
        raise ConfigurationError("the node has no market: give --market NAME, or a section [markets.NAME] in the file")
    with _until_signalled() as ended, ExitStack() as closing:
        exchange_node = ExchangeNode(
            config.name,
            markets=config.markets,
            directory=[address for address in config.directory if address != config.serve_directory],
            data_dir=config.data_dir,
            coordinator=config.coordinator,
            listen=config.listen,
            advertise=config.advertise,
            serve_directory=config.serve_directory,
            ttl_ms=config.ttl_ms,
            min_in_sync=config.min_in_sync,
            timeout=config.timeout,
        )
        closing.callback(exchange_node.close)
        server = ControlServer(exchange_node)
        closing.callback(server.close)
        closing.callback(exchange_node.close)
        closing.callback(server.withdraw)
        logger.info("node %s at %s, data in %s", config.name, exchange_node.address, exchange_node.data_dir)
        while not ended.is_set():
            try:
                exchange_node.wait_ready(0.5)
            except RequestTimeout as error:
                logger.debug("%s", error)
                continue
            logger.info("node %s is ready: %s", config.name, ", ".join(sorted(config.markets)))
            break
        spare_gc()
        ended.wait()
        logger.info("node %s is closing", config.name)


@contextlib.contextmanager
def _until_signalled() -> Iterator[threading.Event]:
    """Set the event on SIGTERM or SIGINT, instead of what these do otherwise."""
    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- requests to a running node ------------------------------------------------------------------------------------

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _options(*options: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_at_node = _options(
    click.option("--node", "node_name", metavar="NAME", help="The node to ask.  [default: the only one that runs]"),
    click.option("--data-dir", type=click.Path(path_type=Path), help="The same, by its data directory."),
    click.option("--timeout", type=float, default=5.0, show_default=True, help="Seconds to wait for the answer."),
    click.option("--json", "as_json_text", is_flag=True, help="Print JSON."),
)
_as_request = _options(
    click.option("--account", help="On whose behalf.  [default: the node's name]"),
    click.option("--client-order-id", help="Names the request: a retry gets the first answer back."),
    _at_node,
)


def _client(node_name: str | None, data_dir: Path | None, timeout: float) -> ControlClient:
    """Return the link to the node that the options mean."""
    if node_name and data_dir:
        raise click.UsageError("--node and --data-dir name the same thing: give one of them")
    if not 0 < timeout <= 60:
        raise click.UsageError("--timeout is above 0 and at most 60 seconds")
    if data_dir is None and node_name is None and (variable := os.environ.get(f"{ENV_PREFIX}DATA_DIR")):
        data_dir = Path(variable).expanduser()
    if data_dir is None:
        home = home_folder(os.environ)
        data_dir = home / "nodes" / node_name if node_name else None
        if data_dir is None or read_control_file(data_dir) is None:
            running = running_nodes(home)
            listed = ", ".join(running) or "none"
            if node_name is None and len(running) == 1:
                (data_dir,) = running.values()
            elif node_name in running:
                data_dir = running[node_name]
            elif node_name is None and running:
                raise InvalidRequest(f"several nodes run here: {listed}; choose one with --node", code="ambiguous_node")
            else:
                what = f"node {node_name} does not run" if node_name else "no node runs"
                raise Unavailable(f"{what} below {home}; there run: {listed}", code="node_not_running")
    return ControlClient(data_dir, timeout=timeout)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(as_json(value)))


def _command(
    call: Callable[[ControlClient], OrderResult],
    *,
    node_name: str | None,
    data_dir: Path | None,
    timeout: float,
    as_json_text: bool,
) -> None:
    with _client(node_name, data_dir, timeout) as client:
        try:
            result = call(client)
        except OrderRejected as error:
            if as_json_text:
                _print_json(error.result)
            raise
    if as_json_text:
        _print_json(result)
        return
    order = f"order {result.order_id} " if result.order_id is not None else ""
    again = " (answered before)" if result.duplicate else ""
    click.echo(f"{order}{result.status}, sequence {result.sequence}{again}, state {result.state_hash}")
    for trade in result.trades:
        click.echo(f"  {'bought' if trade.side == 'buy' else 'sold'} {trade.quantity} at {trade.price}")


def _choice(kind: Any) -> click.Choice[str]:
    return click.Choice([member.name.lower() for member in kind], case_sensitive=False)


# A negative price is no option.
@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("market")
@click.argument("side", type=click.Choice(["buy", "sell"], case_sensitive=False))
@click.argument("price")
@click.argument("quantity")
@click.option("--type", "order_type", type=_choice(OrderType), default="limit", show_default=True)
@click.option("--tif", "time_in_force", type=_choice(TimeInForce), help="[default: gtc, for a market order ioc]")
@click.option("--expire-ns", type=int, default=0, help="For gtd: nanoseconds since the Unix epoch.")
@click.option("--stp", "self_trade_prevention", type=_choice(SelfTradePrevention), default="none", show_default=True)
@_as_request
def submit(
    *,
    market: str,
    side: str,
    price: str,
    quantity: str,
    order_type: str,
    time_in_force: str | None,
    expire_ns: int,
    self_trade_prevention: str,
    account: str | None,
    client_order_id: str | None,
    **at: Any,
) -> None:
    """Submit an order, and wait until it is durable and executed.

    PRICE and QUANTITY are decimals, as in 100.25; the price of a market order is its bound, or "-" for none.
    """
    _command(
        lambda client: client.submit_order(
            market,
            side.lower(),
            None if price == "-" else price,
            quantity,
            order_type=order_type.lower(),
            time_in_force=time_in_force.lower() if time_in_force else None,
            expire_ns=expire_ns,
            self_trade_prevention=self_trade_prevention.lower(),
            account=account,
            client_order_id=client_order_id,
        ),
        **at,
    )


@main.command()
@click.argument("market")
@click.argument("order_id", type=click.IntRange(1), required=False)
@click.option("--all", "every", is_flag=True, help="Cancel all open orders of the account instead.")
@_as_request
def cancel(
    *, market: str, order_id: int | None, every: bool, account: str | None, client_order_id: str | None, **at: Any
) -> None:
    """Cancel what is left of an order."""
    if (order_id is None) != every:
        raise click.UsageError("give an ORDER_ID, or --all")

    def call(client: ControlClient) -> OrderResult:
        if order_id is None:
            return client.cancel_all(market, account=account, client_order_id=client_order_id)
        return client.cancel_order(market, order_id, account=account, client_order_id=client_order_id)

    _command(call, **at)


@main.command()
@click.argument("market")
@click.argument("order_id", type=click.IntRange(1))
@click.option("--price", help="The new price.")
@click.option("--quantity", help="The new open quantity.")
@_as_request
def amend(
    *,
    market: str,
    order_id: int,
    price: str | None,
    quantity: str | None,
    account: str | None,
    client_order_id: str | None,
    **at: Any,
) -> None:
    """Give an order a new price, a new open quantity, or both."""
    if price is None and quantity is None:
        raise click.UsageError("give --price, --quantity, or both")
    _command(
        lambda client: client.amend_order(
            market, order_id, price=price, quantity=quantity, account=account, client_order_id=client_order_id
        ),
        **at,
    )


@main.command()
@click.argument("market")
@click.option("--depth", type=click.IntRange(1, ITEMS_MAX), default=10, show_default=True, help="Levels a side.")
@click.option("--watch", is_flag=True, help="Go on: show the book anew whenever it has changed.")
@_at_node
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
    with _client(node_name, data_dir, timeout) as client, _until_signalled() as ended:
        known: int | None = None
        while not ended.is_set():
            found = client.book(market, depth=depth, known=known)
            if found is not None:
                known = found["sequence"]
                if watch and not as_json_text and sys.stdout.isatty():
                    click.clear()
                if as_json_text:
                    _print_json(found)
                else:
                    click.echo("\n".join(_book_lines(found)))
            if not watch:
                return
            ended.wait(_WATCH_S)


def _book_lines(found: dict[str, Any]) -> list[str]:
    """Return the lines of a book: asks above bids, the best prices in the middle."""
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


@main.command()
@click.argument("market")
@click.option("--limit", type=click.IntRange(1, ITEMS_MAX), default=20, show_default=True, help="How many.")
@click.option("--watch", is_flag=True, help="Go on: print each trade from now on, in order, without gaps.")
@_at_node
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
    with _client(node_name, data_dir, timeout) as client, _until_signalled() as ended:
        if not watch:
            last = client.trades(market, limit=limit)
            if as_json_text:
                _print_json(last)
            else:
                for trade in last:
                    click.echo(_trade_line(trade))
            return
        sequence, _ = client.events(market, None)
        while not ended.is_set():
            sequence, events = client.events(market, sequence)
            for event in events:
                if event["kind"] == "trade":
                    click.echo(json.dumps(event) if as_json_text else _trade_line(event))
            ended.wait(_WATCH_S)


def _trade_line(trade: dict[str, Any]) -> str:
    verb = "bought" if trade["side"] == "buy" else "sold"
    parties = f"{trade['taker_account']} {verb}, {trade['maker_account']} made"
    return f"{trade['sequence']:>8}  #{trade['trade_id']}  {trade['quantity']} at {trade['price']}, {parties}"


@main.command()
@click.argument("market")
@click.option("--account", help="Whose.  [default: the node's name]")
@click.option("--limit", type=click.IntRange(1, ITEMS_MAX), default=100, show_default=True, help="How many at most.")
@_at_node
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
    with _client(node_name, data_dir, timeout) as client:
        found = client.orders(market, account=account, limit=limit)
    if as_json_text:
        _print_json(found)
        return
    for order in found:
        sizes = f"{order['open_quantity']} of {order['quantity']}"
        click.echo(f"{order['order_id']:>8}  {order['side']:<4}  {sizes} at {order['price']}")


@main.command()
@_at_node
def status(node_name: str | None, data_dir: Path | None, timeout: float, as_json_text: bool) -> None:
    """Show the state of a node, its links and its markets."""
    with _client(node_name, data_dir, timeout) as client:
        found = client.status()
    if as_json_text:
        _print_json(found)
        return
    click.echo("\n".join(_status_lines(found)))


@main.command()
@click.argument("market")
@click.option("--to", metavar="NODE", help="Who is to lead, by name or id.  [default: any that is in sync]")
@_at_node
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
    with _client(node_name, data_dir, timeout) as client:
        leader = client.transfer(market, to)
    if as_json_text:
        _print_json({"market": market, "leader": leader})
        return
    click.echo(f"{market} is led by {leader or 'another node'}")


def _status_lines(found: dict[str, Any]) -> list[str]:
    """Return a node's status: what it is and knows, a row for each market, and one for each replica it knows of."""
    own, peers, markets = found["node_id"], found["peers"], found["markets"]
    names = {own: found["name"], **{at: peer["name"] for at, peer in peers.items()}}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    names = {at: at if name in twice else name for at, name in names.items()}
    lines = [f"node {found['name']} ({own}) at {found['address']}"]
    lines += [f"peer {peer['name']} ({at}): {'up' if peer['up'] else 'down'}" for at, peer in peers.items()]
    if found["coordinator_error"]:
        lines.append(f"coordinator: {found['coordinator_error']}")
    lines += [f"failure: {failure}" for failure in found["failures"]]
    rows = [("MARKET", "ROLE", "READY", "EPOCH", "LEADER", "IN SYNC", "SEQUENCE", "ORDERS", "TRADES", "STATE")]
    replicas = [("MARKET", "REPLICA", "IN SYNC", "APPLIED", "DURABLE", "LAG")]
    troubles = []
    for name, market in markets.items():
        if market["error"]:
            troubles.append(f"{name}: error: {market['error']}")
        if market.get("repairing"):
            troubles.append(f"{name}: being made good from a peer: {market['repairing']}")
        if "applied" not in market:
            rows.append((name, "stopped", "no", *["-"] * 7))
            continue
        leader = names.get(market["leader"], market["leader"]) or "-"
        in_sync = ",".join([names.get(at, at) for at in market["in_sync"]]) or "-"
        role, ready = "observing" if market.get("observer") else market["role"], "yes" if market["ready"] else "no"
        counts = [str(market[key]) for key in ("applied", "open_orders", "trades")]
        rows.append((name, role, ready, str(market["epoch"]), leader, in_sync, *counts, market["state_hash"]))
        # Only a leader knows of others than itself.
        for at, replica in {own: market, **market["followers"]}.items():
            member = "leader" if at == market["leader"] else "yes" if at in market["in_sync"] else "no"
            lag = max(0, market["appended"] - replica["durable"])
            counts = [str(count) for count in (replica["applied"], replica["durable"], lag)]
            replicas.append((name, names.get(at, at), member, *counts))
    if markets:
        lines += ["", *_table(rows), "", *_table(replicas)]
    return [*lines, *troubles]


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the lines of a table: columns as wide as they have to be, whole numbers to the right."""
    columns = [
        [cell.rjust(width) if numeric else cell.ljust(width) for cell in column]
        for column in zip(*rows, strict=True)
        for width in (max([len(cell) for cell in column]),)
        for numeric in (all([cell.isdecimal() or cell == "-" for cell in column[1:]]),)
    ]
    return ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]


# -- a stopped node's disk -----------------------------------------------------------------------------------------

_FOLDER: Final = click.Path(exists=True, file_okay=False, path_type=Path)


@main.command()
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.option("--json", "as_json_text", is_flag=True, help="Print JSON.")
def verify(folder: Path, as_json_text: bool) -> None:
    """Check what a node that does not run has on its disk, and change nothing there.

    DIR is a node's data directory, or the folder of one market in it. Checked are the checksums, the hash chain and the
    snapshots, and that the log, executed from its beginning, leads to one state that holds together. The exit code is 0
    if all is sound, and 1 if something is damaged: what is printed then says where, and what to do.
    """
    with inspection.held(folder):
        folders, aside = inspection.market_folders(folder)
        reports = []
        for market, path in folders.items():
            with click.progressbar(length=1, label=f"reading {market}", file=sys.stderr) as bar:

                def on_progress(more: int, in_all: int, bar: Any = bar) -> None:
                    bar.length = in_all
                    bar.update(more)

                reports.append(inspection.verify_market(market, path, on_progress))
    damaged = [report.market for report in reports if not report.sound]
    if as_json_text:
        _print_json({"sound": not damaged, "markets": reports, "put_aside": [str(path) for path in aside]})
    else:
        for report in reports:
            click.echo("\n".join(_report_lines(report)))
        for path in aside:
            click.echo(f"{path}: was put aside as damaged, and not checked")
    if damaged:
        raise _Failure(f"damaged: {', '.join(damaged)}", "damaged")


def _report_lines(report: inspection.MarketReport) -> list[str]:
    log = f"{report.records} with {report.commands} commands"
    values = {
        "records": f"{log}, after sequence {report.begins_after}" if report.begins_after else log,
        "last sequence": report.sequence,
        "epoch": report.epoch,
        "chain": report.chain[:16],
        "state hash": report.state_hash or "unknown",
        "committed": report.committed,
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


@main.command()
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.argument("market")
@click.option("--from", "first", type=click.IntRange(1), default=1, help="The first sequence number.")
@click.option("--to", "last", type=click.IntRange(1), help="The last sequence number.")
@click.option(
    "--events", "with_events", is_flag=True, help="Execute the log, and print below each command what it did."
)
@click.option("--json", "as_json_text", is_flag=True, help="Print a line of JSON for each command.")
def log(*, folder: Path, market: str, first: int, last: int | None, with_events: bool, as_json_text: bool) -> None:
    """Print a market's log as a node that does not run has it on its disk.

    DIR is the node's data directory. A line is a command's sequence number, epoch and time (by the leader's clock, in
    UTC), and what was asked, by whom. What is behind the committed mark that `verify` shows may still be cut.
    """
    with inspection.held(folder):
        folders, _ = inspection.market_folders(folder)
        if market not in folders:
            raise InvalidRequest(
                f"{folder} has no market {market}; it has: {', '.join(folders)}", code="unknown_market"
            )
        for logged in inspection.read_log(folders[market], first=first, last=last, with_events=with_events):
            if as_json_text:
                _print_json(inspection.command_fields(logged))
                continue
            when = inspection.time_words(logged.timestamp_ns)
            click.echo(f"{logged.sequence:>8}  {logged.epoch:>3}  {when}  {inspection.command_words(logged)}")
            for event in inspection.events_of(logged):
                click.echo(f"{'':>47}{inspection.event_words(event)}")


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
@click.option("--json", "as_json_text", is_flag=True, help="Print the report as JSON.")
def replay(file: Path, nodes: int, batch: int, via: str, as_json_text: bool) -> None:
    """Feed recorded order flow through real node processes, and compare what they trade with what the venue did.

    FILE is CSV, plain or .gz, with the columns seq,ts_ns,cmd,order_id,side,price_ticks,qty,expect. The exit code is 0
    if every fill is as expected and all nodes end with the same book.
    """
    if via == "follower" and nodes < 2:
        raise click.UsageError("one node alone has no follower: use --nodes 2 or more")
    rows_in_file = len(read_flow(file))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with ReplayNodes(nodes) as exchange:
        feeder = exchange.role("leading" if via == "leader" else "following")
        with click.progressbar(length=rows_in_file, label="replaying", file=sys.stderr) as bar:
            fed = exchange.ask(feeder, ("feed", file, batch), on_progress=bar.update)
        ends = [exchange.ask(at, ("end", fed["sequence"])) for at in range(nodes)]
    flow_ids: dict[int, str] = fed.pop("flow_ids")
    found = []
    for name, state_hash, resting in ends:
        rows: list[BookRow] = [(side, ticks, flow_ids.get(at, f"?{at}"), lots) for side, ticks, at, lots in resting]
        hashes = {"state_hash": state_hash, "book_hash": final_book_hash(rows)}
        found.append({"node": name, **hashes, "open_orders": len(rows)})
    equal = len({(end["state_hash"], end["book_hash"]) for end in found}) == 1
    report = {"file": str(file), "via": via, **fed, "nodes": found, "equal": equal}
    if as_json_text:
        _print_json(report)
    else:
        _show_replay(report)
    if fed["differences"] or not equal:
        raise _Failure("the replay does not end as it should", "replay_differs")


def _show_replay(report: dict[str, Any]) -> None:
    rate = f"{report['commands_per_s']:,} commands/s, submitted at the {report['via']}"
    click.echo(f"{report['commands']:,} commands in {report['seconds']:.2f} s: {rate}")
    click.echo(f"{report['fills']:,} fills, {report['differences']:,} differences from the venue")
    for line in report["first_differences"]:
        click.echo(f"  {line}")
    for end in report["nodes"]:
        state = f"{end['open_orders']:,} orders, state {end['state_hash']}"
        click.echo(f"{end['node']}: book {end['book_hash'][:16]}, {state}")
    click.echo("equal on all nodes" if report["equal"] else "the nodes DIFFER")
