"""The processes that stay: a rendezvous, and a node."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from ...transport.errors import ConfigurationError, RequestTimeout
from ...transport.rendezvous import Rendezvous
from ..config import DIRECTORY_DEFAULT, load_config
from ..control import ControlServer
from ..node import ExchangeNode
from ..replay_run import spare_gc
from .common import until_signalled

logger = logging.getLogger(__name__)


@click.command()
@click.option("--listen", default=DIRECTORY_DEFAULT, show_default=True, help="Where nodes reach it; port 0 = any.")
@click.option("--advertise", help="Its address as nodes reach it, where that differs.")
@click.option("--peer", "peers", multiple=True, help="Address of another rendezvous, to tell nodes of. Repeatable.")
def directory(listen: str, advertise: str | None, peers: tuple[str, ...]) -> None:
    """Run a rendezvous alone: the place where nodes find each other. Ends on SIGTERM or SIGINT."""
    with until_signalled() as ended, Rendezvous(listen, peers=peers, advertise=advertise) as rendezvous:
        click.echo(rendezvous.address)
        ended.wait()


@click.command()
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
    with until_signalled() as ended, ExitStack() as closing:
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
