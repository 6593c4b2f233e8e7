"""The identities of an exchange's nodes: the authority that issues them, and their contents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import click

from ...transport.identity import AUTHORITY_DAYS, DAYS
from ...transport.identity_file import certificates, open_identity
from ...transport.numerals import hexadecimal_of
from .common import GivenPath, print_json
from .numbers import Whole
from .output import say
from .show import table

if TYPE_CHECKING:
    from ...transport.certificates import Authority

_FOLDER: Final = GivenPath(file_okay=False)
_FILE: Final = GivenPath(dir_okay=False)
_at_authority = click.option("--authority", "folder", type=_FOLDER, required=True, help="The authority's folder.")
_as_json = click.option("--json", "as_json_text", is_flag=True, help="Print JSON.")


@click.group()
def identity() -> None:
    """Give the nodes of an exchange identities: then links are TLS, and each node acts for its own accounts only."""


@identity.command("create-authority")
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.option("--name", default="Open Outcry", show_default=True, help="The authority's name in its certificate.")
@click.option("--days", type=Whole(), default=AUTHORITY_DAYS, show_default=True, help="Days until it expires.")
def create_authority(*, folder: Path, name: str, days: int) -> None:
    """Create the authority of a new exchange in DIR. Its key can create members: keep it off the nodes."""
    certificates().Authority.create(folder, name=name, days=days)
    say(f"{folder} holds the authority; its key is {folder / 'authority.key'}", done=True)


@identity.command()
@click.argument("name")
@_at_authority
@click.option(
    "--account",
    "accounts",
    multiple=True,
    metavar="PATTERN",
    help="An account that the node acts for, or the beginning of several and *. Repeatable.  [default: NAME, NAME/*]",
)
@click.option("--days", type=Whole(), default=DAYS, show_default=True, help="Days until it expires.")
@click.option("--out", type=_FILE, help="The file to write, which must not be there.  [default: NAME.pem]")
def issue(*, name: str, folder: Path, accounts: tuple[str, ...], days: int, out: Path | None) -> None:
    """Write the identity of a new node called NAME: its key, certificate and trusted authorities, in one file."""
    out = out or Path(f"{name}.pem")
    _open(folder).issue_file(out, name, accounts=accounts, days=days)
    said = open_identity(out).member
    say(f"{out}: node {said.name}, acts for {', '.join(said.accounts)}, until {said.ends}", done=True)


@identity.command("list")
@_at_authority
@_as_json
def list_issued(*, folder: Path, as_json_text: bool) -> None:
    """List what an authority has issued."""
    found = _open(folder).issued()
    if as_json_text:
        print_json([{**member.as_json(), "revoked": revoked} for member, revoked in found])
        return
    if not found:
        say(f"{folder} has issued no certificates yet; `openoutcry identity issue NAME --authority {folder}` does")
        return
    rows = [("NODE", "ACCOUNTS", "UNTIL", "SERIAL", "")]
    for member, revoked in found:
        rows.append(
            (member.name, ", ".join(member.accounts), member.ends, f"{member.serial:x}", "revoked" if revoked else "")
        )
    say(*table(rows))


@identity.command()
@click.argument("name")
@_at_authority
@click.option("--serial", metavar="HEX", help="Only the certificate with this serial number.")
def revoke(*, name: str, folder: Path, serial: str | None) -> None:
    """Revoke all certificates issued to NAME.

    It takes effect at a node once its identity has the list: add DIR/revoked.pem to its file, and restart it.
    """
    number = None if serial is None else hexadecimal_of(serial)
    if serial is not None and number is None:
        raise click.UsageError(f"--serial is a number in hexadecimal, as 1f00, not {serial!r:.80}")
    count = _open(folder).revoke(name, serial=number)
    what = "1 certificate" if count == 1 else f"{count} certificates"
    say(
        f"{what} of {name} revoked; add {folder / 'revoked.pem'} to the other nodes' identities, and restart them",
        done=True,
    )


@identity.command()
@click.argument("file", type=_FILE)
@_as_json
def show(*, file: Path, as_json_text: bool) -> None:
    """Check an identity file, and show its contents without the key."""
    said = open_identity(file).member
    if as_json_text:
        print_json(said.as_json())
        return
    for what, value in said.as_json().items():
        say(f"{what:<10}{', '.join(value) if isinstance(value, list) else value}")


def _open(folder: Path) -> Authority:
    return cast("Authority", certificates().Authority(folder))
