"""Commands to the exchange through a running node: submit, cancel, amend."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from ..book.commands import CancelReason, OrderType, SelfTradePrevention, TimeInForce
from ..control.client import ControlClient, fresh_id
from ..market.views import Cancelled, OrderRejected, OrderResult
from .common import as_request, choice, connect, print_json
from .numbers import Whole, WholeRange
from .output import Failure, OutputFailed, say

_IDS_MAX: Final = 20
"""Most order ids that a cancel-all prints; beyond, it prints how many more there are."""


def _command(
    call: Callable[[ControlClient, str], OrderResult],
    *,
    client_order_id: str | None,
    node_name: str | None,
    data_dir: Path | None,
    timeout: float,
    as_json_text: bool,
    cancels_all: bool = False,
) -> None:
    named = fresh_id() if client_order_id is None else client_order_id
    with connect(node_name, data_dir, timeout) as client:
        try:
            result = call(client, named)
        except KeyboardInterrupt:
            text = f"interrupted: the outcome is unknown; to learn it, repeat this with --client-order-id {named}"
            raise Failure(text, "interrupted") from None
        except OrderRejected as error:
            if as_json_text:
                with contextlib.suppress(OutputFailed):  # stderr says it too
                    print_json(error.result)
            raise
    if as_json_text:
        print_json(result, done=True)
        return
    done = _all_cancelled(result) if cancels_all else _done(result)
    again = " (answered before)" if result.duplicate else ""
    lines = [f"{done}, sequence {result.sequence}{again}, state {result.state_hash}"]
    for trade in result.trades:
        lines.append(f"  {'bought' if trade.side == 'buy' else 'sold'} {trade.quantity} at {trade.price}")
    for event in _cancelled(result, CancelReason.SELF_TRADE):
        if event.order_id != result.order_id or event.open_quantity:
            left = f", {event.open_quantity} left open" if event.open_quantity else ""
            lines.append(f"  order {event.order_id}: {event.quantity} cancelled, self-trade prevented{left}")
    say(*lines, done=True)


def _cancelled(result: OrderResult, reason: str) -> list[Cancelled]:
    return [event for event in result.events if isinstance(event, Cancelled) and event.reason == reason]


def _all_cancelled(result: OrderResult) -> str:
    """Return the orders that a cancel-all cancelled, without those that expired at the same time."""
    ids = [str(order_id) for order_id in result.cancelled_ids]
    if not ids:
        return "no open orders"
    more = f" and {len(ids) - _IDS_MAX} more" if len(ids) > _IDS_MAX else ""
    return f"{len(ids)} {'order' if len(ids) == 1 else 'orders'} cancelled: {', '.join(ids[:_IDS_MAX])}{more}"


def _done(result: OrderResult) -> str:
    """Return the state of the order, and the reason if a part was cancelled without a request."""
    order_id, why = result.order_id, ""
    if order_id is None:
        return result.status
    if any([event.order_id == order_id for event in _cancelled(result, CancelReason.UNFILLED)]):
        why = f": nothing {'more ' if result.trades else ''}to trade with at its price"
    elif result.status == "cancelled" and _cancelled(result, CancelReason.SELF_TRADE):
        why = ": self-trade prevented"
    return f"order {order_id} {result.status}{why}"


# Otherwise a negative price would count as an option.
@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("market")
@click.argument("side", type=click.Choice(["buy", "sell"], case_sensitive=False))
@click.argument("price")
@click.argument("quantity")
@click.option("--type", "order_type", type=choice(OrderType), default="limit", show_default=True)
@click.option("--tif", "time_in_force", type=choice(TimeInForce), help="[default: gtc, for a market order ioc]")
@click.option(
    "--expire-ns",
    type=Whole(),
    default=0,
    help="For gtd: nanoseconds since the Unix epoch; in an hour: $(date -d +1hour +%s%N).",
)
@click.option("--stp", "self_trade_prevention", type=choice(SelfTradePrevention), default="none", show_default=True)
@as_request
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
        lambda client, named: client.submit_order(
            market,
            side.lower(),
            None if price == "-" else price,
            quantity,
            order_type=order_type.lower(),
            time_in_force=time_in_force.lower() if time_in_force else None,
            expire_ns=expire_ns,
            self_trade_prevention=self_trade_prevention.lower(),
            account=account,
            client_order_id=named,
        ),
        client_order_id=client_order_id,
        **at,
    )


@click.command()
@click.argument("market")
@click.argument("order_id", type=WholeRange(1), required=False)
@click.option("--all", "all_orders", is_flag=True, help="Cancel all open orders of the account instead.")
@as_request
def cancel(
    *, market: str, order_id: int | None, all_orders: bool, account: str | None, client_order_id: str | None, **at: Any
) -> None:
    """Cancel the open quantity of an order."""
    if (order_id is None) != all_orders:
        raise click.UsageError("give an ORDER_ID, or --all")

    def call(client: ControlClient, named: str) -> OrderResult:
        if order_id is None:
            return client.cancel_all(market, account=account, client_order_id=named)
        return client.cancel_order(market, order_id, account=account, client_order_id=named)

    _command(call, client_order_id=client_order_id, cancels_all=all_orders, **at)


@click.command()
@click.argument("market")
@click.argument("order_id", type=WholeRange(1))
@click.option("--price", help="The new price.")
@click.option("--quantity", help="The new open quantity.")
@as_request
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
        lambda client, named: client.amend_order(
            market, order_id, price=price, quantity=quantity, account=account, client_order_id=named
        ),
        client_order_id=client_order_id,
        **at,
    )
