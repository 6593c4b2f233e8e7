"""The ``openoutcry`` command: words and options in, calls of the library out, lines or JSON to read. Decides nothing.

Exit codes: 0 done; 1 refused, unavailable or failed, with one line on stderr that ends in the error's code; 2 usage;
74 standard output cannot be written, and what was asked may be done; 78 the settings are wrong; 75, of the processes
that stay: this machine's clock is behind, try again.
"""

from __future__ import annotations

from typing import Final

import click

from ..book import engine_build
from . import admin, coordinator, demo, disk, identity, replaying, serve, settings, show, trade
from .common import Group


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="openoutcry", message=f"%(prog)s %(version)s ({engine_build()} engine)")
def main() -> None:
    """A peer-to-peer exchange: every node holds the same order book, to the byte."""


_COMMANDS: Final[tuple[click.Command, ...]] = (
    serve.directory,
    serve.node,
    settings.config,
    trade.submit,
    trade.cancel,
    trade.amend,
    show.book,
    show.trades,
    show.orders,
    show.status,
    admin.transfer,
    admin.market,
    admin.clock,
    admin.force_leader,
    coordinator.coordinator,
    identity.identity,
    disk.verify,
    disk.log,
    replaying.replay,
    demo.demo,
)
for _command in _COMMANDS:
    main.add_command(_command)
