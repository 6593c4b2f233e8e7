"""Identity: who a node is, and which accounts it may act for. Pure; :mod:`.certificates` reads and makes the files.

Each node of an exchange that has identities holds one PEM file: its private key, its certificate, and the certificates
of the authorities that it trusts, perhaps with lists of what these have revoked. What a certificate says:

* the common name is the node's name: a node may not announce itself, speak or listen under another;
* the DNS names are that name, which those who dial the node check, and :data:`MEMBER`, which those who dial a
  rendezvous check: any member may be one;
* URIs ``openoutcry:account:PATTERN`` are the accounts that the node may act for: a name, or the beginning of names and
  ``*``. Without any: the account of its own name, and those below it, ``NAME/*``.

Links are TLS with certificates on both sides. nng reports the common name of the other end. The certificate
itself travels in the first frame; the receiver checks it, and that it has this name.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

from .errors import AccessDenied, ConfigurationError

SCHEME: Final = "tls+tcp"
MEMBER: Final = "openoutcry"
"""The DNS name that all certificates of an exchange share; no node may be called so."""
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""Names that a node with an identity may have: its certificate holds the name like a host's."""
DAYS: Final = 365
"""Days that a node's certificate is valid by default."""
AUTHORITY_DAYS: Final = 3650
CERTIFICATE_REFUSED: Final = "certificate_refused"
"""Code of the ProtocolError of a node that is not who it claims to be, or not a member."""
CLOCK_BEHIND: Final = "clock_behind"
"""Code of the error of a certificate that is not valid yet by this machine's clock: the clock may be wrong."""
CERTIFICATE_SIZE_MAX: Final = 16_384
"""Largest certificate, in bytes of DER."""
_SHOWN_MAX: Final = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """What a certificate says about a node."""

    name: str
    accounts: tuple[str, ...]
    """Patterns: see the module's docstring."""
    ends_ns: int
    """When the certificate ends, in nanoseconds since the Unix epoch."""
    serial: int
    _exact: frozenset[str] = dataclasses.field(init=False, repr=False, compare=False)
    _beginnings: tuple[str, ...] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        exact = frozenset([pattern for pattern in self.accounts if not pattern.endswith("*")])
        object.__setattr__(self, "_exact", exact)
        object.__setattr__(self, "_beginnings", tuple([each[:-1] for each in self.accounts if each.endswith("*")]))

    @property
    def ends(self) -> str:
        """When the certificate ends, for people."""
        return date_of(datetime.fromtimestamp(self.ends_ns / 1e9, UTC))

    def as_json(self) -> dict[str, Any]:
        """Return what the certificate says, as JSON would carry it."""
        return {"name": self.name, "accounts": list(self.accounts), "ends": self.ends, "serial": f"{self.serial:x}"}

    def denied(self, accounts: Iterable[str]) -> AccessDenied | None:
        """Return the error if the node may not submit, amend and cancel for each of ``accounts``; else None."""
        for account in accounts:
            if account not in self._exact and not account.startswith(self._beginnings):
                shown = ", ".join(self.accounts[:_SHOWN_MAX]) + (", …" if len(self.accounts) > _SHOWN_MAX else "")
                return AccessDenied(
                    f"node {self.name} may act for {shown:.200}, not for account {account!r:.80}: its certificate says "
                    "so, and the exchange's authority can issue another. Nothing was executed"
                )
        return None


def date_of(when: datetime) -> str:
    """Return a time in UTC as people read it."""
    return f"{when:%Y-%m-%d %H:%M} UTC"


def name_of(node: str) -> str:
    """Return the name in a node's id, ``NAME.xxxxxxxx``."""
    return node.rpartition(".")[0]


def check_addresses(addresses: Iterable[str], identity: object | None) -> None:
    """Check that every address uses TLS if there is an identity, and none does otherwise.

    Raises:
        ConfigurationError: code ``insecure_address``, or ``no_identity``.
    """
    for address in addresses:
        secure = address.startswith(f"{SCHEME}://")
        if identity is not None and not secure:
            raise ConfigurationError(
                f"{address:.255} is an address without TLS; with an identity it is {SCHEME}://HOST:PORT",
                code="insecure_address",
            )
        if identity is None and secure:
            raise ConfigurationError(
                f"{address:.255} is an address of TLS, which needs an identity", code="no_identity"
            )
