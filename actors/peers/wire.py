"""What nodes say about themselves over a link, and the names that they may have. Values only.

A link's life: each side dials the other's inbox and sends :class:`Hello` again and again; the link is up when each has
echoed the other's session. See :mod:`.life`.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Final

from ...transport import codec
from ...transport.codec import NAME_LENGTH_MAX
from ...transport.errors import ConfigurationError, ProtocolError, quoted
from ...transport.identity import CERTIFICATE_SIZE_MAX
from ...transport.plain import fault_of
from ...transport.sockets import checked_address


def checked_node_name(name: str) -> str:
    """Return ``name`` if a node may have it: it names a folder, and appears in log lines.

    Raises:
        ConfigurationError: it is too long, may be mistaken for another name, or cannot be part of a path.
    """
    sound = isinstance(name, str) and 1 <= len(name) <= NAME_LENGTH_MAX
    if not sound or "/" in name or name in (".", "..") or fault_of(name):
        raise ConfigurationError(
            f"a node's name has 1 to {NAME_LENGTH_MAX} characters that can be seen, none of them '/', and is not . or "
            f"..; not {quoted(name, 80)}{f': {fault_of(name)}' if sound else ''}"
        )
    return name


NodeId = Annotated[str, codec.Name(80, 1)]


def _address(value: Any, name: str) -> str:
    try:
        return checked_address(codec.ADDRESS(value, name))
    except ConfigurationError as error:
        raise ProtocolError(f"{name}: {error.message}") from None


NO_COORDINATOR: Final = "-"
"""What a node without markets and without a coordinator says instead of a coordinator's id."""


def may_link(one: str, other: str) -> bool:
    """Return whether nodes with these coordinators may have a link: they share theirs, or not both have one."""
    return one == other or NO_COORDINATOR in (one, other)


@dataclasses.dataclass(frozen=True, slots=True)
class Hello:
    """Introduces the sender on this link. Repeated as the link's heartbeat.

    ``session`` numbers the sender's life of the link; ``echo`` is the receiver's session that the sender last received,
    0 before. ``to`` is the id of the node that the sender expects; another may listen at that address now.
    ``coordinator`` is the id of the sender's coordinator: nodes that do not share it must not share a market.
    It is :data:`NO_COORDINATOR` for a node that has only actors, and no markets.

    Hellos compare clocks: ``wall_ns`` is the sender's wall clock, ``ping_ns`` its monotonic one; ``pong_ns`` is
    the last ping that it has received, ``held_ns`` ago.
    """

    node: NodeId
    name: Annotated[str, codec.Name(NAME_LENGTH_MAX, 1)]
    address: Annotated[str, _address]
    coordinator: Annotated[str, codec.Str(80, 1)]
    session: Annotated[int, codec.Int(1)]
    echo: Annotated[int, codec.Int(0)]
    to: NodeId
    wall_ns: Annotated[int, codec.Int(0)] = 0
    ping_ns: Annotated[int, codec.Int(0)] = 0
    pong_ns: Annotated[int, codec.Int(0)] = 0
    held_ns: Annotated[int, codec.Int(0)] = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Credentials:
    """The sender's certificate (DER), sent before its first hello. Between nodes with identities only."""

    certificate: Annotated[bytes, codec.Bytes(CERTIFICATE_SIZE_MAX, 1)]


LINK_KINDS: Final[dict[int, type]] = {1: Hello, 14: Credentials}
"""Messages from a PeerActor to the inbox's reader, by the number of their kind on the wire."""
LINK_CODEC: Final[codec.Codec[Any]] = codec.Codec(LINK_KINDS)
