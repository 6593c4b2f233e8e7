"""The ``openoutcry`` command: words and options in, calls of the library out, lines or JSON to read. Decides nothing.

Exit codes: 0 done; 1 refused, unavailable or failed, with one line on stderr that ends in the error's code; 2 usage;
74 standard output cannot be written, though the command may have been carried out; 78 the settings, or a file of the
node, are wrong; 75, of node and directory: this machine's clock is behind, try again.
"""

from __future__ import annotations

import importlib
from collections.abc import MutableMapping
from typing import Any, Final

import click

from ..book import engine_build
from .output import Group

COMMANDS: Final = {
    "directory": ("serve", "Run a rendezvous alone: the place where nodes find each other."),
    "node": ("serve", "Run a node until SIGTERM or SIGINT."),
    "config": ("settings", "Check a settings file, or show the settings that a node would use."),
    "submit": ("trade", "Submit an order, and wait until it is durable and executed."),
    "cancel": ("trade", "Cancel the open quantity of an order."),
    "amend": ("trade", "Give an order a new price, a new open quantity, or both."),
    "book": ("show", "Show a market's book as the node's own replica has it."),
    "trades": ("show", "List the last trades, newest first; with --watch those to come, as they happen."),
    "orders": ("show", "List an account's open orders, oldest first."),
    "status": ("show", "Show the state of a node, its links and its markets."),
    "transfer": (
        "admin",
        "Hand the leadership of MARKET over to another node; the asked node must lead it.",
    ),
    "market": ("admin", "Create a market, or list all markets."),
    "clock": ("admin", "Compare a node's clock with others', or set a market's time to it."),
    "force-leader": ("admin", "Make a node lead MARKET after all in-sync replicas are lost."),
    "coordinator": ("coordinator", "The store that says who leads each market, and who is in sync."),
    "identity": (
        "identity",
        "Give the nodes of an exchange identities: then links are TLS, and each node acts for its own accounts only.",
    ),
    "verify": ("disk", "Check the disk of a stopped node without changing it."),
    "log": ("disk", "Print a market's log from the disk of a stopped node."),
    "replay": (
        "replaying",
        "Send recorded order flow through real node processes, and compare their trades with the recorded ones.",
    ),
    "demo": (
        "demo",
        "Run an exchange on this machine, in a temporary folder, with bots that trade at all of its nodes.",
    ),
}
"""Each command's module, and its help in one sentence. A command is the function of its name there."""


class _Commands(Group):
    """Imports the module of a command on demand: ``--help`` and ``--version`` need none of them."""

    @property
    def commands(self) -> MutableMapping[str, click.Command]:
        """Every command, imported."""
        return {name: self._imported(name) for name in COMMANDS}

    @commands.setter
    def commands(self, _: Any) -> None:
        """Leave click's own table alone."""

    def _imported(self, name: str) -> click.Command:
        module = importlib.import_module(f".{COMMANDS[name][0]}", __name__)
        command: click.Command = getattr(module, name.replace("-", "_"))
        return command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, as help lists them."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name."""
        del ctx
        return self._imported(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, sentence) for name, (_, sentence) in COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="openoutcry", message=f"%(prog)s %(version)s ({engine_build()} engine)")
def main() -> None:
    """A peer-to-peer exchange: every node holds the same order book, to the byte."""
