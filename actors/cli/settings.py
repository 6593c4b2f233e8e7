"""The settings of a node: check a file, and show the values in effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..settings import as_text
from ..tools.config import WrongFile, load_config, settings
from .common import GivenPath, print_json
from .output import Failure, say
from .serve import node_config, node_settings


@click.group()
def config() -> None:
    """Check a settings file, or show the settings that a node would use."""


@config.command()
@click.argument("file", type=GivenPath(exists=True, dir_okay=False))
def check(file: Path) -> None:
    """Check one TOML file: unknown keys, wrong types, invalid market rules.

    Prints a line for each error.
    """
    try:
        found = load_config(file=file, environment={}, flags={})
    except WrongFile as error:
        *before, last = error.slips
        for slip in before:
            Failure(slip, error.code).show()
        raise Failure(last, error.code) from error
    named = sorted(found.markets)
    if found.options["join_all"]:
        named.append(f"{'and all others' if named else 'all'}, also those created later")
    markets = ", ".join(named) or "none: give them by --market, --join or --join-all"
    say(f"{file} is sound: node {found.options['name']}, markets {markets}")


@config.command()
@node_settings
@click.option("--json", "as_json_text", is_flag=True, help="Print JSON.")
def show(*, as_json_text: bool, **flags: Any) -> None:
    """Show the settings that `openoutcry node` would use with the same options, and the source of each."""
    found = settings(node_config(**flags))
    if as_json_text:
        print_json({key: {"value": value, "source": source} for key, value, source in found})
        return
    for key, value, source in found:
        say(f"{key:<16}  {as_text(value)}  ({source})")
