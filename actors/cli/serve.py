"""The long-running processes: a rendezvous, and a node."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import click

from ...transport.errors import ConfigurationError, RequestTimeout, StorageError
from ...transport.identity import CLOCK_BEHIND
from ...transport.identity_file import open_identity
from ...transport.log import get_logger
from ...transport.rendezvous import Rendezvous
from ..control.server import ControlServer
from ..node import ExchangeNode, spare_gc
from ..settings import DIRECTORY_DEFAULT, LOG, SETTINGS, Setting, node_options, with_tls
from ..telemetry.health import healthz, readyz
from ..telemetry.logs import FORMATS, LogOutput
from ..telemetry.service import ServiceManager
from ..tools.config import NodeConfig, load_config
from .common import GivenPath, options, until_signalled, wait_for
from .numbers import Number, Whole
from .output import BadSettings, Failure, say

logger = get_logger(__name__)

_LOOK_S: Final = 0.5
_WAITS_S: Final = 5.0
"""Seconds after which the log reports a market that is still not ready: its name may be mistyped."""
STOP_S_MAX: Final = 30.0
"""Seconds that a node may take after SIGTERM to hand over, answer and close."""

_TYPES: Final[dict[type, Any]] = {int: Whole(), float: Number(), Path: GivenPath()}


def _flag(name: str, setting: Setting) -> Callable[[Any], Any]:
    """Return the flag of a setting; its value is None, or empty, if not given."""
    flag, kind = name.replace("_", "-"), setting.kind
    summary = setting.help.partition(". ")[0].removesuffix(".")
    return click.option(
        f"--{flag}/--no-{flag}" if kind.python is bool else f"--{flag}",
        default=None,
        type=click.Choice(kind.choices) if kind.choices else _TYPES.get(kind.python),
        multiple=kind.python is tuple,
        metavar=kind.metavar,
        help=f"{summary}.{' Repeatable.' if kind.python is tuple else ''}  [default: {setting.default_text}]",
    )


log_settings = options(*[_flag(name, setting) for name, setting in LOG.items()])
node_settings = options(
    click.option("--config", "file", type=GivenPath(), help="The TOML file."),
    click.option(
        "--market", "markets", multiple=True, metavar="NAME[:KEY=VALUE,…]", help="A market to open. Repeatable."
    ),
    click.option("--join", multiple=True, metavar="NAME", help="A market to join that another node opens. Repeatable."),
    *[_flag(name, setting) for name, setting in SETTINGS.items() if name not in LOG],
    log_settings,
)


def node_config(*, file: Path | None, markets: tuple[str, ...], join: tuple[str, ...], **flags: Any) -> NodeConfig:
    """Return the settings that the options of :data:`node_settings`, the environment and the file make together."""
    return load_config(
        file=file, environment=os.environ, flags=flags, market_flags=[*markets, *(f"{name}:join=true" for name in join)]
    )


PASSING: Final = frozenset({"address_in_use", "data_dir_in_use"})
"""Codes of a ConfigurationError that a restart may cure: the previous process is still ending."""


class TryAgain(Failure):
    """This machine's clock is behind: the service manager starts the process again, until it is right."""

    exit_code = os.EX_TEMPFAIL


@contextlib.contextmanager
def judged_settings() -> Iterator[None]:
    """Turn a ConfigurationError of the block into the exit code 78, except those in :data:`PASSING`.

    A damaged file of the data directory (``corrupt``) exits with 78 too: no restart mends it.
    75 if a certificate is not valid yet by this machine's clock: that passes when the clock is set.
    """
    try:
        yield
    except ConfigurationError as error:
        if error.code in PASSING:
            raise
        if error.code == CLOCK_BEHIND:
            raise TryAgain(error.message, error.code) from error
        raise BadSettings(error.message, error.code) from error
    except StorageError as error:
        if error.code == "corrupt":
            raise BadSettings(error.message, error.code) from error
        raise


@click.command()
@click.option("--listen", help=f"Where nodes reach it; port 0 = any.  [default: {DIRECTORY_DEFAULT}]")
@click.option("--advertise", help="Its address as nodes reach it, where that differs.")
@click.option("--peer", "peers", multiple=True, help="Address of another rendezvous, to tell nodes of. Repeatable.")
@click.option("--identity", type=GivenPath(), help="Its key and certificate: it talks to members only then.")
@log_settings
def directory(
    *,
    listen: str | None,
    advertise: str | None,
    peers: tuple[str, ...],
    identity: Path | None,
    log_format: str | None,
    log_level: str | None,
    log_file: Path | None,
) -> None:
    """Run a rendezvous alone: the place where nodes find each other. Ends on SIGTERM or SIGINT.

    The exit code is 78 if the settings are wrong: a restart does not help. 75: this machine's clock is behind.
    """
    with (
        judged_settings(),
        LogOutput(form=log_format or FORMATS[0], level=log_level or "info", file=log_file) as log,
        until_signalled(on_hangup=log.reopen) as ended,
        _rendezvous(listen, peers, advertise, identity) as rendezvous,
    ):
        say(rendezvous.address)
        wait_for(ended)


def _rendezvous(listen: str | None, peers: tuple[str, ...], advertise: str | None, identity: Path | None) -> Rendezvous:
    default = DIRECTORY_DEFAULT if identity is None else with_tls(DIRECTORY_DEFAULT)
    known = None if identity is None else open_identity(identity)
    return Rendezvous(listen or default, peers=peers, advertise=advertise, identity=known)


@click.command()
@node_settings
@click.option("--exit-with", "parent", type=Whole(), hidden=True, help="End, too, when the parent is not this process.")
def node(*, parent: int | None, **flags: Any) -> None:
    """Run a node until SIGTERM or SIGINT. It logs to stderr, and the other commands reach it through its data
    directory.

    Settings come from flags, OPENOUTCRY_* variables, a TOML file ($OPENOUTCRY_CONFIG, or openoutcry.toml in
    $OPENOUTCRY_HOME) and defaults, in that order. The exit code is 78 if they are wrong: a restart does not help.
    75: the node's certificate is not valid yet by this machine's clock; a restart helps once the clock is right.
    """
    with judged_settings():
        config = node_config(**flags)
        options = config.options
        if not (config.markets or options["join_all"] or options["observe"]):
            raise ConfigurationError(
                "the node has no market: give --market NAME, --join-all, or a section [markets.NAME] in the file"
            )
        with (
            LogOutput(
                form=options["log_format"], level=options["log_level"], file=options["log_file"], node=options["name"]
            ) as log,
            until_signalled(on_hangup=log.reopen) as ended,
            ends_within(STOP_S_MAX, ended),
        ):
            if parent is not None:
                threading.Thread(target=_end_with, args=(parent, ended), name="parent-watch", daemon=True).start()
            _run(config, ended)


@contextlib.contextmanager
def ends_within(seconds: float, ended: threading.Event) -> Iterator[None]:
    """End the process with exit code 1 if the block has not ended in time after ``ended``."""
    done = threading.Event()

    def enforce() -> None:
        ended.wait()
        if not done.wait(seconds):
            logger.critical("node_stuck", seconds=seconds, threads=[thread.name for thread in threading.enumerate()])
            logging.shutdown()  # writes the waiting lines
            os._exit(1)

    threading.Thread(target=enforce, name="end-enforcer", daemon=True).start()
    try:
        yield
    finally:
        done.set()
        ended.set()


def _in_words(node: ExchangeNode) -> tuple[bool, str]:
    """Return whether the process works, and the state of the node in one line.

    ``/healthz`` and this line report a failed market. Ending the process would take the other markets down without
    hand-over, and this one would fail again.
    """
    _, health = healthz(node)
    _, found = readyz(node)
    markets = [f"{name} {market['state']}" for name, market in sorted(found["markets"].items())]
    stuck = any([market["state"] == "unresponsive" for market in found["markets"].values()])
    at_work = not (stuck or (node.phase == "running" and node.dead_actors(books=False)))
    return at_work, "; ".join([*health.get("failures", ()), *markets]) or found["state"]


def _end_with(parent: int, ended: threading.Event) -> None:
    while os.getppid() == parent:
        if ended.wait(_LOOK_S):
            return
    ended.set()


def _run(config: NodeConfig, ended: threading.Event) -> None:
    """Run the node until ``ended``, and shut down in order."""
    manager = ServiceManager(os.environ)
    with ExitStack() as closing:
        closing.callback(manager.end)
        manager.begin(None)
        exchange_node = ExchangeNode(config.options["name"], markets=config.markets, **node_options(config.options))
        closing.callback(exchange_node.close)
        server = ControlServer(exchange_node)
        closing.callback(server.close)
        closing.callback(exchange_node.close)
        closing.callback(server.withdraw)
        manager.begin(lambda: _in_words(exchange_node))
        manager.tell(READY=1)
        logger.info(
            "node_started",
            node=exchange_node.node_id,
            address=exchange_node.address,
            data_dir=exchange_node.data_dir,
        )
        quiet_until_s = time.monotonic() + _WAITS_S
        while not ended.is_set():
            try:
                exchange_node.wait_ready(0.5)
            except RequestTimeout as error:
                if time.monotonic() > quiet_until_s:
                    quiet_until_s = math.inf
                    logger.warning("node_waits", node=exchange_node.node_id, error=error)
                continue
            except ConfigurationError as error:
                if error.market is None:
                    raise
                raise ConfigurationError(
                    f"{error.message}. To join with the market's own rules, use --join {shlex.quote(error.market)}, or "
                    "join = true in the file, in place of rules",
                    code=error.code,
                    market=error.market,
                ) from error
            logger.info("node_ready", markets=sorted(exchange_node.markets))
            break
        spare_gc()
        wait_for(ended)
        manager.tell(STOPPING=1)
        logger.info("node_closing")
    logger.info("node_closed")
